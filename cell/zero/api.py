"""``/transfer/v1/zero``: what cell zero says and hears beyond the transfer API, behind the same token."""

from typing import Annotated, Any, Final

import asyncpg
import msgspec
from litestar import Request, Router, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromQuery, QueryParameter

from cell.shards.errors import DATABASE_FAILED
from cell.shards.session import Pool
from cell.transfer.api import ACCESS, unreachable
from cell.zero import database, preflight, quarantine
from contracts import ids, problems
from contracts.problems import ProblemError
from contracts.zero import Customer, Enrolment, Preflight, Quarantined

ENROLMENTS_BYTES_MAX: Final = 16 << 20
LISTED: Final = 200

Shop = NamedDependency[Any]  # a Pool, which only a type checker can resolve


@get("/customers", opt={"access": ACCESS})
async def customers(shop: Shop) -> list[Customer]:
    """Every customer of the monolith."""
    return await preflight.customers(shop)


@post("/customers", status_code=200, opt={"access": ACCESS}, request_max_body_size=ENROLMENTS_BYTES_MAX)
async def enrol(request: Request[Any, Any, Any], shop: Shop) -> dict[str, int]:
    """Say which tenants customers are; all of them or none."""
    try:
        asked = msgspec.json.decode(await request.body(), type=list[Enrolment])
        pairs = [(ids.tenant_number(each.tenant), each.customer) for each in asked]
    except (msgspec.DecodeError, ids.InvalidIdError) as e:
        raise ProblemError(problems.INVALID, str(e)) from e
    try:
        async with shop.acquire() as connection:
            await database.enrol(connection, pairs)
    except (database.EnrolmentError, asyncpg.UniqueViolationError) as e:
        raise ProblemError(problems.CONFLICT, str(e)) from e
    return {"enrolled": len(pairs)}


@get("/preflight", opt={"access": ACCESS})
async def check(shop: Shop, customer: FromQuery[int | None] = None) -> Preflight:
    """What stands in the way; of one customer, or of all."""
    return await preflight.check(shop, customer)


@get("/quarantine", opt={"access": ACCESS})
async def quarantined(shop: Shop, limit: Annotated[int, QueryParameter(ge=1, le=LISTED)] = LISTED) -> list[Quarantined]:
    """Writes past the ambassador, oldest first."""
    return await quarantine.listed(shop, limit)


def router(pool: Pool) -> Router:
    """The endpoints over the monolith's database."""

    async def provide() -> Any:
        return pool

    return Router(
        path="/transfer/v1/zero",
        dependencies={"shop": Provide(provide)},
        exception_handlers=dict.fromkeys(DATABASE_FAILED, unreachable),
        route_handlers=[customers, enrol, check, quarantined],
    )
