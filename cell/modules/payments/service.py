"""The rules of the payments: a key before the first call, one payment an order, and an end that is never rewritten."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.functions import func

from cell.modules.payments.gateway import Asked
from cell.modules.payments.tables import payments
from cell.shards.session import TenantSession
from cell.shards.sql import below, prepare
from contracts import ids, problems


class State(StrEnum):
    """How far a payment is. All but the first are ends."""

    PENDING = "pending"
    CHARGED = "charged"
    DECLINED = "declined"
    CANCELLED = "cancelled"  # never charged
    REFUNDED = "refunded"  # charged, and given back


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment. ``charge`` is the gateway's name of it; ``note`` says why it was declined."""

    order_id: UUID
    key: str
    method: str
    amount_cents: int
    currency: str
    state: State
    charge: str | None
    note: str | None
    created_at: datetime
    updated_at: datetime


_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_shown = [c for c in payments.c if c.name != "tenant_id"]
_this = sa.and_(payments.c.tenant_id == _TENANT, payments.c.order_id == sa.bindparam("order_id", type_=sa.Uuid))
_before = sa.bindparam("before", type_=sa.Uuid)

_OPEN = prepare(
    insert(payments)
    .values({c: sa.bindparam(c) for c in ("tenant_id", "order_id", "key", "method", "amount_cents", "currency")})
    .on_conflict_do_nothing()
)
_GET = prepare(sa.select(*_shown).where(_this))
_LIST = prepare(
    sa.select(*_shown)
    .where(payments.c.tenant_id == _TENANT, below(payments.c.order_id, _before))
    .order_by(payments.c.order_id.desc())
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_END = prepare(
    sa.update(payments)
    .where(_this, payments.c.state == State.PENDING)
    .values(
        state=sa.bindparam("state", type_=sa.Text),
        charge=sa.bindparam("charge", type_=sa.Text),
        note=sa.bindparam("note", type_=sa.Text),
        updated_at=func.now(),
    )
)


def key_of(tenant: int, order_id: UUID) -> str:
    """The key of an order's charge: the same in every cell, at every epoch, for every attempt."""
    return f"{ids.tenant_of(tenant)}:{order_id}"


async def open_(session: TenantSession, order_id: UUID, method: str, amount_cents: int, currency: str) -> Asked:
    """Write down what will be charged, and under which key. Only after the commit may the gateway be called."""
    values: dict[str, Any] = {"method": method, "amount_cents": amount_cents, "currency": currency}
    await session.execute(_OPEN, order_id=order_id, key=key_of(session.tenant, order_id), **values)
    return await asked(session, order_id)


async def asked(session: TenantSession, order_id: UUID) -> Asked:
    """What was written down."""
    payment = await get(session, order_id)
    return Asked(payment.key, payment.method, payment.amount_cents, payment.currency, str(order_id))


async def end(
    session: TenantSession, order_id: UUID, state: State, *, charge: str | None = None, note: str | None = None
) -> None:
    """The end of a payment that is pending. An order that was never charged has none, and that is fine."""
    await session.execute(_END, order_id=order_id, state=state.value, charge=charge, note=note)


async def get(session: TenantSession, order_id: UUID) -> Payment:
    """The payment of an order, or 404."""
    row = await session.fetchrow(_GET, order_id=order_id)
    if row is None:
        raise problems.ProblemError(problems.NOT_FOUND, "There is no payment of such an order.")
    return _payment_of(row)


async def page(session: TenantSession, before: UUID | None, limit: int) -> list[Payment]:
    """Payments, those of the newest orders first."""
    return [_payment_of(row) for row in await session.fetch(_LIST, before=before, limit=limit)]


def _payment_of(row: "asyncpg.Record") -> Payment:
    return Payment(**{**row, "state": State(row["state"])})
