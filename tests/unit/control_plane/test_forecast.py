"""The forecast gives a date where there is one, and says why where there is none."""

import pytest

from control_plane.forecast import BUSY_FULL, Pool, Sample, due

POOL = Pool("eu", "shared", 2, 100, 200)


def history(growth: float, days: int = 14, busy: float | None = None, hotter: float = 0.0) -> list[Sample]:
    """Samples of a day each that end at the pool's tenants."""
    return [
        Sample(float(d), round(100 - growth * (days - d)), None if busy is None else busy - hotter * (days - d))
        for d in range(days + 1)
    ]


def test_steady_growth_gives_the_day_on_which_the_pool_is_full() -> None:
    found = due(POOL, history(2.0), full_at=0.8)
    assert found.days == pytest.approx(30.0)
    assert "+2.0 tenants a day" in found.reason


def test_noise_does_not_move_the_date_far() -> None:
    noisy = [Sample(s.day, s.tenants + (3 if n % 2 else -3)) for n, s in enumerate(history(2.0, 30))]
    assert due(POOL, noisy).days == pytest.approx(30.0, rel=0.1)


@pytest.mark.parametrize("growth", [0.0, -1.0])
def test_what_does_not_grow_is_not_due(growth: float) -> None:
    found = due(POOL, history(growth))
    assert found.days is None
    assert "not at this growth" in found.reason


@pytest.mark.parametrize("samples", [[], [Sample(1.0, 100)], [Sample(n / 100, 90 + n) for n in range(11)]])
def test_too_little_history_gives_no_wild_figure(samples: list[Sample]) -> None:
    found = due(POOL, samples)
    assert (found.days, found.growth_per_day) == (None, None)
    assert "too few" in found.reason


def test_a_full_pool_is_due_now_also_without_history() -> None:
    assert due(Pool("eu", "shared", 2, 170, 200), []).days == 0.0
    assert due(Pool("eu", "shared", 0, 1, 0), []).days == 0.0


def test_databases_that_get_busy_before_the_places_are_full_decide() -> None:
    found = due(POOL, history(1.0, busy=0.5, hotter=0.02))
    assert found.days == pytest.approx((BUSY_FULL - 0.5) / 0.02)
    assert "databases" in found.reason
    assert due(POOL, history(0.0, busy=0.9, hotter=0.01)).days == 0.0
