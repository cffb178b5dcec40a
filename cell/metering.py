"""Metering: what every tenant of this process cost since it was last asked. Counters in memory, nothing else.

| Promise | How |
|---|---|
| Exact per tenant | one line a tenant that did anything in the window, whatever its rank |
| Bounded memory | lines go with every `Meter.take`; a line has at most `BUCKETS` latency counters |
| Cheap | one call a request and one a session, no lock, no timer |

Percentiles come from buckets that are 9% wide (eight to the doubling), so they are right to about 5%.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import msgspec

from cell.fairness.cost import Cost
from cell.shards.session import NO_TENANT

_PER_DOUBLING: Final = 8
_FIRST_S: Final = 1e-5
BUCKETS: Final = 24 * _PER_DOUBLING  # from 10 us to nearly three minutes; what lies outside goes to the ends

Latencies = dict[int, int]  # bucket -> requests
_K = TypeVar("_K", int, str)


class Line(msgspec.Struct):
    """What one tenant did: counts, seconds, bytes. ``database_s`` is as the client saw it, by shard."""

    requests: int = 0
    seat_s: float = 0.0
    queued_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    refused: dict[str, int] = {}
    latencies: Latencies = {}
    database_s: dict[str, float] = {}

    def add(self, other: "Line") -> None:
        """Count another process's line of the same tenant in."""
        self.requests += other.requests
        self.seat_s += other.seat_s
        self.queued_s += other.queued_s
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out
        _count_in(self.refused, other.refused)
        _count_in(self.latencies, other.latencies)
        for shard, seconds in other.database_s.items():
            self.database_s[shard] = self.database_s.get(shard, 0.0) + seconds


class Measures(msgspec.Struct):
    """All that one process measured since it was last asked. ``platform_s``: statements under no tenant, by shard."""

    process: str
    tenants: dict[int, Line] = {}
    platform_s: dict[str, float] = {}


class Meter:
    """The counters of one process. One per event loop; not for threads."""

    def __init__(self, process: str) -> None:
        """``process`` names it among the processes of the cell."""
        self.process = process
        self._measures = Measures(process)

    def finished(self, tenant: int, cost: Cost, seconds: float) -> None:
        """One request was answered, or given up by its client, after so long. A refused one tells no latency."""
        line = self._line(tenant)
        line.requests += 1
        line.seat_s += cost.seat_s
        line.queued_s += cost.queued_s
        line.bytes_in += cost.bytes_in
        line.bytes_out += cost.bytes_out
        if cost.rejected:
            line.refused[cost.rejected] = line.refused.get(cost.rejected, 0) + 1
            return
        bucket = bucket_of(seconds)
        line.latencies[bucket] = line.latencies.get(bucket, 0) + 1

    def spent(self, tenant: int, shard: str, seconds: float) -> None:
        """A session of the tenant kept its shard busy for so long; one of `NO_TENANT` counts as the platform's."""
        if tenant == NO_TENANT:
            self.platform(shard, seconds)
            return
        spent = self._line(tenant).database_s
        spent[shard] = spent.get(shard, 0.0) + seconds

    def platform(self, shard: str, seconds: float) -> None:
        """A statement under no tenant took so long."""
        spent = self._measures.platform_s
        spent[shard] = spent.get(shard, 0.0) + seconds

    def take(self) -> Measures:
        """Everything since the last call; counting begins anew."""
        taken, self._measures = self._measures, Measures(self.process)
        return taken

    def _line(self, tenant: int) -> Line:
        line = self._measures.tenants.get(tenant)
        if line is None:
            line = self._measures.tenants[tenant] = Line()
        return line


def merged(measures: Iterable[Measures]) -> tuple[dict[int, Line], dict[str, float]]:
    """The lines of several processes as one, and the platform's seconds by shard."""
    lines: dict[int, Line] = {}
    platform: dict[str, float] = {}
    for each in measures:
        for tenant, line in each.tenants.items():
            lines.setdefault(tenant, Line()).add(line)
        for shard, seconds in each.platform_s.items():
            platform[shard] = platform.get(shard, 0.0) + seconds
    return lines, platform


def bucket_of(seconds: float) -> int:
    """The bucket of a latency."""
    if seconds <= _FIRST_S:
        return 0
    return min(BUCKETS - 1, int(math.log2(seconds / _FIRST_S) * _PER_DOUBLING))


def percentile_ms(latencies: Mapping[int, int], share: float, less: Mapping[int, int] | None = None) -> float:
    """The latency that ``share`` of the requests did not exceed, those in ``less`` left out; 0 where none is left."""
    left = {b: n - (less.get(b, 0) if less else 0) for b, n in latencies.items()}
    total = sum(left.values())
    rank, seen = math.ceil(total * share), 0
    for bucket in sorted(left):
        seen += left[bucket]
        if total and seen >= rank:
            return _FIRST_S * float(2.0 ** ((bucket + 0.5) / _PER_DOUBLING)) * 1000
    return 0.0


def _count_in(into: dict[_K, int], more: Mapping[_K, int]) -> None:
    for key, count in more.items():
        into[key] = into.get(key, 0) + count
