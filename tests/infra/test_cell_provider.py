"""The provider's own calls on a real fleet, as the engine makes them when something went wrong before."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from infra.local import asking
from infra.local.errors import LocalFleetError, StartFailedError
from infra.local.fleet import Fleet
from infra.local.plan import MARK
from infra.local.processes import marked
from infra.local.provider import CellError, CellProvider, ClaimProvider
from infra.local.spec import CONTROL_PLANE, FleetSpec, LocalCellSpec
from infra.local.stamp import Stamps
from infra.spec import CellSpec
from tests.system.leftovers import Snapshot
from tests.system.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = FleetSpec(cells=(LocalCellSpec("cell-1", shards=1),), routers=1, workers=1)
OWNER = "the stack cellwall-local/cell-3"
CELL = CellProvider()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(infra_folder: Path) -> AsyncIterator[Fleet]:
    async with Fleet.start(SMALL, infra_folder / "provider", lambda _: None) as running:
        yield running
        running.attach()
        snapshot = Snapshot.of(running)
    assert snapshot.left() == []


def claimed(fleet: Fleet, **spec: Any) -> dict[str, Any]:
    """What a new stack tells of its cell."""
    place = {"fleet": str(fleet.folder.path), "owner": OWNER}
    claim = ClaimProvider().create({**place, "cell": "cell-3"}).outs
    assert claim is not None
    return {**place, "claim": claim["claim"], "spec": CellSpec("cell-3", shards=1, **spec).mapping()}


async def created(props: dict[str, Any]) -> dict[str, Any]:
    outs = (await asyncio.to_thread(CELL.create, props)).outs
    assert outs is not None
    return outs


async def updated(olds: dict[str, Any], news: dict[str, Any]) -> dict[str, Any]:
    outs = (await asyncio.to_thread(CELL.update, "cell-3", olds, news)).outs
    assert outs is not None
    return outs


@pytest_asyncio.fixture(loop_scope="module")
async def cell(fleet: Fleet) -> AsyncIterator[dict[str, Any]]:
    """The outputs of a cell that was made by `create`; whatever of it is there is removed afterwards."""
    props = claimed(fleet)
    try:
        yield await created(props)
    finally:
        await fleet.up()
        claim = {**props, "cell": "cell-3"}
        await asyncio.to_thread(ClaimProvider().delete, props["claim"], claim)
        assert not there(fleet)


def there(fleet: Fleet) -> bool:
    fleet.attach()
    return "cell-3" in fleet.cells


def apis(fleet: Fleet) -> int:
    return len(list(marked(MARK, fleet.plan.mark("cell-3-api"))))


async def test_the_delete_of_the_old_one_removes_the_cell_that_replaced_it(fleet: Fleet, cell: dict[str, Any]) -> None:
    assert CELL.diff("cell-3", cell, {**cell, "owner": "another"}).delete_before_replace
    again = await created(cell)
    await asyncio.to_thread(CELL.delete, "cell-3", cell)
    assert there(fleet)
    assert fleet.runner.is_alive("cell-3-api")
    await asyncio.to_thread(CELL.delete, "cell-3", again)
    assert not there(fleet)


async def test_a_stack_of_the_same_name_in_another_backend_takes_the_cell_over(
    fleet: Fleet, cell: dict[str, Any]
) -> None:
    other = claimed(fleet)
    assert [failure.reason for failure in CELL.check({}, other).failures] == [
        f"name: this fleet has a cell cell-3 already, made by {OWNER} of another backend, or of a state that is gone; "
        "choose another name"
    ]
    with pytest.raises(CellError, match="of another backend"):
        await created(other)
    assert CELL.read("cell-3", other).id == ""
    await asyncio.to_thread(CELL.delete, "cell-3", other)
    await asyncio.to_thread(ClaimProvider().delete, other["claim"], {**other, "cell": "cell-3"})
    assert there(fleet)
    assert CELL.check(cell, cell).failures == []


async def test_a_cell_of_an_earlier_version_is_not_known_any_more(fleet: Fleet, cell: dict[str, Any]) -> None:
    fleet.attach()
    pid = fleet.state.processes["cell-3-api"].pid
    earlier = {name: value for name, value in cell.items() if name not in ("claim", "incarnation", "unfinished")}
    stamp = fleet.state.stamps["cell-3"]
    fleet.state.stamps["cell-3"] = type(stamp)(stamp.owner, complete=True)
    fleet.runner.save()
    assert CELL.read("cell-3", earlier).id == "cell-3"
    found = CELL.diff("cell-3", earlier, cell)
    assert (found.changes, found.replaces) == (True, [])
    after = await updated(earlier, cell)
    assert not CELL.diff("cell-3", after, cell).changes
    fleet.attach()
    assert fleet.state.stamps["cell-3"].claim == cell["claim"]
    assert fleet.state.processes["cell-3-api"].pid == pid


async def test_an_update_that_failed_is_not_seen_after_its_spec_was_reverted(
    fleet: Fleet, cell: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unheard(*_: object) -> None:
        raise StartFailedError("it did not register")

    fleet.attach()
    first = fleet.state.processes["cell-3-api"]
    changed = LocalCellSpec.of(CellSpec("cell-3", shards=1, size="M", version="0.2.0", capacity=77))
    with monkeypatch.context() as patched:
        patched.setattr(Stamps, "_registered_anew", unheard)
        with pytest.raises(StartFailedError):
            await Stamps(fleet, OWNER, cell["claim"]).ensure(changed)
    assert apis(fleet) == 1, "two APIs are left"
    assert fleet.state.processes["cell-3-api"] == first

    assert CELL.diff("cell-3", cell, cell).changes
    seen = CELL.read("cell-3", cell).outs
    assert seen is not None
    assert seen["unfinished"]
    assert seen["spec"] == {**cell["spec"], "size": "M", "version": "0.2.0", "capacity": 77}
    assert CELL.diff("cell-3", seen, cell).changes
    after = await updated(seen, cell)
    assert not CELL.diff("cell-3", after, cell).changes
    assert CELL.read("cell-3", after).outs == after
    assert apis(fleet) == 1


async def test_a_dead_control_plane_is_a_raw_error_and_leaves_the_change_half_done(
    fleet: Fleet, cell: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PATIENCE_S", 0.5)  # it does not come back
    await fleet.kill(CONTROL_PLANE)
    news = {**cell, "spec": {**cell["spec"], "version": "0.2.0"}}
    for work in (
        asyncio.to_thread(CELL.update, "cell-3", cell, news),
        asyncio.to_thread(CELL.delete, "cell-3", cell),
    ):
        with pytest.raises(CellError, match=r"the control plane does not answer on .*`make up` starts"):
            await work
    assert apis(fleet) == 1
    assert not CELL.diff("cell-3", cell, cell).changes


async def test_a_shard_whose_data_is_gone_comes_back_empty_as_if_nothing_were_lost(
    fleet: Fleet, cell: dict[str, Any]
) -> None:
    fleet.attach()
    data = fleet.plan.postgres("cell-3-shard-1").spec.data
    await fleet.kill("cell-3")

    async def deleted() -> bool:
        """Children of a server that was killed end a moment after it, and may still add a file."""
        shutil.rmtree(data, ignore_errors=True)
        return not data.exists()

    await until(deleted, "the end of the data")
    for _ in ("deleted", "empty"):
        with pytest.raises(CellError, match=r"the data of cell-3-shard-1 is gone.*give-up cell-3-shard-1"):
            await updated(cell, cell)
        data.mkdir(exist_ok=True)
    await fleet.give_up("cell-3-shard-1")
    await updated(cell, cell)
    with pytest.raises(LocalFleetError, match="is there; nothing is given up"):
        await fleet.give_up("cell-3-shard-1")
