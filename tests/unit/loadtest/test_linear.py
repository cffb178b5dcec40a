"""The search for an order: exact where a plain enumeration of all orders can be compared, and never without an end."""

from collections.abc import Sequence
from itertools import combinations, permutations
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.history.linear import Verdict, search
from loadtest.history.operation import ANY, Kind, Operation, Outcome, State
from loadtest.history.register import behind, step
from tests.unit.loadtest.registers import KEY

STATES = st.builds(State, st.integers(1, 3), st.integers(1, 4))


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    """Anything that a client may claim, sense or not."""
    kind = draw(st.sampled_from(Kind))
    invoked = float(draw(st.integers(0, 6)))
    returned = invoked + draw(st.integers(0, 4))
    if kind is Kind.READ:
        return Operation(KEY, 0, kind, invoked, returned, Outcome.OK, told=draw(STATES))
    outcome = draw(st.sampled_from([Outcome.OK, Outcome.OK, Outcome.REFUSED, Outcome.UNKNOWN]))
    told = None if outcome is Outcome.UNKNOWN else draw(STATES)
    expected = draw(st.integers(1, 3)) if kind is Kind.SWAP else None
    end = inf if outcome is Outcome.UNKNOWN else returned
    return Operation(KEY, 0, kind, invoked, end, outcome, draw(st.integers(1, 3)), expected, told)


def some_order_explains(history: Sequence[Operation], initial: State) -> bool:
    """By trying all orders of everything that returned and of any part of what did not."""
    must = [o for o in history if o.returned < inf]
    may = [o for o in history if o.returned == inf]
    chosen = [[*must, *some] for count in range(len(may) + 1) for some in combinations(may, count)]
    return any(_explains(order, initial) for part in chosen for order in permutations(part))


def _explains(order: Sequence[Operation], initial: State) -> bool:
    state: State | None = initial
    for place, operation in enumerate(order):
        if any(later.returned < operation.invoked for later in order[place + 1 :]):
            return False
        state = step(state, operation) if state is not None else None
    return state is not None


@settings(max_examples=250, deadline=None)
@given(st.lists(operations(), max_size=5), STATES)
def test_the_search_finds_another_answer_than_trying_every_order(history: list[Operation], initial: State) -> None:
    for start in (initial, ANY):
        expected = Verdict.LINEARIZABLE if some_order_explains(history, start) else Verdict.VIOLATED
        assert search(history, start, step).verdict is expected
        assert search(history, start, step, behind=behind).verdict is expected


@settings(max_examples=120, deadline=None)
@given(st.lists(operations(), max_size=5), STATES)
def test_an_unknown_beginning_refuses_what_some_beginning_allows(history: list[Operation], initial: State) -> None:
    if search(history, initial, step).verdict is Verdict.LINEARIZABLE:
        assert search(history, ANY, step).verdict is Verdict.LINEARIZABLE


def test_a_search_runs_for_ever() -> None:
    open_ended = [Operation(KEY, n, Kind.WRITE, 0.0, inf, Outcome.UNKNOWN, n) for n in range(40)]
    read = Operation(KEY, 99, Kind.READ, 1.0, 2.0, Outcome.OK, told=State(7, 30))
    found = search([*open_ended, read], State(1, 1), step, behind=behind, budget=5_000)
    assert (found.verdict, found.stuck) == (Verdict.TOO_HARD, None)
    assert found.cases <= 5_001


def test_calls_and_returns_at_one_moment_are_taken_for_an_order() -> None:
    write = Operation(KEY, 0, Kind.WRITE, 0.0, 1.0, Outcome.OK, 2, told=State(2, 2))
    read = Operation(KEY, 1, Kind.READ, 1.0, 2.0, Outcome.OK, told=State(1, 1))
    assert search([write, read], State(1, 1), step).verdict is Verdict.LINEARIZABLE
