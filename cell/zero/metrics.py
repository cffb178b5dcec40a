"""What the ambassador counts beside what every cell counts (`cell.metrics`)."""

from prometheus_client import CollectorRegistry, Counter

from contracts.names import Metric


class ZeroMetrics:
    """Where requests went, and what came of shadow reads."""

    def __init__(self, cell: str, registry: CollectorRegistry) -> None:
        self._cell = cell
        self._forwarded = Counter(
            Metric.ZERO_FORWARDED, "Requests forwarded, by who served them", ["cell", "to"], registry=registry
        )
        self._shadows = Counter(Metric.ZERO_SHADOWS, "Shadow reads, by result", ["cell", "result"], registry=registry)

    def forwarded(self, to: str) -> None:
        """A request went to the monolith or to a modern cell."""
        self._forwarded.labels(self._cell, to).inc()

    def shadowed(self, result: str) -> None:
        """A shadow read came to a result."""
        self._shadows.labels(self._cell, result).inc()
