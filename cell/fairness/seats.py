"""How many requests may be at work: a limit that follows latency, and seats that are kept for who asks for little.

Pure. `AdaptiveLimit` is additive increase and multiplicative decrease by the gradient of latency, after Netflix's
concurrency-limits (github.com/Netflix/concurrency-limits, ``Gradient2Limit`` and ``AIMDLimit``). Its signal is
relative: how long a request kept its seat, divided by what the same operation of the same tenant usually takes. So one
slow kind of request says nothing, and everything getting slower together does.
"""

from typing import Final

WINDOW_S: Final = 0.5
SAMPLES_MIN: Final = 10  # in a window that decides; with fewer the window grows
RATIO_MAX: Final = 10.0  # one request that met a lock must not speak for all
TOLERANCE: Final = 2.0  # times the usual latency that are no reason to shrink
SHRINK_MIN: Final = 0.7  # of the limit are left after one window, however bad it was
HEAVY_PART: Final = 0.7  # of the seats are for all heavy tenants together


class AdaptiveLimit:
    """The number of seats, between ``least`` and ``most``; it starts at ``most``.

    It moves only where all seats were taken: otherwise their number has not been the reason for anything.
    """

    __slots__ = ("_count", "_exact", "_full", "_since", "_sum", "least", "limit", "most")

    def __init__(self, least: int, most: int, now: float) -> None:
        if not 1 <= least <= most:
            raise ValueError(f"the least seats ({least}) must be 1 or more, and no more than the most ({most})")
        self.least = least
        self.most = most
        self.limit = most
        self._exact = float(most)
        self._open(now)

    def _open(self, now: float) -> None:
        self._since = now
        self._count = 0
        self._sum = 0.0
        self._full = False

    def sample(self, ratio: float, running: int, now: float) -> None:
        """A request has ended: its latency in units of the usual one, and how many were at work with it."""
        self._count += 1
        self._sum += ratio if ratio < RATIO_MAX else RATIO_MAX
        if running >= self.limit:
            self._full = True
        if self._count >= SAMPLES_MIN and now - self._since >= WINDOW_S:
            if self._full:
                self._decide()
            self._open(now)

    def _decide(self) -> None:
        gradient = TOLERANCE / max(self._sum / self._count, 1e-9)
        if gradient < 1.0:
            self._exact = max(float(self.least), self._exact * max(SHRINK_MIN, gradient))
        else:
            self._exact = min(float(self.most), self._exact + 1.0)
        self.limit = int(self._exact)


def heavy_seats(limit: int) -> int:
    """How many seats heavy tenants may hold together. Never 0: they wait longer, but not for ever."""
    return max(1, int(limit * HEAVY_PART))


class Shares:
    """What each tenant uses: the cost of this window and the one before, and the estimate of what is at work.

    A tenant is heavy where it uses more than half of the mean, while others use less than that: so a few seats are kept
    free for these. Where all ask alike, or while the seats are mostly idle, nobody is heavy and all seats are for all.
    """

    __slots__ = (
        "_before",
        "_before_sum",
        "_flying",
        "_flying_sum",
        "_lights",
        "_look_at",
        "_now",
        "_now_sum",
        "_until",
    )

    WINDOW_S: Final = 2.5
    LOOK_S: Final = 0.5  # between looks at whether anybody uses little
    IDLE: Final = 0.25  # of the seats' time in use, below which nobody is heavy
    LIGHT: Final = 0.5  # of the mean

    def __init__(self, now: float) -> None:
        self._now: dict[int, float] = {}
        self._before: dict[int, float] = {}
        self._flying: dict[int, float] = {}
        self._now_sum = self._before_sum = self._flying_sum = 0.0
        self._lights = False
        self._until = now + self.WINDOW_S
        self._look_at = now + self.LOOK_S

    def begin(self, tenant: int, estimate_s: float) -> None:
        """A request of the tenant begins, which is thought to cost this much."""
        self._flying[tenant] = self._flying.get(tenant, 0.0) + estimate_s
        self._flying_sum += estimate_s

    def end(self, tenant: int, estimate_s: float, cost_s: float, now: float) -> None:
        """It has ended and did cost this much."""
        if now >= self._until:
            self._turn(now)
        self._flying_sum -= estimate_s
        left = self._flying[tenant] - estimate_s
        if left > 1e-9:
            self._flying[tenant] = left
        else:
            del self._flying[tenant]
        self._now[tenant] = self._now.get(tenant, 0.0) + cost_s
        self._now_sum += cost_s
        if now >= self._look_at:
            self._look(now)

    def _look(self, now: float) -> None:
        self._look_at = now + self.LOOK_S
        before, total, active = self._before, self._now_sum + self._before_sum, self._now.keys() | self._before.keys()
        little = total / len(active) * self.LIGHT
        self._lights = any(self._now.get(t, 0.0) + before.get(t, 0.0) <= little for t in active)

    def _turn(self, now: float) -> None:
        if now >= self._until + self.WINDOW_S:  # nothing was asked in the window before
            self._now, self._now_sum = {}, 0.0
        self._before, self._before_sum = self._now, self._now_sum
        self._now, self._now_sum = {}, 0.0
        self._until = now + self.WINDOW_S

    def heavy(self, tenant: int, seats: int, now: float) -> bool:
        """Whether the tenant must leave some seats to others."""
        if now >= self._until:
            self._turn(now)
        total = self._now_sum + self._before_sum + self._flying_sum
        if not self._lights or total < self.IDLE * seats * self.WINDOW_S:
            return False
        active = max(len(self._now), len(self._before), len(self._flying))
        own = self._now.get(tenant, 0.0) + self._before.get(tenant, 0.0) + self._flying.get(tenant, 0.0)
        return own * active > total * self.LIGHT
