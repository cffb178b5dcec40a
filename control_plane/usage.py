"""Usage of the cells, as they tell it: a rolling quarter of an hour of windows, and sums over a part of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import ids
from contracts.problems import INVALID, ProblemError
from contracts.usage import PUSHED_TENANTS, TenantUsage, Window, added
from control_plane.cells import cell_of, fleet_of
from control_plane.models import metadata, tenants
from control_plane.usage_views import CellUsage, TenantLine, UsageView

KEEP_S: Final = 900.0

usage_windows: Final = sa.Table(
    "usage_windows",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("cell", sa.Text, sa.ForeignKey("cells.name"), nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
    sa.Column("body", sa.Text, nullable=False),  # a `contracts.usage.Window`
    sa.Index("ix_usage_windows_at", "at"),
)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the control plane adds to a cell's line."""

    slug: str
    throttled_until: datetime | None


class Usage:
    """Takes what cells tell, and sums it up."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def take(self, cell: str, window: Window) -> None:
        """Store a window; one that was told before changes nothing. 404 for a cell that is not registered."""
        if window.cell != cell:
            raise ProblemError(INVALID, f"cell: the window is of {window.cell!r}, not of {cell!r}.")
        body = msgspec.json.encode(window.top(PUSHED_TENANTS)).decode()
        async with self._engine.begin() as conn:
            await cell_of(conn, cell)
            await conn.execute(
                insert(usage_windows).values(id=window.id, cell=cell, body=body).on_conflict_do_nothing()
            )

    async def summary(self, cell: str | None, top: int, seconds: float) -> UsageView:
        """The costliest tenants of the last seconds, of one cell or of each."""
        async with self._engine.connect() as conn:
            chosen = [(await cell_of(conn, cell)).name] if cell else [c.name for c in await fleet_of(conn)]
            told = await windows_of(conn, seconds)
            of_cells = [(name, told.get(name, [])) for name in chosen]
            lines = {name: summed(windows)[:top] for name, windows in of_cells}
            known = await _known(conn, [line for each in lines.values() for line in each])
        return UsageView(
            seconds, [_cell(name, windows, lines[name], known) for name, windows in of_cells if windows or cell]
        )


async def windows_of(conn: AsyncConnection, seconds: float) -> dict[str, list[Window]]:
    """The windows told in the last seconds by cell, oldest first; by this database's clock."""
    since = sa.func.clock_timestamp() - sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    query = sa.select(usage_windows).where(usage_windows.c.at > since).order_by(usage_windows.c.at)
    found: dict[str, list[Window]] = {}
    for row in await conn.execute(query):
        found.setdefault(row.cell, []).append(msgspec.json.decode(row.body, type=Window))
    return found


async def forget(conn: AsyncConnection) -> None:
    """Remove what is older than `KEEP_S`."""
    age = sa.func.make_interval(0, 0, 0, 0, 0, 0, KEEP_S)
    await conn.execute(sa.delete(usage_windows).where(usage_windows.c.at < sa.func.clock_timestamp() - age))


def summed(windows: Sequence[Window]) -> list[TenantUsage]:
    """Each listed tenant's sum over the windows, the costliest first."""
    lines: dict[str, list[TenantUsage]] = {}
    for window in windows:
        for line in window.tenants:
            lines.setdefault(line.tenant, []).append(line)
    sums = [added(tenant, each) for tenant, each in lines.items()]
    return sorted(sums, key=lambda line: (-line.database_ms, -line.requests, line.tenant))


def _cell(
    name: str, windows: Sequence[Window], lines: Sequence[TenantUsage], known: Mapping[str, "_Known"]
) -> CellUsage:
    seconds = sum(window.seconds for window in windows)
    everything = added("", (line for window in windows for line in (*window.tenants, window.rest)))
    shards = [shard for window in windows for shard in window.shards]
    return CellUsage(
        cell=name,
        seconds=seconds,
        requests=everything.requests,
        rejected=everything.rejections,
        database_ms=everything.database_ms,
        active_ms=sum(shard.active_ms for shard in shards),
        platform_ms=sum(shard.platform_ms for shard in shards),
        other_ms=sum(shard.other_ms for shard in shards),
        p50_ms=windows[-1].p50_ms if windows else 0.0,
        p99_ms=windows[-1].p99_ms if windows else 0.0,
        tenants=[_tenant(line, everything, known.get(line.tenant)) for line in lines],
    )


def _tenant(line: TenantUsage, everything: TenantUsage, known: "_Known | None") -> TenantLine:
    return TenantLine(
        tenant=line.tenant,
        slug=known.slug if known is not None else "",
        requests=line.requests,
        refused=line.refused,
        database_ms=line.database_ms,
        share=line.database_ms / everything.database_ms if everything.database_ms else 0.0,
        seat_ms=line.seat_ms,
        queued_ms=line.queued_ms,
        bytes_in=line.bytes_in,
        bytes_out=line.bytes_out,
        p99_ms=line.p99_ms,
        throttled_until=known.throttled_until if known is not None else None,
    )


async def _known(conn: AsyncConnection, lines: Iterable[TenantUsage]) -> dict[str, "_Known"]:
    numbers = []
    for line in lines:
        try:
            numbers.append(ids.tenant_number(line.tenant))
        except ids.InvalidIdError:  # what a cell says is not trusted to name a tenant of ours
            continue
    query = sa.select(tenants.c.number, tenants.c.slug, tenants.c.throttled_until).where(tenants.c.number.in_(numbers))
    rows = (await conn.execute(query)).all()
    return {ids.tenant_of(row.number): _Known(row.slug, row.throttled_until) for row in rows}
