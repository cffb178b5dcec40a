"""Batches on the real database: every tenant moves once, and whatever is killed or ordered meanwhile, none is lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from contracts import problems, transfer
from control_plane.batch_store import StaleBatchError
from control_plane.waves import BatchState
from tests.integration.control_plane.plane_world import Cell, Plane

PATIENCE_S = 60.0


async def populate(plane: Plane, count: int, cell: str = "cell-1") -> list[str]:
    """``count`` tenants in a cell; their slugs."""
    slugs = [f"shop-{n}" for n in range(count)]
    for slug in slugs:
        assert (await plane.sign_up(slug, cell=cell)).status_code == 201
    return slugs


async def join(plane: Plane, name: str) -> None:
    """One more cell."""
    plane.fleet.cells[name] = Cell(name)
    await plane.register(name)
    # As in `Plane.begin`: a slow machine must not let its lease run out, or what is to go there waits for ever.
    await plane.rows("UPDATE cells SET last_seen = clock_timestamp() + interval '1 hour' WHERE name = :name", name=name)


@contextlib.asynccontextmanager
async def leading(plane: Plane, term: int = 1) -> AsyncIterator[None]:
    """What a leader of this term does about moves and batches."""
    tasks = [asyncio.create_task(work(term)) for work in (plane.services.runner.run, plane.services.waves.run)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.02)


async def batch(plane: Plane, batch_id: str) -> dict[str, Any]:
    view: dict[str, Any] = (await plane.call("GET", f"/v1/batches/{batch_id}")).json()
    return view


async def until_state(plane: Plane, batch_id: str, *states: str) -> dict[str, Any]:
    async def reached() -> bool:
        return (await batch(plane, batch_id))["state"] in states

    await until(reached)
    return await batch(plane, batch_id)


async def until_cleared_up(plane: Plane) -> None:
    """Until no move is under way: a batch is done when its tenants are served, before their old rows are purged."""

    async def over() -> bool:
        return not await plane.rows("SELECT 1 FROM tenants WHERE move_id IS NOT NULL")

    await until(over)


async def evacuate(plane: Plane, cell: str = "cell-1", **more: Any) -> str:
    answer = await plane.call("POST", "/v1/batches", {"kind": "evacuate", "cell": cell} | more)
    assert answer.status_code == 201, answer.text
    batch_id: str = answer.json()["id"]
    return batch_id


async def homes(plane: Plane) -> dict[str, str]:
    rows = await plane.rows("SELECT slug, cell FROM tenants WHERE state = 'active'")
    return {row.slug: row.cell for row in rows}


async def refusal(plane: Plane, method: str, path: str, body: object = None) -> dict[str, Any]:
    answer = await plane.call(method, path, body)
    assert answer.status_code in (400, 404, 409), answer.text
    problem: dict[str, Any] = answer.json()
    return problem


async def assert_one_owner_each(plane: Plane) -> None:
    for row in await plane.rows("SELECT number, cell, epoch, move_id FROM tenants WHERE state = 'active'"):
        assert plane.fleet.owners(f"t{row.number}") == [(row.cell, row.epoch)]
        assert row.move_id is None


async def test_an_evacuated_cell_is_empty_drained_and_every_tenant_moved_once(plane: Plane) -> None:
    slugs = await populate(plane, 7)
    batch_id = await evacuate(plane)
    async with leading(plane):
        done = await until_state(plane, batch_id, "done", "incomplete", "stopped")
        await until_cleared_up(plane)
    assert (done["state"], done["counts"]) == ("done", {"done": 7})
    assert await homes(plane) == dict.fromkeys(slugs, "cell-2")
    assert done["waves"] > 1
    assert (await plane.call("GET", "/v1/cells/cell-1")).json()["state"] == "draining"
    assert len(await plane.rows("SELECT 1 FROM moves")) == 7
    await assert_one_owner_each(plane)


async def test_a_dry_run_says_why_and_changes_nothing(plane: Plane) -> None:
    await populate(plane, 2)
    plan = (await plane.call("POST", "/v1/batches/preview", {"kind": "evacuate", "cell": "cell-1"})).json()
    assert [(m["source"], m["target"]) for m in plan["moves"]] == [("cell-1", "cell-2")] * 2
    assert "cell-1 is emptied" in plan["moves"][0]["reason"]
    assert await plane.rows("SELECT 1 FROM batches") == []
    assert (await plane.call("GET", "/v1/cells/cell-1")).json()["state"] == "active"


async def test_a_leader_that_dies_between_any_two_steps_loses_and_doubles_nothing(plane: Plane) -> None:
    """Every pass is cut off after a while that ends anywhere, under a new term each time."""
    slugs = await populate(plane, 9)
    batch_id = await evacuate(plane, limits={"first_wave": 3, "per_shard": 4})
    for term in range(1, 40):
        async with leading(plane, term):
            await asyncio.sleep(0.01 * term)
        if (await batch(plane, batch_id))["state"] == "done":
            break
    async with leading(plane, 50):
        done = await until_state(plane, batch_id, "done", "incomplete", "stopped")
        await until_cleared_up(plane)
    assert (done["state"], done["counts"]) == ("done", {"done": 9})
    assert await homes(plane) == dict.fromkeys(slugs, "cell-2")
    assert len(await plane.rows("SELECT 1 FROM moves WHERE state = 'done'")) == 9
    await assert_one_owner_each(plane)


async def test_a_paused_batch_starts_nothing_until_it_is_resumed(plane: Plane) -> None:
    await populate(plane, 3)
    batch_id = await evacuate(plane)
    await plane.call("POST", f"/v1/batches/{batch_id}/pause")
    assert await plane.services.waves.step(batch_id, term=1) is BatchState.PAUSED
    assert await plane.rows("SELECT 1 FROM moves") == []
    await plane.call("POST", f"/v1/batches/{batch_id}/resume")
    async with leading(plane):
        assert (await until_state(plane, batch_id, "done"))["counts"] == {"done": 3}


async def test_a_move_that_was_decided_on_before_a_cancellation_is_not_begun_after_it(plane: Plane) -> None:
    """The leader reads the batch as running; the operator cancels; then the leader's start comes."""
    await populate(plane, 1)
    batch_id = await evacuate(plane)
    waves, start = plane.services.waves, plane.services.moves.start

    async def cancelled_first(*args: Any, **more: Any) -> Any:
        assert (await plane.call("POST", f"/v1/batches/{batch_id}/cancel")).status_code == 200
        return await start(*args, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(waves._moves, "start", cancelled_first)
        await waves.step(batch_id, term=1)
    assert await plane.rows("SELECT 1 FROM moves") == []
    assert await plane.rows("SELECT 1 FROM tenants WHERE move_id IS NOT NULL") == []
    assert await waves.step(batch_id, term=1) is BatchState.CANCELLED
    assert (await batch(plane, batch_id))["counts"] == {"cancelled": 1}


async def test_a_leader_that_was_replaced_begins_nothing(plane: Plane) -> None:
    await populate(plane, 2)
    batch_id = await evacuate(plane)
    waves, start = plane.services.waves, plane.services.moves.start

    async def replaced_first(*args: Any, **more: Any) -> Any:
        await plane.rows("UPDATE batches SET term = 9")
        return await start(*args, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(waves._moves, "start", replaced_first)
        await waves.step(batch_id, term=1)
    assert await plane.rows("SELECT 1 FROM moves") == []
    with pytest.raises(StaleBatchError):
        await waves.step(batch_id, term=1)


async def test_cancelling_takes_undecided_moves_back_and_leaves_finished_ones(plane: Plane) -> None:
    await populate(plane, 3)
    batch_id = await evacuate(plane, limits={"first_wave": 1})
    waves = plane.services.waves
    await waves.step(batch_id, term=1)  # wave 1 begins; nobody drives the move
    assert (await plane.call("POST", f"/v1/batches/{batch_id}/cancel")).json()["state"] == "cancelling"
    await waves.step(batch_id, term=1)  # asks the move to go back, before anybody drives it past its decision
    async with leading(plane):
        over = await until_state(plane, batch_id, "cancelled")
    assert over["counts"] == {"cancelled": 3}
    assert set((await homes(plane)).values()) == {"cell-1"}
    await assert_one_owner_each(plane)


async def test_a_batch_whose_moves_fail_stops_by_itself_and_goes_on_when_told(plane: Plane) -> None:
    await populate(plane, 3)
    batch_id = await evacuate(plane, limits={"tries": 1})
    target = plane.fleet.cells["cell-2"]
    target.refuse_once["prepare"] = problems.WRONG_STATE
    async with leading(plane):
        stopped = await until_state(plane, batch_id, "stopped")
        assert stopped["counts"] == {"failed": 1, "waiting": 2}
        assert "failed" in stopped["reason"]
        await plane.call("POST", f"/v1/batches/{batch_id}/resume")
        assert (await until_state(plane, batch_id, "done"))["counts"] == {"done": 3}


async def test_a_target_that_fills_up_meanwhile_is_replaced_by_one_with_room(plane: Plane) -> None:
    await populate(plane, 2)
    batch_id = await evacuate(plane)
    await join(plane, "cell-3")
    await plane.call("PATCH", "/v1/cells/cell-2", {"capacity": 0})
    async with leading(plane):
        done = await until_state(plane, batch_id, "done", "stopped", "incomplete")
    assert done["state"] == "done", done
    assert set((await homes(plane)).values()) == {"cell-3"}


async def test_a_server_that_takes_no_more_streams_keeps_large_tenants_waiting_and_says_so(plane: Plane) -> None:
    await populate(plane, 2)
    source, target = plane.fleet.cells["cell-1"], plane.fleet.cells["cell-2"]
    source.weight = transfer.Preflight(60_000, 0, 0, 0)
    target.room = transfer.StreamRoom("shard-1", 20, 20, 0, 20)
    said = "shard-1 of cell-2 can send 20 streams, and 20 are open."
    refused = await refusal(plane, "POST", "/v1/moves/estimate", {"tenant": "shop-0", "to": "cell-2"})
    assert (refused["type"].endswith("no-stream-room"), refused["detail"]) == (True, said)
    batch_id = await evacuate(plane)
    async with leading(plane):

        async def told() -> bool:
            return said in [item["reason"] for item in (await batch(plane, batch_id))["moves"]]

        await until(told)
        assert (await batch(plane, batch_id))["counts"] == {"waiting": 2}  # no try is counted, nobody failed
        assert await plane.rows("SELECT 1 FROM moves") == []


async def test_who_signs_up_while_a_cell_is_emptied_leaves_it_too(plane: Plane) -> None:
    await populate(plane, 1)
    await plane.sign_up("late", cell="cell-1")
    await plane.rows("UPDATE tenants SET state = 'provisioning', updated_at = clock_timestamp() WHERE slug = 'late'")
    batch_id = await evacuate(plane, partial=True)
    async with leading(plane):

        async def waits() -> bool:
            return "signed up" in (await batch(plane, batch_id))["reason"]

        await until(waits)
        await plane.rows("UPDATE tenants SET state = 'active' WHERE slug = 'late'")
        await until_state(plane, batch_id, "done")
    assert set((await homes(plane)).values()) == {"cell-2"}


async def test_a_tenant_that_was_deleted_or_moved_by_hand_is_skipped(plane: Plane) -> None:
    await populate(plane, 3)
    await join(plane, "cell-3")
    batch_id = await evacuate(plane)
    await plane.rows("UPDATE tenants SET cell = 'cell-3' WHERE slug = 'shop-0'")
    await plane.rows("UPDATE tenants SET state = 'deleted', deleted_at = now() WHERE slug = 'shop-1'")
    async with leading(plane):
        done = await until_state(plane, batch_id, "done", "stopped", "incomplete")
    assert (done["state"], done["counts"]) == ("done", {"done": 1, "skipped": 2})


async def test_what_a_batch_would_undo_is_refused_and_says_which(plane: Plane) -> None:
    await populate(plane, 1)
    await plane.sign_up("other", cell="cell-2")
    await join(plane, "cell-3")
    batch_id = await evacuate(plane)
    back = await refusal(plane, "POST", "/v1/moves", {"tenant": "other", "to": "cell-1"})
    planned = (await batch(plane, batch_id))["moves"][0]["target"]
    elsewhere = "cell-3" if planned == "cell-2" else "cell-2"
    away = await refusal(plane, "POST", "/v1/moves", {"tenant": "shop-0", "to": elsewhere})
    emptied = await refusal(plane, "POST", "/v1/batches", {"kind": "evacuate", "cell": planned})
    for problem in (away, emptied):
        assert problem["type"].endswith("move-undone")
        assert batch_id in problem["detail"]
    assert back["status"] == 409


async def test_of_two_operators_who_empty_a_cell_at_once_one_is_told_so(plane: Plane) -> None:
    await populate(plane, 2)
    body = {"kind": "evacuate", "cell": "cell-1", "partial": True}
    answers = await asyncio.gather(*(plane.call("POST", "/v1/batches", body) for _ in range(2)))
    begun, told = sorted(answers, key=lambda answer: answer.status_code)
    assert (begun.status_code, told.status_code) == (201, 409)
    later = await plane.call("POST", "/v1/batches", body | {"partial": False})
    for refused in (told.json(), later.json()):
        assert refused["type"].endswith("batch-running")
        assert begun.json()["id"] in refused["detail"]
        assert f"cellctl plans cancel {begun.json()['id']}" in refused["advice"]


async def test_who_asks_to_finalize_what_leaves_no_standby_is_told_so_and_a_batch_is_not(plane: Plane) -> None:
    await populate(plane, 1)
    for path in ("/v1/moves/estimate", "/v1/moves"):
        refused = await refusal(plane, "POST", path, {"tenant": "shop-0", "to": "cell-2", "finalize_after_s": 60})
        assert "leaves no standby" in refused["detail"]
        assert "--standby" in refused["advice"]
    batch_id = await evacuate(plane)  # which finalizes whatever standby there is at once
    async with leading(plane):
        assert (await until_state(plane, batch_id, "done"))["counts"] == {"done": 1}


async def test_a_cell_is_not_opened_while_a_batch_empties_it(plane: Plane) -> None:
    await populate(plane, 1)
    batch_id = await evacuate(plane)
    refused = await refusal(plane, "PATCH", "/v1/cells/cell-1", {"state": "active"})
    assert refused["type"].endswith("move-undone")
    assert f"cellctl plans cancel {batch_id}" in refused["advice"]
    assert (await plane.call("PATCH", "/v1/cells/cell-1", {"capacity": 7})).json()["state"] == "draining"
    await plane.call("POST", f"/v1/batches/{batch_id}/cancel")
    async with leading(plane):
        await until_state(plane, batch_id, "cancelled")
    assert (await plane.call("PATCH", "/v1/cells/cell-1", {"state": "active"})).json()["state"] == "active"


async def test_a_tenant_is_not_pinned_to_a_cell_that_is_closed(plane: Plane) -> None:
    await populate(plane, 1)
    await join(plane, "cell-3")
    await plane.call("PATCH", "/v1/cells/cell-3", {"state": "closed"})
    refused = await refusal(plane, "POST", "/v1/tenants/shop-0/pin", {"cell": "cell-3"})
    assert "cell-3 is closed" in refused["detail"]
    assert (await plane.call("GET", "/v1/tenants/shop-0")).json()["pinned_to"] is None


async def test_a_plan_that_cannot_take_everybody_says_who_stays_and_what_would_help(plane: Plane) -> None:
    await populate(plane, 2)
    await plane.call("PATCH", "/v1/cells/cell-2", {"capacity": 1})
    refused = await refusal(plane, "POST", "/v1/batches", {"kind": "evacuate", "cell": "cell-1"})
    assert refused["type"].endswith("plan-incomplete")
    assert "cell-2 is full" in refused["detail"]
    assert "capacity" in refused["advice"]
    batch_id = await evacuate(plane, partial=True)
    async with leading(plane):
        over = await until_state(plane, batch_id, "incomplete")
    assert "1 tenant stays in cell-1" in over["reason"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/batches", {"kind": "evacuate", "cell": "cell-9"}, "cell-1, cell-2"),
        ("/v1/batches", {"kind": "bogus"}, "kind: Invalid enum value 'bogus'; there are: evacuate, rebalance"),
        ("/v1/batches", {"kind": "evacuate"}, "an evacuation needs one"),
        ("/v1/batches", {"kind": "rebalance", "cell": "cell-1"}, "a rebalance has none"),
        ("/v1/batches", {"kind": "evacuate", "cell": "cell-1"}, "No tenant lives in cell-1"),
        ("/v1/batches", {"kind": "rebalance"}, "balanced"),
        ("/v1/batches/b0/pause", None, "no batch 'b0'"),
        ("/v1/batches/what-if", {"without": ["cell-9"]}, "cell-1, cell-2"),
        ("/v1/batches/what-if", {"add": [{"name": "cell-1", "region": "eu", "capacity": 5}]}, "already"),
    ],
)
async def test_what_cannot_be_is_refused_with_the_choices(plane: Plane, path: str, body: object, said: str) -> None:
    assert said in (await refusal(plane, "POST", path, body))["detail"]


async def test_a_batch_that_is_over_takes_no_more_orders(plane: Plane) -> None:
    await populate(plane, 1)
    batch_id = await evacuate(plane)
    async with leading(plane):
        await until_state(plane, batch_id, "done")
    for order in ("pause", "resume", "cancel"):
        refused = await refusal(plane, "POST", f"/v1/batches/{batch_id}/{order}")
        assert "is done" in refused["detail"]
        assert "Only a batch that is" in refused["advice"]


async def test_a_rebalance_levels_the_cells_and_a_second_one_finds_nothing_to_do(plane: Plane) -> None:
    await populate(plane, 8)
    for name in ("cell-1", "cell-2"):
        await plane.call("PATCH", f"/v1/cells/{name}", {"capacity": 10})
    answer = await plane.call("POST", "/v1/batches", {"kind": "rebalance"})
    assert answer.json()["total"] == 4
    async with leading(plane):
        await until_state(plane, answer.json()["id"], "done")
    assert sorted((await homes(plane)).values()) == ["cell-1"] * 4 + ["cell-2"] * 4
    assert (await refusal(plane, "POST", "/v1/batches", {"kind": "rebalance"}))["type"].endswith("nothing-to-move")


async def test_a_pinned_tenant_stays_where_it_is_and_a_rebalance_brings_it_home(plane: Plane) -> None:
    await populate(plane, 2)
    assert (await plane.call("POST", "/v1/tenants/shop-0/pin", {"cell": "cell-1"})).json()["pinned_to"] == "cell-1"
    refused = await refusal(plane, "POST", "/v1/moves", {"tenant": "shop-0", "to": "cell-2"})
    assert refused["type"].endswith("tenant-pinned")
    blocked = await refusal(plane, "POST", "/v1/batches", {"kind": "evacuate", "cell": "cell-1"})
    assert "cellctl tenants unpin shop-0" in blocked["advice"]
    await plane.call("POST", "/v1/tenants/shop-0/pin", {"cell": "cell-2"})
    answer = await plane.call("POST", "/v1/batches", {"kind": "rebalance"})
    async with leading(plane):
        await until_state(plane, answer.json()["id"], "done")
    assert await homes(plane) == {"shop-0": "cell-2", "shop-1": "cell-1"}


async def test_a_what_if_answers_about_a_fleet_that_does_not_exist_and_changes_nothing(plane: Plane) -> None:
    await populate(plane, 4)
    asked = {"without": ["cell-1"], "add": [{"name": "new", "region": "eu", "capacity": 100}], "growth": 2.0}
    plan = (await plane.call("POST", "/v1/batches/what-if", asked)).json()
    assert {m["target"] for m in plan["moves"]} == {"cell-2", "new"}
    assert plan["blocked"] == []
    assert set((await homes(plane)).values()) == {"cell-1"}
    assert [c["name"] for c in (await plane.call("GET", "/v1/cells")).json()["cells"]] == ["cell-1", "cell-2"]


async def test_a_sample_an_hour_is_kept_and_weeks_of_them_say_when_a_cell_is_due(plane: Plane) -> None:
    await populate(plane, 30)
    assert await plane.services.headroom.sample()
    assert not await plane.services.headroom.sample()
    await plane.rows(
        "INSERT INTO load_samples (region, tier, at, tenants) SELECT 'eu', 'shared',"
        " date_trunc('hour', now()) - make_interval(days => d), 30 - 2 * d FROM generate_series(1, 14) AS d"
    )
    pool = (await plane.call("GET", "/v1/forecast")).json()["pools"][0]
    assert pool["growth_per_day"] == pytest.approx(2.0)
    assert pool["due_days"] == pytest.approx((0.8 * 200 - 30) / 2)


async def test_a_batch_that_cannot_be_looked_at_does_not_keep_the_others_waiting(plane: Plane) -> None:
    await populate(plane, 1)
    await plane.sign_up("other", cell="cell-2")
    broken = await evacuate(plane)
    await join(plane, "cell-3")
    await plane.rows("UPDATE batch_moves SET target = 'cell-3'")  # or emptying cell-2 would undo it
    sound = await evacuate(plane, "cell-2")
    waves, step = plane.services.waves, plane.services.waves.step

    async def stumbling(batch_id: str, term: int) -> BatchState:
        if batch_id == broken:
            raise RuntimeError("a defect")
        return await step(batch_id, term)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(waves, "step", stumbling)
        async with leading(plane):
            await until_state(plane, sound, "done")
    assert (await batch(plane, broken))["counts"] == {"waiting": 1}
