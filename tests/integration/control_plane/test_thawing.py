"""A hold that turns out too long gives the tenant back and keeps the copy, so that the next one finds less to do."""

from collections.abc import Awaitable, Callable

import pytest
import sqlalchemy as sa

from control_plane.move import Budgets, State
from control_plane.move_store import moves
from tests.integration.control_plane.fake_cell import Killed
from tests.integration.control_plane.mover_world import HOLD_S, OPERATOR, SOURCE, TARGET, World, killed_at

PATIENT = Budgets(rest_s=0.0, hold_s=HOLD_S)


async def overdue(world: World) -> None:
    """The newest hold began an hour ago, as if its drain had been slow."""
    aged = moves.c.held_at - sa.text("interval '1 hour'")
    async with world.engine.begin() as conn:
        await conn.execute(moves.update().where(moves.c.tenant == world.number).values(held_at=aged))


def writing(world: World, last: str = "") -> Callable[[str], Awaitable[None]]:
    """An observer that lets a user write at every boundary, and ends the mover once ``last`` is committed."""

    async def on_boundary(name: str) -> None:
        world.write()
        if name == last:
            raise Killed(name)

    return on_boundary


async def held_too_long(world: World, move_id: str, state: str = "frozen", term: int = 1, holds: int = 1) -> int:
    """So many leaders, each of which comes to a hold that takes too long; the next one's term."""
    for _ in range(holds):
        with pytest.raises(Killed):
            await world.mover(writing(world, state), PATIENT).drive(move_id, term)
        await overdue(world)
        term += 1
    return term


async def steps(world: World, move_id: str) -> list[str]:
    return [step.state.value for step in (await world.moves.one(move_id)).steps]


@pytest.mark.invariant(6)
@pytest.mark.parametrize("state", ["holding", "frozen"])
async def test_a_slow_drain_would_throw_a_copy_of_many_rows_away(world: World, state: str) -> None:
    move_id = await world.start(standby=True, finalize_after_s=0.0)
    term = await held_too_long(world, move_id, state, holds=2)
    done = await world.mover(writing(world), PATIENT).drive(move_id, term)
    assert (done.state, done.progress.holds, done.progress.copies) == (State.DONE, 2, 1), done.reason
    assert [s.command for s in world.fleet.sent].count("import") == 1
    seen = await steps(world, move_id)
    assert seen.count("thawing") == 2
    assert seen[seen.index("thawing") + 1] == "catching_up"
    await world.assert_settled(TARGET)
    for sent in [s for s in world.fleet.sent if s.command in ("freeze", "restore", "activate", "purge")]:
        world.fleet.deliver_again(sent)
        assert len(world.fleet.owners(world.id)) == 1


async def test_a_tenant_that_was_given_back_is_served_under_an_epoch_that_nobody_had(world: World) -> None:
    move_id = await world.start(standby=True)
    term = await held_too_long(world, move_id)
    before = await world.move(move_id)
    with pytest.raises(Killed):
        await world.mover(killed_at("catching_up"), PATIENT).drive(move_id, term)
    move, tenant = await world.move(move_id), await world.tenant()
    assert before.target_epoch < move.source_epoch < move.target_epoch <= tenant.epoch_high
    assert world.fleet.owners(world.id) == [(SOURCE, move.source_epoch)]
    assert [(r.state, r.epoch) for r in await world.published()][-2:] == [
        ("held", before.source_epoch), ("active", move.source_epoch),
    ]  # fmt: skip
    assert (move.held, tenant.epoch) == (False, move.source_epoch)


@pytest.mark.invariant(6)
@pytest.mark.parametrize("moment", ["thawing", "restore"])
async def test_a_control_plane_killed_while_it_gives_a_tenant_back_would_leave_it_frozen(
    world: World, moment: str
) -> None:
    move_id = await world.start(standby=True, finalize_after_s=0.0)
    term = await held_too_long(world, move_id)
    world.source.kill_after = moment
    with pytest.raises((Killed, BaseExceptionGroup)):
        await world.mover(killed_at(moment), PATIENT).drive(move_id, term)
    world.source.kill_after = None
    done = await world.mover(writing(world), PATIENT).drive(move_id, term + 1)
    assert (done.state, done.progress.copies) == (State.DONE, 1), done.reason
    await world.assert_settled(TARGET)


async def test_a_tenant_that_can_never_be_drained_in_time_would_be_held_for_ever(world: World) -> None:
    move_id = await world.start(standby=True)
    term = await held_too_long(world, move_id, holds=3)
    failed = await world.mover(writing(world), Budgets(rest_s=0.0, holds=2)).drive(move_id, term)
    assert (failed.state, failed.progress.holds) == (State.FAILED, 2)
    assert (await steps(world, move_id)).count("holding") == 3
    await world.assert_settled(SOURCE)


@pytest.mark.parametrize("boundary", ["thawing", "catching_up"])
async def test_a_cancellation_after_a_hold_too_long_leaves_nothing(world: World, boundary: str) -> None:
    move_id = await world.start(standby=True)
    term = await held_too_long(world, move_id)
    with pytest.raises(Killed):
        await world.mover(killed_at(boundary), PATIENT).drive(move_id, term)
    await world.moves.cancel(move_id, OPERATOR)
    assert (await world.mover(writing(world), PATIENT).drive(move_id, term + 1)).state is State.CANCELLED
    await world.assert_settled(SOURCE)
