"""What the API process counts. Labels are bounded: code classes and reasons, never tenants."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cell.fairness.levels import Level
from contracts.names import Metric

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class CellMetrics:
    """Counters of the ingress, in a registry of their own."""

    def __init__(self, cell: str, in_flight: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(Metric.CELL_REQUESTS, "Requests answered", ["cell", "code"], registry=self.registry)
        duration = Histogram(
            Metric.CELL_DURATION,
            "From the envelope to the answer",
            ["cell"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._refused = Counter(
            Metric.CELL_REFUSED, "Requests that the platform refused", ["cell", "reason"], registry=self.registry
        )
        flying = Gauge(Metric.CELL_IN_FLIGHT, "Admitted requests", ["cell"], registry=self.registry)
        flying.labels(cell).set_function(in_flight)
        self._queued = Histogram(
            Metric.CELL_QUEUED,
            "What requests that had to wait for a seat waited",
            ["cell", "level"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._observed = Counter(
            Metric.CELL_OBSERVED,
            "Requests that a wall would have refused if it were on",
            ["cell", "wall", "reason"],
            registry=self.registry,
        )
        self._cell = cell
        self._duration = duration.labels(cell)
        self._by_code = {f"{n}xx": self._requests.labels(cell, f"{n}xx") for n in range(1, 6)}

    def answered(self, status: int, seconds: float) -> None:
        """One answer of the application or the platform."""
        self._by_code[f"{status // 100}xx"].inc()
        self._duration.observe(seconds)

    def refused(self, reason: str) -> None:
        """One refusal of the platform."""
        self._refused.labels(self._cell, reason).inc()

    def queued(self, level: str, seconds: float) -> None:
        """A request has waited for a seat, whether it got one or not."""
        self._queued.labels(self._cell, level).observe(seconds)

    def observed(self, wall: str, reason: str) -> None:
        """A wall that only observes would have refused a request."""
        self._observed.labels(self._cell, wall, reason).inc()

    def show_seats(self, seats: Callable[[Level], tuple[int, int, int]]) -> None:
        """Show what ``seats`` tells of a level: seats, seats taken, requests waiting."""
        places = Gauge(Metric.CELL_SEATS, "Seats", ["cell", "level", "state"], registry=self.registry)
        waiting = Gauge(Metric.CELL_WAITING, "Requests that wait for a seat", ["cell", "level"], registry=self.registry)
        for level in Level:
            for at, state in enumerate(("open", "taken")):
                places.labels(self._cell, level, state).set_function(partial(_nth, seats, level, at))
            waiting.labels(self._cell, level).set_function(partial(_nth, seats, level, 2))


def _nth(seats: Callable[[Level], tuple[int, int, int]], level: Level, at: int) -> int:
    return seats(level)[at]
