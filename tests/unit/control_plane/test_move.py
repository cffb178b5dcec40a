"""The decisions of a move, one by one: what is next, why, and where a failure leads."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.move import (
    DECIDED,
    GOING_BACK,
    LEGAL,
    PAUSABLE,
    UNDECIDED,
    UNFINISHED,
    Action,
    Budgets,
    Do,
    Failure,
    Path,
    Snapshot,
    State,
    Stream,
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
    path=st.sampled_from(Path),
    stream=st.builds(
        Stream,
        lag_bytes=st.none() | st.integers(0, 1 << 40),
        verified=st.integers(0, 20),
        touched=st.integers(0, 100_000),
        back_open=st.booleans(),
        standing=st.booleans(),
        lost=st.booleans(),
        copies=st.integers(0, 5),
        drain_s=st.none() | st.floats(0, 10),
        rehearsals=st.integers(0, 100),
        holds=st.integers(0, 6),
    ),
    paused=st.booleans(),
    finalize=st.booleans(),
)
failures = st.builds(Failure, reason=st.just("it broke"), retry=st.booleans(), lost=st.booleans())


@given(snapshots)
def test_every_snapshot_has_one_legal_next_step_with_a_reason(s: Snapshot) -> None:
    action = decide(s, BUDGETS)
    assert action.reason
    if s.state not in UNFINISHED:
        assert (action.do, action.then) == (Do.NOTHING, s.state)
    elif action.then is not s.state:
        check(s.state, action.then)


@given(snapshots, failures)
def test_a_failure_leads_nowhere_that_the_table_does_not_allow(s: Snapshot, failure: Failure) -> None:
    if s.state in UNFINISHED - {State.PLANNED}:  # which does nothing that could fail
        verdict = settle(s, decide(s, BUDGETS), failure, BUDGETS)
        if verdict.then is not s.state:
            check(s.state, verdict.then)


@given(snapshots, failures)
def test_a_failure_after_the_decision_never_leads_back(s: Snapshot, failure: Failure) -> None:
    if s.state not in UNFINISHED:
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


CAUGHT_UP = Stream(lag_bytes=0, verified=1, back_open=True, copies=1, drain_s=0.0)
SLOW = replace(CAUGHT_UP, drain_s=0.6)  # a rehearsal that took longer than the first of them may


def catching_up(stream: Stream, *, path: Path = Path.LARGE, paused: bool = False, in_state_s: float = 0.0) -> Action:
    s = Snapshot(State.CATCHING_UP, path=path, stream=stream, paused=paused, in_state_s=in_state_s)
    return decide(s, BUDGETS)


@given(snapshots)
def test_nobody_is_held_before_both_sides_were_equal_and_little_is_outstanding(s: Snapshot) -> None:
    if s.state is State.CATCHING_UP and decide(s, BUDGETS).then is State.HOLDING:
        assert s.stream.verified
        assert s.stream.lag_bytes is not None
        assert s.stream.lag_bytes <= BUDGETS.lag_bytes
        assert s.stream.touched <= BUDGETS.remainder_max
        assert s.stream.back_open or s.path is not Path.LARGE
        assert s.stream.drain_s is not None
        assert s.stream.drain_s <= BUDGETS.drain_max_s
        assert not s.paused
        assert not s.cancel_requested


@given(snapshots)
def test_a_paused_move_never_comes_nearer_to_a_hold(s: Snapshot) -> None:
    if s.paused and s.state in PAUSABLE:
        assert decide(s, BUDGETS).then in {s.state, State.CATCHING_UP, State.ABORTING, State.CANCELLED}


@pytest.mark.parametrize(
    ("stream", "do"),
    [
        (Stream(copies=1), Do.FOLLOW),
        (replace(CAUGHT_UP, lag_bytes=None), Do.FOLLOW),
        (replace(CAUGHT_UP, lag_bytes=BUDGETS.lag_bytes + 1), Do.FOLLOW),
        (replace(CAUGHT_UP, verified=0), Do.VERIFY),
        (replace(CAUGHT_UP, touched=BUDGETS.remainder_rows + 1), Do.VERIFY),
        (replace(CAUGHT_UP, touched=BUDGETS.remainder_rows + 1, verified=2), Do.BEGIN),
        (replace(CAUGHT_UP, touched=BUDGETS.remainder_max + 1, verified=50), Do.VERIFY),
        (replace(CAUGHT_UP, back_open=False), Do.OPEN_BACK),
        (replace(CAUGHT_UP, drain_s=None), Do.REHEARSE),
        (SLOW, Do.REHEARSE),
        (replace(SLOW, rehearsals=BUDGETS.drain_tries), Do.BEGIN),
        (replace(SLOW, drain_s=BUDGETS.drain_max_s + 0.1, rehearsals=1000), Do.REHEARSE),
        (CAUGHT_UP, Do.BEGIN),
    ],
)
def test_catching_up_does_what_is_missing_and_measures_the_lag_last(stream: Stream, do: Do) -> None:
    assert catching_up(stream).do is do


def test_the_way_back_needs_no_way_back_of_its_own() -> None:
    assert catching_up(replace(CAUGHT_UP, back_open=False), path=Path.BACK).then is State.HOLDING
    assert decide(Snapshot(State.PLANNED, path=Path.BACK), BUDGETS).then is State.CATCHING_UP


@pytest.mark.parametrize("state", [State.HOLDING, State.FROZEN])
@pytest.mark.parametrize("path", [Path.LARGE, Path.BACK])
def test_a_hold_that_is_too_long_does_not_throw_a_large_copy_away_until_it_was_so_some_times(
    state: State, path: Path
) -> None:
    held = Snapshot(state, held=True, held_s=BUDGETS.hold_s, path=path, stream=CAUGHT_UP)
    for holds, then in ((0, State.THAWING), (BUDGETS.holds - 1, State.THAWING), (BUDGETS.holds, State.ABORTING)):
        assert decide(replace(held, stream=replace(CAUGHT_UP, holds=holds)), BUDGETS).then is then


def test_a_tenant_that_was_held_too_long_is_left_alone_longer_each_time() -> None:
    rests = []
    for holds in range(1, BUDGETS.holds + 1):
        rest = next(
            s for s in range(10_000) if catching_up(replace(CAUGHT_UP, holds=holds), in_state_s=s).do is Do.BEGIN
        )
        rests.append(rest)
    assert rests == [BUDGETS.rest_s * 2**n for n in range(BUDGETS.holds)]


def test_a_source_that_may_be_frozen_is_thawed_for_as_long_as_a_copy_is_worth_and_people_hear_of_it() -> None:
    s = Snapshot(State.THAWING, held=True, path=Path.LARGE, failures=BUDGETS.tries, stream=replace(CAUGHT_UP, holds=1))
    action = decide(s, BUDGETS)
    assert (action.do, action.then) == (Do.THAW, State.CATCHING_UP)
    verdict = settle(s, action, Failure("away", retry=True), BUDGETS)
    assert (verdict.then, verdict.alarm) == (State.THAWING, True)
    given_up = settle(replace(s, failures=BUDGETS.stream_tries), action, Failure("away", retry=True), BUDGETS)
    assert given_up.then is State.ABORTING


def test_a_paused_move_that_has_caught_up_goes_on_following() -> None:
    action = catching_up(CAUGHT_UP, paused=True)
    assert (action.do, action.then) == (Do.FOLLOW, State.CATCHING_UP)


def test_a_lost_stream_begins_the_copy_anew_some_times_and_then_gives_up() -> None:
    for copies, then in ((1, State.COPYING), (BUDGETS.copies, State.ABORTING)):
        s = Snapshot(State.CATCHING_UP, path=Path.LARGE, stream=replace(CAUGHT_UP, copies=copies))
        verdict = settle(s, decide(s, BUDGETS), Failure("lost", retry=False, lost=True), BUDGETS)
        assert verdict.then is then


def test_a_lost_stream_of_the_way_back_ends_its_rollback_and_not_the_new_home() -> None:
    s = Snapshot(State.CATCHING_UP, path=Path.BACK, stream=CAUGHT_UP)
    assert settle(s, decide(s, BUDGETS), Failure("lost", retry=False, lost=True), BUDGETS).then is State.ABORTING
    standby = Snapshot(State.STANDBY, path=Path.LARGE, stream=Stream(standing=True))
    verdict = settle(standby, decide(standby, BUDGETS), Failure("lost", retry=False, lost=True), BUDGETS)
    assert (verdict.do, verdict.then, verdict.alarm) == (Do.DEGRADE, State.STANDBY, True)
    lost = Snapshot(State.STANDBY, path=Path.LARGE, stream=Stream(standing=True, lost=True))
    assert decide(lost, BUDGETS).do is Do.WAIT


def test_a_standby_follows_before_it_is_given_up_and_is_given_up_only_when_asked() -> None:
    fresh = Snapshot(State.STANDBY, path=Path.LARGE, finalize=True)
    assert decide(fresh, BUDGETS).do is Do.STAND_BY
    standing = replace(fresh, stream=Stream(standing=True))
    assert decide(standing, BUDGETS).then is State.PURGING
    assert decide(replace(standing, finalize=False), BUDGETS).do is Do.FLOW_BACK


def test_a_copy_outlives_a_cell_that_restarts() -> None:
    s = Snapshot(State.CATCHING_UP, path=Path.LARGE, failures=BUDGETS.tries + 10)
    assert settle(s, decide(s, BUDGETS), Failure("away", retry=True), BUDGETS).then is State.CATCHING_UP
