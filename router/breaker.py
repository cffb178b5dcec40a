"""When not to try: a circuit breaker for each pool, outlier detection, and a budget that keeps retries from making an
outage worse."""

import random
from collections.abc import Callable
from enum import Enum
from typing import Final

FAILURES_TO_OPEN: Final = 3  # in a row
OPEN_FIRST_S: Final = 0.5  # doubled with each failed trial
OPEN_MOST_S: Final = 8.0

SILENT_REQUESTS: Final = 5  # in a row, to set a cell aside
SILENT_TENANTS: Final = 3  # of how many tenants they are at least

BUDGET_RATIO: Final = 0.2  # retries per request
BUDGET_RESERVE: Final = 10.0  # retries that are allowed without any traffic


class BreakerState(Enum):
    """Closed lets everything pass, open nothing, half-open one trial."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Opens after `FAILURES_TO_OPEN` failed connects in a row. Only connecting counts: what one tenant's requests do
    inside the cell must not close the cell to the others."""

    def __init__(self, clock: Callable[[], float], rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._failures = 0
        self._open_s = OPEN_FIRST_S
        self._until = 0.0
        self.state = BreakerState.CLOSED

    def allows(self) -> bool:
        """Whether a connection may be opened now. In the half-open state the first to ask gets the trial."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN and self._clock() >= self._until:
            self.state = BreakerState.HALF_OPEN
            return True
        return False

    @property
    def retry_after_s(self) -> float:
        """Seconds until it makes sense to try again."""
        return max(0.0, self._until - self._clock())

    def succeeded(self) -> None:
        """A connect succeeded."""
        self._failures = 0
        self._open_s = OPEN_FIRST_S
        self.state = BreakerState.CLOSED

    def failed(self) -> None:
        """A connect failed; a failed trial opens for twice as long, with up to a quarter of jitter."""
        self._failures += 1
        if self.state is BreakerState.HALF_OPEN:
            self._open_s = min(self._open_s * 2, OPEN_MOST_S)
        elif self._failures < FAILURES_TO_OPEN:
            return
        self.state = BreakerState.OPEN
        self._until = self._clock() + self._open_s * (1 + self._rng.random() / 4)


class Silence:
    """Outlier detection: sets a cell aside that takes requests and answers nobody (it hangs; connecting still works).

    It does when `SILENT_REQUESTS` requests in a row used up their time without a byte of an answer and were of
    `SILENT_TENANTS` tenants: one tenant's slow requests say nothing about the cell. From then on one request passes
    after each pause, and any answer at all ends it. The pauses are those of the breaker.
    """

    def __init__(self, clock: Callable[[], float], rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._tenants: set[bytes] = set()
        self._open_s = OPEN_FIRST_S
        self._until = 0.0  # 0: not set aside
        self.requests = 0  # without an answer, in a row

    def allows(self) -> bool:
        """Whether a request may be sent. Who is let through although the cell is set aside is the trial."""
        if not self._until:
            return True
        if self._clock() < self._until:
            return False
        self._open_s = min(self._open_s * 2, OPEN_MOST_S)
        self._pause()
        return True

    @property
    def retry_after_s(self) -> float:
        """Seconds until it makes sense to try again."""
        return max(0.0, self._until - self._clock())

    def answered(self) -> None:
        """The cell answered somebody. Cheap to leave out while `requests` is 0."""
        self._tenants.clear()
        self.requests, self._until, self._open_s = 0, 0.0, OPEN_FIRST_S

    def silent(self, tenant: bytes) -> bool:
        """A request of ``tenant`` got no answer in all its time. True where this sets the cell aside."""
        self.requests += 1
        if len(self._tenants) < SILENT_TENANTS:
            self._tenants.add(tenant)
        if self._until or self.requests < SILENT_REQUESTS or len(self._tenants) < SILENT_TENANTS:
            return False
        self._pause()
        return True

    def _pause(self) -> None:
        self._until = self._clock() + self._open_s * (1 + self._rng.random() / 4)


class RetryBudget:
    """Retries may be `BUDGET_RATIO` of requests, and `BUDGET_RESERVE` beyond that."""

    def __init__(self) -> None:
        self._tokens = BUDGET_RESERVE

    def request(self) -> None:
        """A first attempt was made."""
        if self._tokens < BUDGET_RESERVE:
            self._tokens = min(BUDGET_RESERVE, self._tokens + BUDGET_RATIO)

    def take(self) -> bool:
        """Whether one retry is allowed; it is counted."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
