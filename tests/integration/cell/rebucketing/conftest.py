"""The bench of moves between shards."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest_asyncio

from cell.schema import migrate
from cell.shards import pools
from contracts import ids
from tests.integration.cell.cell_world import Merchant, World
from tests.integration.cell.rebucketing.shard_bench import Bench


@pytest_asyncio.fixture
async def merchant(world: World) -> Merchant:
    """A tenant alone in its bucket: one that another test has left frozen would keep the bucket where it is."""
    while True:
        found = await world.merchant()
        bucket, living = ids.bucket_of(found.tenant_id), 0
        for pool in world.transfers.values():
            living += await pool.fetchval("SELECT count(*) FROM cellwall.tenants WHERE bucket = $1", bucket)
        if living == 1:
            return found


@pytest_asyncio.fixture
async def bench(world: World) -> AsyncIterator[Bench]:
    cell = world.cell
    async with (
        pools.following(world.databases, "test-process"),
        pools.directory_for_transfer(cell.directory_dsn, cell.passwords.transfer, "test-shards") as directory,
    ):
        await directory.execute("UPDATE shard_moves SET state = 'cancelled' WHERE state IN ('planned', 'copying')")
        yield Bench(world, directory)
    dsn = urlsplit(cell.admin_dsns[min(cell.admin_dsns)])._replace(path=f"/{migrate.DIRECTORY}").geturl()
    admin = await asyncpg.connect(dsn)
    await admin.execute("DELETE FROM tenant_shards")
    await admin.close()
    for name in world.databases.shards.names:  # other tests deal the buckets of these databases out by themselves
        connection = await cell.as_superuser(name)
        try:
            await connection.execute("DELETE FROM cellwall.shard_fences")
        finally:
            await connection.close()
