"""The directory: which shards a cell has, and which bucket, or which single tenant, lives on which of them."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import structlog

from cell.shards.borrowing import borrowed
from cell.shards.errors import DATABASE_FAILED, DirectoryError, ShardError, ShardUnavailableError
from contracts import ids
from contracts.names import Field

REFRESH_TIMEOUT_S: Final = 2.0
FOLLOW_S: Final = 1.0
ALIVE_S: Final = 15.0
# Grows with every decision, whichever move it belongs to.
_REVISION: Final = "SELECT count(*) FROM shard_moves WHERE state IN ('switched', 'done')"
_LEAVE: Final = "DELETE FROM processes WHERE name = $1 OR seen_at < now() - interval '1 hour'"
_REPORT: Final = (
    "INSERT INTO processes (name, shards) VALUES ($1, $2)"
    " ON CONFLICT (name) DO UPDATE SET shards = excluded.shards, seen_at = now()"
)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard's database server."""

    name: str
    host: str
    port: int
    database: str


@dataclass(frozen=True, slots=True)
class ShardMap:
    """Pure: 1024 buckets to shards, with overrides for single tenants (a whale may have a shard of its own)."""

    shards: Mapping[str, Shard]
    buckets: tuple[str, ...]
    overrides: Mapping[int, str]

    def __post_init__(self) -> None:
        if len(self.buckets) != ids.BUCKETS:
            raise DirectoryError(f"the bucket map has {len(self.buckets)} of {ids.BUCKETS} buckets")
        unknown = ({*self.buckets} | {*self.overrides.values()}) - {*self.shards}
        if unknown:
            raise DirectoryError(f"the bucket map names shards that do not exist: {', '.join(sorted(unknown))}")

    def shard_of(self, tenant: int) -> str:
        """The shard of a tenant: its override, else its bucket's."""
        return self.overrides.get(tenant) or self.buckets[ids.bucket_of(f"t{tenant}")]

    async def refresh(self) -> None:
        """Nothing: this one never changes."""


class LiveMap:
    """The directory's map, as it was when it was last asked. Every part of a process shares one.

    Buckets move between shards while the cell serves. Which shard holds a tenant is decided by the shards' fences; a
    map that is behind costs a trip to the wrong one, never a wrong answer.
    """

    def __init__(self, directory: Any, first: ShardMap, revision: int) -> None:
        self._directory = directory
        self._map = first
        self._revision = revision
        self._lock = asyncio.Lock()
        self._asked = 0

    @property
    def shards(self) -> Mapping[str, Shard]:
        """All shards of the cell, also those that hold nothing yet."""
        return self._map.shards

    def shard_of(self, tenant: int) -> str:
        """The shard of a tenant: its override, else its bucket's."""
        return self._map.shard_of(tenant)

    async def refresh(self) -> None:
        """Ask whether something moved, and read the map again if so. `ShardUnavailableError` without a directory.

        Who has to wait for the turn is content with any answer that was asked for after it came.
        """
        enough = self._asked + 1
        async with self._lock:
            if self._asked < enough:
                self._asked += 1
                await self._ask()

    async def _ask(self) -> None:
        async with answered(), borrowed(self._directory, REFRESH_TIMEOUT_S) as connection:
            revision = await connection.fetchval(_REVISION)
            if revision != self._revision:
                self._map, self._revision = await load(connection), revision

    async def follow(self, process: str, shards: Sequence[str]) -> None:
        """Until cancelled: refresh now and then, and say which shards ``process`` has connections to."""
        following = True
        while True:
            try:
                await self.report(process, shards)
                await self.refresh()
                following = True
            except ShardError as e:
                if following:  # said once, not every second until it is back
                    _log.warning("directory_not_followed", **{Field.REASON: str(e)})
                following = False
            await asyncio.sleep(FOLLOW_S)

    async def report(self, process: str, shards: Sequence[str]) -> None:
        """Say that ``process`` lives and has connections to ``shards``: nothing moves to one that it does not know."""
        async with answered(), borrowed(self._directory, REFRESH_TIMEOUT_S) as connection:
            await connection.execute(_REPORT, process, list(shards))

    async def leave(self, process: str) -> None:
        """``process`` ends. One that could not say so counts as alive for `ALIVE_S` more seconds."""
        async with answered(), borrowed(self._directory, REFRESH_TIMEOUT_S) as connection:
            await connection.execute(_LEAVE, process)


@asynccontextmanager
async def answered() -> AsyncIterator[None]:
    """Raises `ShardUnavailableError` for whatever a directory that is away causes."""
    try:
        yield
    except DATABASE_FAILED as e:
        raise ShardUnavailableError(f"the directory cannot be read: {e or type(e).__name__}") from e


async def live(directory: Any) -> LiveMap:
    """The map of the directory that this pool reaches."""
    async with directory.acquire() as connection:
        revision = await connection.fetchval(_REVISION)  # first: a map may be newer than its revision, never older
        return LiveMap(directory, await load(connection), revision)


async def load(connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]") -> ShardMap:
    """The map as the directory database has it; `DirectoryError` where it is incomplete."""
    shards = await connection.fetch("SELECT name, host, port, database FROM shards ORDER BY name")
    buckets = await connection.fetch("SELECT bucket, shard FROM buckets ORDER BY bucket")
    overrides = await connection.fetch("SELECT tenant_id, shard FROM tenant_shards")
    if [r["bucket"] for r in buckets] != list(range(len(buckets))):
        raise DirectoryError("the bucket map has holes")
    return ShardMap(
        {r["name"]: Shard(r["name"], r["host"], r["port"], r["database"]) for r in shards},
        tuple(r["shard"] for r in buckets),
        {r["tenant_id"]: r["shard"] for r in overrides},
    )
