"""Usage on the wire: what the tenants of one cell cost in one window, measured there and told to the control plane.

Times are milliseconds, sizes bytes of bodies. ``database_ms`` is a tenant's part of the time that the shards' own
counters saw statements run (docs/adr/0015): the lines of a shard add up to its counter.
"""

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

WINDOW_S: Final = 5.0
PUSHED_TENANTS: Final = 100  # with a line of their own in a push; all others share one
TENANTS_MAX: Final = 100_000

Amount = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class TenantUsage(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One tenant in one window. ``requests`` counts every answer, those of ``refused`` (by reason) included.

    ``p99_ms`` is of its served requests. ``others_requests`` and ``others_p99_ms`` are those of all other tenants of
    the cell together, which is how its neighbours fare; only the costliest tenants carry them.
    """

    tenant: str
    requests: Count = 0
    refused: dict[str, int] = {}
    database_ms: Amount = 0.0
    seat_ms: Amount = 0.0
    queued_ms: Amount = 0.0
    bytes_in: Count = 0
    bytes_out: Count = 0
    p99_ms: Amount = 0.0
    others_requests: Count = 0
    others_p99_ms: Amount = 0.0

    @property
    def rejections(self) -> int:
        """Refused requests, whatever the reason."""
        return sum(self.refused.values())


class ShardUsage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the time of one shard's counter went: ``active_ms = tenants_ms + platform_ms + other_ms``.

    What nobody claims is told as ``other_ms`` one window later than the counter had it.

    ``platform_ms``: work of ours under no tenant (copies of moves, polling). ``other_ms``: everybody else's, such as a
    migration or a person with psql.
    """

    shard: str
    active_ms: Amount
    tenants_ms: Amount
    platform_ms: Amount
    other_ms: Amount


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One window of a cell. ``id`` makes telling it twice harmless; ``began`` is the cell's clock, Unix seconds.

    ``tenants`` is ordered by ``database_ms``, the costliest first; ``rest`` adds up those that have no line there.
    ``processes`` were heard of in this window.
    """

    id: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    cell: str
    began: Amount
    seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)]
    processes: tuple[str, ...]
    requests: Count
    p50_ms: Amount
    p99_ms: Amount
    shards: tuple[ShardUsage, ...]
    tenants: Annotated[tuple[TenantUsage, ...], msgspec.Meta(max_length=TENANTS_MAX)]
    rest: TenantUsage

    def top(self, count: int) -> "Window":
        """The same window with lines for the ``count`` costliest tenants only; no sum changes."""
        kept, others = self.tenants[:count], self.tenants[count:]
        return msgspec.structs.replace(self, tenants=kept, rest=added(self.rest.tenant, (self.rest, *others)))


def added(tenant: str, parts: Iterable[TenantUsage]) -> TenantUsage:
    """The sum of several lines under one name. Percentiles cannot be added: the highest counts."""
    lines = tuple(parts)
    refused: dict[str, int] = {}
    for line in lines:
        for reason, count in line.refused.items():
            refused[reason] = refused.get(reason, 0) + count
    return TenantUsage(
        tenant,
        sum(line.requests for line in lines),
        refused,
        sum(line.database_ms for line in lines),
        sum(line.seat_ms for line in lines),
        sum(line.queued_ms for line in lines),
        sum(line.bytes_in for line in lines),
        sum(line.bytes_out for line in lines),
        max((line.p99_ms for line in lines), default=0.0),
    )
