"""Usage for Prometheus: sums by cell and shard, and the few costliest tenants as one bounded vector."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from contracts.names import Metric
from contracts.usage import Window

TOP: Final = 10  # tenants with a series of their own; one that leaves the list loses it


class UsageMetrics:
    """What the collector shows; a process that does not collect shows none of it."""

    def __init__(self, cell: str, registry: CollectorRegistry) -> None:
        self._cell = cell
        self._database = Counter(
            Metric.CELL_DATABASE,
            "Seconds that the shards' own counters saw statements run, by whose they were",
            ["cell", "shard", "part"],
            registry=registry,
        )
        self._bytes = Counter(
            Metric.CELL_BYTES, "Bytes of request and answer bodies", ["cell", "direction"], registry=registry
        )
        self._top = Gauge(
            Metric.CELL_TOP_TENANTS,
            "Database seconds a second of the costliest tenants, in the newest window",
            ["cell", "tenant"],
            registry=registry,
        )

    def show(self, window: Window) -> None:
        """Count a window in, and put its costliest tenants in the place of the last one's."""
        for shard in window.shards:
            parts = {"tenants": shard.tenants_ms, "platform": shard.platform_ms, "other": shard.other_ms}
            for part, spent_ms in parts.items():
                self._database.labels(self._cell, shard.shard, part).inc(spent_ms / 1000)
        for direction, total in (
            ("in", sum(line.bytes_in for line in window.tenants)),
            ("out", sum(line.bytes_out for line in window.tenants)),
        ):
            self._bytes.labels(self._cell, direction).inc(total)
        self._top.clear()
        for line in window.tenants[:TOP]:
            self._top.labels(self._cell, line.tenant).set(line.database_ms / 1000 / window.seconds)
