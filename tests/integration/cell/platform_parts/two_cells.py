"""Two cells over two real PostgreSQL servers, one shard each, composed as `cell.app` does it but without sockets."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import sqlalchemy as sa

from cell.app import KINDS
from cell.gate import Gate
from cell.schema import migrate
from cell.schema.migrate import Passwords
from cell.shards import pools, tables
from cell.shards.context import TenantContext
from cell.shards.directory import Shard, ShardMap
from cell.shards.pools import Databases
from cell.shards.session import Shards, TenantSession
from cell.shards.sql import prepare
from cell.transfer.service import Transfer
from cell.vault import Vault
from contracts import ids, keys
from contracts.transfer import Activate, Fence, Freeze, Prepare, Provision

FUNCTIONS = Path(migrate.__file__).parent / "functions"
MUTATIONS = Path(__file__).parents[3] / "mutations"
OWNER_NAME = "the owner"
FREEZE = Freeze(0, 5000)
SCHEMA = migrate.head(migrate.SHARD)

ADD_COUNTER = prepare(
    sa.insert(tables.counters).values(
        tenant_id=sa.bindparam("tenant_id"), name=sa.bindparam("name"), value=sa.bindparam("value")
    )
)
COUNTERS = prepare(
    sa.select(tables.counters.c.name).where(tables.counters.c.tenant_id == sa.bindparam("tenant_id")).order_by("name")
)

Mutate = Callable[[str], Awaitable[None]]

_tenants = itertools.count(10**9 + secrets.randbelow(10**11))


@dataclass
class Cell:
    """A cell of the test: its one shard is a server of its own."""

    name: str
    shard: Shard
    passwords: Passwords
    databases: Databases
    transfer: Transfer
    gate: Gate
    vault: Vault
    seq: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def shards(self) -> Shards:
        """The tenants' sessions."""
        return self.databases.shards

    @property
    def pool(self) -> Any:
        """The application's pool of the one shard."""
        return self.shards.pool(self.shard.name)

    def fence(self, move: str = "move-1", term: int = 1) -> Fence:
        """The next fence of a leader who counts up."""
        return Fence(term, next(self.seq), move)

    async def tenant(self, epoch: int = 1) -> int:
        """A new active tenant."""
        tenant = next_tenant()
        await self.transfer.provision(tenant, self.fence(), Provision(epoch, OWNER_NAME, "o@example.test", "password"))
        return tenant

    async def write(self, tenant: int, name: str, epoch: int = 1) -> None:
        """One small write of the tenant, in a transaction of its own."""
        async with self.shards.enter(context(tenant, epoch)) as session:
            await session.execute(ADD_COUNTER, name=name, value=1)

    async def names(self, tenant: int, epoch: int = 1) -> list[str]:
        """What `write` wrote."""
        async with self.shards.enter(context(tenant, epoch), read_only=True) as session:
            return [row["name"] for row in await session.fetch(COUNTERS)]

    async def frozen(self) -> int:
        """A new tenant, frozen."""
        tenant = await self.tenant()
        await self.transfer.freeze(tenant, self.fence(), FREEZE)
        return tenant

    async def stream(self, tenant: int) -> bytes:
        """The row stream of a frozen tenant."""
        return b"".join([piece async for piece in await self.transfer.export(tenant, self.fence())])

    async def state(self, tenant: int) -> tuple[str, int]:
        """State and epoch of the fence row."""
        status = await self.transfer.status(tenant)
        return status.state, status.epoch

    async def rows(self, tenant: int) -> int | None:
        """How many rows the tenant has in its tables."""
        return (await self.transfer.status(tenant, count_rows=True)).rows

    async def connect(self, role: str = "cellwall_app") -> "asyncpg.Connection[asyncpg.Record]":
        """A plain connection to the shard with one of the roles."""
        password = quote(dict(self.passwords.items())[role], safe="")
        return await asyncpg.connect(
            f"postgresql://{role}:{password}@{self.shard.host}:{self.shard.port}/{self.shard.database}"
        )

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """A query that no wall holds."""
        connection = await self.connect("cellwall_transfer")
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()

    async def as_owner(self, script: str) -> None:
        """Run SQL as the owner of the schema."""
        connection = await self.connect("cellwall_owner")
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    async def waits_for_lock(self, key: int) -> None:
        """Until somebody stands in line for the advisory lock."""
        query = (
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            " AND (classid::bigint << 32) + objid::bigint = $1"
        )
        async with asyncio.timeout(60):
            while not await self.fetch(query, key):
                await asyncio.sleep(0.005)


def next_tenant() -> int:
    """A tenant number that no test used."""
    return next(_tenants)


def context(tenant: int, epoch: int = 1) -> TenantContext:
    """The context of one request."""
    return TenantContext(tenant, str(ids.tenant_of(tenant)), epoch, float("inf"), "request-1", "free")


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """A stream as it comes from a network: cut anywhere."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def create_owner(session: TenantSession, name: str, email: str, password: str) -> tuple[str, str]:
    """The smallest owner: a counter of the tenant that carries the name."""
    assert email
    assert password
    await session.execute(ADD_COUNTER, name=name, value=0)
    return "user-1", secrets.token_urlsafe(8)


@asynccontextmanager
async def opened(name: str, admin_dsn: str, passwords: Passwords) -> AsyncIterator[Cell]:
    """A cell whose only shard is the migrated server of ``admin_dsn``, open in the running loop."""
    parts = urlsplit(admin_dsn)
    shard = Shard(name, parts.hostname or "", parts.port or 5432, migrate.SHARD)
    shard_map = ShardMap({name: shard}, (name,) * ids.BUCKETS, {})
    clock = asyncio.get_running_loop().time
    gate, vault = Gate(clock), Vault(keys.cell_key(keys.text_of(name.encode().ljust(32, b"."))))
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(pools.app_pool(shard, passwords.app, 8, "test"))
        transfers = await stack.enter_async_context(
            pools.transfer_pools(shard_map.shards, passwords.transfer, 6, "test-transfer")
        )
        transfer = Transfer(
            cell=name,
            schema=SCHEMA,
            pools=transfers,
            shard_of=shard_map.shard_of,
            gate=gate,
            create_owner=create_owner,
            clock=clock,
            vault=vault,
            kinds=KINDS,
        )
        databases = Databases(shard_map, pool, Shards(shard_map, {name: pool}))
        yield Cell(name, shard, passwords, databases, transfer, gate, vault)


async def moved_in(source: Cell, target: Cell, tenant: int, epoch: int) -> None:
    """Prepare and import at the target what the frozen source has; not activated."""
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, epoch))
    await target.transfer.import_(tenant, target.fence(), await source.transfer.export(tenant, source.fence()))


async def activated(source: Cell, target: Cell, tenant: int, epoch: int) -> None:
    """The whole way in."""
    await moved_in(source, target, tenant, epoch)
    await target.transfer.activate(tenant, target.fence(), Activate(epoch))
