"""A move that is interrupted anywhere leaves one owner, and is finished by whoever comes next."""

import asyncio

import pytest

from contracts.problems import ProblemError
from contracts.routes import RouteHint
from control_plane.move import State
from control_plane.move_store import StaleMoveError
from tests.integration.control_plane.fake_cell import Killed
from tests.integration.control_plane.mover_world import HINT_KEY, OPERATOR, ROWS, SOURCE, TARGET, World, killed_at

FORWARD = ["preparing", "holding", "frozen", "switching", "standby", "purging", "done"]
UNDECIDED = ["preparing", "holding", "frozen"]
COMMANDS = [
    (TARGET, "prepare"), (SOURCE, "freeze"), (SOURCE, "export"), (TARGET, "import"), (SOURCE, "checksum"),
    (TARGET, "checksum"), (TARGET, "activate"), (SOURCE, "release"), (SOURCE, "purge"),
]  # fmt: skip


async def test_a_move_carries_every_row_and_publishes_hold_then_the_new_home(world: World) -> None:
    seen: list[str] = []

    async def note(name: str) -> None:
        seen.append(name)

    move = await world.mover(note).drive(await world.start(), term=1)
    assert (move.state, seen) == (State.DONE, FORWARD)
    assert move.rows == len(ROWS)
    assert move.hold_ms is not None
    assert move.hold_ms > 0
    await world.assert_settled(TARGET)
    assert [(r.cell, r.epoch, r.state) for r in await world.published()] == [
        (SOURCE, 1, "active"), (SOURCE, 1, "held"), (TARGET, 2, "active"),
    ]  # fmt: skip
    hint = RouteHint.verified(HINT_KEY, world.source.tenants[world.id].hint)
    assert hint == RouteHint(world.id, TARGET, 2)


@pytest.mark.invariant(6)
@pytest.mark.parametrize("boundary", FORWARD)
async def test_a_control_plane_killed_after_a_commit_leaves_a_move_that_the_next_one_finishes(
    world: World, boundary: str
) -> None:
    move_id = await world.start()
    with pytest.raises(Killed):
        await world.mover(killed_at(boundary)).drive(move_id, term=1)
    assert len(world.fleet.owners(world.id)) <= 1
    if boundary != "done":
        assert (await world.mover().drive(move_id, term=2)).state is State.DONE
    await world.assert_settled(TARGET)


@pytest.mark.invariant(6)
@pytest.mark.parametrize(("cell", "command"), COMMANDS)
async def test_a_control_plane_killed_between_an_effect_and_its_commit_leaves_one_owner(
    world: World, cell: str, command: str
) -> None:
    move_id = await world.start()
    world.fleet.cells[cell].kill_after = command
    with pytest.raises(Killed):
        await world.mover().drive(move_id, term=1)
    assert len(world.fleet.owners(world.id)) <= 1
    assert (await world.mover().drive(move_id, term=2)).state is State.DONE
    await world.assert_settled(TARGET)


@pytest.mark.parametrize(("cell", "command"), COMMANDS)
async def test_a_lost_answer_does_not_undo_or_double_a_command(world: World, cell: str, command: str) -> None:
    world.fleet.cells[cell].lose_answer_of.add(command)
    move = await world.mover().drive(await world.start(), term=1)
    assert (move.state, move.attempts) == (State.DONE, 1)
    await world.assert_settled(TARGET)


@pytest.mark.invariant(6)
@pytest.mark.parametrize("boundary", UNDECIDED)
async def test_a_cancellation_before_the_decision_gives_the_source_a_higher_epoch_and_bars_the_target(
    world: World, boundary: str
) -> None:
    move_id = await world.start()
    with pytest.raises(Killed):
        await world.mover(killed_at(boundary)).drive(move_id, term=1)
    await world.moves.cancel(move_id, OPERATOR)
    assert (await world.mover().drive(move_id, term=2)).state is State.CANCELLED
    await world.assert_settled(SOURCE)
    assert (await world.tenant()).epoch == (1 if boundary == "preparing" else 3)
    assert world.target.tenants[world.id].min_epoch == 3
    commands = [s.command for s in world.fleet.sent if s.fence.term == 2]
    assert commands[0] == "abort", "the source may come back only after the target confirmed"


async def test_a_cancelled_move_that_had_not_begun_touches_no_cell(world: World) -> None:
    move_id = await world.start()
    await world.moves.cancel(move_id, OPERATOR)
    assert (await world.mover().drive(move_id, term=1)).state is State.CANCELLED
    assert world.fleet.sent == []
    await world.assert_settled(SOURCE)


@pytest.mark.parametrize("boundary", ["switching", "standby", "purging"])
async def test_a_cancellation_after_the_decision_is_refused_and_the_move_goes_on(world: World, boundary: str) -> None:
    move_id = await world.start()
    with pytest.raises(Killed):
        await world.mover(killed_at(boundary)).drive(move_id, term=1)
    with pytest.raises(ProblemError) as refused:
        await world.moves.cancel(move_id, OPERATOR)
    assert refused.value.problem.slug == "move-decided"
    assert (await world.mover().drive(move_id, term=2)).state is State.DONE
    await world.assert_settled(TARGET)


@pytest.mark.parametrize("step", ["aborting", "restoring"])
async def test_a_control_plane_killed_on_the_way_back_still_gives_the_tenant_back(world: World, step: str) -> None:
    world.target.corrupt_imports = True
    move_id = await world.start()
    with pytest.raises(Killed):
        await world.mover(killed_at(step)).drive(move_id, term=1)
    assert world.fleet.owners(world.id) == []
    assert (await world.mover().drive(move_id, term=2)).state is State.FAILED
    await world.assert_settled(SOURCE)


@pytest.mark.invariant(6)
async def test_commands_that_arrive_late_change_nothing(world: World) -> None:
    move_id = await world.start()
    with pytest.raises(Killed):
        await world.mover(killed_at("frozen")).drive(move_id, term=1)
    await world.mover().drive(move_id, term=2)
    back = (await world.moves.rollback(move_id, OPERATOR)).move.id
    await world.mover().drive(back, term=2)
    await world.assert_settled(SOURCE)
    for sent in list(world.fleet.sent):
        world.fleet.deliver_again(sent)
        await world.assert_settled(SOURCE)


@pytest.mark.invariant(6)
@pytest.mark.parametrize("boundary", FORWARD[:-1])
async def test_a_paused_leader_that_wakes_up_can_neither_commit_nor_command(world: World, boundary: str) -> None:
    reached, wake = asyncio.Event(), asyncio.Event()

    async def pause(name: str) -> None:
        if name == boundary:
            reached.set()
            await wake.wait()

    move_id = await world.start()
    old = asyncio.create_task(world.mover(pause).drive(move_id, term=1))
    await reached.wait()
    await world.mover().drive(move_id, term=2)
    await world.assert_settled(TARGET)
    sent = len(world.fleet.sent)
    wake.set()
    with pytest.raises(StaleMoveError):
        await old
    for late in world.fleet.sent[sent:]:
        assert late.fence.term == 1
        assert world.fleet.deliver_again(late) == "fenced"
    await world.assert_settled(TARGET)
