"""Cell zero's transfer on a seeded monolith beside a modern cell, in the test's own process; and moves between them."""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator

import asyncpg

from cell.modules.catalog.public import CONSUMERS
from cell.schema import migrate
from cell.shards.session import Pool
from cell.transfer.service import Transfer
from cell.vault import Vault
from cell.zero import database, door, shop, staging
from cell.zero.door import Door
from cell.zero.monolith import seed, store
from cell.zero.streams import ZeroStreams, login_of
from cell.zero.transfer import ZeroTransfer
from cell.zero.translation.rows import OldTenant
from contracts.transfer import Activate, Checksum, Fence, Freeze, Prepare, Release
from tests.integration.cell.cell_world import World

PASSWORD = "ein altes Passwort"
_customers = itertools.count(1000)
_numbers = itertools.count(secrets.randbelow(10**11) + 10**9)


class Zero:
    """The monolith's database with cell zero in it."""

    def __init__(self, dsn: str, pool: Pool, gate: Door, transfer: ZeroTransfer, streams: ZeroStreams) -> None:
        self.dsn = dsn
        self.pool = pool
        self.gate = gate
        self.transfer = transfer
        self.streams = streams

    async def stranger(self, orders: int = 6) -> int:
        """A new customer who is no tenant yet; the customer number."""
        knr = next(_customers)
        async with self.pool.acquire() as connection:
            await seed.seed(connection, customers=1, orders=orders, password=PASSWORD, first=knr, number=knr)
            await shop.recount(connection, knr)  # as after a night with its cron job
        return knr

    async def enrol(self, tenant: int, knr: int) -> None:
        """Let the customer be this tenant."""
        async with self.pool.acquire() as connection:
            await database.enrol(connection, [(tenant, knr)])

    async def customer(self, orders: int = 6) -> tuple[int, int]:
        """A new customer who is a tenant: (tenant, knr)."""
        tenant, knr = next(_numbers), await self.stranger(orders)
        await self.enrol(tenant, knr)
        return tenant, knr

    async def rows(self, knr: int) -> OldTenant:
        """What the monolith holds of a customer."""
        async with self.pool.acquire() as connection:
            return await shop.read(connection, knr)


async def install(dsn: str) -> None:
    """The monolith's tables, and cell zero beside them."""
    connection = await asyncpg.connect(dsn)
    try:
        await store.install(connection)
        await staging.install(dsn)
        await database.install(connection)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Zero]:
    """The transfer of cell zero, as its process composes it, once the door is its own."""
    clock = asyncio.get_running_loop().time
    async with database.opened(dsn, 6, door.APPLICATION) as pool:
        gate = Door(pool, longest_s=0.01, unaware_s=0.0, clock=clock)
        vault = Vault(b"z" * 32)
        transfer = ZeroTransfer(
            cell="cell-zero",
            schema=migrate.head(migrate.SHARD),
            pool=pool,
            door=gate,
            counting=CONSUMERS,
            vault=vault,
            clock=clock,
        )
        streams = ZeroStreams(pool, login_of(dsn, f"{door.APPLICATION}-stream"), vault, clock)
        settings = {"application_name": f"{door.APPLICATION}-sole"}
        keep = asyncio.create_task(gate.keep(lambda: asyncpg.connect(dsn, server_settings=settings), asyncio.sleep))
        try:
            async with asyncio.timeout(60):
                while not gate.is_sole:
                    await asyncio.sleep(0.01)
            yield Zero(dsn, pool, gate, transfer, streams)
        finally:
            await streams.shut()
            keep.cancel()
            await asyncio.gather(keep, return_exceptions=True)


class Move:
    """The small move, step by step, as the mover does it; fences rise by themselves."""

    def __init__(self, tenant: int, source: Transfer, target: Transfer, epoch: int, term: int) -> None:
        self.tenant = tenant
        self.source = source
        self.target = target
        self.epoch = epoch
        self._term = term
        self._seq = itertools.count(1)

    def fence(self) -> Fence:
        return Fence(self._term, next(self._seq), f"m{self._term}")

    async def freeze(self, soft_ms: int = 100, hard_ms: int = 5000) -> None:
        prepare = Prepare(self.source.info().schema, self.epoch)
        await self.target.prepare(self.tenant, self.fence(), prepare)
        await self.source.freeze(self.tenant, self.fence(), Freeze(soft_ms, hard_ms))

    async def copy(self) -> tuple[Checksum, Checksum]:
        pieces = await self.source.export(self.tenant, self.fence())
        await self.target.import_(self.tenant, self.fence(), pieces)
        ours = await self.source.checksum(self.tenant, self.fence())
        return ours, await self.target.checksum(self.tenant, self.fence())

    async def switch(self) -> None:
        await self.target.activate(self.tenant, self.fence(), Activate(self.epoch))
        await self.source.release(self.tenant, self.fence(), Release("hint"))

    async def whole(self, *, purge: bool = True) -> None:
        await self.freeze()
        ours, theirs = await self.copy()
        assert ours == theirs
        await self.switch()
        if purge:
            await self.source.purge(self.tenant, self.fence())


class Journey:
    """One tenant's moves between the monolith and a modern cell, with rising epochs and terms."""

    def __init__(self, zero: Zero, world: World, tenant: int) -> None:
        self._zero, self._world, self._tenant = zero, world, tenant
        self._epochs = itertools.count(2)

    def out(self) -> Move:
        """The next move, to the modern cell."""
        epoch = next(self._epochs)
        return Move(self._tenant, self._zero.transfer, self._world.transfer, epoch, epoch)

    def back(self) -> Move:
        """The next move, to the monolith."""
        epoch = next(self._epochs)
        return Move(self._tenant, self._world.transfer, self._zero.transfer, epoch, epoch)
