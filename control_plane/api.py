"""The API of operators and agents: cells, tenants, routers, keys, audit. Routes and moves have modules of their own."""

from typing import Annotated

import sqlalchemy as sa
from litestar import Router, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import fleet, ids
from contracts.problems import INVALID, NOT_FOUND, ProblemError
from control_plane import audit, views
from control_plane.auth import Actor, create_key
from control_plane.cells import Cells, cell_of
from control_plane.models import TENANT_STATES, api_keys
from control_plane.tenants import Tenancy

VIEWER = {"access": "viewer"}
OPERATOR = {"access": "operator"}
ADMIN = {"access": "admin"}
AGENT = {"access": "agent"}

PageSize = Annotated[int, QueryParameter(ge=1, le=500)]


@get("/cells", opt=VIEWER)
async def list_cells(fleet_cells: NamedDependency[Cells]) -> views.CellList:
    """All cells."""
    return views.CellList([views.CellView.of(c) for c in await fleet_cells.all()])


@get("/cells/{name:str}", opt=VIEWER)
async def get_cell(name: FromPath[str], fleet_cells: NamedDependency[Cells]) -> views.CellView:
    """One cell."""
    return views.CellView.of(await fleet_cells.one(name))


@patch("/cells/{name:str}", opt=OPERATOR)
async def change_cell(
    name: FromPath[str],
    data: JSONBody[views.CellChange],
    fleet_cells: NamedDependency[Cells],
    actor: NamedDependency[Actor],
) -> views.CellView:
    """Set a cell's state or capacity."""
    return views.CellView.of(await fleet_cells.change(name, data.state, data.capacity, actor))


@delete("/cells/{name:str}", opt=ADMIN)
async def remove_cell(name: FromPath[str], fleet_cells: NamedDependency[Cells], actor: NamedDependency[Actor]) -> None:
    """Take an empty, stopped cell out of the fleet."""
    await fleet_cells.remove(name, actor)


@put("/agent/cells/{name:str}", opt=AGENT)
async def register_cell(
    name: FromPath[str],
    data: JSONBody[fleet.Registration],
    fleet_cells: NamedDependency[Cells],
    actor: NamedDependency[Actor],
) -> fleet.Accepted:
    """A cell says what it is."""
    return await fleet_cells.register(name, data, actor)


@post("/agent/cells/{name:str}/heartbeat", opt=AGENT, status_code=200)
async def heartbeat(
    name: FromPath[str], data: JSONBody[fleet.Heartbeat], fleet_cells: NamedDependency[Cells]
) -> fleet.Accepted:
    """A cell says that it lives."""
    return await fleet_cells.beat(name, data)


@get("/tenants", opt=VIEWER)
async def list_tenants(
    engine: NamedDependency[AsyncEngine],
    tenancy: NamedDependency[Tenancy],
    cell: FromQuery[str | None] = None,
    tenant_state: Annotated[str | None, QueryParameter(name="state")] = None,
    limit: PageSize = 100,
    cursor: FromQuery[str | None] = None,
) -> views.TenantPage:
    """Living tenants, or those of one state, by number."""
    if tenant_state is not None and tenant_state not in TENANT_STATES:
        raise ProblemError(INVALID, f"state: there is no {tenant_state!r}; there are: {', '.join(TENANT_STATES)}.")
    if cell is not None:
        async with engine.connect() as conn:
            await cell_of(conn, cell)
    found = await tenancy.page(cell, tenant_state, limit + 1, _after(cursor))
    more = len(found) > limit
    shown = found[:limit]
    return views.TenantPage([views.TenantView.of(t) for t in shown], str(shown[-1].number) if more else None)


@post("/tenants", opt=OPERATOR)
async def create_tenant(
    data: JSONBody[views.NewTenant], tenancy: NamedDependency[Tenancy], actor: NamedDependency[Actor]
) -> views.SignedUp:
    """Create a tenant, in a cell of the operator's choice if one is named."""
    made = await tenancy.create(data, actor, data.cell)
    return views.SignedUp(
        ids.tenant_of(made.tenant.number), made.tenant.slug, made.tenant.hosts[0], made.api_key, made.user_id,
        made.tenant.cell, made.reason,
    )  # fmt: skip


