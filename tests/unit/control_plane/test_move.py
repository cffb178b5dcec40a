"""The decisions of a move, one by one: what is next, why, and where a failure leads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.move import (
    DECIDED,
    GOING_BACK,
    LEGAL,
    TERMINAL,
    UNDECIDED,
    Action,
    Budgets,
    Do,
    Failure,
    Snapshot,
    State,
    check,
    decide,
    settle,
)

BUDGETS = Budgets()
snapshots = st.builds(
    Snapshot,
    state=st.sampled_from(State),
    cancel_requested=st.booleans(),
    held=st.booleans(),
    failures=st.integers(0, 100),
    in_state_s=st.floats(0, 100),
    held_s=st.floats(0, 100),
)
failures = st.builds(Failure, reason=st.just("it broke"), retry=st.booleans())


@given(snapshots)
def test_every_snapshot_has_one_legal_next_step_with_a_reason(s: Snapshot) -> None:
    action = decide(s, BUDGETS)
    assert action.reason
    if s.state in TERMINAL:
        assert (action.do, action.then) == (Do.NOTHING, s.state)
    else:
        check(s.state, action.then)


@given(snapshots, failures)
def test_a_failure_after_the_decision_never_leads_back(s: Snapshot, failure: Failure) -> None:
    if s.state in TERMINAL:
        return
    verdict = settle(s, decide(s, BUDGETS), failure, BUDGETS)
    if s.state in DECIDED:
        assert verdict.then is s.state
        assert verdict.wait_s <= BUDGETS.backoff_max_s


@given(snapshots, failures)
def test_putting_a_tenant_back_is_never_given_up(s: Snapshot, failure: Failure) -> None:
    if s.state in GOING_BACK:
        assert settle(s, decide(s, BUDGETS), failure, BUDGETS).then is s.state


def test_no_path_leads_from_the_decision_back_to_the_source() -> None:
    reachable, frontier = set(), set(DECIDED)
    while frontier:
        reachable |= frontier
        frontier = {after for state in frontier for after in LEGAL[state]} - reachable
    assert not reachable & (UNDECIDED | GOING_BACK | {State.CANCELLED, State.FAILED})


def test_a_source_that_may_be_frozen_is_restored_only_by_way_of_a_confirmed_abort() -> None:
    assert {state for state, after in LEGAL.items() if State.RESTORING in after} == {State.ABORTING}
    action = decide(Snapshot(State.ABORTING, held=True), BUDGETS)
    assert (action.do, action.then) == (Do.ABORT, State.RESTORING)


@pytest.mark.parametrize(("cancelled", "end"), [(True, State.CANCELLED), (False, State.FAILED)])
@pytest.mark.parametrize("held", [True, False])
def test_a_move_that_went_back_says_whether_somebody_wanted_it(cancelled: bool, end: State, held: bool) -> None:
    state = State.RESTORING if held else State.ABORTING
    assert decide(Snapshot(state, cancelled, held), BUDGETS).then is end


@pytest.mark.parametrize("state", sorted(UNDECIDED - {State.PLANNED}))
def test_a_cancellation_stops_a_move_that_has_begun_by_way_of_the_target(state: State) -> None:
    action = decide(Snapshot(state, cancel_requested=True), BUDGETS)
    assert (action.do, action.then) == (Do.GIVE_UP, State.ABORTING)


def test_a_cancellation_before_the_beginning_needs_no_cell() -> None:
    action = decide(Snapshot(State.PLANNED, cancel_requested=True), BUDGETS)
    assert (action.do, action.then) == (Do.FINISH, State.CANCELLED)


@pytest.mark.parametrize("state", [State.HOLDING, State.FROZEN])
def test_a_hold_past_its_budget_is_given_up_and_the_reason_says_so(state: State) -> None:
    action = decide(Snapshot(state, held=True, held_s=BUDGETS.hold_s), BUDGETS)
    assert action == Action(Do.GIVE_UP, State.ABORTING, "the tenant was held for more than 5 s")


def test_a_step_in_the_hold_gets_only_what_is_left_of_the_hold() -> None:
    action = decide(Snapshot(State.FROZEN, held=True, held_s=3.5), BUDGETS)
    assert (action.do, action.budget_s) == (Do.COPY, 1.5)


def test_a_target_that_never_gets_ready_is_given_up() -> None:
    action = decide(Snapshot(State.PREPARING, in_state_s=BUDGETS.prepare_s), BUDGETS)
    assert (action.do, action.then) == (Do.GIVE_UP, State.ABORTING)


def test_a_refusal_before_the_decision_gives_up_at_once_and_silence_after_some_tries() -> None:
    s = Snapshot(State.FROZEN, held=True)
    action = decide(s, BUDGETS)
    assert settle(s, action, Failure("no", retry=False), BUDGETS).then is State.ABORTING
    assert settle(s, action, Failure("?", retry=True), BUDGETS).then is State.FROZEN
    tired = Snapshot(State.FROZEN, held=True, failures=BUDGETS.tries - 1)
    verdict = settle(tired, action, Failure("?", retry=True), BUDGETS)
    assert (verdict.then, verdict.reason) == (State.ABORTING, "? (3 tries)")


def test_a_step_that_must_not_fail_alarms_and_backs_off() -> None:
    waits, alarms = [], []
    for count in range(12):
        s = Snapshot(State.SWITCHING, held=True, failures=count)
        verdict = settle(s, decide(s, BUDGETS), Failure("away", retry=True), BUDGETS)
        waits.append(verdict.wait_s)
        alarms.append(verdict.alarm)
    assert waits == sorted(waits)
    assert waits[-1] == BUDGETS.backoff_max_s
    assert (alarms[0], alarms[-1]) == (False, True)


def test_an_illegal_change_of_state_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot go from switching to aborting"):
        check(State.SWITCHING, State.ABORTING)
