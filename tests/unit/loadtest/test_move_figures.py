"""What the benchmark of moves makes of what was recorded."""

import pytest

from loadtest.bench.gaps import percentile
from loadtest.bench.stage import Timed
from loadtest.schedule import Intent, Kind


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([5.0], 99, 5.0),
        ([1.0, 2.0, 3.0, 4.0], 50, 2.0),
        ([1.0] * 99 + [9.0], 99, 1.0),
        ([1.0] * 98 + [8.0, 9.0], 99, 8.0),
    ],
)
def test_a_percentile_is_one_of_the_values_and_never_between_two(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_the_latency_of_others_leaves_out_the_moving_tenant_and_other_times() -> None:
    record = Timed()
    for at, account, took in ((1.0, 0, 9.0), (1.0, 1, 0.01), (1.5, 2, 0.02), (2.0, 1, 5.0), (0.9, 1, 5.0)):
        record.answered(Intent(1, at, account, Kind.READ, 0.5), "cell-1", at + took)
    others = record.latency_of_others(1.0, 2.0)
    assert others.count == 2
    assert others.max_ms == pytest.approx(20, rel=0.01)
