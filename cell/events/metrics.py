"""What the worker counts. Labels are bounded: consumers and outcomes, never tenants."""

from prometheus_client import CollectorRegistry, Counter

from contracts.names import Metric


class EventMetrics:
    """The counters of the worker's event path, in the registry that its metrics page shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.relayed = Counter(Metric.EVENTS_RELAYED, "Events put on the stream, repeats included", registry=registry)
        self.consumed = Counter(
            Metric.EVENTS_CONSUMED, "Deliveries to consumers", ["consumer", "outcome"], registry=registry
        )
        self.dead = Counter(Metric.EVENTS_DEAD, "Events given up for now", ["consumer"], registry=registry)
