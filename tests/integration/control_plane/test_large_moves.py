"""A large tenant is copied while it writes, waits as a standby, and goes on or back without losing a write."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from contracts import problems, transfer
from contracts.problems import ProblemError
from control_plane import move_estimate
from control_plane.move import Budgets, Path, State
from control_plane.move_service import Moves
from control_plane.move_store import Move, StaleMoveError
from control_plane.noisy import Policy
from control_plane.throttle import lift, throttle
from tests.integration.control_plane.fake_cell import Killed
from tests.integration.control_plane.fake_stream import Body
from tests.integration.control_plane.mover_world import OPERATOR, ROWS, SOURCE, TARGET, World, killed_at

PATIENCE_S = 60.0
TO_STANDBY = ["preparing", "copying", "catching_up", "holding", "frozen", "switching", "standby"]
OUT = [
    (TARGET, "prepare"), (SOURCE, "stream/open"), (SOURCE, "snapshot"), (TARGET, "import"), (SOURCE, "changes"),
    (SOURCE, "marker"), (TARGET, "apply"), (TARGET, "checksum"), (TARGET, "verified"), (TARGET, "stream/open"),
    (SOURCE, "freeze"), (TARGET, "remainder"), (SOURCE, "remainder"), (TARGET, "activate"), (SOURCE, "standby"),
    (SOURCE, "stream/close"), (TARGET, "stream/close"), (TARGET, "changes"), (SOURCE, "apply"),
]  # fmt: skip
BACK = [
    (TARGET, "changes"), (SOURCE, "apply"), (TARGET, "marker"), (SOURCE, "checksum"), (SOURCE, "verified"),
    (TARGET, "freeze"), (SOURCE, "remainder"), (TARGET, "remainder"), (SOURCE, "activate"), (TARGET, "release"),
    (TARGET, "purge"), (SOURCE, "stream/close"), (TARGET, "stream/close"),
]  # fmt: skip


def writing(world: World, then: Callable[[str], Awaitable[None]] | None = None) -> Callable[[str], Awaitable[None]]:
    """An observer that lets a user write at every boundary."""

    async def on_boundary(name: str) -> None:
        world.write()
        if then is not None:
            await then(name)

    return on_boundary


async def standing(
    world: World,
    move_id: str,
    term: int = 1,
    then: Callable[[str], Awaitable[None]] | None = None,
    *,
    noted: Callable[[Move], bool] = lambda _move: True,
) -> Move:
    """Drive a move until its source follows its target and has everything that was written.

    What the driver did last it may not have written down by then: ``noted`` says what the move's row has to show.
    """
    driving = asyncio.create_task(world.mover(writing(world, then)).drive(move_id, term))

    async def follows() -> bool:
        assert not driving.done(), driving.result()
        move = await world.move(move_id)
        if move.state is not State.STANDBY or not move.progress.standing or not noted(move):
            return False
        return sorted(world.source.tenants[world.id].rows) == sorted(world.target.tenants[world.id].rows)

    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await follows():
                await asyncio.sleep(0.01)
    finally:
        driving.cancel()
        await asyncio.gather(driving, return_exceptions=True)
    return await world.move(move_id)


async def finalized(world: World, move_id: str, term: int = 2) -> None:
    await world.moves.finalize(move_id, OPERATOR)
    assert (await world.mover(writing(world)).drive(move_id, term)).state is State.DONE
    await world.assert_settled(TARGET)


async def test_a_large_tenant_moves_while_it_writes_and_its_old_home_follows_until_it_is_finalized(
    world: World,
) -> None:
    move = await standing(world, await world.start(standby=True))
    assert (move.path, move.rows) == (Path.LARGE, len(ROWS) + 2)
    assert [step.state for step in (await world.moves.one(move.id)).steps] == ["planned", *TO_STANDBY]
    assert world.source.tenants[world.id].state == "standby"
    assert world.streams() == [transfer.stream_name(world.id, move.id, "back")] * 2
    for _ in range(5):
        world.write()
    await standing(world, move.id, term=2, noted=lambda standby: standby.progress.changes_back >= 5)
    await finalized(world, move.id, term=3)


def of_middle_size(world: World, patch: pytest.MonkeyPatch) -> None:
    """The tenant has more rows than are moved in a short hold, and fewer than need a large move."""
    patch.setattr(move_estimate, "BRIEF_ROWS", len(ROWS) - 1)
    for cell in world.fleet.cells.values():
        cell.weight = transfer.Preflight(len(ROWS), 1000, 0, 0)


async def test_who_only_gains_a_shorter_hold_leaves_no_standby_and_no_stream(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_middle_size(world, monkeypatch)
    done = await world.mover(writing(world)).drive(await world.start(), term=1)
    assert (done.path, done.state, done.reason) == (Path.LARGE, State.DONE, done.reason)
    await world.assert_settled(TARGET)
    assert world.streams() == []
    back = (await world.moves.rollback(done.id, OPERATOR)).move
    assert (await world.mover(writing(world)).drive(back.id, term=2)).state is State.DONE
    await world.assert_settled(SOURCE)
    assert world.streams() == []


async def test_who_only_gains_a_shorter_hold_is_not_refused_for_want_of_a_slot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_middle_size(world, monkeypatch)
    for cell in world.fleet.cells.values():
        cell.room = transfer.StreamRoom("shard-1", 20, 20, 0, 20)
    estimate = await world.moves.estimate(world.slug, TARGET)
    assert (estimate.path, estimate.passing) == (Path.SMALL, False)
    with pytest.raises(ProblemError, match="no-stream-room"):
        await world.moves.estimate(world.slug, TARGET, standby=True)


@pytest.mark.invariant(1)
async def test_a_rollback_of_a_standby_loses_nothing_that_was_written_since_the_switch(world: World) -> None:
    move = await standing(world, await world.start(standby=True))
    for _ in range(7):
        world.write()
    back = (await world.moves.rollback(move.id, OPERATOR)).move
    assert (back.path, (await world.move(move.id)).state) == (Path.BACK, State.RETURNING)
    done = await world.mover(writing(world)).drive(back.id, term=2)
    assert done.state is State.DONE, done.reason
    await world.assert_settled(SOURCE)
    assert (await world.move(move.id)).state is State.ROLLED_BACK
    assert [
        s.command for s in world.fleet.sent if s.fence.move == back.id and s.command in ("snapshot", "import")
    ] == []


@pytest.mark.parametrize("acknowledged", [False, True])
async def test_a_late_batch_of_the_driver_before_would_end_a_rollback(
    world: World, monkeypatch: pytest.MonkeyPatch, acknowledged: bool
) -> None:
    move = await standing(world, await world.start(standby=True))
    for _ in range(7):
        world.write()
    back = (await world.moves.rollback(move.id, OPERATOR)).move
    apply, changes = world.source._apply, world.target._changes
    late: list[transfer.Applied] = []

    def batch(content: bytes, rows: int) -> bytes:
        whole = msgspec.json.decode(content, type=Body)
        return msgspec.json.encode(Body(whole.stream, whole.after, whole.after + rows, whole.rows[:rows], ""))

    def arrives(tenant: str, row: Any, body: bytes) -> transfer.Applied:  # three of its seven rows came first
        if not late and not acknowledged:
            late.append(apply(tenant, row, batch(body, 3)))
        return apply(tenant, row, body)

    def lets_go(tenant: str, row: Any, body: bytes) -> Any:  # and where it came further, the sender forgot them
        if not late and acknowledged:
            late.append(apply(tenant, world.source.tenants[tenant], batch(changes(tenant, row, body).content, 3)))
            query = msgspec.json.decode(body, type=transfer.ChangesQuery)
            changes(tenant, row, msgspec.json.encode(msgspec.structs.replace(query, after=late[0].position)))
        return changes(tenant, row, body)

    monkeypatch.setattr(world.source, "_apply", arrives)
    monkeypatch.setattr(world.target, "_changes", lets_go)
    done = await world.mover().drive(back.id, term=2)
    assert (done.state, len(late)) == (State.DONE, 1), done.reason
    await world.assert_settled(SOURCE)


@pytest.mark.invariant(6)
@pytest.mark.parametrize("boundary", TO_STANDBY)
async def test_a_control_plane_killed_after_a_commit_of_a_large_move_leaves_one_that_the_next_finishes(
    world: World, boundary: str
) -> None:
    move_id = await world.start(standby=True)
    with pytest.raises(Killed):
        await world.mover(writing(world, killed_at(boundary))).drive(move_id, term=1)
    assert len(world.fleet.owners(world.id)) <= 1
    world.write()
    await standing(world, move_id, term=2)
    await finalized(world, move_id, term=3)


@pytest.mark.invariant(6)
@pytest.mark.parametrize(("cell", "command"), OUT)
async def test_a_control_plane_killed_between_an_effect_of_a_large_move_and_its_commit_loses_nothing(
    world: World, cell: str, command: str
) -> None:
    move_id = await world.start(standby=True)
    world.fleet.cells[cell].kill_after = command
    with pytest.raises((Killed, BaseExceptionGroup)):
        await world.mover(writing(world)).drive(move_id, term=1)
    assert len(world.fleet.owners(world.id)) <= 1
    world.write()
    await standing(world, move_id, term=2)
    await finalized(world, move_id, term=3)


@pytest.mark.parametrize(("cell", "command"), OUT)
async def test_a_lost_answer_does_not_undo_or_double_a_command_of_a_large_move(
    world: World, cell: str, command: str
) -> None:
    world.fleet.cells[cell].lose_answer_of.add(command)
    move = await standing(world, await world.start(standby=True), noted=lambda standby: standby.attempts > 0)
    assert move.attempts == 1
    await finalized(world, move.id)


@pytest.mark.invariant(6)
@pytest.mark.parametrize(("cell", "command"), BACK)
async def test_a_control_plane_killed_while_a_standby_gets_its_tenant_back_leaves_one_owner(
    world: World, cell: str, command: str
) -> None:
    move = await standing(world, await world.start(standby=True))
    world.write()
    back = (await world.moves.rollback(move.id, OPERATOR)).move.id
    world.fleet.cells[cell].kill_after = command
    with pytest.raises((Killed, BaseExceptionGroup)):
        await world.mover(writing(world)).drive(back, term=2)
    assert len(world.fleet.owners(world.id)) <= 1
    world.write()
    assert (await world.mover(writing(world)).drive(back, term=3)).state is State.DONE
    await world.assert_settled(SOURCE)


@pytest.mark.invariant(6)
@pytest.mark.parametrize("boundary", ["preparing", "copying", "catching_up", "holding", "frozen"])
async def test_a_cancelled_large_move_leaves_no_stream_and_no_row(world: World, boundary: str) -> None:
    move_id = await world.start(standby=True)
    with pytest.raises(Killed):
        await world.mover(writing(world, killed_at(boundary))).drive(move_id, term=1)
    await world.moves.cancel(move_id, OPERATOR)
    assert (await world.mover(writing(world)).drive(move_id, term=2)).state is State.CANCELLED
    await world.assert_settled(SOURCE)


@pytest.mark.parametrize("boundary", ["catching_up", "holding", "frozen"])
async def test_a_cancelled_rollback_leaves_the_standby_following(world: World, boundary: str) -> None:
    move = await standing(world, await world.start(standby=True))
    back = (await world.moves.rollback(move.id, OPERATOR)).move.id
    with pytest.raises(Killed):
        await world.mover(writing(world, killed_at(boundary))).drive(back, term=2)
    await world.moves.cancel(back, OPERATOR)
    assert (await world.mover(writing(world)).drive(back, term=3)).state is State.CANCELLED
    assert (await world.tenant()).move_id == move.id
    world.write()
    await standing(world, move.id, term=4)
    await finalized(world, move.id, term=5)


async def test_a_copy_that_differs_is_found_before_anybody_is_held(world: World) -> None:
    world.target.corrupt_imports = True
    failed = await world.mover(writing(world)).drive(await world.start(standby=True), term=1)
    assert (failed.state, failed.held) == (State.FAILED, False)
    assert "differs in product.orders" in failed.reason or "differs" in str((await world.moves.one(failed.id)).steps)
    await world.assert_settled(SOURCE)


async def test_a_change_that_arrives_wrong_is_found_inside_the_hold(world: World) -> None:
    async def spoil(name: str) -> None:
        if name == "holding":
            world.target.corrupt_applies = True
            world.write()

    failed = await world.mover(writing(world, spoil)).drive(await world.start(standby=True), term=1)
    assert (failed.state, failed.held) == (State.FAILED, True)
    await world.assert_settled(SOURCE)


async def test_a_lost_slot_begins_the_copy_anew_while_the_tenant_is_served(world: World) -> None:
    async def lose(name: str) -> None:
        if name == "catching_up":
            for slot in world.source.slots.values():
                slot.lost = len(seen) == 0
            seen.append(name)

    seen: list[str] = []
    move_id = await world.start(standby=True)
    with pytest.raises(Killed):
        await world.mover(writing(world, both(lose, killed_at("standby")))).drive(move_id, term=1)
    assert (await world.move(move_id)).progress.copies == 2
    await standing(world, move_id, term=2)
    await finalized(world, move_id, term=3)


async def test_a_lost_slot_of_the_way_back_says_that_a_rollback_would_lose_writes(world: World) -> None:
    move = await standing(world, await world.start(standby=True))
    for slot in world.target.slots.values():
        slot.lost = True
    driving = asyncio.create_task(world.mover().drive(move.id, 2))
    async with asyncio.timeout(PATIENCE_S):
        while not (await world.move(move.id)).progress.lost:
            await asyncio.sleep(0.01)
    with pytest.raises(ProblemError) as refused:
        await world.moves.rollback(move.id, OPERATOR)
    assert refused.value.problem is problems.STREAM_LOST
    assert move.id in str(refused.value.extra["advice"])
    await world.moves.finalize(move.id, OPERATOR)
    assert (await driving).state is State.DONE
    await world.assert_settled(TARGET)


async def test_a_paused_move_is_kept_up_to_date_and_holds_nobody(world: World) -> None:
    move_id = await world.start(standby=True)
    with pytest.raises(Killed):
        await world.mover(killed_at("catching_up")).drive(move_id, term=1)
    await world.moves.pause(move_id, OPERATOR)
    driving = asyncio.create_task(world.mover().drive(move_id, 2))
    for _ in range(3):
        world.write()
        async with asyncio.timeout(PATIENCE_S):
            while sorted(world.target.tenants[world.id].rows) != sorted(world.rows):
                await asyncio.sleep(0.01)
    assert (await world.move(move_id)).state is State.CATCHING_UP
    assert [r.state for r in await world.published()] == ["active"]
    driving.cancel()
    await asyncio.gather(driving, return_exceptions=True)
    await world.moves.resume(move_id, OPERATOR)
    await standing(world, move_id, term=3)
    await finalized(world, move_id, term=4)


async def test_a_noisy_tenant_is_throttled_also_while_its_old_home_follows(world: World) -> None:
    move_id = await world.start(standby=True)
    async with world.engine.begin() as conn:
        with pytest.raises(ProblemError, match="move-running"):
            await throttle(conn, await world.tenant(), Policy(), 60.0)
    move = await standing(world, move_id)
    async with world.engine.begin() as conn:
        await throttle(conn, await world.tenant(), Policy(), 60.0)
    assert [(r.cell, r.plan) for r in await world.published()][-1] == (TARGET, "throttled")
    async with world.engine.begin() as conn:
        await lift(conn, await world.tenant(), Policy())
    await finalized(world, move.id)


async def test_a_standby_with_a_time_limit_finalizes_itself(world: World) -> None:
    done = await world.mover(writing(world)).drive(await world.start(standby=True, finalize_after_s=0.0), term=1)
    assert done.state is State.DONE
    await world.assert_settled(TARGET)


async def test_files_arrive_before_the_target_serves_and_follow_on_the_way_back(world: World) -> None:
    world.source.blobs[world.id] = {"report-1": b"one"}
    move = await standing(world, await world.start(standby=True))
    assert world.target.blobs[world.id] == {"report-1": b"one"}
    world.target.blobs[world.id]["report-2"] = b"two"
    back = (await world.moves.rollback(move.id, OPERATOR)).move.id
    assert (await world.mover().drive(back, term=2)).state is State.DONE
    assert world.source.blobs[world.id] == {"report-1": b"one", "report-2": b"two"}


async def test_a_file_that_is_made_between_the_copy_and_the_hold_is_there_when_the_target_serves(world: World) -> None:
    async def make(name: str) -> None:
        if name in ("catching_up", "holding"):
            world.source.blobs.setdefault(world.id, {})[f"made-{name}"] = name.encode()

    await standing(world, await world.start(standby=True), then=make)
    assert world.target.blobs[world.id] == {"made-catching_up": b"catching_up", "made-holding": b"holding"}


async def test_a_file_that_cannot_be_copied_keeps_the_target_from_serving(world: World) -> None:
    async def break_down(name: str) -> None:
        if name == "holding":
            world.source.blobs[world.id] = {"late": b"late"}
            world.target.stores_no_blobs = True

    failed = await world.mover(writing(world, break_down)).drive(await world.start(standby=True), term=1)
    assert failed.state is State.FAILED
    await world.assert_settled(SOURCE)


async def test_a_file_of_an_earlier_stay_that_is_another_is_copied_anew(world: World) -> None:
    world.source.blobs[world.id] = {"report-1": b"whole"}
    world.target.blobs[world.id] = {"report-1": b"who"}
    await standing(world, await world.start(standby=True))
    assert world.target.blobs[world.id] == {"report-1": b"whole"}


async def test_a_migration_under_a_move_is_noticed_before_the_hold(world: World) -> None:
    async def migrate(name: str) -> None:
        if name == "catching_up":
            world.target.schema = "9999"

    failed = await world.mover(writing(world, migrate)).drive(await world.start(standby=True), term=1)
    assert (failed.state, failed.held) == (State.FAILED, False)
    assert any("9999" in step.detail for step in (await world.moves.one(failed.id)).steps)
    await world.assert_settled(SOURCE)


@pytest.mark.invariant(6)
@pytest.mark.parametrize("boundary", TO_STANDBY)
async def test_a_paused_leader_of_a_large_move_can_neither_commit_nor_change_anything(
    world: World, boundary: str
) -> None:
    reached, wake = asyncio.Event(), asyncio.Event()

    async def pause(name: str) -> None:
        if name == boundary:
            reached.set()
            await wake.wait()

    move_id = await world.start(standby=True)
    old = asyncio.create_task(world.mover(pause).drive(move_id, term=1))
    await reached.wait()
    await standing(world, move_id, term=2)
    await finalized(world, move_id, term=3)
    wake.set()
    with pytest.raises(StaleMoveError):
        await old
    await world.assert_settled(TARGET)


async def test_a_tenant_that_outruns_its_copy_is_left_where_it_is(world: World) -> None:
    budgets = Budgets(catch_up_s=0.0)
    failed = await world.mover(writing(world), budgets).drive(await world.start(standby=True), term=1)
    assert failed.state is State.FAILED
    await world.assert_settled(SOURCE)


@pytest.mark.parametrize(
    ("weight", "path"),
    [
        (transfer.Preflight(1_000, 500_000, 0, 0), Path.SMALL),
        (transfer.Preflight(60_000, 500_000, 0, 0), Path.LARGE),
        (transfer.Preflight(1_000, 64 << 20, 0, 0), Path.LARGE),
        (transfer.Preflight(1_000, 500_000, 3, 32 << 20), Path.LARGE),
    ],
)
async def test_what_does_not_fit_into_a_hold_is_not_copied_inside_of_one(
    world: World, weight: transfer.Preflight, path: Path
) -> None:
    world.source.weight = weight
    assert (await world.moves.estimate(world.slug, TARGET)).path is path


async def test_a_table_that_cannot_be_replicated_is_named_before_anything_is_touched(world: World) -> None:
    world.source.weight = transfer.Preflight(60_000, 1, 0, 0, ("product.orders has no primary key",))
    with pytest.raises(ProblemError, match=r"product\.orders has no primary key"):
        await world.moves.start(world.slug, TARGET, OPERATOR)
    assert world.fleet.sent == []


def both(
    first: Callable[[str], Awaitable[None]], second: Callable[[str], Awaitable[None]]
) -> Callable[[str], Awaitable[None]]:
    async def on_boundary(name: str) -> None:
        await first(name)
        await second(name)

    return on_boundary


async def test_a_rollback_asked_for_before_the_old_home_follows_is_told_to_wait(world: World) -> None:
    """Its old home is frozen until it was told to follow: such a rollback could neither go on nor be undone."""
    move_id = await world.start(standby=True)
    with pytest.raises(Killed):
        await world.mover(writing(world, killed_at("standby"))).drive(move_id, term=1)
    seconds, naps = itertools.count(0.0, 2.0), []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    impatient = Moves(world.engine, world.client, clock=lambda: next(seconds), sleep=nap)
    with pytest.raises(ProblemError) as refused:
        await impatient.rollback(move_id, OPERATOR)
    assert refused.value.problem is problems.MOVE_RUNNING
    assert naps
    assert (await world.move(move_id)).state is State.STANDBY
    await standing(world, move_id, term=2)
    back = (await impatient.rollback(move_id, OPERATOR)).move
    assert (await world.mover(writing(world)).drive(back.id, term=3)).state is State.DONE
    await world.assert_settled(SOURCE)
