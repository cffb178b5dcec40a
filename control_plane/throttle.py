"""The throttle of a tenant: its route gets the throttled plan, in the place of its own, until it is lifted.

It is a column of the tenant, so whoever publishes its route keeps it; the plan that was paid for is not touched.
"""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts import routes
from contracts.names import THROTTLED_PLAN
from contracts.problems import MOVE_RUNNING, ProblemError
from control_plane import move_store
from control_plane.models import Tenant, tenants
from control_plane.move import State
from control_plane.noisy import Policy
from control_plane.noisy_store import throttled_plan
from control_plane.routes import latest, publish, route_of


async def throttle(conn: AsyncConnection, tenant: Tenant, policy: Policy, seconds: float) -> int:
    """Throttle a tenant whose row is locked and which no move holds, from now for so long; the revision."""
    until = sa.func.clock_timestamp() + sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    return await _change(conn, tenant, policy, throttled_until=until, throttled_in=tenant.cell)


async def lift(conn: AsyncConnection, tenant: Tenant, policy: Policy) -> int:
    """Give a tenant its own plan back, on the same conditions; the revision."""
    return await _change(conn, tenant, policy, throttled_until=None, throttled_in=None)


async def _change(conn: AsyncConnection, tenant: Tenant, policy: Policy, **values: object) -> int:
    if await route_is_moved(conn, tenant):
        raise ProblemError(MOVE_RUNNING, f"The move {tenant.move_id} to {tenant.move_target} is running.")
    values["updated_at"] = sa.func.clock_timestamp()
    changed = sa.update(tenants).where(tenants.c.number == tenant.number).values(values).returning(tenants)
    after = Tenant.of((await conn.execute(changed)).one())
    state: routes.State = "suspended" if after.state == "suspended" else "active"
    return await publish(conn, [*await _plan(conn, policy), route_of(after, state)])


async def route_is_moved(conn: AsyncConnection, tenant: Tenant) -> bool:
    """Whether the tenant's route is that of a running move, which may be asking routers to hold.

    A standby's is not: it was published, and nothing about it changes until a rollback begins, as a move of its own.
    """
    if tenant.move_id is None:
        return False
    move = await move_store.get(conn, tenant.move_id)
    return move is None or move.state is not State.STANDBY


async def _plan(conn: AsyncConnection, policy: Policy) -> list[routes.Record]:
    """The throttled plan, where routers have another one: a change of the policy reaches them with its next use."""
    known, wanted = await latest(conn, f"plan:{THROTTLED_PLAN}"), throttled_plan(policy)
    same = isinstance(known, routes.Plan) and (known.requests_per_s, known.burst, known.in_flight) == (
        wanted.requests_per_s, wanted.burst, wanted.in_flight,
    )  # fmt: skip
    return [] if same else [wanted]
