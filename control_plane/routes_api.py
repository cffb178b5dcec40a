"""What routers read (snapshot and changes, NDJSON by long poll) and what people read: why a tenant goes where."""

from collections.abc import Iterator
from typing import Annotated

import sqlalchemy as sa
from litestar import Response, Router, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import ids, routes
from contracts.problems import NOT_FOUND, ProblemError
from control_plane import views
from control_plane.models import Tenant, tenants
from control_plane.routes import MAX_WAIT_S, Cursor, RouteLog, cursor, latest

MAX_REVISION = 2**62


@get("/routes", opt={"access": "router"})
async def poll_routes(
    route_log: NamedDependency[RouteLog],
    router: Annotated[str | None, QueryParameter(min_length=1, max_length=100)] = None,
    log: Annotated[str | None, QueryParameter(max_length=100)] = None,
    after: Annotated[int | None, QueryParameter(ge=0, le=MAX_REVISION)] = None,
    applied: Annotated[int | None, QueryParameter(ge=0, le=MAX_REVISION)] = None,
    wait_s: Annotated[float, QueryParameter(ge=0.0)] = 0.0,
) -> Response[bytes]:
    """A snapshot without a cursor (or with one of another log), else what changed after it, waiting for a change.

    A poll with ``router`` and ``applied`` renews that router's lease until its next poll is due.
    """
    since = Cursor(log, after) if log is not None and after is not None else None
    wait_s = min(wait_s, MAX_WAIT_S)
    if router and since is not None and applied is not None:
        await route_log.renew(router, Cursor(since.log_id, applied), wait_s)
    batch = await route_log.poll(since, wait_s)
    return Response(b"".join(batch.lines()), media_type=routes.CONTENT_TYPE)


@get("/routes/{name:str}", opt={"access": "viewer"})
async def explain_route(name: FromPath[str], engine: NamedDependency[AsyncEngine]) -> views.RouteExplained:
    """What the newest record of a tenant (by id, slug or host) says, and what that means."""
    async with engine.connect() as conn:
        tenant = await _known(conn, name)
        record = await latest(conn, f"tenant:{ids.tenant_of(tenant.number)}")
        cell = await latest(conn, f"cell:{tenant.cell}")
        at = await cursor(conn)
    if record is None:
        raise ProblemError(NOT_FOUND, f"{name} has no route yet: its cell is being set up.")
    address = cell.address if isinstance(cell, routes.Cell) else ""
    if not isinstance(record, routes.Route):
        return views.RouteExplained(
            ids.tenant_of(tenant.number), (), "", tenant.epoch, "gone", tenant.plan, record.revision, at.log_id, "",
            "the tenant was deleted: routers answer 404",
        )  # fmt: skip
    return views.RouteExplained(
        record.tenant, record.hosts, record.cell, record.epoch, record.state, record.plan, record.revision,
        at.log_id, address, "; ".join(_words(tenant, record)),
    )  # fmt: skip


@get("/routers", opt={"access": "viewer"})
async def list_routers(route_log: NamedDependency[RouteLog]) -> views.RouterList:
    """How far each router is."""
    leases = await route_log.routers()
    return views.RouterList([views.RouterView(r.name, r.log_id, r.revision, r.last_seen, r.live) for r in leases])


def _words(tenant: Tenant, route: routes.Route) -> Iterator[str]:
    yield f"{route.cell} owns the tenant since epoch {route.epoch}"
    if route.state == "held":
        yield "routers hold new requests for a moment"
    if route.state == "suspended":
        yield "an operator suspended it: routers answer 403"
    if tenant.throttled_until is not None:
        yield f"it is throttled, at the least until {tenant.throttled_until:%F %T} (cellctl noisy list says why)"
    if tenant.move_id is not None:
        yield f"the move {tenant.move_id} takes it to {tenant.move_target}"


async def _known(conn: AsyncConnection, name: str) -> Tenant:
    """By id in any state, else the living tenant of a slug or host."""
    query = sa.select(tenants).where(tenants.c.state.in_(("active", "suspended")))
    query = query.where((tenants.c.slug == name) | (tenants.c.hosts.contains([name])))
    try:
        by_id = sa.select(tenants).where(tenants.c.number == ids.tenant_number(name))
        row = (await conn.execute(by_id)).one_or_none()
    except ids.InvalidIdError:
        row = None
    row = row or (await conn.execute(query.limit(1))).first()
    if row is None:
        raise ProblemError(NOT_FOUND, f"There is no tenant with the id, slug or host {name!r}.")
    return Tenant.of(row)


router = Router("/v1", route_handlers=[poll_routes, explain_route, list_routers])
