"""A cell that joins while the demo's traffic runs: by the real CLI, without it, and interrupted in the middle."""

import asyncio
import io
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from rich.console import Console

from infra.local.fleet import Fleet
from infra.local.plan import MARK
from infra.local.processes import marked
from infra.local.spec import FleetSpec, LocalCellSpec
from infra.pulumi_cli.cli import Cli
from loadtest import newcell
from loadtest.demo import NEW_CELL, Demo, Options
from loadtest.newcell import CAPACITY, WITH_PULUMI, WITHOUT, add_cell
from loadtest.operator import ControlPlane
from loadtest.show import Teller
from tests.infra.stack import PATIENCE_S
from tests.system.leftovers import Snapshot
from tests.system.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = FleetSpec(cells=(LocalCellSpec("cell-1", shards=1), LocalCellSpec("cell-2", shards=1)), workers=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(infra_folder: Path) -> AsyncIterator[Fleet]:
    async with Fleet.start(SMALL, infra_folder / "new-cell", lambda _: None) as running:
        yield running
        running.attach()
        snapshot = Snapshot.of(running)
    assert snapshot.left() == []


@pytest.fixture(autouse=True)
def stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where stacks live for a while; nothing of them is left afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def at_work(fleet: Fleet, cell: str) -> list[str]:
    """The command lines of what adds that cell."""
    found = [Path(f"/proc/{each.pid}/cmdline") for each in marked(MARK, fleet.plan.mark(f"{cell}-up"))]
    return [file.read_text().replace("\0", " ") for file in found if file.exists()]


async def test_the_cell_of_the_demo_gets_no_tenants_or_is_not_in_the_books(
    fleet: Fleet, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{cli.program.parent}{os.pathsep}{os.environ['PATH']}")
    said = io.StringIO()
    options = Options(16.0, tenants=4, rate=50.0, seed=5, keep=True, folder=fleet.folder.path, shops="join")
    async with AsyncExitStack() as stack:
        outcome = await Demo(fleet, options, Teller(Console(file=said, width=200)), stack).run()
    assert outcome.good, said.getvalue()
    assert outcome.joined is not None
    assert outcome.joined.how == WITH_PULUMI
    newcomers = {account.tenant for account in outcome.joined.cast.accounts}
    there = [each for each in outcome.record.acknowledged if each.cell == NEW_CELL]
    assert there
    assert {each.tenant for each in there} <= newcomers
    assert outcome.record.succeeded == outcome.record.intended
    assert outcome.audit.found == outcome.audit.acknowledged >= len(outcome.record.acknowledged) + len(newcomers)
    assert at_work(fleet, NEW_CELL) == []


async def test_without_the_cli_the_demo_adds_no_cell_or_does_not_say_why(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newcell, "find", lambda _environ: None)
    said: list[str] = []
    assert await add_cell(fleet, "cell-4", said.append) == WITHOUT
    assert len(said) == 1
    assert "make pulumi" in said[0]
    async with fleet.operator() as operator:
        found = (await operator.get("/v1/cells/cell-4")).json()
    assert (found["healthy"], found["capacity"], found["address"]) == (True, CAPACITY, fleet.cells["cell-4"].address)


async def test_an_interrupted_demo_leaves_the_engine_or_its_work_running(fleet: Fleet, cli: Cli) -> None:
    adding = asyncio.ensure_future(add_cell(fleet, "cell-5", lambda _: None))

    async def working() -> bool | None:
        assert not adding.done(), adding
        return any("infra.local.work" in line for line in at_work(fleet, "cell-5")) or None

    await until(working, "the cell is being made", timeout_s=PATIENCE_S)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert at_work(fleet, "cell-5") == []
    async with fleet.locked():
        fleet.reload()
    control_plane = ControlPlane(fleet.control_plane.url, fleet.control_plane.operator_key)
    assert "cell-5" not in await control_plane.cells()
    await control_plane.aclose()
