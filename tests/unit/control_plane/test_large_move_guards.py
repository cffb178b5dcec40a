"""Guards of a large move that chance seldom meets: for each the interleaving that breaks without it, step by step."""

from collections.abc import Callable

import pytest

from control_plane.move import Path, State
from tests.unit.control_plane.test_large_move_machine import A, LargeWorld, Leader, Message, Move


class WithoutComparingTerms(LargeWorld):
    compares_terms = False


class WithoutComparingTheCancellation(LargeWorld):
    compares_cancel = False


class WithoutNewEpochsAtThawing(LargeWorld):
    gives_new_epochs = False


class WithoutFences(LargeWorld):
    fences = False


class WithoutFencesAndMinEpochs(WithoutFences):
    keeps_min_epochs = False


class BrokenPromiseError(Exception):
    """Something that must always hold does not, as opposed to a scenario that did not come to its point."""


def look(world: LargeWorld) -> None:
    """Everything that must always hold."""
    try:
        world.never_two_owners()
        world.who_serves_has_every_acknowledged_write()
        world.who_begins_to_serve_does_so_under_an_epoch_that_nobody_had()
        world.a_move_whose_cancellation_was_accepted_is_not_decided()
    except AssertionError as e:
        raise BrokenPromiseError from e


def lead(world: LargeWorld, state: State) -> Leader:
    """A new leader that has brought the newest move to that state."""
    world.elect()
    world.work_until(state)
    assert world.moves[-1].state is state
    return world.leaders[-1]


def to_the_brink(world: LargeWorld) -> Leader:
    """A leader that has drained and compared under the hold, and is to commit the decision next."""
    leader = lead(world, State.FROZEN)
    world._step(leader)
    while leader.todo:
        world._step(leader)
    assert leader.failure is None
    assert leader.action is not None
    assert leader.action.then is State.SWITCHING
    return leader


def an_old_leader_decides_by_what_it_drained_in_an_earlier_hold(world: LargeWorld) -> None:
    old = to_the_brink(world)
    world.hold_for_too_long()
    new = lead(world, State.HOLDING)  # thawed, followed, held anew
    world.write()  # by a request that was admitted before the freeze
    world.work_until(State.FROZEN)
    world._step(old)  # the same state as the one that it read
    if world.moves[-1].state is State.SWITCHING:
        world._step(new)
    world.work_until(State.STANDBY)
    look(world)


def a_person_cancels_while_the_decision_is_on_its_way(world: LargeWorld) -> None:
    leader = to_the_brink(world)
    world.cancel()
    world._step(leader)
    look(world)
    world.work_until(State.CANCELLED)
    look(world)
    assert world.owners() == [A]


def a_hold_that_was_too_long_is_ended_and_begun_again(world: LargeWorld) -> None:
    lead(world, State.FROZEN)
    world.hold_for_too_long()
    world.work_until(State.CATCHING_UP)
    look(world)
    world.work_until(State.STANDBY)
    look(world)


def an_activation_comes_after_the_abort_of_a_rollback_that_keeps_its_standby(world: LargeWorld) -> None:
    """The fence refuses it first; `min_epoch` is what is left where the fence does not."""
    leader = lead(world, State.STANDBY)
    while not world.moves[0].stream.standing:
        world._step(leader)
    world.roll_back()
    world.work_until(State.HOLDING)
    back: Move = world.moves[-1]
    assert (back.path, back.target) == (Path.BACK, A)
    world.cancel()
    world.work_until(State.CANCELLED)
    assert world.cells[A].state == "standby"
    look(world)
    world._apply(Message(A, "activate", (0, 0), back.epoch))
    look(world)


Scenario = Callable[[LargeWorld], None]
GUARDS: list[tuple[Scenario, type[LargeWorld], type[LargeWorld]]] = [
    (an_old_leader_decides_by_what_it_drained_in_an_earlier_hold, LargeWorld, WithoutComparingTerms),
    (a_person_cancels_while_the_decision_is_on_its_way, LargeWorld, WithoutComparingTheCancellation),
    (a_hold_that_was_too_long_is_ended_and_begun_again, LargeWorld, WithoutNewEpochsAtThawing),
    (an_activation_comes_after_the_abort_of_a_rollback_that_keeps_its_standby, LargeWorld, WithoutFencesAndMinEpochs),
    (
        an_activation_comes_after_the_abort_of_a_rollback_that_keeps_its_standby,
        WithoutFences,
        WithoutFencesAndMinEpochs,
    ),
]


@pytest.mark.mutation(6)
@pytest.mark.parametrize(("scenario", "whole", "broken"), GUARDS)
def test_an_interleaving_that_a_guard_is_for_breaks_a_promise_without_it(
    scenario: Scenario, whole: type[LargeWorld], broken: type[LargeWorld]
) -> None:
    scenario(whole())
    with pytest.raises(BrokenPromiseError):
        scenario(broken())
