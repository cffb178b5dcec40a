"""What is remembered of noisy tenants: the policy, vetoes, and an event for everything that was done."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts import routes
from contracts.names import THROTTLED_PLAN
from control_plane.models import Tenant, metadata
from control_plane.noisy import Act, Policy

KEEP_EVENTS_S: Final = 30 * 86_400.0
REPEATED_WITHIN_S: Final = 3600.0  # a throttle within this of the last one counts as one more
NOTED_WITHIN_S: Final = 300.0

noisy_policy: Final = sa.Table(
    "noisy_policy",
    metadata,
    sa.Column("singleton", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("policy", JSONB, nullable=False),
    sa.CheckConstraint("singleton", name="one_row"),
)
noisy_vetoes: Final = sa.Table(
    "noisy_vetoes",
    metadata,
    sa.Column("tenant", sa.BigInteger, sa.ForeignKey("tenants.number"), primary_key=True, autoincrement=False),
    sa.Column("until", sa.DateTime(timezone=True), nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
)
noisy_events: Final = sa.Table(
    "noisy_events",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
    sa.Column("tenant", sa.BigInteger, sa.ForeignKey("tenants.number"), nullable=False),
    sa.Column("slug", sa.Text, nullable=False),
    sa.Column("cell", sa.Text, nullable=False),
    sa.Column("event", sa.Text, nullable=False),  # `noisy.Act`, or what an operator or a refused move adds
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("target", sa.Text),
    sa.Column("move", sa.Text),
)
sa.Index("ix_noisy_events_tenant_at", noisy_events.c.tenant, noisy_events.c.at)


@dataclass(frozen=True, slots=True)
class Past:
    """What was done about one tenant lately. ``veto_until`` is in the future or None."""

    throttles: int
    noted: bool
    veto_until: datetime | None


async def policy_of(conn: AsyncConnection) -> Policy:
    """The policy in force: what operators set, the defaults for the rest."""
    stored = (await conn.execute(sa.select(noisy_policy.c.policy))).scalar_one_or_none()
    return Policy() if stored is None else msgspec.convert(stored, Policy)


async def policy_to_change(conn: AsyncConnection) -> Policy:
    """The same, for who sets another one in this transaction: of two operators the second waits for the first."""
    await conn.execute(sa.text("LOCK TABLE noisy_policy IN SHARE ROW EXCLUSIVE MODE"))
    return await policy_of(conn)


async def set_policy(conn: AsyncConnection, policy: Policy) -> None:
    """Replace the policy."""
    row = insert(noisy_policy).values(policy=asdict(policy))
    await conn.execute(row.on_conflict_do_update(index_elements=["singleton"], set_={"policy": row.excluded.policy}))


def throttled_plan(policy: Policy) -> routes.Plan:
    """The plan that routers give a throttled tenant."""
    return routes.Plan(THROTTLED_PLAN, policy.requests_per_s, policy.burst, policy.in_flight)


async def past_of(conn: AsyncConnection, number: int) -> Past:
    """What counts for the next decision about a tenant."""
    e = noisy_events.c
    throttled = sa.and_(e.event.in_((Act.THROTTLED, Act.PROLONGED)), _within(REPEATED_WITHIN_S))
    observed = sa.and_(e.event == Act.OBSERVED, _within(NOTED_WITHIN_S))
    counted = sa.select(
        sa.func.count().filter(throttled).label("throttles"), sa.func.count().filter(observed).label("observed")
    ).where(e.tenant == number)
    row = (await conn.execute(counted)).one()
    veto = sa.select(noisy_vetoes.c.until).where(
        noisy_vetoes.c.tenant == number, noisy_vetoes.c.until > sa.func.clock_timestamp()
    )
    return Past(row.throttles, row.observed > 0, (await conn.execute(veto)).scalar_one_or_none())


def _within(seconds: float) -> sa.ColumnElement[bool]:
    return noisy_events.c.at > sa.func.clock_timestamp() - sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)


async def remember(
    conn: AsyncConnection, tenant: Tenant, event: str, actor: str, reason: str, *, target: str = "", move: str = ""
) -> None:
    """Add an event in the caller's transaction."""
    values: dict[str, Any] = {"target": target or None, "move": move or None}
    await conn.execute(
        sa.insert(noisy_events).values(
            tenant=tenant.number, slug=tenant.slug, cell=tenant.cell, event=event, actor=actor, reason=reason, **values
        )
    )


async def events(conn: AsyncConnection, number: int | None, limit: int) -> list[sa.Row[Any]]:
    """The newest first, of one tenant or of all."""
    query = sa.select(noisy_events).order_by(noisy_events.c.id.desc()).limit(limit)
    if number is not None:
        query = query.where(noisy_events.c.tenant == number)
    return list((await conn.execute(query)).all())


async def veto(conn: AsyncConnection, number: int, seconds: float, actor: str) -> datetime:
    """Let nothing be done about the tenant for so long; until when that is."""
    until = sa.func.clock_timestamp() + sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    row = insert(noisy_vetoes).values(tenant=number, until=until, actor=actor)
    stored = row.on_conflict_do_update(
        index_elements=["tenant"], set_={"until": row.excluded.until, "actor": row.excluded.actor}
    ).returning(noisy_vetoes.c.until)
    moment: datetime = (await conn.execute(stored)).scalar_one()
    return moment


async def forget(conn: AsyncConnection) -> None:
    """Remove events and vetoes that are long over."""
    await conn.execute(sa.delete(noisy_events).where(sa.not_(_within(KEEP_EVENTS_S))))
    await conn.execute(sa.delete(noisy_vetoes).where(noisy_vetoes.c.until < sa.func.clock_timestamp()))
