"""What the API process counts. Labels are bounded: code classes and reasons, never tenants."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
