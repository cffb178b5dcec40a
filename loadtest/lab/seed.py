"""Orders of the past, by the thousand, straight into a shard: a report that has nothing to read is not heavy.

This goes round the product (one transaction as superuser, in SQL), because thousands of orders through the API take
minutes. The rows are those that the product would have left, but for events: none is sent. Their references begin with
`SEEDED`, by which the books know that no client was told of them.
"""

from collections.abc import Mapping
from typing import Final

import asyncpg

from contracts.ids import tenant_number
from loadtest.operator import LabError

SEEDED: Final = "seeded-"
DAYS: Final = 360
TIMEOUT_S: Final = 120.0

_HERE: Final = "SELECT EXISTS (SELECT FROM cellwall.tenants WHERE tenant_id = $1 AND state = 'active')"
_NUMBERS: Final = """
INSERT INTO cellwall.counters AS c (tenant_id, name, value) VALUES ($1, 'orders', $2)
ON CONFLICT (tenant_id, name) DO UPDATE SET value = c.value + $2 RETURNING value - $2
"""
# Keys as the product makes them: UUIDv7 (RFC 9562) of the order's moment, a version 4 with time and version laid over.
# Random ones would be spread over the whole of an index, and a copy of many of them is four times as slow.
_ORDERS: Final = """
WITH goods AS (
  SELECT array_agg(product_id ORDER BY sku) AS ids, array_agg(price_cents ORDER BY sku) AS prices,
         min(currency) AS currency
  FROM product.products WHERE tenant_id = $1
), aged AS (
  SELECT $3 + g AS number, 1 + g % cardinality(ids) AS pick, 1 + g % 5 AS quantity,
         now() - make_interval(days => (g % $4)::int) AS created_at, ids, prices, currency
  FROM generate_series(1, $2) AS g, goods
), planned AS (
  SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING
           substring(int8send((extract(epoch FROM created_at) * 1000)::bigint) FROM 3) FROM 1 FOR 6
         ), 52, 1), 53, 1), 'hex')::uuid AS order_id, aged.*
  FROM aged
), made AS (
  INSERT INTO product.orders
    (tenant_id, order_id, number, reference, status, total_cents, currency, created_by, created_at)
  SELECT $1, order_id, number, $5 || number, 'created', quantity * prices[pick], currency, gen_random_uuid(), created_at
  FROM planned
)
INSERT INTO product.order_lines (tenant_id, order_id, line, product_id, quantity, unit_price_cents)
SELECT $1, order_id, 1, ids[pick], quantity, prices[pick] FROM planned
"""


async def seed(shards: Mapping[str, str], tenant: str, count: int) -> None:
    """Give ``tenant`` that many orders more. ``shards`` are its cell's: shard -> superuser's DSN of its database."""
    number = tenant_number(tenant)
    for dsn in shards.values():
        connection = await asyncpg.connect(dsn, command_timeout=TIMEOUT_S)
        try:
            if await connection.fetchval(_HERE, number):
                async with connection.transaction():
                    await connection.execute(
                        "SET LOCAL session_replication_role = replica"
                    )  # foreign keys hold as made
                    first = await connection.fetchval(_NUMBERS, number, count)
                    await connection.execute(_ORDERS, number, count, first, DAYS, SEEDED)
                return
        finally:
            await connection.close()
    raise LabError(f"no shard of its cell serves {tenant}: it cannot be given orders")
