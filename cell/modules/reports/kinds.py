"""What each kind of report asks the database, part by part, and what it makes of the answers.

A part is the orders up to a number, from the number of the part before: each is a short transaction, so that a freeze
does not have to wait for a report, and a report pins no old row versions. Orders are never changed, and their numbers
are in the order of their commits: all parts together are what was committed when the report began.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, Protocol
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.functions import func

from cell.modules.catalog.public import PRODUCTS
from cell.modules.orders.public import ORDER_LINES, ORDERS
from cell.modules.reports.service import Kind, Period
from cell.shards.session import TenantSession
from cell.shards.sql import Statement, prepare

GROUPS_MAX: Final = 200_000  # of one report, in memory
PRODUCTS_AT_ONCE: Final = 5_000

Line = Sequence[object]

_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_TIME = sa.DateTime(timezone=True)
_in_period = sa.and_(
    ORDERS.c.tenant_id == _TENANT,
    ORDERS.c.created_at >= sa.bindparam("since", type_=_TIME),
    ORDERS.c.created_at < sa.bindparam("until", type_=_TIME),
)
_part = sa.and_(
    _in_period,
    ORDERS.c.number > sa.bindparam("after", type_=sa.BigInteger),
    ORDERS.c.number <= sa.bindparam("upto", type_=sa.BigInteger),
)
_with_lines = ORDERS.join(
    ORDER_LINES, sa.and_(ORDER_LINES.c.tenant_id == _TENANT, ORDER_LINES.c.order_id == ORDERS.c.order_id)
)
_sums = (
    func.count(ORDERS.c.order_id.distinct()),
    func.sum(ORDER_LINES.c.quantity),
    func.sum(ORDER_LINES.c.quantity * ORDER_LINES.c.unit_price_cents).cast(sa.BigInteger),
)
_day = sa.cast(func.timezone(sa.literal_column("'UTC'"), ORDERS.c.created_at), sa.Date)
_product = sa.and_(PRODUCTS.c.tenant_id == _TENANT, PRODUCTS.c.product_id == ORDER_LINES.c.product_id)

# The ends of all orders, each found in its index: to look for those of the period would be a part without a bound.
_FIRST = prepare(sa.select(func.min(ORDERS.c.number)).where(ORDERS.c.tenant_id == _TENANT))
_LAST = prepare(sa.select(func.max(ORDERS.c.number)).where(ORDERS.c.tenant_id == _TENANT))
_BY_DAY = prepare(
    sa.select(_day.label("key"), ORDERS.c.currency, *_sums)
    .select_from(_with_lines)
    .where(_part)
    .group_by(sa.literal_column("1"), ORDERS.c.currency)
)
_BY_PRODUCT = prepare(
    sa.select(ORDER_LINES.c.product_id, ORDERS.c.currency, *_sums)
    .select_from(_with_lines)
    .where(_part)
    .group_by(ORDER_LINES.c.product_id, ORDERS.c.currency)
)
_LINES = prepare(
    sa.select(
        ORDERS.c.number,
        ORDERS.c.created_at,
        ORDER_LINES.c.line,
        PRODUCTS.c.sku,
        ORDER_LINES.c.quantity,
        ORDER_LINES.c.unit_price_cents,
        ORDERS.c.currency,
    )
    .select_from(_with_lines.join(PRODUCTS, _product))
    .where(_part)
    .order_by(ORDERS.c.number, ORDER_LINES.c.line)
)
_NAMES = prepare(
    sa.select(PRODUCTS.c.product_id, PRODUCTS.c.sku, PRODUCTS.c.name).where(
        PRODUCTS.c.tenant_id == _TENANT,
        PRODUCTS.c.product_id == sa.any_(sa.bindparam("product_ids", type_=ARRAY(sa.Uuid))),
    )
)


class TooManyGroupsError(Exception):
    """More products, or days, than one report may hold."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a report: the orders behind ``after``, up to ``upto``."""

    after: int
    upto: int


class Making(Protocol):
    """A report that is being made."""

    header: Line

    async def part(self, session: TenantSession, period: Period, span: Span) -> list[Line]:
        """Read a part; the lines that are ready."""

    async def rest(self, session: TenantSession) -> list[Line]:
        """The lines that were not ready before all parts were read."""


async def bounds(session: TenantSession) -> Span | None:
    """All orders there are, by their numbers; None where there are none."""
    last = await session.fetchval(_LAST)
    return None if last is None else Span(await session.fetchval(_FIRST) - 1, last)


class _Lines:
    """Every line of every order."""

    header: Line = ("order", "created_at", "line", "sku", "quantity", "unit_price_cents", "currency")

    async def part(self, session: TenantSession, period: Period, span: Span) -> list[Line]:
        rows = await session.fetch(_LINES, **_values(period, span))
        return [(row[0], row[1].astimezone(UTC).isoformat(), *list(row)[2:]) for row in rows]

    async def rest(self, session: TenantSession) -> list[Line]:
        return []


class _Sums:
    """Sums of orders, units and revenue, by one thing and by currency."""

    def __init__(self, statement: Statement) -> None:
        self._statement = statement
        self._sums: dict[tuple[Any, str], tuple[int, int, int]] = {}

    async def part(self, session: TenantSession, period: Period, span: Span) -> list[Line]:
        for key, currency, orders, units, revenue in await session.fetch(self._statement, **_values(period, span)):
            before = self._sums.get((key, currency), (0, 0, 0))
            self._sums[key, currency] = (before[0] + orders, before[1] + units, before[2] + revenue)
        if len(self._sums) > GROUPS_MAX:
            raise TooManyGroupsError
        return []


class _ByDay(_Sums):
    header: Line = ("day", "currency", "orders", "units", "revenue_cents")

    def __init__(self) -> None:
        super().__init__(_BY_DAY)

    async def rest(self, session: TenantSession) -> list[Line]:
        return [(*key, *sums) for key, sums in sorted(self._sums.items())]


class _ByProduct(_Sums):
    header: Line = ("product_id", "sku", "name", "currency", "orders", "units", "revenue_cents")

    def __init__(self) -> None:
        super().__init__(_BY_PRODUCT)

    async def rest(self, session: TenantSession) -> list[Line]:
        names: dict[UUID, tuple[str, str]] = {}
        products = sorted({product for product, _ in self._sums})
        for start in range(0, len(products), PRODUCTS_AT_ONCE):
            rows = await session.fetch(_NAMES, product_ids=products[start : start + PRODUCTS_AT_ONCE])
            names |= {row["product_id"]: (row["sku"], row["name"]) for row in rows}
        best_first = sorted(self._sums.items(), key=lambda item: (-item[1][2], item[0]))
        return [(product, *names[product], currency, *sums) for (product, currency), sums in best_first]


MAKINGS: Final[Mapping[Kind, Callable[[], Making]]] = {
    Kind.ORDER_LINES: _Lines,
    Kind.SALES_BY_DAY: _ByDay,
    Kind.SALES_BY_PRODUCT: _ByProduct,
}


def _values(period: Period, span: Span) -> dict[str, Any]:
    return {**_instants(period), "after": span.after, "upto": span.upto}


def _instants(period: Period) -> dict[str, datetime]:
    return {"since": _midnight(period.first), "until": _midnight(period.last + timedelta(days=1))}


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
