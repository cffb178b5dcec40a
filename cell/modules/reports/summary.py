"""The summary: what was sold in the last days, computed while the caller waits.

It reads every order of the period with its lines, so its cost grows with the tenant: the heaviest thing that one
request of the sample product can ask for. So it is done in short parts, between which others have their turn (ADR
0025): a part is the orders up to a number, in a transaction of its own. Orders are never taken back, and their numbers
are in the order of their commits: all parts together are what was committed when the first one began.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.functions import func

from cell.fairness.pace import PartSize
from cell.modules.catalog.public import PRODUCTS
from cell.modules.orders.public import ORDER_LINES, ORDERS
from cell.modules.reports import kinds
from cell.shards.session import TenantSession
from cell.shards.sql import prepare
from contracts import problems

BEST_SOLD: Final = 10
FIRST_PART: Final = 200  # orders
GROUPS_MAX: Final = 100_000  # different totals, and products, that are held in memory; more are for a report
FORECAST_AFTER: Final = 5  # parts, before it is foretold that there is not enough time
FORECAST_AFTER_S: Final = 2.0  # and so long: the first parts are small, and say little of a moment of others' work

_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_TIME = sa.DateTime(timezone=True)
_recent = sa.and_(ORDERS.c.tenant_id == _TENANT, ORDERS.c.created_at >= sa.bindparam("since", type_=_TIME))
_part = sa.and_(
    _recent,
    ORDERS.c.number > sa.bindparam("after", type_=sa.BigInteger),
    ORDERS.c.number <= sa.bindparam("upto", type_=sa.BigInteger),
)
_lines_of_order = sa.and_(ORDER_LINES.c.tenant_id == _TENANT, ORDER_LINES.c.order_id == ORDERS.c.order_id)

_SINCE: Final = prepare(
    sa.select(func.now() - func.make_interval(0, 0, 0, sa.bindparam("days", type_=sa.Integer))),
)
_TOTALS: Final = prepare(
    sa.select(ORDERS.c.currency, ORDERS.c.total_cents, func.count())
    .where(_part)
    .group_by(ORDERS.c.currency, ORDERS.c.total_cents)
)
_SOLD: Final = prepare(
    sa.select(
        ORDER_LINES.c.product_id,
        ORDERS.c.currency,
        func.count(ORDERS.c.order_id.distinct()),
        func.sum(ORDER_LINES.c.quantity),
        func.sum(ORDER_LINES.c.quantity * ORDER_LINES.c.unit_price_cents).cast(sa.BigInteger),
    )
    .select_from(ORDERS.join(ORDER_LINES, _lines_of_order))
    .where(_part)
    .group_by(ORDER_LINES.c.product_id, ORDERS.c.currency)
)
_NAMES: Final = prepare(
    sa.select(PRODUCTS.c.product_id, PRODUCTS.c.sku, PRODUCTS.c.name).where(
        PRODUCTS.c.tenant_id == _TENANT,
        PRODUCTS.c.product_id == sa.any_(sa.bindparam("product_ids", type_=ARRAY(sa.Uuid))),
    )
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

    totals: list[Total]
    best: list[Sold]


@dataclass(slots=True)
class _Sums:
    """What the parts so far add up to. Totals are counted by their value: that is all a quantile needs."""

    totals: Counter[tuple[str, int]] = field(default_factory=Counter)
    sold: dict[tuple[UUID, str], tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """The orders behind ``after``, up to ``upto``, that are not older than ``since``."""

    since: datetime
    after: int
    upto: int


@dataclass(frozen=True, slots=True)
class Turns:
    """How a summary comes to the tenant's rows, and to its next part. Times are seconds of ``clock``.

    ``turn`` returns when the next part may begin; the caller is not waited for beyond ``deadline``.
    """

    enter: Callable[[], AbstractAsyncContextManager[TenantSession]]
    turn: Callable[[], Awaitable[None]]
    deadline: float
    clock: Callable[[], float]


async def extent(session: TenantSession, days: int) -> Span | None:
    """The orders among which those of the last ``days`` times 24 hours are; None where there are none at all."""
    every = await kinds.bounds(session)
    return None if every is None else Span(await session.fetchval(_SINCE, days=days), every.after, every.upto)


async def summarise(whole: Span | None, turns: Turns) -> Summary:
    """The summary of these orders, part by part; 422 with advice where it would not end in time."""
    sums, size, began = _Sums(), PartSize(FIRST_PART), turns.clock()
    after, parts = (0, 0) if whole is None else (whole.after, 0)
    while whole is not None and after < whole.upto:
        await turns.turn()
        part = Span(whole.since, after, min(after + size.count, whole.upto))
        async with turns.enter() as session:
            asked = turns.clock()
            await _add(session, sums, part)
            size.took(turns.clock() - asked)
        after, parts = part.upto, parts + 1
        _check(sums, turns, began, parts, (whole.upto - after) / (after - whole.after))
    if not sums.sold:
        return Summary([], [])
    await turns.turn()
    async with turns.enter() as session:
        return Summary(_totals(sums.totals), await _best(session, sums.sold))


async def _add(session: TenantSession, sums: _Sums, part: Span) -> None:
    values = {"since": part.since, "after": part.after, "upto": part.upto}
    for currency, cents, count in await session.fetch(_TOTALS, **values):
        sums.totals[currency, cents] += count
    for product, currency, orders, units, revenue in await session.fetch(_SOLD, **values):
        before = sums.sold.get((product, currency), (0, 0, 0))
        sums.sold[product, currency] = (before[0] + orders, before[1] + units, before[2] + revenue)


def _check(sums: _Sums, turns: Turns, began: float, parts: int, left: float) -> None:
    """Better told soon than when all the time is used up. ``left`` is what is still to be read, by what has been."""
    now = turns.clock()
    needs = left * (now - began)
    told = parts >= FORECAST_AFTER and now - began >= FORECAST_AFTER_S
    if told and now + needs > turns.deadline:
        detail = f"At the pace that it may take it would need {needs:.0f} s more."
        raise problems.ProblemError(problems.SUMMARY_TOO_LONG, detail)
    if len(sums.totals) > GROUPS_MAX or len(sums.sold) > GROUPS_MAX:
        raise problems.ProblemError(problems.SUMMARY_TOO_LONG, "There are too many different totals or products.")


def _totals(counts: Mapping[tuple[str, int], int]) -> list[Total]:
    by_currency: dict[str, list[tuple[int, int]]] = {}
    for (currency, cents), count in sorted(counts.items()):
        by_currency.setdefault(currency, []).append((cents, count))
    return [
        Total(
            currency,
            sum(count for _, count in values),
            sum(cents * count for cents, count in values),
            quantile(values, 0.5),
            quantile(values, 0.95),
        )
        for currency, values in by_currency.items()
    ]


def quantile(values: list[tuple[int, int]], share: float) -> int:
    """The first of the values, each given in order with how often it is there, at whose end this share of all is
    reached: PostgreSQL's ``percentile_disc``."""
    wanted, seen = share * sum(count for _, count in values), 0
    for cents, count in values:
        seen += count
        if seen >= wanted:
            return cents
    raise ValueError("there are no values")


async def _best(session: TenantSession, sold: Mapping[tuple[UUID, str], tuple[int, int, int]]) -> list[Sold]:
    """The first by revenue; of those that are alike, in the order of their ids."""
    first = sorted(sold.items(), key=lambda item: (-item[1][2], item[0]))[:BEST_SOLD]
    rows = await session.fetch(_NAMES, product_ids=sorted({product for (product, _), _ in first}))
    names = {row["product_id"]: (row["sku"], row["name"]) for row in rows}
    return [Sold(product, currency, *sums, *names[product]) for (product, currency), sums in first if product in names]
