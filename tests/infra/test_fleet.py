"""`cellctl fleet` over several real stacks of a running local fleet, by the real CLI."""

import os
import shutil
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from infra.local.fleet import Fleet
from infra.local.spec import CHECKOUT, FleetSpec, LocalCellSpec
from tests.infra.cellctl import Cellctl
from tests.infra.stack import PATIENCE_S, Ran, started
from tests.system.leftovers import Snapshot
from tests.system.waiting import until

SMALL = FleetSpec(cells=(LocalCellSpec("cell-1", shards=1),), routers=1, workers=1)
CELLS = ("cell-3", "cell-4", "cell-5")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(infra_folder: Path) -> AsyncIterator[Fleet]:
    async with Fleet.start(SMALL, infra_folder / "many", lambda _: None) as running:
        yield running
        running.attach()
        snapshot = Snapshot.of(running)
    assert snapshot.left() == []


@pytest.fixture(scope="module")
def cellctl(fleet: Fleet, infra_folder: Path, pulumi_environment: dict[str, str]) -> Cellctl:
    folder = infra_folder / "cellctl"
    (folder / "stacks").mkdir(parents=True)
    shutil.copytree(CHECKOUT / "infra" / "stacks", folder / "programs", ignore=shutil.ignore_patterns("Pulumi.*.yaml"))
    cells = "".join(f"  - {{name: {name}}}\n" for name in CELLS)
    made = Cellctl(folder, {**pulumi_environment, "PULUMI_BACKEND_URL": f"file://{folder / 'stacks'}"})
    made.file.write_text(f"fleet: {fleet.folder.path}\ndefaults: {{shards: 1}}\ncells:\n{cells}")
    return made


def alive(fleet: Fleet, name: str) -> int:
    fleet.attach()
    return fleet.state.processes[name].pid


@pytest.mark.asyncio(loop_scope="module")
async def test_three_cells_come_past_a_failure_and_a_ctrl_c_are_repaired_and_leave(
    fleet: Fleet, cellctl: Cellctl
) -> None:
    arguments = ("--only", "cell-3", "--only", "cell-5", "--parallel", "1", "--json")
    with started(cellctl.command("up", *arguments), cellctl.environ) as running:
        await until(partial(_knows, fleet, "cell-3-redis"), "the start of a server", timeout_s=PATIENCE_S)
        os.killpg(running.pid, signal.SIGINT)
        said, _ = running.communicate(timeout=PATIENCE_S)
        assert running.returncode == 130, said
    assert cellctl.results(Ran(130, said)) == {"cell-3": "interrupted", "cell-5": "skipped"}

    obstacle = fleet.folder.data / "cell-4-redis"
    obstacle.touch()
    first = cellctl.run("up", "--parallel", "2", "--json")
    assert first.status == 1, first.said
    assert cellctl.results(first) == {"cell-3": "changed", "cell-4": "failed", "cell-5": "changed"}
    assert cellctl.ends(first)["cellwall-local/cell-4"]["errors"] == [f"[Errno 17] File exists: '{obstacle}'"]
    assert "Traceback" not in first.said

    before = alive(fleet, "cell-3-api")
    obstacle.unlink()
    resumed = cellctl.run("up", "--parallel", "2", "--json").ok()
    assert cellctl.results(resumed) == {"cell-3": "unchanged", "cell-4": "changed", "cell-5": "unchanged"}
    assert alive(fleet, "cell-3-api") == before, "what was there already was started again"

    os.kill(alive(fleet, "cell-5-worker"), signal.SIGKILL)
    drift = cellctl.run("drift")
    assert drift.status == 1, drift.said
    assert 'stopped: nothing -> ["cell-5-worker"]' in drift.said
    repaired = cellctl.run("up", "--refresh", "--only", "cell-5", "--json").ok()
    assert cellctl.results(repaired) == {"cell-5": "changed"}
    assert "Everything is as the stacks left it." in cellctl.run("drift", "--only", "cell-5").ok().said

    gone = cellctl.run("destroy", "--yes", "--json").ok()
    assert set(cellctl.results(gone).values()) == {"changed"}
    assert [name for name in _processes(fleet) if name.startswith(CELLS)] == []
    again = cellctl.run("destroy", "--only", "cell-3", "--yes", "--json").ok()
    assert cellctl.results(again) == {"cell-3": "absent"}


