"""The rules of the orders: one currency, totals in integer cents, numbers without a gap, and the event beside it.

An order that is to be paid is pending: its saga, a row that is committed with it, makes it confirmed or cancelled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, insert
from sqlalchemy.sql.functions import func

from cell.errands import Queue
from cell.events import outbox
from cell.ids import uuid7
from cell.modules.catalog import public as catalog
from cell.modules.orders.public import ORDER_CREATED, SAGAS, OrderCreated, SoldLine
from cell.modules.orders.saga import ENDS, Step
from cell.modules.orders.tables import NUMBERS, order_lines, orders, sagas
from cell.shards.session import TenantSession
from cell.shards.sql import below, prepare
from cell.shards.tables import counters
from cell.wire import invalid
from contracts import problems

PAGE_LINES: Final = 500  # of all orders of a page together; one order has fewer
CREATED: Final = "created"  # nothing was to be paid by the order
PENDING: Final = "pending"
CONFIRMED: Final = "confirmed"
CANCELLED: Final = "cancelled"
CANCEL_ASKED: Final = "Cancelled on request."
QUEUE: Final = Queue(sagas, "order_id", SAGAS)

_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_ORDER_ID = sa.bindparam("order_id", type_=sa.Uuid)
_order = sa.and_(orders.c.tenant_id == _TENANT, orders.c.order_id == _ORDER_ID)
_shown = [c for c in orders.c if c.name not in ("tenant_id", "created_by")]
_before = sa.bindparam("before", type_=sa.BigInteger)
_sold_columns = ("product_id", "quantity", "unit_price_cents")
_line_columns = ("line", *_sold_columns)

# The row stays locked until the commit, so numbers have no gap, and their order is the order of the commits.
_number = insert(counters).values(tenant_id=_TENANT, name=sa.literal(NUMBERS), value=sa.literal(1, sa.BigInteger))
_numbered = (
    _number.on_conflict_do_update(
        index_elements=[counters.c.tenant_id, counters.c.name],
        set_={"value": counters.c.value + sa.literal_column("1")},
    )
    .returning(counters.c.value)
    .cte("numbered")
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
_with_lines = (
    sa.insert(order_lines)
    .from_select(["tenant_id", "order_id", *_line_columns], sa.select(_TENANT, _ORDER_ID, *_lines.c))
    .returning(order_lines.c.line)
    .cte("with_lines")
)
_given = [c for c in orders.c if c.name not in ("tenant_id", "order_id", "number", "created_at", "version")]
# One trip for the number, the order and its lines: foreign keys are looked at when all of them are there.
_ADD = prepare(
    sa.insert(orders)
    .from_select(
        ["tenant_id", "order_id", "number", *(c.name for c in _given)],
        sa.select(_TENANT, _ORDER_ID, _numbered.c.value, *(sa.bindparam(c.name, type_=c.type) for c in _given)),
    )
    .add_cte(_with_lines)
    .returning(*_shown)
)


def _gathered(lines: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """Each column of the lines as one array: a driver reads an array in a tenth of the time of as many rows."""
    by_line = lines.c.line
    return [func.array_agg(aggregate_order_by(lines.c[name], by_line)).label(name) for name in _sold_columns]


_of_order = (
    sa.select(*_gathered(order_lines))
    .where(order_lines.c.tenant_id == _TENANT, order_lines.c.order_id == _ORDER_ID)
    .subquery("of_order")
)
_GET = prepare(sa.select(*_shown, *_of_order.c).select_from(orders.join(_of_order, sa.true())).where(_order))
_LIST = prepare(
    sa.select(*_shown)
    .where(orders.c.tenant_id == _TENANT, below(orders.c.number, _before))
    .order_by(orders.c.number.desc())
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_asked = (
    func.unnest(sa.bindparam("order_ids", type_=ARRAY(sa.Uuid)))
    .table_valued(sa.column("order_id", sa.Uuid), with_ordinality="place", name="asked")
    .render_derived()
)
_first = (
    sa.select(_asked.c.place, *(order_lines.c[name] for name in _line_columns))
    .select_from(_asked.join(order_lines, order_lines.c.order_id == _asked.c.order_id))
    .where(order_lines.c.tenant_id == _TENANT)
    .order_by(_asked.c.place, order_lines.c.line)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .subquery("first")
)
_LINES_OF = prepare(sa.select(_first.c.place, *_gathered(_first)).group_by(_first.c.place).order_by(_first.c.place))
_END = prepare(
    sa.update(orders)
    .where(_order, orders.c.status == sa.literal(PENDING))
    .values(status=sa.bindparam("status", type_=sa.Text), version=orders.c.version + sa.literal_column("1"))
)
_saga = sa.and_(sagas.c.tenant_id == _TENANT, sagas.c.order_id == sa.bindparam("order_id", type_=sa.Uuid))
_ADD_SAGA = prepare(
    sa.insert(sagas).values(
        tenant_id=_TENANT,
        order_id=sa.bindparam("order_id"),
        step=Step.RESERVE.value,
        method=sa.bindparam("method", type_=sa.Text),
    )
)
_GET_SAGA = prepare(sa.select(sagas).where(_saga))
_HOLD_SAGA = prepare(sa.select(sagas.c.step, sagas.c.method).where(QUEUE.mine).with_for_update())
_NOTE = func.coalesce(sa.bindparam("note", type_=sa.Text), sagas.c.note)
_MOVE_SAGA = prepare(
    sa.update(sagas)
    .where(QUEUE.mine)
    .values(step=sa.bindparam("step", type_=sa.Text), note=_NOTE, failures=sa.literal_column("0"))
)
_END_SAGA = prepare(
    sa.update(sagas)
    .where(QUEUE.mine)
    .values(step=sa.bindparam("step", type_=sa.Text), note=_NOTE, lease=None, finished_at=func.now())
)
# Counted as one more attempt: whatever is under way at the gateway records nothing any more.
_ASK_CANCEL = prepare(
    sa.update(sagas)
    .where(_saga, sagas.c.step.in_([sa.literal_column("'reserve'"), sa.literal_column("'charge'")]))
    .values(
        step=Step.CANCEL.value,
        note=sa.bindparam("note", type_=sa.Text),
        attempt=sagas.c.attempt + sa.literal_column("1"),
        failures=sa.literal_column("0"),
        lease=None,
        due=func.now(),
    )
)
_stuck = (
    sa.select(func.count())
    .select_from(sagas)
    .where(
        sagas.c.tenant_id == _TENANT,
        sagas.c.finished_at.is_(None),
        sagas.c.created_at < func.now() - sa.bindparam("age", type_=sa.Interval),
    )
    .scalar_subquery()
)
_LOOK = prepare(sa.select(QUEUE.waiting.label("waiting"), _stuck.label("stuck")))


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many of a product are ordered."""

    product_id: UUID
    quantity: int


