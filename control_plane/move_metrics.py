"""What the control plane measures of moves."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from contracts.names import Metric


class MoveMetrics:
    """Counts finished moves by kind and outcome, and how long tenants were held."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._moves = Counter(Metric.CONTROL_MOVES, "Finished moves", ("kind", "outcome"), registry=registry)
        self._hold = Histogram(
            Metric.CONTROL_HOLD,
            "Seconds from the publication of `held` to that of the new route",
            buckets=(0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 1.0, 2.5, 5.0, 10.0),
            registry=registry,
        )

    def finished(self, kind: str, outcome: str) -> None:
        """A move reached a terminal state."""
        self._moves.labels(kind, outcome).inc()

    def held(self, seconds: float) -> None:
        """A tenant was switched after having been held this long."""
        self._hold.observe(seconds)
