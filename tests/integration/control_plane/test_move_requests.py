"""What operators may ask of moves: every refusal says what to do, and asking twice at once gives one move."""

import asyncio

import pytest
import sqlalchemy as sa

from contracts.problems import ProblemError
from control_plane.cell_client import CellUnreachableError
from control_plane.models import cells, tenants
from control_plane.move import State
from control_plane.move_estimate import SMALL_ROWS
from tests.integration.control_plane.mover_world import OPERATOR, SOURCE, TARGET, World


async def refusal(world: World, to: str) -> ProblemError:
    with pytest.raises(ProblemError) as refused:
        await world.moves.start(world.slug, to, OPERATOR)
    with pytest.raises(ProblemError) as dry:
        await world.moves.estimate(world.slug, to)
    assert dry.value.problem is refused.value.problem
    assert (await world.tenant()).move_id is None or refused.value.problem.slug == "move-running"
    return refused.value


async def test_a_move_to_where_the_tenant_lives_is_refused(world: World) -> None:
    assert (await refusal(world, SOURCE)).problem.slug == "already-there"


async def test_a_move_to_a_cell_that_nobody_knows_names_the_cells_there_are(world: World) -> None:
    error = await refusal(world, "cell-9")
    assert error.problem.slug == "not-found"
    assert TARGET in error.detail


async def test_a_moving_tenant_is_not_moved_again(world: World) -> None:
    move_id = await world.start()
    error = await refusal(world, TARGET)
    assert error.problem.slug == "move-running"
    assert move_id in error.detail


@pytest.mark.parametrize(
    ("change", "slug"),
    [
        ({"state": "draining"}, "conflict"),
        ({"state": "closed"}, "conflict"),
        ({"capacity": 0}, "cell-full"),
        ({"schema_revision": "0001"}, "schema-mismatch"),
        ({"region": "elsewhere"}, "conflict"),
    ],
)
async def test_a_cell_that_cannot_take_the_tenant_is_refused_with_a_way_out(
    world: World, change: dict[str, object], slug: str
) -> None:
    spare = f"spare-{world.number}"
    async with world.engine.begin() as conn:
        columns = [column for column in cells.c if column.name != "name"]
        copy = sa.select(sa.literal(spare), *columns).where(cells.c.name == TARGET)
        await conn.execute(cells.insert().from_select(["name", *(c.name for c in columns)], copy))
        await conn.execute(cells.update().where(cells.c.name == spare).values(change))
    error = await refusal(world, spare)
    assert error.problem.slug == slug
    assert error.extra.get("advice") or error.problem.advice
    async with world.engine.begin() as conn:
        await conn.execute(cells.update().where(cells.c.name == spare).values(state="removed"))


@pytest.mark.parametrize("state", ["provisioning", "deleting"])
async def test_a_tenant_that_is_coming_or_going_is_not_moved(world: World, state: str) -> None:
    async with world.engine.begin() as conn:
        await conn.execute(tenants.update().where(tenants.c.number == world.number).values(state=state))
    with pytest.raises(ProblemError, match="conflict"):
        await world.moves.start(world.id, TARGET, OPERATOR)


