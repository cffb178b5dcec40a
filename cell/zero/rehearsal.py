"""A rehearsal: a tenant's rows, translated, under a number of their own, for a modern cell to be tried with.

The tenant itself is neither frozen nor moved, and nothing of the rehearsal stays in the monolith's database: it is
staged in a transaction that is rolled back. The stream goes to ``import`` of a modern cell like that of any move.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

from litestar import Router, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath
from litestar.response import Stream

from cell.shards.session import Pool
from cell.transfer import catalogue, rows
from cell.transfer.api import ACCESS
from cell.zero import database, shop, staging
from cell.zero.carry import untranslatable
from cell.zero.translation.forward import forward
from cell.zero.translation.rows import KeyMap, NewTenant
from contracts import ids, problems
from contracts.problems import ProblemError
from contracts.transfer import ROWS_CONTENT_TYPE

Database = NamedDependency[Any]  # a Pool, which only a type checker can resolve
_KEYS: Final = (
    "INSERT INTO product.old_keys (tenant_id, kind, old_id, new_id)"
    " SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::uuid[])"
)
_TAKEN: Final = "SELECT EXISTS (SELECT FROM cellwall_zero.customers WHERE tenant_id = $1)"


async def stream(pool: Pool, tenant: int, rehearsal: int) -> AsyncIterator[bytes]:
    """The row stream of the tenant as it is now, under the number ``rehearsal``. Raises at the first piece where the
    tenant is none of the monolith's, the number is a tenant's, or rows do not translate."""
    async with pool.acquire() as connection:
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        try:
            await _stage(connection, tenant, rehearsal)
            async for piece in rows.export(connection, await catalogue.tenant_tables(connection), rehearsal):
                yield piece
        finally:
            await transaction.rollback()


async def _stage(connection: Any, tenant: int, rehearsal: int) -> None:
    knr = await database.customer_of(connection, tenant)
    if knr is None:
        raise ProblemError(problems.NOT_FOUND, f"{ids.tenant_of(tenant)} is not enrolled in cell zero")
    if await connection.fetchval(_TAKEN, rehearsal):
        raise ProblemError(problems.CONFLICT, f"{ids.tenant_of(rehearsal)} is a tenant: a rehearsal has its own number")
    done = forward(rehearsal, await shop.read(connection, knr), NewTenant(), KeyMap())
    if done.faults:
        raise untranslatable(done.faults)
    await staging.write(connection, rehearsal, NewTenant(), done.tenant)
    keys = [(kind, old_id, new_id) for (kind, old_id), new_id in done.keys.ids.items()]
    if keys:
        await connection.execute(_KEYS, rehearsal, *(list(column) for column in zip(*keys, strict=True)))


def _number(tenant: str) -> int:
    try:
        return ids.tenant_number(tenant)
    except ids.InvalidIdError as e:
        raise ProblemError(problems.INVALID, str(e)) from e


@post("/rehearsals/{tenant:str}/{rehearsal:str}", opt={"access": ACCESS}, status_code=200)
async def rehearse(tenant: FromPath[str], rehearsal: FromPath[str], shop_pool: Database) -> Stream:
    """The row stream of a rehearsal."""
    pieces = stream(shop_pool, _number(tenant), _number(rehearsal))
    first = await anext(pieces)
    return Stream(_continued(first, pieces), media_type=ROWS_CONTENT_TYPE, status_code=200)


async def _continued(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def router(pool: Pool) -> Router:
    """The endpoint over the monolith's database."""

    async def provide() -> Any:
        return pool

    return Router(path="/zero/v1", dependencies={"shop_pool": Provide(provide)}, route_handlers=[rehearse])
