"""The stacks of AWS, driven by the real engine against a double of the provider (tests/infra/double)."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.aws import configuration
from infra.aws.configuration import Configuration
from infra.local.spec import CHECKOUT
from tests.infra.double.account import Account
from tests.infra.double.cloud import cloud
from tests.infra.stack import PATIENCE_S, Ran, Stack
from tests.unit.infra.aws.world import FLEET, IMAGE, NEXT_IMAGE, ROOTS, spec, token

PRINCIPALS = {
    "CELLWALL_POLICY_ROUTER": FLEET.router_principal,
    "CELLWALL_POLICY_CELLS": FLEET.cell_principal,
    "CELLWALL_POLICY_ACCOUNT": FLEET.account,
}
PACK = str(CHECKOUT / "infra" / "policy" / "pack.py")


class Fleet:
    """The stacks of one account."""

    def __init__(self, folder: Path, account: Account, environ: Mapping[str, str]) -> None:
        self.folder, self.account, self._environ = folder, account, dict(environ)

    def stack(self, program: str, name: str, config: Configuration, **environ: str) -> Stack:
        made = Stack(program, name, self.folder, {**self._environ, **environ})
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
def fleet(pulumi_environment: dict[str, str], infra_folder: Path) -> Iterator[Fleet]:
    folder = infra_folder / "aws"
    with cloud(folder, {**pulumi_environment, **PRINCIPALS}) as (account, environ):
        yield Fleet(folder, account, environ)


def changes(ran: Ran) -> dict[str, int]:
    """What the summary of an operation counts."""
    summary = ran.ok().said.rpartition("Resources:")[2]
    return {kind: int(number) for number, kind in re.findall(r"(\d+) ([a-z]+)$", summary, re.MULTILINE)}


def graph(stack: Stack, folder: Path) -> dict[str, Any]:
    """The stack's resources as the engine keeps them, with ids and the stack's name replaced by what they stand for."""
    file = folder / f"{stack.name}.json"
    stack.run("stack", "export", "--file", str(file)).ok()
    resources = json.loads(file.read_text())["deployment"]["resources"]
    kept = {
        each["urn"]: {
            "inputs": each.get("inputs"),
            "parent": each.get("parent"),
            "dependencies": sorted(each.get("dependencies") or ()),
        }
        for each in resources
    }
    text = re.sub(r'"ciphertext": "[^"]+"', '"ciphertext": ""', json.dumps(kept))
    for each in resources:
        if each.get("id"):
            text = text.replace(each["id"], f"<{each['urn']}>")
    found: dict[str, Any] = json.loads(text.replace(stack.name, "CELL"))
    return found


def side_by_side(stacks: Sequence[Stack], work: Callable[[Stack], None]) -> None:
    """Two at a time, of stacks that have nothing in common but the account.

    A stack must not work while another one reads its outputs: a backend in files writes state in place.
    """
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, stacks))


def comes_up(stack: Stack) -> None:
    assert changes(stack.do("up"))["created"] > 0


def stays_as_it_is(stack: Stack) -> None:
    assert set(changes(stack.do("up"))) == {"unchanged"}, f"{stack.name}: a second up changes something"
    assert set(changes(stack.do("refresh"))) == {"unchanged"}, f"{stack.name}: a refresh finds a difference"


def keeps_its_data(stack: Stack) -> None:
    stack.do("destroy").refused("cannot be deleted")


def release(stack: Stack) -> None:
    """The step before destroying on purpose; it touches data and what guards it, and nothing else."""
    stack.run("config", "set", "cellwall:keep", "false").ok()
    assert set(changes(stack.do("up"))) <= {"updated", "unchanged"}


def destroy(stack: Stack) -> None:
    stack.do("destroy").ok()


def takes_version(stack: Stack, key: str, value: str, services: int) -> None:
    """A new version touches each service and its task definition."""
    stack.run("config", "set", key, value).ok()
    counted = changes(stack.do("up"))
    assert {kind: counted.get(kind) for kind in ("updated", "replaced", "created", "deleted")} == {
        "updated": services,
        "replaced": services,
        "created": None,
        "deleted": None,
    }, stack.name


def is_interrupted(fleet: Fleet, stack: Stack) -> None:
    """Ctrl-C while a resource is being made: the engine waits for it, writes its state and ends."""
    fleet.account.hold_at(f"{stack.name}-shard-1")
    with stack.start("up") as running:
        patience = time.monotonic() + PATIENCE_S
        while not fleet.account.holds:
            assert running.poll() is None, "it ended too soon"
            assert time.monotonic() < patience, "the database is not made"
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGINT)
        assert running.stdout is not None
        heard = any("cancelling" in line for line in running.stdout)
        fleet.account.hold_at(None)
        said, _ = running.communicate(timeout=PATIENCE_S)
    assert heard
    assert running.returncode != 0, said
    made = set(fleet.account.idents())
    stack.run("stack", "export", "--file", str(fleet.folder / "interrupted.json")).ok()
    resources = json.loads((fleet.folder / "interrupted.json").read_text())["deployment"]["resources"]
    known = {each["id"] for each in resources if each.get("id")}
    orphans = {ident for ident in made - known if f"::{stack.name}" in fleet.account.idents()[ident]}
    assert orphans == set(), "the engine does not know what it made"


def is_repaired(fleet: Fleet, stack: Stack) -> None:
    """What somebody changed or took away by hand is seen by a refresh, and put right by the next up."""
    account, rule = fleet.account, f"SecurityGroupIngressRule::{stack.name}-database-from-api-5432"
    policy = f"appautoscaling/policy:Policy::{stack.name}-worker"
    account.change(rule, fromPort=1, toPort=65535)
    account.delete(account.ident(policy))
    seen = changes(stack.do("refresh"))
    assert {kind: seen[kind] for kind in seen if kind != "unchanged"} == {"updated": 1, "deleted": 1}
    repaired = changes(stack.do("up"))
    assert {kind: repaired[kind] for kind in repaired if kind != "unchanged"} == {"updated": 1, "created": 1}
    told = account.read(account.ident(rule)) or {}
    assert (told["fromPort"], told["toPort"]) == (5432, 5432)
    assert account.ident(policy)


def grows(fleet: Fleet, stack: Stack) -> None:
    """A bigger size and one more shard, in place: what holds data stays the same resource."""
    account, first = fleet.account, f"rds/cluster:Cluster::{stack.name}-shard-1"
    before = account.ident(first)
    bigger = spec(stack.name, size="M", shards=3)
    stack.run("config", "set", "cellwall:cell", json.dumps(bigger.mapping())).ok()
    counted = changes(stack.do("up"))
    assert (counted["replaced"], counted.get("deleted")) == (2, None), "more than the tasks was replaced"
    assert account.ident(first) == before
    least, most = bigger.sized.database_acu
    for number in (1, 2, 3):
        told = account.read(account.ident(f"rds/cluster:Cluster::{stack.name}-shard-{number}")) or {}
        assert told["serverlessv2ScalingConfiguration"] == {"minCapacity": least, "maxCapacity": most}


def test_a_fleet_is_born_through_a_failure_changes_and_ends(fleet: Fleet) -> None:
    ground, plane = fleet.platform(), fleet.control_plane()
    for stack in (ground, plane):
        stack.run("preview", "--policy-pack", PACK).ok()
        stack.do("up").ok()

    one, two = fleet.cell("cell-1"), fleet.cell("cell-2")
    assert "cellwall" in one.run("preview", "--policy-pack", PACK).ok().said
    fleet.account.fail_at("cell-1-shard-2")  # a failure in the middle
    one.do("up").refused("the double was told to fail here")
    fleet.account.fail_at(None)
    is_interrupted(fleet, two)
    side_by_side([one, two], comes_up)
    assert len({stack.outputs()["service_name"] for stack in (one, two)}) == 2
    first, second = (graph(stack, fleet.folder) for stack in (one, two))
    assert first == second, "two cells of one spec differ in more than names and ids"

    router = fleet.router("cell-1", "cell-2")
    router.run("preview", "--policy-pack", PACK).ok()
    router.do("up").ok()
    stacks = (ground, plane, one, two, router)
    levels = ([ground], [plane], [one, two], [router])
    for level in levels:
        side_by_side(level, stays_as_it_is)

    newer = spec("cell-1", images={"api": NEXT_IMAGE, "worker": NEXT_IMAGE}).mapping()
    versions = {
        one: ("cellwall:cell", json.dumps(newer), 2),
        plane: ("cellwall:image", NEXT_IMAGE, 2),
        router: ("cellwall:image", NEXT_IMAGE, 1),
    }
    for stack, version in versions.items():
        takes_version(stack, *version)

    is_repaired(fleet, one)
    grows(fleet, two)

    before = fleet.account.idents()
    side_by_side(stacks, keeps_its_data)
    assert fleet.account.idents() == before, "a refused destroy took something away"
    for level in levels:
        side_by_side(level, release)
    destroy(router)
    side_by_side([one, two], destroy)
    destroy(plane)
    destroy(ground)
    assert fleet.account.idents() == {}
