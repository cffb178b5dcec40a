"""The summary: what was sold in the last days, computed while the caller waits.

It reads every order of the period with its lines, sorts them for the median and joins them with the catalog, so its
cost grows with the tenant: the heaviest thing that one request of the sample product can ask for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.sql.functions import func

from cell.modules.catalog.public import PRODUCTS
from cell.modules.orders.public import ORDER_LINES, ORDERS
from cell.shards.session import TenantSession
from cell.shards.sql import prepare

BEST_SOLD: Final = 10

_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_recent = sa.and_(
    ORDERS.c.tenant_id == _TENANT,
    ORDERS.c.created_at >= func.now() - func.make_interval(0, 0, 0, sa.bindparam("days", type_=sa.Integer)),
)
_lines_of_order = sa.and_(ORDER_LINES.c.tenant_id == _TENANT, ORDER_LINES.c.order_id == ORDERS.c.order_id)
_revenue = func.sum(ORDER_LINES.c.quantity * ORDER_LINES.c.unit_price_cents)


def _quantile(share: float) -> sa.ColumnElement[int]:
    return func.percentile_disc(share).within_group(ORDERS.c.total_cents)


_TOTALS = prepare(
    sa.select(
        ORDERS.c.currency,
        func.count().label("orders"),
        func.sum(ORDERS.c.total_cents).cast(sa.BigInteger).label("revenue_cents"),
        _quantile(0.5).label("median_cents"),
        _quantile(0.95).label("p95_cents"),
    )
    .where(_recent)
    .group_by(ORDERS.c.currency)
    .order_by(ORDERS.c.currency)
)
_sold = (
    sa.select(
        ORDER_LINES.c.product_id,
        ORDERS.c.currency,
        func.count(ORDERS.c.order_id.distinct()).label("orders"),
        func.sum(ORDER_LINES.c.quantity).label("units"),
        _revenue.cast(sa.BigInteger).label("revenue_cents"),
    )
    .select_from(ORDERS.join(ORDER_LINES, _lines_of_order))
    .where(_recent)
    .group_by(ORDER_LINES.c.product_id, ORDERS.c.currency)
    .order_by(_revenue.desc(), ORDER_LINES.c.product_id)
    .limit(BEST_SOLD)
    .subquery("sold")
)
_BEST = prepare(
    sa.select(*_sold.c, PRODUCTS.c.sku, PRODUCTS.c.name)
    .select_from(
        _sold.join(PRODUCTS, sa.and_(PRODUCTS.c.tenant_id == _TENANT, PRODUCTS.c.product_id == _sold.c.product_id))
    )
    .order_by(_sold.c.revenue_cents.desc(), _sold.c.product_id)
)


@dataclass(frozen=True, slots=True)
class Total:
    """All orders in one currency; the median and the 95th percentile are of single orders."""

    currency: str
    orders: int
    revenue_cents: int
    median_cents: int
    p95_cents: int


@dataclass(frozen=True, slots=True)
class Sold:
    """One product in one currency."""

    product_id: UUID
    currency: str
    orders: int
    units: int
    revenue_cents: int
    sku: str
    name: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The last days up to now: totals by currency, and the `BEST_SOLD` products by revenue."""

    totals: Sequence[Total]
    best: Sequence[Sold]


async def summarise(session: TenantSession, days: int) -> Summary:
    """The summary of the last ``days`` times 24 hours."""
    totals = [Total(**row) for row in await session.fetch(_TOTALS, days=days)]
    return Summary(totals, [Sold(**row) for row in await session.fetch(_BEST, days=days)])