async def test_of_two_operators_who_move_a_tenant_at_once_one_is_told_so(world: World) -> None:
    asked = [world.moves.start(world.slug, TARGET, OPERATOR) for _ in range(2)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    refused = [o for o in outcomes if isinstance(o, ProblemError)]
    assert [e.problem.slug for e in refused] == ["move-running"]


async def test_a_dry_run_counts_the_rows_and_changes_nothing(world: World) -> None:
    estimate = await world.moves.estimate(world.slug, TARGET)
    assert (estimate.source, estimate.target, estimate.rows) == (SOURCE, TARGET, 50)
    assert (await world.tenant()).move_id is None
    assert await world.moves.all(None, world.slug, 10) == []


async def test_a_tenant_too_large_for_the_hold_is_refused_before_anything_is_touched(world: World) -> None:
    world.source.tenants[world.id].rows = [b"row"] * (SMALL_ROWS + 1)
    with pytest.raises(ProblemError, match="tenant-too-large") as refused:
        await world.moves.start(world.slug, TARGET, OPERATOR)
    assert str(SMALL_ROWS + 1) in refused.value.detail
    assert await world.moves.all(None, world.slug, 10) == []


async def test_a_source_that_is_away_is_named_and_no_move_is_planned(world: World) -> None:
    async def away(*_: object, **__: object) -> None:
        raise CellUnreachableError(SOURCE, "connection refused")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(world.moves._client, "status", away)
        with pytest.raises(ProblemError, match="cell-unavailable") as refused:
            await world.moves.start(world.slug, TARGET, OPERATOR)
    assert SOURCE in refused.value.detail
    assert await world.moves.all(None, world.slug, 10) == []


async def test_a_finished_move_cannot_be_cancelled_and_an_unfinished_one_not_rolled_back(world: World) -> None:
    move_id = await world.start()
    with pytest.raises(ProblemError, match="move-running"):
        await world.moves.rollback(move_id, OPERATOR)
    await world.mover().drive(move_id, term=1)
    with pytest.raises(ProblemError, match="conflict"):
        await world.moves.cancel(move_id, OPERATOR)
    listed = await world.moves.all(State.DONE, world.slug, 10)
    assert [m.id for m in listed] == [move_id]


async def test_a_move_that_another_followed_cannot_be_rolled_back(world: World) -> None:
    first = await world.start()
    await world.mover().drive(first, term=1)
    second = await world.start(SOURCE)
    await world.mover().drive(second, term=1)
    with pytest.raises(ProblemError, match="lives in cell-1"):
        await world.moves.rollback(first, OPERATOR)


async def test_only_the_newest_of_moves_to_the_same_cell_can_be_rolled_back(world: World) -> None:
    first, _back, last = [
        (await world.mover().drive(await world.start(to), term=1)).id for to in (TARGET, SOURCE, TARGET)
    ]
    with pytest.raises(ProblemError, match=f"newest finished move is {last}") as refused:
        await world.moves.rollback(first, OPERATOR)
    assert refused.value.problem.status == 409
    undoing = (await world.moves.rollback(last, OPERATOR)).move
    await world.mover().drive(undoing.id, term=1)
    assert [(await world.move(m)).state for m in (first, last)] == [State.DONE, State.ROLLED_BACK]
    await world.assert_settled(SOURCE)


async def test_epochs_of_repeated_moves_rise_and_are_never_used_twice(world: World) -> None:
    epochs = []
    for to in (TARGET, SOURCE, TARGET):
        move = await world.mover().drive(await world.start(to), term=1)
        epochs.append(move.epoch)
    assert epochs == [2, 3, 4]
    await world.assert_settled(TARGET)


async def test_pausing_twice_and_resuming_twice_change_nothing(world: World) -> None:
    move_id = await world.start()
    for _ in range(2):
        assert (await world.moves.pause(move_id, OPERATOR)).move.paused
    for _ in range(2):
        assert not (await world.moves.resume(move_id, OPERATOR)).move.paused
    details = [step.detail for step in (await world.moves.one(move_id)).steps]
    assert details[1:] == ["paused", "resumed"]


async def test_a_move_past_its_hold_cannot_be_paused_and_a_small_one_not_finalized(world: World) -> None:
    move_id = await world.start()
    await world.mover().drive(move_id, term=1)
    for ask in (world.moves.pause, world.moves.resume, world.moves.finalize):
        with pytest.raises(ProblemError, match="done") as refused:
            await ask(move_id, OPERATOR)
        assert refused.value.problem.slug == "conflict"


async def test_a_cancelled_move_cannot_be_paused(world: World) -> None:
    move_id = await world.start()
    await world.moves.cancel(move_id, OPERATOR)
    with pytest.raises(ProblemError, match="being cancelled"):
        await world.moves.pause(move_id, OPERATOR)
    assert (await world.mover().drive(move_id, term=1)).state is State.CANCELLED


async def test_a_standby_is_wanted_of_a_cell_that_cannot_follow(world: World) -> None:
    with pytest.raises(ProblemError, match="no standby"):
        await world.moves.start(world.slug, TARGET, OPERATOR, standby=True)
    assert await world.moves.all(None, world.slug, 10) == []


async def test_a_time_to_finalize_is_refused_where_nothing_would_be_left_to_finalize(world: World) -> None:
    for ask in (
        world.moves.estimate(world.slug, TARGET, needs_standby=True),
        world.moves.start(world.slug, TARGET, OPERATOR, finalize_after_s=3600.0, needs_standby=True),
    ):
        with pytest.raises(ProblemError, match="conflict") as refused:
            await ask
        assert "leaves no standby" in refused.value.detail
        assert "--standby" in refused.value.extra["advice"]
    assert await world.moves.all(None, world.slug, 10) == []
    move_id = await world.start(standby=True, finalize_after_s=3600.0)
    assert (await world.move(move_id)).finalize_after_s == 3600.0
