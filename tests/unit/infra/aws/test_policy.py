"""The policy pack lets the fleet through, and reads from the engine what the rules need."""

from types import SimpleNamespace
from typing import Any

import pytest
from pulumi_policy.proxy import UNKNOWN_STRING_VALUE, unknown_checking_proxy

from infra.policy import pack
from infra.policy.allowed import ENGINE, PARTS, TAGGED, TYPES, UNTAGGED
from infra.policy.model import UNKNOWN
from infra.policy.rules import RULES
from tests.infra.double.typed import _shape, arguments
from tests.unit.infra.aws.policies import TRUSTED, faults, recorded
from tests.unit.infra.aws.world import World, spec

STACKS = [
    "cellwall-platform/main",
    "cellwall-control-plane/main",
    "cellwall-router/main",
    "cellwall-cell/cell-1",
    "cellwall-cell/cell-2",
]


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_the_fleet_passes(world: World, stack: str, rule: str) -> None:
    assert faults(rule, recorded(world.stacks[stack])) == []


@pytest.mark.parametrize("size", ["S", "L"])
def test_a_cell_of_another_size_passes(world: World, size: str) -> None:
    cell = recorded(world.cell(spec("cell-1", size=size)))
    assert [fault for rule in RULES for fault in faults(rule.name, cell)] == []


def test_the_list_of_types_is_what_the_components_make(world: World) -> None:
    made: dict[str, set[str]] = {}
    for recording in world.stacks.values():
        for asked in recording.custom:
            if asked.type not in ENGINE:
                part = recording.project.removeprefix("cellwall-")
                made.setdefault(asked.type.removeprefix("aws:"), set()).add(part)
    assert {kind: set(parts) for kind, parts in TYPES.items()} == made
    assert {part for parts in TYPES.values() for part in parts} == set(PARTS)


def test_the_types_that_take_tags_are_those_of_the_sdk() -> None:
    assert {kind for kind in TYPES if "tags" in _shape(arguments(f"aws:{kind}"))[0]} == TAGGED
    assert set(TYPES) >= UNTAGGED


def test_a_cell_of_another_name_is_not_let_through_as_cell_1(world: World) -> None:
    told = recorded(world.stacks["cellwall-cell/cell-2"])
    other = type(told)(told.project, "cell-1", told.resources, told.trusted)
    assert any("has cell-2 in its tag cellwall:cell" in fault for fault in faults("one-cell-per-stack", other))
    assert any("names the cell cell-2, not cell-1" in fault for fault in faults("bounded-roles", other))


def test_a_cell_whose_data_is_released_is_reported(world: World) -> None:
    cell = recorded(world.cell(spec("cell-1"), keep="false"))
    assert any("has no deletion protection" in fault for fault in faults("data-kept", cell))


def test_the_pack_reads_properties_that_pulumi_does_not_know_yet() -> None:
    props = unknown_checking_proxy({"kmsKeyId": UNKNOWN_STRING_VALUE, "tags": {"Name": "x"}, "list": [1.0, "a"]})
    assert pack.known(props) == {"kmsKeyId": UNKNOWN, "tags": {"Name": "x"}, "list": [1.0, "a"]}


def told_by_engine(kind: str, name: str, made_from: dict[str, list[Any]] | None = None) -> Any:
    urn = f"urn:pulumi:cell-1::cellwall-cell::{kind}::{name}"
    return SimpleNamespace(
        resource_type=kind, name=name, urn=urn, props={}, opts=SimpleNamespace(protect=None),
        property_dependencies=made_from or {},
    )  # fmt: skip


def test_the_pack_takes_project_name_and_references_from_the_engine() -> None:
    key = told_by_engine("aws:kms/key:Key", "key")
    secret = told_by_engine("aws:secretsmanager/secret:Secret", "s", {"kmsKeyId": [key]})
    foreign = told_by_engine("aws-native:s3:Bucket", "b")
    args: Any = SimpleNamespace(resources=[key, secret, foreign])
    stack = pack.stack(args, TRUSTED)
    assert (stack.project, stack.name, stack.part, stack.cell) == ("cellwall-cell", "cell-1", "cell", "cell-1")
    assert stack.resources[1].references == {"kmsKeyId": frozenset({("kms/key:Key", "key")})}
    assert stack.resources[2].type == "aws-native:s3:Bucket"


def test_a_stack_without_resources_breaks_no_rule() -> None:
    args: Any = SimpleNamespace(resources=[])
    assert [fault for rule in RULES for fault in rule.check(pack.stack(args, TRUSTED))] == []
