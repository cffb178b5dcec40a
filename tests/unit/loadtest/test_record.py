from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.record import Gap, Latency, Pace, Record, Write, write_gap
from loadtest.schedule import Intent, Kind


def gap(writes: Sequence[tuple[float, float] | tuple[float, float, bool]]) -> tuple[float, float]:
    found = write_gap([Write(w[0], w[1], w[2] if len(w) == 3 else True) for w in writes])
    return round(found.seconds, 6), round(found.at, 6)


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        ([], (0.0, 0.0)),
        ([(1.0, 1.01)], (0.01, 1.0)),
        # nobody wants to write for nine seconds: no gap
        ([(1.0, 1.01), (10.0, 10.01)], (0.01, 1.0)),
        # a hold from 2.00 to 2.25 with writes due inside it: the wait counts from the first one due
        ([(1.9, 1.91), (2.05, 2.26), (2.1, 2.265), (2.2, 2.27)], (0.21, 2.05)),
        # a write in flight at the start of the hold is acknowledged at once, the next waits from that moment on
        ([(1.99, 2.01), (2.0, 2.25)], (0.24, 2.01)),
        # acknowledgements while a slow one waits end the gap: only silence counts
        ([(1.0, 3.0), (1.5, 1.6), (2.0, 2.1), (2.5, 2.6)], (0.6, 1.0)),
        # a failed write waits too, and its failure does not end the silence of those beside it
        ([(1.0, 1.5, False), (1.4, 2.0)], (1.0, 1.0)),
    ],
)
def test_the_write_gap_counts_idle_time_or_forgets_waiting_time(
    writes: Sequence[tuple[float, float]], expected: tuple[float, float]
) -> None:
    assert gap(writes) == expected


def test_the_gap_of_a_move_forgets_acknowledgements_of_later_writes() -> None:
    later = [Write(7 + n / 10, 7.01 + n / 10, True) for n in range(20)]
    writes = [Write(4.3, 4.4, True), Write(6.8, 9.0, True), *later]
    moving = write_gap(writes, during=(4.26, 6.92))
    assert (round(moving.seconds, 6), moving.at) == (0.21, 6.8)
    assert write_gap(writes) == moving


def test_the_gap_of_a_move_is_one_that_was_over_before_it() -> None:
    writes = [Write(1.0, 3.0, True), Write(4.0, 4.5, True)]
    assert write_gap(writes, during=(3.5, 5.0)) == Gap(0.5, 4.0)
    assert write_gap(writes, during=(2.9, 5.0)) == Gap(2.0, 1.0)
    assert write_gap(writes, during=(5.0, 6.0)) == Gap(0.0, 0.0)


seconds = st.floats(0, 20)
writes_of_a_run = st.lists(st.builds(lambda at, for_s, ok: Write(at, at + for_s, ok), seconds, seconds, st.booleans()))


@given(writes_of_a_run, seconds, seconds)
def test_the_gap_of_a_move_exceeds_the_gap_of_the_whole_run(writes: list[Write], began: float, lasted: float) -> None:
    whole, moving = write_gap(writes), write_gap(writes, during=(began, began + lasted))
    assert moving.seconds <= whole.seconds
    assert write_gap(writes, during=(whole.at, whole.at + whole.seconds)).seconds == whole.seconds


def test_latencies_of_two_cells_are_mixed() -> None:
    record = Record()
    record.answered(Intent(0, 0.0, 0, Kind.CREATE, 0.5), "cell-1", 0.010)
    record.answered(Intent(0, 0.0, 0, Kind.READ, 0.5), "cell-1", 0.002)
    record.answered(Intent(0, 0.0, 0, Kind.LIST, 0.5), "cell-1", 0.004)
    record.answered(Intent(0, 0.0, 0, Kind.READ, 0.5), "cell-2", 0.5)
    assert record.cells == ["cell-1", "cell-2"]
    assert record.of_cell("cell-1", writes=True).max_ms == pytest.approx(10, rel=0.01)
    reads = record.of_cell("cell-1", writes=False)
    assert (reads.count, reads.max_ms) == (2, pytest.approx(4, rel=0.01))


def test_a_latency_beyond_the_histogram_is_dropped() -> None:
    latency = Latency()
    latency.add(3600.0)
    latency.add(0.0)
    assert latency.count == 2
    assert latency.max_ms == pytest.approx(60_000, rel=0.01)


@pytest.mark.parametrize(("lag", "cpu", "kept"), [(5, 0.3, True), (51, 0.3, False), (5, 0.9, False)])
def test_a_busy_driver_passes_for_a_slow_fleet(lag: float, cpu: float, kept: bool) -> None:
    assert Pace(lag, cpu).kept is kept
