"""Reads the orders of every shard of every cell for the books: as superuser, past row-level security and the API."""

import asyncio
from collections.abc import Iterable, Mapping

import asyncpg

from contracts.ids import tenant_of
from loadtest.books import Row

CONNECT_TIMEOUT_S = 5.0
QUERY_TIMEOUT_S = 30.0

# The fence row is joined from the same database: a shard that holds rows of a tenant but no fence row serves none.
ORDERS = """
SELECT o.tenant_id, o.order_id::text AS id, coalesce(o.reference, '') AS reference,
       t.state, coalesce(t.epoch, 0) AS epoch
FROM product.orders AS o LEFT JOIN cellwall.tenants AS t USING (tenant_id)
WHERE $1::text = '' OR NOT starts_with(coalesce(o.reference, ''), $1)
ORDER BY o.tenant_id, o.order_id
"""


async def read_shard(cell: str, shard: str, dsn: str, leave_out: str = "") -> list[Row]:
    """All orders of one shard but those whose reference begins so. ``dsn``: a superuser's, of the shard's database."""
    connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=QUERY_TIMEOUT_S)
    try:
        records = await connection.fetch(ORDERS, leave_out)
    finally:
        await connection.close()
    return [
        Row(cell, shard, tenant_of(r["tenant_id"]), r["id"], r["reference"], r["state"], r["epoch"]) for r in records
    ]


async def read(cells: Mapping[str, Mapping[str, str]], *, leave_out: str = "") -> list[Row]:
    """All orders of the fleet but those whose reference begins so; ``cells`` maps cell -> shard -> DSN.

    A shard that cannot be read fails the reading: books with a page missing would call every order on it lost, or miss
    its doubles.
    """
    shards = [(cell, shard, dsn) for cell, databases in cells.items() for shard, dsn in databases.items()]
    pages: Iterable[list[Row]] = await asyncio.gather(*(read_shard(*shard, leave_out) for shard in shards))
    return [row for page in pages for row in page]
