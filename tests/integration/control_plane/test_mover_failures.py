"""What goes wrong in a move, and where the tenant is afterwards."""

import pytest

from contracts import problems
from contracts.problems import ProblemError
from control_plane.models import tenants
from control_plane.move import Budgets, State
from tests.integration.control_plane.fake_cell import Killed
from tests.integration.control_plane.mover_world import OPERATOR, SOURCE, TARGET, World, killed_at


@pytest.mark.invariant(6)
@pytest.mark.parametrize(
    ("cell", "command", "problem"),
    [
        (TARGET, "prepare", problems.WRONG_STATE),
        (SOURCE, "freeze", problems.FREEZE_BUSY),
        (SOURCE, "export", problems.WRONG_STATE),
        (TARGET, "import", problems.INVALID),
        (TARGET, "checksum", problems.WRONG_STATE),
    ],
)
async def test_a_refusal_before_the_decision_leaves_the_tenant_served_by_its_source(
    world: World, cell: str, command: str, problem: problems.Problem
) -> None:
    world.fleet.cells[cell].refuse_once[command] = problem
    move_id = await world.start()
    move = await world.mover().drive(move_id, term=1)
    assert move.state is State.FAILED
    given_up = [step for step in (await world.moves.one(move_id)).steps if step.state is State.ABORTING]
    assert [problem.slug in step.detail for step in given_up] == [True]
    assert move.reason.startswith(f"{given_up[0].detail}; ")  # lists show the cause, not what was done last
    await world.assert_settled(SOURCE)


async def test_a_copy_that_differs_is_never_activated(world: World) -> None:
    world.target.corrupt_imports = True
    move_id = await world.start()
    move = await world.mover().drive(move_id, term=1)
    assert move.state is State.FAILED
    assert not [s for s in world.fleet.sent if s.command == "activate"]
    details = [step.detail for step in (await world.moves.one(move_id)).steps]
    assert "the copy differs in product.orders" in details
    await world.assert_settled(SOURCE)


async def test_cells_with_different_schemas_never_exchange_a_row(world: World) -> None:
    world.target.schema = "0008"
    move = await world.mover().drive(await world.start(), term=1)
    assert move.state is State.FAILED
    assert [s.command for s in world.fleet.sent] == ["abort"]
    await world.assert_settled(SOURCE)


async def test_a_hold_that_takes_too_long_ends_by_itself(world: World) -> None:
    move_id = await world.start()
    with pytest.raises(Killed):
        await world.mover(killed_at("frozen")).drive(move_id, term=1)
    budgets = Budgets(hold_s=0.0)  # as if the control plane had been away for longer than the budget
    move = await world.mover(budgets=budgets).drive(move_id, term=2)
    assert move.state is State.FAILED
    assert move.hold_ms is not None
    await world.assert_settled(SOURCE)


@pytest.mark.invariant(6)
async def test_a_target_that_is_away_takes_the_tenant_down_for_a_few_tries_only(world: World) -> None:
    move_id = await world.start()
    with pytest.raises(Killed):
        await world.mover(killed_at("frozen")).drive(move_id, term=1)
    world.target.down = True
    await world.moves.cancel(move_id, OPERATOR)
    tries = 0

    async def counted(_s: float) -> None:
        nonlocal tries
        tries += 1
        assert world.fleet.owners(world.id) == []

    move = await world.mover(sleep=counted).drive(move_id, term=2)
    assert (move.state, tries) == (State.CANCELLED, 3)
    assert [cell for cell, _ in world.fleet.owners(world.id)] == [SOURCE]
    world.target.down = False
    await world.reconciler().once(3)  # what the target holds of the import goes when it is back
    await world.assert_settled(SOURCE)


@pytest.mark.invariant(6)
async def test_a_target_that_answers_but_refuses_keeps_the_tenant_frozen(world: World) -> None:
    """A target that says it serves, after the control plane was restored unannounced: two owners must not be."""
    move_id = await world.start()
    with pytest.raises(Killed):
        await world.mover(killed_at("frozen")).drive(move_id, term=1)
    world.target.tenants[world.id].state = "active"
    await world.moves.cancel(move_id, OPERATOR)
    tries = 0

    async def enough(_s: float) -> None:
        nonlocal tries
        tries += 1
        if tries == 10:
            raise Killed

    with pytest.raises(Killed):
        await world.mover(sleep=enough).drive(move_id, term=2)
    assert [cell for cell, _ in world.fleet.owners(world.id)] == [TARGET]


async def test_a_target_that_dies_after_the_decision_is_waited_for_and_never_given_up(world: World) -> None:
    move_id = await world.start()
    with pytest.raises(Killed):
        await world.mover(killed_at("switching")).drive(move_id, term=1)
    world.target.down = True
    tries = 0

    async def until_it_is_back(_s: float) -> None:
        nonlocal tries
        tries += 1
        assert world.fleet.owners(world.id) == []
        world.target.down = tries < 10

    move = await world.mover(sleep=until_it_is_back).drive(move_id, term=2)
    assert (move.state, move.attempts) == (State.DONE, 10)
    await world.assert_settled(TARGET)


async def test_rows_at_the_source_stay_until_the_target_is_confirmed_active(world: World) -> None:
    move_id = await world.start()
    with pytest.raises(Killed):
        await world.mover(killed_at("standby")).drive(move_id, term=1)
    world.target.tenants[world.id].state = "importing"  # a cell that forgot an activation it had confirmed

    async def activated_again(_s: float) -> None:
        assert world.source.tenants[world.id].rows
        world.target.tenants[world.id].state = "active"

    await world.mover(sleep=activated_again).drive(move_id, term=2)
    await world.assert_settled(TARGET)


async def test_a_rolled_back_move_says_so_and_its_rows_are_where_they_began(world: World) -> None:
    there = await world.start()
    await world.mover().drive(there, term=1)
    back = (await world.moves.rollback(there, OPERATOR)).move
    assert (back.kind, back.source, back.target, back.undoes) == ("rollback", TARGET, SOURCE, there)
    await world.mover().drive(back.id, term=1)
    assert (await world.move(there)).state is State.ROLLED_BACK
    await world.assert_settled(SOURCE)
    assert (await world.tenant()).epoch == 3
    with pytest.raises(ProblemError, match="conflict"):
        await world.moves.rollback(there, OPERATOR)


async def test_a_suspended_tenant_stays_suspended_through_a_move(world: World) -> None:
    async with world.engine.begin() as conn:
        await conn.execute(tenants.update().where(tenants.c.number == world.number).values(state="suspended"))
    await world.mover().drive(await world.start(), term=1)
    assert [r.state for r in await world.published()] == ["active", "suspended", "suspended"]
    assert (await world.published())[-1].cell == TARGET


async def test_a_cancellation_that_arrives_in_the_middle_of_a_step_wins_over_the_decision(world: World) -> None:
    move_id = await world.start()

    async def cancel_while_frozen(name: str) -> None:
        if name == "frozen":
            await world.moves.cancel(move_id, OPERATOR)

    move = await world.mover(cancel_while_frozen).drive(move_id, term=1)
    assert move.state is State.CANCELLED
    assert not [s for s in world.fleet.sent if s.command == "activate"]
    await world.assert_settled(SOURCE)
