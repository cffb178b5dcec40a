"""A cell with what moves its buckets, for tests that stop it at any step."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from cell.rebucketing import store
from cell.rebucketing.mover import Mover, onwards
from cell.rebucketing.plan import Step
from cell.rebucketing.service import Rebucketing
from cell.shards import tables
from cell.shards.directory import LiveMap
from cell.shards.session import Pool, Shards
from cell.shards.sql import prepare
from contracts import ids
from contracts.transfer import Fence, Provision
from tests.integration.cell.cell_world import EPOCH, PASSWORD, Merchant, World

ADD_TO_COUNTER = prepare(
    insert(tables.counters)
    .values(tenant_id=sa.bindparam("tenant_id"), name=sa.bindparam("name"), value=sa.bindparam("value"))
    .on_conflict_do_update(
        index_elements=["tenant_id", "name"], set_={"value": tables.counters.c.value + sa.bindparam("value")}
    )
)
VALUES = prepare(sa.select(tables.counters).where(tables.counters.c.tenant_id == sa.bindparam("tenant_id")))
DELETE_COUNTER = prepare(
    sa.delete(tables.counters).where(
        tables.counters.c.tenant_id == sa.bindparam("tenant_id"), tables.counters.c.name == sa.bindparam("name")
    )
)
DELETE_SOME = prepare(
    sa.delete(tables.counters).where(
        tables.counters.c.tenant_id == sa.bindparam("tenant_id"), tables.counters.c.name.like("many-7%")
    )
)
MANY = 25_000
PATIENT_S = 30.0  # a hold on a busy machine, in tests that ask for something else than its bound


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


class Bench:
    """A cell with what moves its buckets. ``at`` is what happens at each step."""

    def __init__(self, world: World, directory: Pool) -> None:
        self.world = world
        self.directory = directory

    def mover(self, at: Callable[[str], Awaitable[None]], hold_s: float = PATIENT_S, holds: int = 1) -> Mover:
        return Mover(
            directory=self.directory,
            pools=self.world.transfers,
            clock=asyncio.get_running_loop().time,
            at=at,
            hold_s=hold_s,
            holds=holds,
        )

    @property
    def service(self) -> Rebucketing:
        return Rebucketing(self.directory, self.world.transfers)

    def bucket(self, merchant: Merchant) -> int:
        return ids.bucket_of(merchant.tenant_id)

    def elsewhere(self, merchant: Merchant, *, alone: bool = False) -> Step:
        """A step that moves the merchant's bucket, or it alone, to the shard where it is not."""
        source = self.world.databases.shards.shard_of(merchant.number)
        target = next(name for name in self.world.databases.shards.names if name != source)
        return Step(self.bucket(merchant), merchant.number if alone else 0, source, target)

    async def plan(self, step: Step) -> None:
        """Write it down as if an operator had wished it."""
        await store.plan(self.directory, "test", [step])

    async def due(self) -> None:
        """What rests does so no more."""
        await self.directory.execute("UPDATE shard_moves SET due = now()")

    async def sweep(
        self, at: Callable[[str], Awaitable[None]] | None = None, hold_s: float = PATIENT_S, holds: int = 1
    ) -> int:
        await self.due()
        return await self.mover(at or onwards, hold_s, holds).sweep()

    async def open(self) -> list[store.Move]:
        return await store.moves(self.directory)

    async def fill(self, merchant: Merchant, count: int) -> None:
        """Give the merchant so many counters."""
        connection = await self.world.cell.as_superuser(self.world.databases.shards.shard_of(merchant.number))
        try:
            await connection.execute(
                "INSERT INTO cellwall.counters (tenant_id, name, value)"
                " SELECT $1, 'many-' || n, n FROM generate_series(1, $2) n",
                merchant.number, count,
            )  # fmt: skip
        finally:
            await connection.close()

    async def keep_key(self, merchant: Merchant, wrapped: bytes) -> None:
        """What the vault keeps for a tenant that seals something for the first time."""
        await self.world.transfers[self.world.databases.shards.shard_of(merchant.number)].execute(
            "INSERT INTO cellwall.tenant_keys (tenant_id, wrapped) VALUES ($1, $2)", merchant.number, wrapped
        )

    async def neighbour(self, merchant: Merchant) -> httpx.AsyncClient:
        """A client of a new tenant in the same bucket."""
        start = merchant.number + 1
        number = next(n for n in range(start, start + 10**6) if ids.bucket_of(f"t{n}") == self.bucket(merchant))
        provision = Provision(EPOCH, "Neighbour", f"owner-{number}@example.test", PASSWORD)
        made = await self.world.transfer.provision(number, Fence(1, 1, f"provision-{number}"), provision)
        return self.world.client(f"t{number}", made.api_key)

    async def fences(self, merchant: Merchant) -> dict[str, str]:
        """What the shards say of the merchant, or of its bucket where they say nothing of it alone."""
        found = {}
        for name, pool in self.world.transfers.items():
            found[name] = await pool.fetchval(
                "SELECT state FROM cellwall.shard_fences WHERE bucket = $1 AND tenant_id IN (0, $2)"
                " ORDER BY tenant_id DESC LIMIT 1",
                self.bucket(merchant), merchant.number,
            )  # fmt: skip
        return found

    async def count(self, name: str, merchant: Merchant) -> int:
        """How many rows the merchant has at that shard, whoever asks."""
        connection = await self.world.cell.as_superuser(name)
        try:
            found = await connection.fetchval(
                "SELECT (SELECT count(*) FROM cellwall.tenants WHERE tenant_id = $1)"
                " + (SELECT count(*) FROM product.products WHERE tenant_id = $1)"
                " + (SELECT count(*) FROM cellwall.work WHERE tenant_id = $1)"
                " + (SELECT count(*) FROM cellwall.tenant_keys WHERE tenant_id = $1)",
                merchant.number,
            )
            return int(found)
        finally:
            await connection.close()


def kill(step: str) -> Callable[[str], Awaitable[None]]:
    async def at(now: str) -> None:
        if now == step:
            raise Killed

    return at


def stale(world: World) -> Shards:
    """The sessions of a process that has not heard of what moves from now on."""
    live = world.databases.shard_map
    assert isinstance(live, LiveMap)
    copied = LiveMap(live._directory, live._map, live._revision)
    return Shards(copied, {name: world.databases.shards.pool(name) for name in world.databases.shards.names})