@pytest.mark.asyncio(loop_scope="module")
async def test_the_remains_of_a_first_up_that_failed_leave_with_the_stack(fleet: Fleet, cellctl: Cellctl) -> None:
    planned = cellctl.run("preview", "--only", "cell-3", "--json").ok()
    assert cellctl.results(planned) == {"cell-3": "planned"}
    assert list((cellctl.folder / "stacks").rglob("cell-3.json")) == [], "a preview made a stack"
    assert not (cellctl.folder / "programs" / "local" / "Pulumi.cell-3.yaml").exists(), "a preview left configuration"
    assert "Not brought up yet: cellwall-local/cell-3." in cellctl.run("drift", "--only", "cell-3").ok().said

    obstacle = fleet.folder.data / "cell-3-redis"
    obstacle.touch()
    cellctl.run("up", "--only", "cell-3").refused("cell-3-redis")
    assert "Not brought up yet: cellwall-local/cell-3." in cellctl.run("drift", "--only", "cell-3").ok().said
    assert "cell-3" in {cell.name for cell in _spec(fleet).cells}
    cellctl.run("destroy", "--only", "cell-3", "--yes").ok()
    assert {cell.name for cell in _spec(fleet).cells} == {"cell-1"}
    assert _processes(fleet).isdisjoint({"cell-3-shard-1", "cell-3-redis"})


@pytest.mark.asyncio(loop_scope="module")
async def test_a_stack_named_after_a_cell_of_another_leaves_and_that_cell_stays(
    fleet: Fleet, cellctl: Cellctl, tmp_path: Path
) -> None:
    shutil.copytree(cellctl.folder / "programs", tmp_path / "programs")
    mine = Cellctl(tmp_path, cellctl.environ)
    mine.file.write_text(f"fleet: {fleet.folder.path}\ndefaults: {{shards: 1}}\ncells: [{{name: cell-1}}]")
    before = alive(fleet, "cell-1-api")
    refused = mine.run("up")
    assert refused.status == 2, refused.said
    refused.refused("this fleet has a cell cell-1 already")
    assert list((cellctl.folder / "stacks").rglob("cell-1.json")) == [], "a stack was made all the same"

    mine.pulumi("stack", "init", "cell-1").ok()
    mine.pulumi("config", "set", "cellwall:fleet", str(fleet.folder.path)).ok()
    mine.pulumi("up", "--yes", "--skip-preview").refused("this fleet has a cell cell-1 already")
    assert mine.results(mine.run("destroy", "--yes", "--json").ok()) == {"cell-1": "changed"}
    assert list((cellctl.folder / "stacks").rglob("cell-1.json")) == []
    assert alive(fleet, "cell-1-api") == before


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        ("cells: [{name: cell-1, size: XL}]", {}, "cell-1: size: 'XL' is none of S, M, L"),
        ("cells: [{name: cell-1}, {name: cell-1}]", {}, "cell-1 is there more than once"),
        ("sells: []", {}, "unknown field `sells`"),
        ("fleet: /nowhere/at/all\ncells: [{name: cell-3}]", {}, "there is no fleet in /nowhere/at/all"),
        ("target: aws\nfleet: {}\n", {"PULUMI_BACKEND_URL": ""}, "account: missing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_is_made(
    cellctl: Cellctl, tmp_path: Path, text: str, environ: dict[str, str], words: str
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(text)
    shutil.copytree(cellctl.folder / "programs", tmp_path / "programs")
    ran = Cellctl(tmp_path, {**cellctl.environ, **environ}).run("up")
    assert ran.status == 2, ran.said
    ran.refused(words)
    assert len(ran.said.strip().splitlines()) <= 2, "a message and its way out are two lines"


def test_a_cli_that_is_too_old_is_named_with_the_way_to_a_newer_one(cellctl: Cellctl, tmp_path: Path) -> None:
    old = tmp_path / "bin"
    old.mkdir()
    (old / "pulumi").write_text("#!/bin/sh\necho v3.100.0\n")
    (old / "pulumi").chmod(0o755)
    environ = {
        **cellctl.environ,
        "PATH": f"{old}{os.pathsep}/usr/bin:/bin",
        "CELLWALL_CACHE_DIR": str(tmp_path / "none"),
    }
    ran = Cellctl(cellctl.folder, environ).run("up")
    assert ran.status == 2
    ran.refused("pulumi is 3.100.0, older than 3.259.0; run `make pulumi`")


def _processes(fleet: Fleet) -> set[str]:
    fleet.attach()
    return set(fleet.state.processes)


async def _knows(fleet: Fleet, process: str) -> bool:
    return process in _processes(fleet)


def _spec(fleet: Fleet) -> FleetSpec:
    fleet.attach()
    return fleet.spec
