"""A score that flatters, or that a broken run can earn, would be worse than none."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.lab.compare import compare
from loadtest.lab.result import Books, Case, Histogram, Role
from loadtest.lab.score import (
    ERRORS,
    GOODPUT,
    JAIN,
    OTHER_CELL,
    SAME_CELL,
    Landmarks,
    Part,
    interval,
    jain,
    judge,
    latency_ratio,
    victim_cells,
)
from loadtest.lab.tables import cells
from tests.unit.loadtest.results import example_result


@pytest.mark.parametrize("landmarks", [SAME_CELL, OTHER_CELL, JAIN, GOODPUT, ERRORS])
def test_a_landmark_is_worth_what_it_says(landmarks: Landmarks) -> None:
    marks = [landmarks.best, landmarks.good, landmarks.poor, landmarks.worst]
    assert [landmarks.points(mark) for mark in marks] == pytest.approx([100, 90, 60, 0])


@given(st.floats(0, 20), st.floats(0, 20))
def test_a_slower_victim_never_scores_more(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert SAME_CELL.points(low) >= SAME_CELL.points(high)
    assert 0 <= SAME_CELL.points(high) <= 100


def test_nobody_served_is_worth_nothing() -> None:
    assert SAME_CELL.points(inf) == 0


def test_jain_tells_equal_from_unequal() -> None:
    assert jain([1, 1, 1, 1]) == 1
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([1, 1, 1, 0]) == 0.75


def test_a_case_is_as_good_as_its_worst_part() -> None:
    [verdict] = judge([example_result(slowdown=1.0, errors=30, repeat=n) for n in (1, 2, 3)])
    assert verdict.marks[Part.LATENCY].passed
    assert not verdict.marks[Part.ERRORS].passed
    assert not verdict.passed
    assert verdict.score == min(mark.points for mark in verdict.marks.values())


def test_one_error_in_one_run_of_three_fails_the_case() -> None:
    runs = [example_result(slowdown=1.0, errors=1 if n == 2 else 0, repeat=n) for n in (1, 2, 3)]
    [verdict] = judge(runs)
    assert not verdict.marks[Part.ERRORS].passed


def test_a_slow_neighbourhood_does_not_pass() -> None:
    [verdict] = judge([example_result(slowdown=3.0, repeat=n) for n in (1, 2, 3)])
    assert verdict.marks[Part.LATENCY].figure.value == pytest.approx(3.0, rel=0.35)
    assert not verdict.passed
    assert verdict.with_ms > 2 * verdict.alone_ms


def test_neighbours_at_a_distance_do_not_dilute_those_beside_the_aggressor() -> None:
    result = example_result(slowdown=4.0)
    assert victim_cells(result) == ["cell-1"]
    assert latency_ratio(result)[2] > 2.5


def test_an_aggressor_elsewhere_is_judged_by_the_cells_without_it() -> None:
    case = Case(aggressor="cheap-flood", count=1, where="other")
    result = example_result(slowdown=9.0, case=case)
    assert victim_cells(result) == ["cell-2"]
    assert latency_ratio(result)[2] < 2


def test_an_invalid_run_earns_nothing() -> None:
    [verdict] = judge([example_result(valid=False)])
    assert verdict.score is None
    assert not verdict.passed
    assert "driver 1" in verdict.invalid[0]


def test_a_lost_write_fails_whatever_the_latency() -> None:
    lost = Books(checked=True, acknowledged=100, found=99, lost=1)
    runs = [example_result(slowdown=1.0, repeat=n, books=lost if n == 3 else None) for n in (1, 2, 3)]
    [verdict] = judge(runs)
    assert not verdict.marks[Part.BOOKS].passed
    assert verdict.score == 0


def test_books_that_were_not_read_do_not_pass() -> None:
    [verdict] = judge([example_result(books=Books(checked=False))])
    assert not verdict.marks[Part.BOOKS].passed


def test_starved_victims_are_unfair_even_where_the_rest_is_fast() -> None:
    result = example_result(slowdown=1.0)
    for figures in result.tenants:
        if figures.phase == "with" and figures.tenant == "t1" and figures.role is Role.VICTIM:
            figures.refused, figures.succeeded = figures.sent, 0
            figures.latency = Histogram(0, "")
    [verdict] = judge([result])
    assert verdict.marks[Part.WORST].figure.value == 0
    assert verdict.marks[Part.FAIRNESS].figure.value == pytest.approx(0.75)
    assert verdict.score == 0


def test_systems_and_walls_are_judged_apart() -> None:
    off = Case(walls="off", aggressor="cheap-flood", count=1, times=10.0, where="same")
    verdicts = judge([example_result(), example_result(case=off), example_result(system="peer")])
    assert [verdict.judged for verdict in verdicts] == [True, False, False]
    assert len({verdict.name for verdict in verdicts}) == 1


def test_few_repeats_are_said_not_to_be_sure() -> None:
    assert not interval([1.0, 1.1], seed="a").sure
    assert interval([1.0, 1.1, 1.2], seed="a").sure


def test_the_interval_holds_the_median_and_is_the_same_every_time() -> None:
    values = [1.0, 1.2, 1.1, 1.5, 0.9]
    figure = interval(values, seed="a")
    assert figure.low <= figure.value <= figure.high
    assert figure == interval(values, seed="a")


def runs(slowdown: float, count: int = 5) -> list[object]:
    return [example_result(slowdown=slowdown, repeat=n) for n in range(1, count + 1)]


def test_a_real_change_is_seen_and_noise_is_not_called_one() -> None:
    [worse] = compare(runs(1.0), runs(4.0))  # type: ignore[arg-type]
    assert worse.words == "worse"
    [better] = compare(runs(4.0), runs(1.0))  # type: ignore[arg-type]
    assert better.words == "better"
    [same] = compare(runs(1.5), runs(1.5))  # type: ignore[arg-type]
    assert same.words == "no evidence of a change"


def test_two_runs_of_each_prove_nothing() -> None:
    [change] = compare(runs(1.0, 2), runs(9.0, 2))  # type: ignore[arg-type]
    assert "3 valid runs" in change.words


def test_the_longest_of_a_few_is_called_a_p99() -> None:
    (verdict,) = judge([example_result()])
    assert "longest of" not in cells(verdict)[0]
    assert cells(replace(verdict, samples=10))[0].endswith("(longest of 10)")
