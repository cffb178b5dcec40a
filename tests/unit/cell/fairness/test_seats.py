"""The number of seats follows latency, and some are kept only while somebody needs them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell.fairness.seats import SAMPLES_MIN, AdaptiveLimit, Shares, heavy_seats


def windows(limit: AdaptiveLimit, ratio: float, count: int, *, running: int | None = None, first: float = 0.0) -> float:
    """Whole windows of samples; the time after them."""
    now = first
    for _ in range(count):
        for number in range(SAMPLES_MIN):
            now += 0.5 * (number == 0) + 0.01
            limit.sample(ratio, limit.limit if running is None else running, now)
    return now


def test_seats_would_stay_while_everything_gets_slower() -> None:
    limit = AdaptiveLimit(2, 10, 0.0)
    windows(limit, 3.0, 1)
    assert limit.limit == 7  # by no more than three tenths at a time
    windows(limit, 2.2, 1, first=10.0)
    assert limit.limit == 6  # by the gradient
    windows(limit, 9.0, 20, first=20.0)
    assert limit.limit == 2


def test_seats_would_never_come_back() -> None:
    limit = AdaptiveLimit(2, 10, 0.0)
    now = windows(limit, 9.0, 20)
    windows(limit, 1.2, 5, first=now)
    assert limit.limit == 7
    windows(limit, 1.2, 20, first=now + 100)
    assert limit.limit == 10


def test_seats_that_nobody_needed_would_be_blamed_or_praised() -> None:
    limit = AdaptiveLimit(2, 10, 0.0)
    windows(limit, 9.0, 5, running=3)
    assert limit.limit == 10
    now = windows(limit, 9.0, 20, first=50.0)
    windows(limit, 1.0, 5, running=1, first=now)
    assert limit.limit == 2


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 20), st.floats(0, 1)), max_size=200))
def test_the_limit_would_leave_its_bounds(samples: list[tuple[float, int, float]]) -> None:
    limit, now = AdaptiveLimit(3, 8, 0.0), 0.0
    for ratio, running, pause in samples:
        now += pause
        limit.sample(ratio, running, now)
        assert 3 <= limit.limit <= 8


@pytest.mark.parametrize(("least", "most"), [(0, 3), (4, 3)])
def test_bounds_that_cannot_be_would_be_taken(least: int, most: int) -> None:
    with pytest.raises(ValueError, match="least seats"):
        AdaptiveLimit(least, most, 0.0)


def test_heavy_tenants_would_get_no_seat() -> None:
    assert [heavy_seats(limit) for limit in (1, 2, 3, 7, 10)] == [1, 1, 2, 4, 7]


def used(shares: Shares, costs: dict[int, float], rounds: int, first: float = 0.0) -> float:
    now = first
    for _ in range(rounds):
        now += 0.1
        for tenant, cost in costs.items():
            shares.begin(tenant, cost)
            shares.end(tenant, cost, cost, now)
    return now


@pytest.mark.parametrize("aggressors", [1, 4, 16])
def test_many_aggressors_would_look_like_everybody(aggressors: int) -> None:
    costs = dict.fromkeys(range(aggressors), 4.0 / aggressors) | {100: 0.01, 101: 0.01}
    shares = Shares(0.0)
    now = used(shares, costs, 40)
    assert all(shares.heavy(tenant, 8, now) for tenant in range(aggressors))
    assert not shares.heavy(100, 8, now)
    assert not shares.heavy(999, 8, now)


def test_tenants_that_ask_alike_would_be_heavy() -> None:
    for costs in ({1: 0.8}, {1: 0.4, 2: 0.3, 3: 0.35}):
        shares = Shares(0.0)
        now = used(shares, costs, 40)
        assert not any(shares.heavy(tenant, 8, now) for tenant in costs)


def test_the_greatest_tenant_of_an_idle_cell_would_be_heavy() -> None:
    shares = Shares(0.0)
    now = used(shares, {1: 0.1, 2: 0.001}, 40)
    assert not shares.heavy(1, 8, now)


def test_a_burst_would_be_remembered_for_ever() -> None:
    shares = Shares(0.0)
    now = used(shares, {1: 4.0, 2: 0.01}, 40)
    assert shares.heavy(1, 8, now)
    assert not shares.heavy(1, 8, now + 6.0)


def test_what_is_at_work_would_not_count_before_it_ends() -> None:
    shares = Shares(0.0)
    now = used(shares, {1: 1.0, 2: 0.01}, 40)
    shares.begin(3, 100.0)
    assert shares.heavy(3, 8, now)
    shares.end(3, 100.0, 0.0, now)
    assert not shares.heavy(3, 8, now)
