"""Cell zero's connections to the monolith's database, and our schema in it."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec

from cell.shards.session import Pool
from contracts import ids

CONNECT_TIMEOUT_S: Final = 5.0
FIRST_EPOCH: Final = 1
_SCHEMA: Final = Path(__file__).parent / "schema.sql"
_FUNCTIONS: Final = Path(__file__).parents[1] / "schema" / "functions"
_LOCK: Final = 0x7A65726F  # one installation at a time
_ENROL: Final = (
    "INSERT INTO cellwall.tenants (tenant_id, bucket, epoch, state) VALUES ($1, $2, $3, 'active')"
    " ON CONFLICT DO NOTHING"
)
_CUSTOMER: Final = "INSERT INTO cellwall_zero.customers (tenant_id, knr) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_CUSTOMER_OF: Final = "SELECT knr FROM cellwall_zero.customers WHERE tenant_id = $1"


class EnrolmentError(Exception):
    """The monolith's customer and the tenant do not belong together; the message names both."""


@asynccontextmanager
async def opened(dsn: str, size: int, application: str) -> AsyncIterator[Pool]:
    """A pool, closed at the end. Connections are made when they are needed: the database may be away at first."""
    pool = asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=size,
        timeout=CONNECT_TIMEOUT_S,
        init=_json_codecs,
        server_settings={"application_name": application},
    )
    await pool
    try:
        yield pool
    finally:
        await pool.close()


async def _json_codecs(connection: Any) -> None:
    encoder = msgspec.json.Encoder()
    await connection.set_type_codec(
        "jsonb", encoder=lambda v: encoder.encode(v).decode(), decoder=msgspec.json.decode, schema="pg_catalog"
    )


async def install(connection: Any) -> None:
    """Make our schema in the monolith's database, or bring it up to date. Touches none of the monolith's tables."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await connection.execute(_SCHEMA.read_text())
        for name in ("lock_holders", "end_holders", "hold_bucket"):
            await connection.execute((_FUNCTIONS / f"{name}.sql").read_text())


async def enrol(connection: Any, customers: Iterable[tuple[int, int]]) -> None:
    """Tell cell zero which tenants its customers are: (tenant number, knr). Safe to repeat; they are active at once.

    Raises `EnrolmentError`, and enrols none of them, where a customer is another tenant's or the other way round.
    """
    async with connection.transaction():
        for tenant, knr in customers:
            await connection.execute(_CUSTOMER, tenant, knr)
            if await connection.fetchval(_CUSTOMER_OF, tenant) != knr:
                raise EnrolmentError(f"customer {knr} and tenant {ids.tenant_of(tenant)}: one of them is taken")
            await connection.execute(_ENROL, tenant, ids.bucket_of(ids.tenant_of(tenant)), FIRST_EPOCH)


async def customer_of(connection: Any, tenant: int) -> int | None:
    """The monolith's customer number of a tenant, None where nobody enrolled it."""
    knr: int | None = await connection.fetchval(_CUSTOMER_OF, tenant)
    return knr
