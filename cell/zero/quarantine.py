"""Writes to the monolith's rows of tenants that live elsewhere: found by comparison, kept apart, alarmed.

Cron jobs and reporting tools go around any ambassador (moves.md rule 21). When a tenant leaves, or a return was given
up, every row of it is marked by a digest; a row that differs later goes to ``cellwall_zero.quarantine`` once, with what
it became. Nothing applies it: a person decides. A change back and forth between two looks is not seen; the opt-in fence
of `cell.zero.writers` refuses such writes instead.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Gauge

from cell.shards.errors import DATABASE_FAILED
from cell.shards.session import Pool
from cell.zero import shop
from cell.zero.parts import Part, part_of
from contracts import ids
from contracts.names import Field
from contracts.zero import Quarantined

LOOK_S: Final = 30.0  # between two rounds
GONE: Final = b""
_FORGET: Final = "DELETE FROM cellwall_zero.marks WHERE tenant_id = $1"
_ARE_MARKED: Final = "SELECT EXISTS (SELECT FROM cellwall_zero.marks WHERE tenant_id = $1)"
_MARK: Final = f"INSERT INTO cellwall_zero.marks (tenant_id, tab, key, digest) SELECT $2, * FROM ({shop.DIGESTS}) d"  # noqa: S608
_FORGET_PART: Final = (
    "DELETE FROM cellwall_zero.marks WHERE tenant_id = $1 AND (tab IN ('ben', 'sess')"
    " OR (tab, key) IN (SELECT * FROM unnest($2::text[], $3::text[])))"
)
_MARK_PART: Final = (
    "INSERT INTO cellwall_zero.marks (tenant_id, tab, key, digest)"  # noqa: S608 - constants of ours
    f" SELECT $6, * FROM ({shop.DIGESTS_OF_PART}) d"
)
_CHANGED: Final = (
    "SELECT coalesce(n.tab, m.tab) AS tab, coalesce(n.key, m.key) AS key, n.digest"  # noqa: S608 - constants of ours
    f" FROM ({shop.DIGESTS}) n"
    " FULL JOIN (SELECT tab, key, digest FROM cellwall_zero.marks WHERE tenant_id = $2) m"
    " ON m.tab = n.tab AND m.key = n.key WHERE n.digest IS DISTINCT FROM m.digest"
)
_AWAY: Final = (
    "SELECT c.tenant_id, c.knr FROM cellwall_zero.customers c JOIN cellwall.tenants t USING (tenant_id)"
    " WHERE t.state IN ('moved', 'gone', 'aborted', 'standby')"
    " AND EXISTS (SELECT FROM cellwall_zero.marks m WHERE m.tenant_id = c.tenant_id) ORDER BY c.tenant_id"
)
_KEEP: Final = (
    "INSERT INTO cellwall_zero.quarantine (tenant_id, tab, key, digest, row) VALUES ($1, $2, $3, $4, $5)"
    " ON CONFLICT DO NOTHING RETURNING tab"
)
_LIST: Final = (
    "SELECT q.tenant_id, c.knr, q.tab, q.key, q.row, q.found_at FROM cellwall_zero.quarantine q"
    " JOIN cellwall_zero.customers c USING (tenant_id) ORDER BY q.found_at, q.tenant_id, q.tab, q.key LIMIT $1"
)
_COUNT: Final = "SELECT count(*) FROM cellwall_zero.quarantine"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Change:
    """A row that is not as it was marked. ``digest`` is `GONE` where there is none any more."""

    tab: str
    key: str
    digest: bytes


async def mark(connection: Any, tenant: int, knr: int) -> None:
    """Remember the rows of a tenant as they are now, in the place of what was remembered.

    Rows that were read before must be of the same snapshot, or a write in between would count as known.
    """
    await connection.execute(_FORGET, tenant)
    await connection.execute(_MARK, knr, tenant)


async def mark_part(connection: Any, tenant: int, knr: int, part: Part) -> None:
    """The same for a part of them."""
    names = part.names
    await connection.execute(_FORGET_PART, tenant, [tab for tab, _ in names], [key for _, key in names])
    await connection.execute(_MARK_PART, knr, *part.arguments, tenant)


async def forget(connection: Any, tenant: int) -> None:
    """From now on the rows are written by whom they belong to."""
    await connection.execute(_FORGET, tenant)


async def are_marked(connection: Any, tenant: int) -> bool:
    """Whether anything is remembered of the tenant."""
    found: bool = await connection.fetchval(_ARE_MARKED, tenant)
    return found


async def changed(connection: Any, tenant: int, knr: int) -> list[Change]:
    """What differs between the rows as they were marked and as they are. Compared by the database: 200,000 rows/s."""
    return [
        Change(row["tab"], row["key"], GONE if row["digest"] is None else row["digest"])
        for row in await connection.fetch(_CHANGED, knr, tenant)
    ]


async def keep(connection: Any, tenant: int, knr: int, changes: Sequence[Change]) -> list[Change]:
    """Put writes past the ambassador aside, with what the rows became; those that were not there yet."""
    if not changes:
        return []
    shown = await connection.fetch(shop.SHOWN_OF_PART, knr, *part_of((c.tab, c.key) for c in changes).arguments)
    rows = {(row["tab"], row["key"]): row["row"] for row in shown}
    return [
        c for c in changes if await connection.fetchval(_KEEP, tenant, c.tab, c.key, c.digest, rows.get((c.tab, c.key)))
    ]


async def look(pool: Pool) -> int:
    """Look through all tenants that live elsewhere; how many changes were new."""
    async with pool.acquire() as connection:
        away = await connection.fetch(_AWAY)
    total = 0
    for tenant, knr in away:
        async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
            new = await keep(connection, tenant, knr, await changed(connection, tenant, knr))
        if new:
            rows = [f"{change.tab} {change.key}" for change in new[:20]]
            _log.error(
                "foreign_write_quarantined", **{Field.TENANT: ids.tenant_of(tenant)}, changes=len(new), rows=rows
            )
        total += len(new)
    return total


async def listed(pool: Pool, limit: int) -> list[Quarantined]:
    """The oldest of what is in quarantine."""
    return [
        Quarantined(ids.tenant_of(tenant), knr, tab, key, row, found_at.isoformat())
        for tenant, knr, tab, key, row, found_at in await pool.fetch(_LIST, limit)
    ]


class Watch:
    """Looks again and again beside the ambassador, and shows in the metrics how many changes wait for a person."""

    def __init__(
        self,
        pool: Pool,
        registry: CollectorRegistry,
        *,
        every_s: float = LOOK_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._pool = pool
        self._every_s = every_s
        self._sleep = sleep
        self._waiting = Gauge(
            "cellwall_zero_quarantined",
            "Writes past the ambassador to rows of tenants that live elsewhere, which nobody has looked at",
            registry=registry,
        )

    async def run(self) -> None:
        """Until cancelled. While the database is away it tries again."""
        while True:
            try:
                await look(self._pool)
                self._waiting.set(await self._pool.fetchval(_COUNT))
            except DATABASE_FAILED as e:
                _log.warning("quarantine_look_failed", **{Field.REASON: f"{type(e).__name__}: {e}"})
            await self._sleep(self._every_s)
