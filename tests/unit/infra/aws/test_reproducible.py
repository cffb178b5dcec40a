"""Two cells of one spec are one cell twice; a version touches the services alone."""

import json
from collections.abc import Mapping
from typing import Any

from infra.aws import configuration
from tests.unit.infra.aws.world import FLEET, NEXT_IMAGE, ROOTS, Recorded, World, ident, spec, token


def renamed(recorded: Recorded) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    """The stack's graph with its name, generated ids and derived keys replaced by what they are."""
    ids: dict[str, str] = {}

    def settled(text: str) -> str:
        for known, name in ids.items():
            text = text.replace(known, name)
        return text.replace(recorded.stack, "CELL")

    for name, setting in configuration.cell(FLEET, spec(recorded.stack), ROOTS, token).items():
        if setting.secret:
            ids[setting.value] = f"<{name}>"
    for asked in recorded.resources:
        ids[ident(recorded.stack, asked.type, asked.name)] = f"<{asked.type} {settled(asked.name)}>"
    return {
        (asked.type, settled(asked.name), settled(asked.parent)): json.loads(settled(json.dumps(dict(asked.inputs))))
        for asked in recorded.resources
    }


def test_two_cells_of_one_spec_differ_in_names_and_ids_only(world: World) -> None:
    one, two = (renamed(world.stacks[f"cellwall-cell/{name}"]) for name in ("cell-1", "cell-2"))
    assert set(one) == set(two)
    for key, inputs in one.items():
        assert inputs == two[key], f"{key} differs"


def test_the_comparison_of_cells_sees_a_difference(world: World) -> None:
    one = renamed(world.stacks["cellwall-cell/cell-1"])
    two = renamed(world.cell(spec("cell-2", size="M")))
    assert {key[0] for key in one if one[key] != two[key]} >= {
        "aws:rds/cluster:Cluster",
        "aws:elasticache/replicationGroup:ReplicationGroup",
        "aws:ecs/taskDefinition:TaskDefinition",
    }


def test_a_new_version_touches_the_services_only(world: World) -> None:
    before = {asked.key: asked.inputs for asked in world.stacks["cellwall-cell/cell-1"].resources}
    after = world.cell(spec("cell-1", version="0.2.0", images={"api": NEXT_IMAGE, "worker": NEXT_IMAGE}))
    assert {asked.key for asked in after.resources} == set(before)
    changed = {asked.key for asked in after.resources if asked.inputs != before[asked.key]}
    assert changed == {
        ("aws:ecs/taskDefinition:TaskDefinition", "cell-1-api"),
        ("aws:ecs/taskDefinition:TaskDefinition", "cell-1-worker"),
    }


def changed_tasks(world: World, **changes: Any) -> set[str]:
    """The names of what differs, all of them task definitions, where a cell is told these changes."""
    before = {asked.key: asked.inputs for asked in world.stacks["cellwall-cell/cell-1"].resources}
    after = {asked.key: asked.inputs for asked in world.cell(spec("cell-1", **changes)).resources}
    assert set(after) == set(before)
    changed = {key for key in after if after[key] != before[key]}
    assert {kind for kind, _ in changed} == {"aws:ecs/taskDefinition:TaskDefinition"}
    return {name for _, name in changed}


def test_a_version_alone_touches_the_api_that_reports_it(world: World) -> None:
    assert changed_tasks(world, version="0.2.0") == {"cell-1-api"}


def test_a_schema_reaches_every_process_that_checks_it(world: World) -> None:
    assert changed_tasks(world, schema="0003") == {"cell-1-api", "cell-1-worker"}
    for task in world.cell(spec("cell-1", schema="0003")).of("ecs/taskDefinition:TaskDefinition"):
        for container in json.loads(task.inputs["containerDefinitions"]):
            assert {"name": "CELLWALL_CELL_SCHEMA", "value": "0003"} in container["environment"], container["name"]


def test_a_cell_reports_the_version_that_it_was_deployed_as(world: World) -> None:
    tasks = world.cell(spec("cell-1", version="0.2.0")).of("ecs/taskDefinition:TaskDefinition")
    api = next(task for task in tasks if task.name == "cell-1-api")
    containers = json.loads(api.inputs["containerDefinitions"])
    told = next(c["environment"] for c in containers if c["name"] == "api")
    assert {"name": "CELLWALL_CELL_VERSION", "value": "0.2.0"} in told


def test_the_same_program_twice_asks_for_the_same(world: World) -> None:
    again = world.cell(spec("cell-1"))
    assert {a.key: a.inputs for a in again.resources} == {
        a.key: a.inputs for a in world.stacks["cellwall-cell/cell-1"].resources
    }


def test_a_shard_more_adds_one_cluster_and_leaves_the_others(world: World) -> None:
    before = {a.key: a.inputs for a in world.stacks["cellwall-cell/cell-1"].of("rds/cluster:Cluster")}
    after = {a.key: a.inputs for a in world.cell(spec("cell-1", shards=3)).of("rds/cluster:Cluster")}
    assert set(after) - set(before) == {("aws:rds/cluster:Cluster", "cell-1-shard-3")}
    assert all(after[key] == inputs for key, inputs in before.items())
