"""`cellctl fleet` over the stacks of AWS, by the real CLI against the double of the provider."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from infra.local.spec import CHECKOUT
from tests.infra.cellctl import Cellctl
from tests.infra.double.account import Account
from tests.infra.double.cloud import cloud
from tests.infra.stack import PROGRAMS, finish
from tests.unit.infra.aws.world import FLEET, IMAGE, spec

GROUND, PLANE, CELL, ROUTER = (
    "cellwall-platform/main",
    "cellwall-control-plane/main",
    "cellwall-cell/cell-1",
    "cellwall-router/main",
)


@pytest.fixture
def fleet(pulumi_environment: dict[str, str], infra_folder: Path) -> Iterator[tuple[Account, Cellctl]]:
    folder = infra_folder / "aws-fleet"
    with cloud(folder, pulumi_environment) as (account, environ):
        cellctl = Cellctl(folder, {**environ, "PULUMI_CONFIG_PASSPHRASE": "of-a-test"})
        shutil.copytree(PROGRAMS, cellctl.programs, ignore=shutil.ignore_patterns("Pulumi.*.yaml"))
        told = {
            "target": "aws",
            "fleet": FLEET.mapping(),
            "images": {"router": IMAGE, "control_plane": IMAGE},
            "cells": [spec("cell-1").mapping()],
        }
        cellctl.file.write_bytes(msgspec.yaml.encode(told))
        configure = ["python", "-m", "infra.aws.configure", cellctl.file, "--programs", cellctl.programs]
        token = {"CELLWALL_ROUTER_CONTROL_PLANE_TOKEN": "cwo_1_token"}
        finish(configure, {**cellctl.environ, **token}, CHECKOUT).ok()
        yield account, cellctl


def test_a_fleet_comes_up_in_order_past_a_failure_and_leaves_in_the_opposite_one(
    fleet: tuple[Account, Cellctl],
) -> None:
    account, cellctl = fleet
    account.fail_at("control-plane-database")
    failed = cellctl.run("up", "--parallel", "2", "--json")
    assert failed.status == 1, failed.said
    assert cellctl.results(failed) == {GROUND: "changed", PLANE: "failed", CELL: "skipped", ROUTER: "skipped"}
    ends = cellctl.ends(failed)
    assert "the double was told to fail here" in " ".join(ends[PLANE]["errors"])
    assert ends[CELL]["errors"] == [f"not begun, because {PLANE} did not end well"]
    assert ends[ROUTER]["errors"] == [f"not begun, because {CELL}, {PLANE} did not end well"]

    account.fail_at(None)
    resumed = cellctl.run("up", "--parallel", "2", "--json").ok()
    assert cellctl.results(resumed) == {GROUND: "unchanged", PLANE: "changed", CELL: "changed", ROUTER: "changed"}

    before = account.idents()
    kept = cellctl.run("destroy", "--yes", "--json")
    assert kept.status == 1, kept.said
    assert cellctl.results(kept) == {ROUTER: "failed", CELL: "skipped", PLANE: "skipped", GROUND: "skipped"}
    assert account.idents() == before, "a refused destroy took something away"
