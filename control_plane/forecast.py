"""When is the next cell due? Samples of a pool -> days left, with the reason in words. Pure.

A straight line through what was used (least squares) says how fast it grows; what the pool has says when it is full.
Both places and database time are asked, the earlier one counts. Little history gives no figure rather than a wild one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Final

FULL_AT: Final = 0.8  # of the places: the rest is for evacuating a cell and for a bad week
BUSY_FULL: Final = 0.7  # database seconds a second and shard
MIN_HISTORY_DAYS: Final = 1.0
MIN_SAMPLES: Final = 6
FAR_DAYS: Final = 3650.0  # growth so slow that a date would be no information


@dataclass(frozen=True, slots=True)
class Sample:
    """A pool at one moment; ``day`` on any scale of days. ``busy`` is None where no cell told its usage."""

    day: float
    tenants: int
    busy: float | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """Cells that share their tenants, now."""

    region: str
    tier: str
    cells: int
    tenants: int
    places: int


@dataclass(frozen=True, slots=True)
class Due:
    """``days`` None: not at this growth, or not known. ``growth_per_day`` in tenants."""

    days: float | None
    growth_per_day: float | None
    busy: float | None
    history_days: float
    reason: str


def due(pool: Pool, samples: Sequence[Sample], full_at: float = FULL_AT) -> Due:
    """When the pool is full; ``samples`` oldest first."""
    history = samples[-1].day - samples[0].day if samples else 0.0
    busy = next((s.busy for s in reversed(samples) if s.busy is not None), None)
    limit = pool.places * full_at
    if pool.tenants >= limit:
        full = f"{pool.tenants} tenants of {pool.places} places are {full_at:.0%} or more: a cell is due now"
        return Due(0.0, _slope([(s.day, float(s.tenants)) for s in samples]), busy, history, full)
    growth = _slope([(s.day, float(s.tenants)) for s in samples])
    if growth is None:
        return Due(
            None, None, busy, history, f"{history:.1f} days of history are too few: it takes {MIN_HISTORY_DAYS:g}"
        )
    by_places = _left(limit - pool.tenants, growth)
    heat = _slope([(s.day, s.busy) for s in samples if s.busy is not None])
    by_heat = None if heat is None or busy is None else _left(BUSY_FULL - busy, heat)
    found = [
        (days, text)
        for days, text in (
            (by_places, f"{growth:+.1f} tenants a day fill {full_at:.0%} of {pool.places} places"),
            (by_heat, f"databases get busier by {heat or 0.0:+.3f} a day, and are full at {BUSY_FULL:g}"),
        )
        if days is not None
    ]
    if not found:
        return Due(None, growth, busy, history, f"not at this growth ({growth:+.1f} tenants a day)")
    days, reason = min(found)
    return Due(days, growth, busy, history, reason)


def _slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Growth a day; None where the points say too little."""
    if len(points) < MIN_SAMPLES or points[-1][0] - points[0][0] < MIN_HISTORY_DAYS:
        return None
    days, used = zip(*points, strict=True)
    return linear_regression(days, used).slope


def _left(room: float, growth: float) -> float | None:
    if room <= 0:
        return 0.0
    if growth <= 0 or room / growth > FAR_DAYS:
        return None
    return room / growth