@get("/tenants/{name:str}", opt=VIEWER)
async def get_tenant(name: FromPath[str], tenancy: NamedDependency[Tenancy]) -> views.TenantView:
    """One tenant by id or slug."""
    return views.TenantView.of(await tenancy.one(name))


@post("/tenants/{name:str}/suspend", opt=OPERATOR, status_code=200)
async def suspend_tenant(
    name: FromPath[str], tenancy: NamedDependency[Tenancy], actor: NamedDependency[Actor]
) -> views.TenantView:
    """Routers refuse its requests from now on."""
    return views.TenantView.of(await tenancy.suspend(name, actor))


@post("/tenants/{name:str}/resume", opt=OPERATOR, status_code=200)
async def resume_tenant(
    name: FromPath[str], tenancy: NamedDependency[Tenancy], actor: NamedDependency[Actor]
) -> views.TenantView:
    """Serve it again."""
    return views.TenantView.of(await tenancy.resume(name, actor))


@delete("/tenants/{name:str}", opt=ADMIN, status_code=200)
async def delete_tenant(
    name: FromPath[str], tenancy: NamedDependency[Tenancy], actor: NamedDependency[Actor]
) -> views.TenantView:
    """End a tenant for good."""
    return views.TenantView.of(await tenancy.delete(name, actor))


@get("/keys", opt=ADMIN)
async def list_keys(engine: NamedDependency[AsyncEngine]) -> views.KeyList:
    """API keys without their secrets."""
    async with engine.connect() as conn:
        rows = (await conn.execute(sa.select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))).all()
    return views.KeyList([views.KeyView(r.id, r.name, r.role, r.created_at, r.revoked_at) for r in rows])


@post("/keys", opt=ADMIN)
async def make_key(
    data: JSONBody[views.NewKey], engine: NamedDependency[AsyncEngine], actor: NamedDependency[Actor]
) -> views.CreatedKey:
    """A new API key; its text is in this answer only."""
    async with engine.begin() as conn:
        key_id, text = await create_key(conn, data.name, data.role)
        await audit.record(conn, actor.name, "key_created", f"key:{key_id}", name=data.name, role=data.role)
    return views.CreatedKey(key_id, data.name, data.role, text)


@delete("/keys/{key_id:str}", opt=ADMIN)
async def revoke_key(
    key_id: FromPath[str], engine: NamedDependency[AsyncEngine], actor: NamedDependency[Actor]
) -> None:
    """Revoke an API key, from its next request on."""
    async with engine.begin() as conn:
        revoked = await conn.execute(
            sa.update(api_keys)
            .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
            .values(revoked_at=sa.func.clock_timestamp())
        )
        if not revoked.rowcount:
            raise ProblemError(NOT_FOUND, f"There is no unrevoked key {key_id!r}.")
        await audit.record(conn, actor.name, "key_revoked", f"key:{key_id}")


@get("/audit", opt=VIEWER)
async def list_audit(
    engine: NamedDependency[AsyncEngine], limit: PageSize = 100, cursor: FromQuery[str | None] = None
) -> views.AuditPage:
    """Who changed what, newest first."""
    async with engine.connect() as conn:
        rows = await audit.entries(conn, limit + 1, _after(cursor) if cursor is not None else None)
    shown = [views.AuditEntry(r.id, r.at, r.actor, r.action, r.subject, r.detail) for r in rows[:limit]]
    return views.AuditPage(shown, str(shown[-1].id) if len(rows) > limit else None)


def _after(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise ProblemError(INVALID, "cursor: send the next value of the previous page")
    return int(cursor)


router = Router(
    "/v1",
    route_handlers=[
        list_cells, get_cell, change_cell, remove_cell, register_cell, heartbeat,
        list_tenants, create_tenant, get_tenant, suspend_tenant, resume_tenant, delete_tenant,
        list_keys, make_key, revoke_key, list_audit,
    ],
)  # fmt: skip
