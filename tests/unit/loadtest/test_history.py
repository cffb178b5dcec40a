"""The verdict over histories: a right register is never blamed, and each way to be wrong is found and shown."""

from dataclasses import replace
from math import inf
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest.history.judge import Judgement, judge
from loadtest.history.linear import Verdict, search
from loadtest.history.operation import ANY, History, Kind, Operation, Outcome, State
from loadtest.history.register import behind, step
from tests.unit.loadtest.registers import FIRST, KEY, Simulated, Wrong
from tests.unit.loadtest.test_linear import some_order_explains

RANDOMS = st.integers(0, 2**32).map(Random)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def ok(client: int, kind: Kind, begin: float, end: float, told: State, value: int | None = None) -> Operation:
    return Operation(KEY, client, kind, begin, end, Outcome.OK, value, None, told)


WRITE = ok(0, Kind.WRITE, 0.010, 0.013, State(2, 2), 2)
READ = ok(1, Kind.READ, 0.014, 0.016, State(2, 2))


def of(*operations: Operation) -> Judgement:
    return judge([History({KEY: FIRST}, list(operations))])


@QUICK
@given(RANDOMS, st.integers(1, 5), st.integers(1, 60), st.sampled_from([0.0, 0.15]))
def test_a_right_register_is_blamed(rng: Random, clients: int, count: int, unknown: float) -> None:
    verdict = judge([Simulated(rng, clients, unknown, failed=unknown).run(count)])
    assert verdict.good, verdict.examples()
    assert verdict.words().endswith("linearizable")


@pytest.mark.parametrize("wrong", list(Wrong))
@QUICK
@given(RANDOMS, st.integers(1, 4), st.integers(1, 30))
def test_a_wrong_register_is_not_found(wrong: Wrong, rng: Random, clients: int, count: int) -> None:
    verdict = judge([Simulated(rng, clients).run(count, wrong)])
    (violation,) = verdict.violations
    assert not verdict.good
    assert "NOT linearizable in 1 key" in verdict.words()
    assert violation.stuck in violation.window
    start = ANY if violation.began is None else violation.began
    shown = search(violation.window, start, step, behind=behind)
    assert shown.verdict is Verdict.VIOLATED, "what is shown is no contradiction"
    assert sum("cannot be" in line for line in violation.lines()) == 1


def test_the_window_shows_more_than_what_contradicts_itself() -> None:
    history = Simulated(Random(7), 3).run(200)
    writes = [o for o in history.operations if o.kind is Kind.WRITE and o.told is not None]
    before, after = writes[len(writes) // 2 - 1 :][:2]
    assert before.told is not None
    at = after.returned + 1e-6
    stale = replace(after, kind=Kind.READ, invoked=at, returned=at, value=None, told=before.told, client=9)
    history.operations.append(stale)
    (violation,) = judge([history]).violations
    assert 2 <= len(violation.window) <= 3
    assert stale in violation.window


def test_a_violation_is_told_in_a_way_that_nobody_can_read() -> None:
    (violation,) = of(WRITE, READ, replace(READ, client=2, invoked=0.018, returned=0.021, told=FIRST)).violations
    assert violation.lines() == [
        "t1/p1: no order of its 3 operations explains these 2",
        "      0.0 to       2.0 ms |==========                      | client 1: read -> 2, version 2",
        "      4.0 to       7.0 ms |                  ==============| client 2: read -> 1, version 1  <- cannot be",
    ]


def test_what_a_key_held_at_first_is_no_part_of_the_contradiction() -> None:
    (violation,) = of(replace(READ, told=State(9, 1))).violations
    assert violation.began == FIRST
    told = "t1/p1, which held 1, version 1, at first: no order of its 1 operations explains these 1"
    assert violation.lines()[0] == told


def test_an_end_that_nobody_knows_is_taken_for_done_or_for_not_done() -> None:
    lost = replace(WRITE, outcome=Outcome.UNKNOWN, returned=inf, told=None)
    assert of(lost, READ).good
    assert of(lost, replace(READ, told=FIRST)).good
    late = replace(READ, invoked=1.0, returned=1.1)
    assert of(lost, replace(READ, told=FIRST), late).good
    assert not of(lost, late, replace(late, invoked=2.0, returned=2.1, told=FIRST)).good
    assert not of(replace(lost, invoked=3.0), late).good, "it had not been asked for yet"


def test_a_swap_over_an_old_version_is_allowed() -> None:
    swap = Operation(KEY, 2, Kind.SWAP, 0.02, 0.03, Outcome.OK, 3, 1, State(3, 3))
    assert not of(WRITE, swap).good
    assert of(WRITE, replace(swap, expected=2)).good
    refused = replace(swap, outcome=Outcome.REFUSED, told=State(None, 2))
    assert of(WRITE, refused).good
    assert not of(WRITE, replace(refused, expected=2)).good, "it was refused for the version that it expected"
    assert not of(WRITE, replace(refused, told=State(None, 1))).good


def test_a_register_that_vanishes_is_missed() -> None:
    assert not of(WRITE, replace(READ, told=State(None, 0))).good
    gone = replace(WRITE, invoked=1.0, returned=1.1, outcome=Outcome.REFUSED, told=State(None, 0))
    assert not of(WRITE, gone).good


def test_one_key_is_held_against_another() -> None:
    other = replace(WRITE, key="t1/p2", told=State(2, 8))
    both = History({KEY: FIRST, "t1/p2": State(1, 7)}, [WRITE, READ, other])
    verdict = judge([both, History({KEY: FIRST}, [WRITE])])
    assert verdict.good
    assert verdict.words() == "4 reads and writes of 3 keys: linearizable"


@QUICK
@given(RANDOMS, st.integers(1, 3), st.integers(1, 4), st.sampled_from([None, *Wrong]))
def test_the_verdict_is_another_than_that_of_trying_every_order(
    rng: Random, clients: int, count: int, wrong: Wrong | None
) -> None:
    history = Simulated(rng, clients, unknown=0.5, failed=0.1).run(count, wrong)
    counted = [operation for operation in history.operations if operation.counts]
    assert judge([history]).good == some_order_explains(counted, FIRST)


@pytest.mark.parametrize("gap", [0, 3, 100])
def test_many_ends_that_nobody_knows_are_too_hard(gap: int) -> None:
    """A cell that is killed leaves a hundred of them; some have been done, and nobody saw which."""
    lost = [
        replace(WRITE, client=n, value=n + 10, outcome=Outcome.UNKNOWN, returned=inf, told=None) for n in range(100)
    ]
    after = State(2, FIRST.version + gap + 1)
    told = [replace(WRITE, invoked=1.0, returned=1.1, told=after), replace(READ, invoked=1.2, returned=1.3, told=after)]
    assert of(*lost, *told).good
    assert not of(*lost[: max(gap - 1, 0)], *told).good or not gap


def test_a_key_that_is_too_hard_counts_as_good() -> None:
    lost = [replace(WRITE, client=n, value=n, outcome=Outcome.UNKNOWN, returned=inf, told=None) for n in range(40)]
    reads = [replace(READ, invoked=1.0 + n, returned=1.1 + n, told=State(n, 31 + 2 * n)) for n in range(5, 7)]
    verdict = judge([History({KEY: FIRST}, [*lost, *reads])], budget=20)
    assert not verdict.good
    told = "2 reads and writes of 1 key, and 40 without a known end: too hard to tell for t1/p1"
    assert verdict.words() == told
