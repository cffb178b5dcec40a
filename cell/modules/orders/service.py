"""The rules of the orders: one currency, totals in integer cents, numbers without a gap, and the event beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.sql.functions import func

from cell.events import outbox
from cell.ids import uuid7
from cell.modules.catalog import public as catalog
from cell.modules.orders.public import ORDER_CREATED, OrderCreated, SoldLine
from cell.modules.orders.tables import NUMBERS, order_lines, orders
from cell.shards.session import TenantSession
from cell.shards.sql import prepare
from cell.shards.tables import counters
from cell.wire import invalid
from contracts import problems

CREATED: Final = "created"

_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_order = sa.and_(orders.c.tenant_id == _TENANT, orders.c.order_id == sa.bindparam("order_id"))
_shown = [c for c in orders.c if c.name not in ("tenant_id", "created_by")]
_before = sa.bindparam("before", type_=sa.BigInteger)
_line_columns = ("line", "product_id", "quantity", "unit_price_cents")

# The row stays locked until the commit, so numbers have no gap, and their order is the order of the commits.
_NEXT_NUMBER = prepare(
    insert(counters)
    .values(tenant_id=_TENANT, name=sa.literal(NUMBERS), value=sa.literal(1, sa.BigInteger))
    .on_conflict_do_update(
        index_elements=[counters.c.tenant_id, counters.c.name],
        set_={"value": counters.c.value + sa.literal_column("1")},
    )
    .returning(counters.c.value)
)
_ADD = prepare(
    sa.insert(orders)
    .values(
        {c.name: sa.bindparam(c.name) for c in orders.c if c.name not in ("created_at", "version")},
    )
    .returning(*_shown)
)
_lines = (
    func.unnest(
        sa.bindparam("lines", type_=ARRAY(sa.SmallInteger)),
        sa.bindparam("product_ids", type_=ARRAY(sa.Uuid)),
        sa.bindparam("quantities", type_=ARRAY(sa.Integer)),
        sa.bindparam("prices", type_=ARRAY(sa.BigInteger)),
    )
    .table_valued(*(sa.column(name) for name in _line_columns), name="given")
    .render_derived()
)
_ADD_LINES = prepare(
    sa.insert(order_lines).from_select(
        ["tenant_id", "order_id", *_line_columns],
        sa.select(sa.bindparam("tenant_id", type_=sa.BigInteger), sa.bindparam("order_id", type_=sa.Uuid), *_lines.c),
    )
)
_GET = prepare(sa.select(*_shown).where(_order))
_LIST = prepare(
    sa.select(*_shown)
    .where(orders.c.tenant_id == _TENANT, sa.or_(_before.is_(None), orders.c.number < _before))
    .order_by(orders.c.number.desc())
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_LINES_OF = prepare(
    sa.select(order_lines.c.order_id, *(order_lines.c[name] for name in _line_columns))
    .where(
        order_lines.c.tenant_id == _TENANT,
        order_lines.c.order_id == sa.any_(sa.bindparam("order_ids", type_=ARRAY(sa.Uuid))),
    )
    .order_by(order_lines.c.order_id, order_lines.c.line)
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many of a product are ordered."""

    product_id: UUID
    quantity: int


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an order, with the price it was made at."""

    product_id: UUID
    quantity: int
    unit_price_cents: int


@dataclass(frozen=True, slots=True)
class Order:
    """An order. ``total_cents`` is the sum of its lines."""

    order_id: UUID
    number: int
    reference: str | None
    status: str
    total_cents: int
    currency: str
    created_at: datetime
    version: int
    lines: tuple[Line, ...]


async def create(session: TenantSession, user_id: UUID, reference: str | None, wanted: Sequence[Wanted]) -> Order:
    """Create an order with the next number and tell of it. Every product must exist, all in one currency."""
    lines, currency = await _priced(session, wanted)
    order_id, total = uuid7(), sum(line.quantity * line.unit_price_cents for line in lines)
    number = await session.fetchval(_NEXT_NUMBER)
    values = {"reference": reference, "status": CREATED, "total_cents": total, "currency": currency}
    row = await session.fetchrow(_ADD, order_id=order_id, number=number, created_by=user_id, **values)
    assert row is not None, "INSERT ... RETURNING returns the row that it inserted"
    await _add_lines(session, order_id, lines)
    sold = [SoldLine(line.product_id, line.quantity, line.unit_price_cents) for line in lines]
    await outbox.emit(session, ORDER_CREATED, OrderCreated(order_id, number, total, currency, sold))
    return Order(**row, lines=lines)


async def get(session: TenantSession, order_id: UUID) -> Order:
    """One order with its lines, or 404."""
    row = await session.fetchrow(_GET, order_id=order_id)
    if row is None:
        raise problems.ProblemError(problems.NOT_FOUND, "There is no such order.")
    return Order(**row, lines=(await _lines_of(session, [order_id]))[order_id])


async def page(session: TenantSession, before: int | None, limit: int) -> list[Order]:
    """Orders, the newest first, with numbers below ``before``."""
    rows = await session.fetch(_LIST, before=before, limit=limit)
    lines = await _lines_of(session, [row["order_id"] for row in rows])
    return [Order(**row, lines=lines[row["order_id"]]) for row in rows]


async def _add_lines(session: TenantSession, order_id: UUID, lines: Sequence[Line]) -> None:
    try:
        await session.execute(
            _ADD_LINES,
            order_id=order_id,
            lines=list(range(1, len(lines) + 1)),
            product_ids=[line.product_id for line in lines],
            quantities=[line.quantity for line in lines],
            prices=[line.unit_price_cents for line in lines],
        )
    except asyncpg.ForeignKeyViolationError as e:  # deleted since its price was read
        raise invalid("lines", "A product is gone") from e


async def _priced(session: TenantSession, wanted: Sequence[Wanted]) -> tuple[tuple[Line, ...], str]:
    prices = await catalog.prices(session, sorted({want.product_id for want in wanted}))
    for place, want in enumerate(wanted):
        if want.product_id not in prices:
            raise invalid(f"lines[{place}].product_id", "There is no such product")
    currencies = {price.currency for price in prices.values()}
    if len(currencies) > 1:
        raise invalid("lines", f"One order has one currency, not {', '.join(sorted(currencies))}")
    lines = tuple(Line(want.product_id, want.quantity, prices[want.product_id].cents) for want in wanted)
    return lines, currencies.pop()


async def _lines_of(session: TenantSession, order_ids: list[UUID]) -> dict[UUID, tuple[Line, ...]]:
    found: dict[UUID, list[Line]] = {order_id: [] for order_id in order_ids}
    for row in await session.fetch(_LINES_OF, order_ids=order_ids):
        found[row["order_id"]].append(Line(row["product_id"], row["quantity"], row["unit_price_cents"]))
    return {order_id: tuple(lines) for order_id, lines in found.items()}
