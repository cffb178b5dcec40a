"""``/v1/reports``."""

from typing import Final
from uuid import UUID

import msgspec
from litestar import Router, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from cell import wire
from cell.access import Caller, Role, guard
from cell.modules.accounts.public import authenticated
from cell.modules.reports import summary

DAYS: Final = 30
DAYS_MAX: Final = 366


class TotalView(msgspec.Struct, frozen=True):
    """All orders in one currency; the median and the 95th percentile are of single orders."""

    currency: str
    orders: int
    revenue_cents: int
    median_cents: int
    p95_cents: int


class SoldView(msgspec.Struct, frozen=True):
    """What was sold of one product in one currency."""

    product_id: UUID
    sku: str
    name: str
    currency: str
    orders: int
    units: int
    revenue_cents: int


class SummaryView(msgspec.Struct, frozen=True):
    """What was sold in the last ``days``."""

    days: int
    totals: list[TotalView]
    products: list[SoldView]

    @classmethod
    def of(cls, days: int, s: summary.Summary) -> "SummaryView":
        """The view of a summary."""
        totals = [TotalView(t.currency, t.orders, t.revenue_cents, t.median_cents, t.p95_cents) for t in s.totals]
        best = [SoldView(b.product_id, b.sku, b.name, b.currency, b.orders, b.units, b.revenue_cents) for b in s.best]
        return cls(days, totals, best)


@get("/reports/summary", opt={"access": Role.VIEWER})
async def get_summary(caller: NamedDependency[Caller], days: FromQuery[int] = DAYS) -> SummaryView:
    """What was sold in the last days, computed while the caller waits."""
    if not 1 <= days <= DAYS_MAX:
        raise wire.invalid("days", f"Expected 1 to {DAYS_MAX}")
    async with caller.enter(read_only=True) as (session, _):
        return SummaryView.of(days, await summary.summarise(session, days))


router: Final = Router(
    path="/v1",
    guards=[guard],
    dependencies={"caller": authenticated},
    route_handlers=[get_summary],
)
