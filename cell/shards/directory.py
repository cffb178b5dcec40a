"""The directory: which shards a cell has, and which bucket, or which single tenant, lives on which of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from cell.shards.errors import DirectoryError
from contracts import ids


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