class Line(NamedTuple):  # there may be hundreds in one answer: a frozen dataclass costs four times as much
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


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the saga of an order is. ``due`` is when it goes on, and ``note`` why it waits or was cancelled."""

    order_id: UUID
    step: Step
    note: str | None
    failures: int
    due: datetime
    created_at: datetime
    finished_at: datetime | None


async def create(
    session: TenantSession,
    user_id: UUID,
    reference: str | None,
    wanted: Sequence[Wanted],
    method: str | None = None,
) -> Order:
    """Create an order with the next number. Every product must exist, all in one currency.

    One without a payment ``method`` is complete, and told of; one with it begins its saga instead, and costs no
    statement more.
    """
    lines, currency = await _priced(session, wanted)
    order_id, total = uuid7(), sum(line.quantity * line.unit_price_cents for line in lines)
    status = CREATED if method is None else PENDING
    values = {"reference": reference, "status": status, "total_cents": total, "currency": currency}
    row = await _add(session, lines, order_id=order_id, created_by=user_id, **values)
    if method is None:
        sold = [SoldLine(*line) for line in lines]
        await outbox.emit(session, ORDER_CREATED, OrderCreated(order_id, row["number"], total, currency, sold))
    else:
        await session.execute(_ADD_SAGA, order_id=order_id, method=method)
        await QUEUE.wake(session)
    return _order_of(row, lines)


async def get(session: TenantSession, order_id: UUID) -> Order:
    """One order with its lines, or 404."""
    row = await session.fetchrow(_GET, order_id=order_id)
    if row is None:
        raise problems.ProblemError(problems.NOT_FOUND, "There is no such order.")
    return _order_of(row, _lines_in(row[len(_shown) :]))


async def page(session: TenantSession, before: int | None, size: int) -> tuple[list[Order], bool]:
    """Orders, the newest first, with numbers below ``before``; and whether there are more behind them.

    No more than ``size``, and fewer where these have `PAGE_LINES` lines already: a request for 200 orders of a hundred
    lines each would keep the process from everybody else for as long as a hundred others.
    """
    rows = await session.fetch(_LIST, before=before, limit=size + 1)
    lines = await _lines_of(session, [row["order_id"] for row in rows[:size]])
    found = [_order_of(row, of_order) for row, of_order in zip(rows, lines, strict=False)]
    return found, len(found) < len(rows)


async def cancel(session: TenantSession, order_id: UUID) -> Order:
    """Have a pending order cancelled: its saga takes everything back. 409 where it is not pending."""
    if not await session.execute(_ASK_CANCEL, order_id=order_id, note=CANCEL_ASKED):
        order = await get(session, order_id)
        if order.status != PENDING:
            raise problems.ProblemError(
                problems.CONFLICT, f"The order is {order.status}.", status_of_order=order.status
            )
        return order
    await QUEUE.wake(session)
    return await get(session, order_id)


async def progress(session: TenantSession, order_id: UUID) -> Progress:
    """How far an order is that is to be paid, or 404."""
    row = await session.fetchrow(_GET_SAGA, order_id=order_id)
    if row is None:
        raise problems.ProblemError(problems.NOT_FOUND, "There is no such order, or nothing was to be paid by it.")
    values = {name: row[name] for name in ("order_id", "note", "failures", "due", "created_at", "finished_at")}
    return Progress(step=Step(row["step"]), **values)


# -- for the conductor --------------------------------------------------------------------------------------------


async def hold_saga(session: TenantSession, order_id: UUID, attempt: int) -> "asyncpg.Record | None":
    """Step and method of a saga, locked; None where it is no longer this attempt's."""
    return await session.fetchrow(_HOLD_SAGA, order_id=order_id, attempt=attempt)


