"""What operators see of noisy tenants and may do: read, set the policy, veto, lift."""

from dataclasses import asdict, replace

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import ids
from control_plane import audit, noisy_store
from control_plane.auth import Actor
from control_plane.models import Tenant, tenants
from control_plane.noisy import Act, Mode, Policy
from control_plane.tenants import tenant_named
from control_plane.throttle import lift, route_is_moved
from control_plane.usage_views import NoisyEvent, NoisyView, PolicyChange, PolicyView, Throttle, Vetoed

POLICY_SET = "policy_set"
VETOED = "vetoed"


class Noisy:
    """Safe for concurrent use, also beside the watcher: every change locks the tenant's row."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def view(self, ref: str | None, limit: int) -> NoisyView:
        """The policy, who is throttled now, and the newest events, of one tenant (id or slug) or of all."""
        query = sa.select(tenants).where(tenants.c.throttled_until.is_not(None)).order_by(tenants.c.number)
        async with self._engine.connect() as conn:
            number = (await tenant_named(conn, ref)).number if ref is not None else None
            policy = await noisy_store.policy_of(conn)
            rows = (await conn.execute(query if number is None else query.where(tenants.c.number == number))).all()
            told = await noisy_store.events(conn, number, limit)
        return NoisyView(
            _view(policy),
            [Throttle(ids.tenant_of(r.number), r.slug, r.throttled_in, r.throttled_until) for r in rows],
            [
                NoisyEvent(e.at, ids.tenant_of(e.tenant), e.slug, e.cell, e.event, e.actor, e.reason, e.target, e.move)
                for e in told
            ],
        )

    async def change_policy(self, change: PolicyChange, actor: Actor) -> PolicyView:
        """Set what is given; it counts from the next look of the watcher on."""
        given = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}
        if "mode" in given:
            given["mode"] = Mode(given["mode"])
        async with self._engine.begin() as conn:
            policy = replace(await noisy_store.policy_to_change(conn), **given)
            await noisy_store.set_policy(conn, policy)
            await audit.record(conn, actor.name, "noisy_policy_set", "noisy:policy", **given)
        return _view(policy)

    async def veto(self, ref: str, seconds: float, actor: Actor) -> Vetoed:
        """Nothing is done about the tenant for so long, and what was done is undone, now or once its move is over."""
        async with self._engine.begin() as conn:
            tenant = await tenant_named(conn, ref, lock=True)
            until = await noisy_store.veto(conn, tenant.number, seconds, actor.name)
            await noisy_store.remember(
                conn, tenant, VETOED, actor.name, f"nothing is done about it until {until:%F %T}"
            )
            await audit.record(conn, actor.name, "tenant_vetoed", _subject(tenant), seconds=seconds)
            lifted = tenant.throttled_until is not None and not await route_is_moved(conn, tenant)
            if lifted:
                await self._lifted(conn, tenant, actor)
            return Vetoed(ids.tenant_of(tenant.number), tenant.slug, lifted, until)

    async def lift(self, ref: str, actor: Actor) -> Vetoed:
        """End the throttle now. A tenant that goes on is throttled again: a veto prevents that."""
        async with self._engine.begin() as conn:
            tenant = await tenant_named(conn, ref, lock=True)
            throttled = tenant.throttled_until is not None
            if throttled:
                await self._lifted(conn, tenant, actor)
            veto_until = (await noisy_store.past_of(conn, tenant.number)).veto_until
            return Vetoed(ids.tenant_of(tenant.number), tenant.slug, throttled, veto_until)

    async def _lifted(self, conn: AsyncConnection, tenant: Tenant, actor: Actor) -> None:
        await noisy_store.remember(conn, tenant, Act.LIFTED, actor.name, "an operator lifted it")
        await audit.record(conn, actor.name, Act.LIFTED, _subject(tenant))
        await lift(conn, tenant, await noisy_store.policy_of(conn))


def _view(policy: Policy) -> PolicyView:
    return PolicyView(**asdict(policy))


def _subject(tenant: Tenant) -> str:
    return f"tenant:{ids.tenant_of(tenant.number)}"
