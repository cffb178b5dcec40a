"""The policy pack in the real engine: each rule stops the stack that breaks it, and no other rule does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.spec import CHECKOUT
from infra.policy.rules import RULES
from tests.infra.double.cloud import cloud
from tests.infra.stack import Stack
from tests.unit.infra.aws.world import FLEET

PACK = str(CHECKOUT / "infra" / "policy" / "pack.py")
NAMES = tuple(rule.name for rule in RULES)


@pytest.fixture(scope="module")
def stack(pulumi_environment: dict[str, str], infra_folder: Path) -> Iterator[Stack]:
    principals = {
        "CELLWALL_POLICY_ROUTER": FLEET.router_principal,
        "CELLWALL_POLICY_CELLS": FLEET.cell_principal,
        "CELLWALL_POLICY_ACCOUNT": FLEET.account,
    }
    folder = infra_folder / "policy"
    with cloud(folder, {**pulumi_environment, **principals}) as (_, environ):
        yield Stack("violating", "cell-1", folder, environ, programs=CHECKOUT / "tests" / "infra")


def test_a_stack_that_breaks_no_rule_passes(stack: Stack) -> None:
    stack.environ["CELLWALL_VIOLATES"] = "none"
    said = stack.run("preview", "--policy-pack", PACK).ok().said
    assert [name for name in NAMES if name in said] == []


@pytest.mark.parametrize("rule", NAMES)
def test_a_violation_is_stopped_by_its_rule(stack: Stack, rule: str) -> None:
    stack.environ["CELLWALL_VIOLATES"] = rule
    said = stack.run("preview", "--policy-pack", PACK).refused("[mandatory]").said
    assert [name for name in NAMES if name in said] == [rule]
    assert "bad (" in said, "the message names no resource"


@pytest.mark.parametrize("name", ["CELLWALL_POLICY_ROUTER", "CELLWALL_POLICY_CELLS", "CELLWALL_POLICY_ACCOUNT"])
def test_a_pack_that_is_not_told_whom_to_let_through_lets_nothing_through(stack: Stack, name: str) -> None:
    stack.environ["CELLWALL_VIOLATES"] = "none"
    told = stack.environ.pop(name)
    try:
        stack.run("preview", "--policy-pack", PACK).refused(f"the policy pack needs {name}")
    finally:
        stack.environ[name] = told
