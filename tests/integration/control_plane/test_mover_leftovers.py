"""What no move accounts for is cleaned; what a move accounts for, and what nobody can be sure of, is left alone."""

import asyncio

import pytest

from contracts import transfer
from control_plane.models import tenants
from control_plane.move import Path, State
from control_plane.reconciler import Repair, judge
from control_plane.routes import publish, route_of
from control_plane.stream_sweeper import leftovers, needed_by
from tests.integration.control_plane.fake_cell import Killed, Row
from tests.integration.control_plane.fake_stream import Receiver, Slot
from tests.integration.control_plane.mover_world import OPERATOR, ROWS, SOURCE, TARGET, World, killed_at


@pytest.mark.invariant(6)
async def test_routers_are_not_asked_to_hold_for_ever(world: World) -> None:
    async with world.engine.begin() as conn:
        await publish(conn, [route_of(await world.tenant(), "held")])
    assert await world.reconciler().once(1) >= 1
    await world.assert_settled(SOURCE)


@pytest.mark.invariant(6)
async def test_an_import_that_no_move_knows_is_given_up(world: World) -> None:
    world.target.tenants[world.id] = Row("importing", 0, min_epoch=2, rows=list(ROWS))
    await world.reconciler().once(1)
    assert (world.target.tenants[world.id].state, world.target.tenants[world.id].rows) == ("aborted", [])
    await world.assert_settled(SOURCE)


@pytest.mark.invariant(6)
async def test_a_home_that_nobody_moves_is_not_left_frozen(world: World) -> None:
    world.source.tenants[world.id].state = "frozen"
    await world.reconciler().once(1)
    await world.assert_settled(SOURCE)
    assert (await world.tenant()).epoch > 1


async def test_a_frozen_home_stays_frozen_while_a_cell_that_might_own_it_cannot_be_asked(world: World) -> None:
    world.source.tenants[world.id].state = "frozen"
    world.target.down = True
    await world.reconciler().once(1)
    assert world.fleet.owners(world.id) == []


@pytest.mark.invariant(6)
@pytest.mark.parametrize("state", ["frozen", "moved"])
async def test_rows_that_a_finished_move_left_behind_are_dropped(world: World, state: str) -> None:
    await world.mover().drive(await world.start(), term=1)
    world.source.tenants[world.id].state = state
    world.source.tenants[world.id].rows = list(ROWS)
    reconciler = world.reconciler()
    await reconciler.once(1)
    await reconciler.once(1)
    await world.assert_settled(TARGET)


async def test_a_mark_of_a_move_that_does_not_exist_is_cleared(world: World) -> None:
    async with world.engine.begin() as conn:
        marked = tenants.update().where(tenants.c.number == world.number)
        await conn.execute(marked.values(move_id="m-lost", move_target=TARGET))
    await world.reconciler().once(1)
    await world.assert_settled(SOURCE)


async def test_two_owners_are_reported_and_neither_is_touched(world: World) -> None:
    world.target.tenants[world.id] = Row("active", 7, rows=list(ROWS))
    assert await world.reconciler().once(1) >= 1
    assert world.fleet.sent == []
    assert len(world.fleet.owners(world.id)) == 2


@pytest.mark.parametrize("boundary", ["holding", "frozen", "switching", "standby"])
async def test_what_belongs_to_a_running_move_is_left_alone(world: World, boundary: str) -> None:
    move_id = await world.start()
    with pytest.raises(Killed):
        await world.mover(killed_at(boundary)).drive(move_id, term=1)
    sent = len(world.fleet.sent)
    assert await world.reconciler().once(2) == 0
    assert len(world.fleet.sent) == sent
    await world.mover().drive(move_id, term=2)
    await world.assert_settled(TARGET)


async def test_a_repair_that_arrives_late_loses_against_a_move_that_began_meanwhile(world: World) -> None:
    world.target.tenants[world.id] = Row("importing", 0, min_epoch=2)
    await world.reconciler().once(1)
    repairs = list(world.fleet.sent)
    await world.mover().drive(await world.start(), term=1)
    answers = {world.fleet.deliver_again(repair) for repair in repairs}
    assert answers == {"fenced"}
    await world.assert_settled(TARGET)


def test_a_cell_that_serves_a_tenant_nobody_knows_is_reported() -> None:
    finding = judge(TARGET, {TARGET: "active"}, None, complete=True)
    assert finding is not None
    assert finding.repair is Repair.ALARM


@pytest.mark.invariant(6)
async def test_a_slot_that_no_move_needs_does_not_keep_a_servers_log(world: World) -> None:
    streams = [transfer.stream_name(world.id, "mgone", "out"), transfer.stream_name(world.id, "mgone", "back")]
    world.source.slots[streams[0]] = Slot(world.id, 0, None)
    world.target.receivers[streams[0]] = Receiver(world.id, 0)
    world.target.slots[streams[1]] = Slot(world.id, 0, None, lost=True)
    assert await world.reconciler().once(1) >= 3
    await world.assert_settled(SOURCE)


@pytest.mark.invariant(6)
async def test_the_streams_of_a_move_that_runs_or_waits_are_left_alone(world: World) -> None:
    move_id = await world.start(standby=True)
    with pytest.raises(Killed):
        await world.mover(killed_at("standby")).drive(move_id, term=1)
    assert await world.reconciler().once(2) == 0
    driving = asyncio.create_task(world.mover().drive(move_id, term=3))
    await world.moves.rollback(move_id, OPERATOR)  # waits until the old home follows
    driving.cancel()
    await asyncio.gather(driving, return_exceptions=True)
    before = sorted(world.streams())
    assert await world.reconciler().once(4) == 0
    assert sorted(world.streams()) == before != []


@pytest.mark.invariant(6)
async def test_a_cell_that_was_away_when_its_move_was_given_up_is_swept_when_it_is_back(world: World) -> None:
    move_id = await world.start(standby=True)
    with pytest.raises(Killed):
        await world.mover(killed_at("holding")).drive(move_id, term=1)
    await world.moves.cancel(move_id, OPERATOR)
    world.target.down = True
    assert (await world.mover().drive(move_id, term=2)).state is State.CANCELLED
    world.target.down = False
    assert world.streams() != []
    await world.reconciler().once(2)
    await world.assert_settled(SOURCE)


@pytest.mark.invariant(6)
async def test_a_standby_that_no_move_knows_is_dropped(world: World) -> None:
    await world.mover().drive(await world.start(), term=1)
    world.source.tenants[world.id].state = "standby"
    world.source.tenants[world.id].rows = list(ROWS)
    await world.reconciler().once(1)
    await world.assert_settled(TARGET)


def test_a_leftover_is_explained_by_what_it_does() -> None:
    name = transfer.stream_name("t1000000001", "m1", "out")
    kept = transfer.StreamStatus(name, "t1000000001", "shard-1", "sender", "idle", 1, 4096)
    needed = needed_by([("t1000000001", "m2", Path.LARGE), ("t1000000001", "m1", Path.SMALL)])
    assert leftovers([kept], needed) == [(kept, "a slot of no running move, idle, that keeps 4096 bytes of log")]
    assert leftovers([kept], needed_by([("t1000000001", "m1", Path.LARGE)])) == []