async def move_saga(session: TenantSession, order_id: UUID, attempt: int, step: Step, note: str | None) -> None:
    """The next step. Not an end: the attempt goes on with it, under its lease."""
    values: dict[str, Any] = {"order_id": order_id, "attempt": attempt, "step": step.value, "note": note}
    await session.execute(_END_SAGA if step in ENDS else _MOVE_SAGA, **values)


async def end(session: TenantSession, order_id: UUID, status: str) -> None:
    """A pending order is confirmed or cancelled."""
    await session.execute(_END, order_id=order_id, status=status)


async def look_after(session: TenantSession, home: str, age: timedelta) -> int:
    """Wake the workers of sagas that nobody conducts; how many sagas are open for longer than ``age``."""
    row = await session.fetchrow(_LOOK, home=home, age=age)
    assert row is not None, "a SELECT without FROM has one row"
    if row["waiting"]:
        await QUEUE.wake(session)
    return int(row["stuck"])


async def _add(session: TenantSession, lines: Sequence[Line], **values: Any) -> asyncpg.Record:
    product_ids, quantities, prices = zip(*lines, strict=True)
    arrays = {"product_ids": product_ids, "quantities": quantities, "prices": prices}
    try:
        row = await session.fetchrow(_ADD, lines=range(1, len(lines) + 1), **arrays, **values)
    except asyncpg.ForeignKeyViolationError as e:  # deleted since its price was read
        raise invalid("lines", "A product is gone") from e
    assert row is not None, "INSERT ... RETURNING returns the row that it inserted"
    return row


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


async def _lines_of(session: TenantSession, order_ids: list[UUID]) -> list[tuple[Line, ...]]:
    """Of the first of these orders, as far as they have no more than `PAGE_LINES` lines together."""
    rows = await session.fetch(_LINES_OF, order_ids=order_ids, most=PAGE_LINES + 1)
    found: list[tuple[Line, ...]] = [()] * len(order_ids)
    for place, *arrays in rows:
        found[place - 1] = _lines_in(arrays)
    if sum(map(len, found)) > PAGE_LINES:  # of the last one some lines are missing, and of those behind it all
        del found[max(1, rows[-1]["place"] - 1) :]
    return found


def _order_of(row: asyncpg.Record, lines: tuple[Line, ...]) -> Order:
    """From a row that begins with the columns that are shown."""
    return Order(*(*row[: len(_shown)], lines))


def _lines_in(arrays: Sequence[Sequence[Any] | None]) -> tuple[Line, ...]:
    """From the columns of `_gathered`, which are NULL where there are no lines."""
    return tuple(map(Line, *(array or () for array in arrays)))
