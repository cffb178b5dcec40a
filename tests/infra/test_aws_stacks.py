"""The stacks of AWS, driven by the real engine against a double of the provider (tests/infra/double)."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.aws import configuration
from infra.aws.configuration import Configuration
from infra.local.spec import CHECKOUT
from tests.infra.double.account import Account
from tests.infra.stack import Ran, Stack
from tests.unit.infra.aws.world import FLEET, IMAGE, ROOTS, spec, token

pytestmark = pytest.mark.timeout(900)

PACK = str(CHECKOUT / "infra" / "policy" / "pack.py")


class Fleet:
    """The stacks of one account."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        programs = folder / "bin"
        programs.mkdir()
        plugin = programs / "pulumi-resource-aws"
        plugin.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.infra.double.provider "$@"\n')
        plugin.chmod(0o755)
        self._folder, account = folder, folder / "account"
        account.mkdir()
        self.account = Account(account)
        self._environ = {
            **environ,
            "PATH": f"{programs}{os.pathsep}{environ['PATH']}",
            "PYTHONPATH": str(CHECKOUT),
            "CELLWALL_DOUBLE_ACCOUNT": str(account),
            "CELLWALL_POLICY_ROUTER": FLEET.router_principal,
            "CELLWALL_POLICY_CELLS": FLEET.cell_principal,
        }

    def stack(self, program: str, name: str, config: Configuration, **environ: str) -> Stack:
        made = Stack(program, name, self._folder, {**self._environ, **environ})
        settings: list[str] = []
        for key, setting in config.items():
            settings += ["--secret" if setting.secret else "--plaintext", f"{key}={setting.value}"]
        made.run("config", "set-all", *settings).ok()
        return made

    def platform(self) -> Stack:
        return self.stack("platform", "main", configuration.platform(FLEET))

    def control_plane(self) -> Stack:
        return self.stack("control_plane", "main", configuration.control_plane(FLEET, ROOTS, IMAGE, token))

    def cell(self, name: str) -> Stack:
        return self.stack("cell", name, configuration.cell(FLEET, spec(name), ROOTS, token))

    def router(self, *cells: str) -> Stack:
        config = configuration.router(FLEET, ROOTS, IMAGE, cells, "cwo_1_x", token)
        return self.stack("router", "main", config)


@pytest.fixture(scope="module")
def fleet(pulumi_environment: dict[str, str], infra_folder: Path) -> Fleet:
    folder = infra_folder / "aws"
    folder.mkdir()
    return Fleet(folder, {**pulumi_environment, "PULUMI_BACKEND_URL": f"file://{folder}"})


def changes(ran: Ran) -> dict[str, int]:
    """What the summary of an `up` counts."""
    summary = ran.ok().said.rpartition("Resources:")[2]
    words = [line.split() for line in summary.splitlines()]
    return {line[-1]: int(line[-2]) for line in words if len(line) >= 2 and line[-2].isdigit()}


def test_a_fleet_comes_up_through_a_failure_and_then_stays_as_it_is(fleet: Fleet) -> None:
    ground, plane = fleet.platform(), fleet.control_plane()
    ground.do("up").ok()
    plane.do("up").ok()

    one = fleet.cell("cell-1")
    passed = one.run("preview", "--policy-pack", PACK).ok()
    assert "cellwall" in passed.said

    one.environ["CELLWALL_DOUBLE_FAIL"] = "cell-1-shard-2"  # a failure in the middle
    one.do("up").refused("the double was told to fail here")
    del one.environ["CELLWALL_DOUBLE_FAIL"]
    assert changes(one.do("up"))["created"] > 0
    assert set(changes(one.do("up"))) == {"unchanged"}

    two, router = fleet.cell("cell-2"), fleet.router("cell-1", "cell-2")
    two.do("up").ok()
    router.do("up").ok()
    services = {stack.outputs()["service_name"] for stack in (one, two)}
    assert len(services) == 2
