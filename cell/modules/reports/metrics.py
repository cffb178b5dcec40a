"""What the worker counts of the reports. Labels are bounded: outcomes, never tenants."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from contracts.names import Metric

_SECONDS = (0.05, 0.2, 1.0, 5.0, 20.0, 60.0, 300.0)


class ReportMetrics:
    """The counters of the reports, in the registry that the worker's metrics page shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = Counter(Metric.REPORTS_ENDED, "Reports that one attempt ended", ["outcome"], registry=registry)
        self.duration = Histogram(
            Metric.REPORTS_DURATION, "How long one attempt took, in seconds", buckets=_SECONDS, registry=registry
        )
        self.observed = Counter(
            Metric.REPORTS_OBSERVED, "Reports that the bulkhead would have made wait if it were on", registry=registry
        )
        self._running = Gauge(Metric.REPORTS_RUNNING, "Reports that are being made", registry=registry)

    def watch(self, running: Callable[[], int]) -> None:
        """Where the number of running reports is asked for."""
        self._running.set_function(running)
