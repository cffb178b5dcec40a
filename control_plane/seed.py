"""What every installation begins with: a route log and the plans. Safe to repeat; changed plans stay as they are."""

import secrets
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import routes
from control_plane.models import plans, route_cursor
from control_plane.noisy_store import policy_of, throttled_plan
from control_plane.routes import latest, publish

_PLANS: Final = (
    {
        "name": "free",
        "title": "Free",
        "weight": 1,
        "requests_per_s": 100.0,
        "burst": 200,
        "in_flight": 64,
    },
    {
        "name": "standard",
        "title": "Standard",
        "weight": 2,
        "requests_per_s": 500.0,
        "burst": 1000,
        "in_flight": 256,
    },
    {
        "name": "business",
        "title": "Business",
        "weight": 5,
        "requests_per_s": 2000.0,
        "burst": 4000,
        "in_flight": 1024,
    },
)


def new_log_id() -> str:
    """An id that no other log of any fleet has."""
    return secrets.token_hex(8)


async def seed(engine: AsyncEngine) -> None:
    """Make the log and the plans where they are missing, and publish plans that routers have not heard of."""
    async with engine.begin() as conn:
        await conn.execute(insert(route_cursor).values(log_id=new_log_id(), revision=0).on_conflict_do_nothing())
        for plan in _PLANS:
            await conn.execute(insert(plans).values(plan).on_conflict_do_nothing())
        missing = [p for p in await plan_records(conn) if await latest(conn, f"plan:{p.plan}") is None]
        if missing:
            await publish(conn, missing)


async def plan_records(conn: AsyncConnection) -> list[routes.Plan]:
    """Every plan as routers learn it, that of throttled tenants included."""
    rows = (await conn.execute(sa.select(plans).order_by(plans.c.requests_per_s, plans.c.name))).all()
    chosen = [routes.Plan(r.name, r.requests_per_s, r.burst, r.in_flight) for r in rows]
    return [*chosen, throttled_plan(await policy_of(conn))]
