"""The summary without a database: its parts, the turns between them, quantiles, and the forecast."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from statistics import quantiles
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell.modules.reports import summary
from cell.modules.reports.summary import Span, Turns, summarise
from cell.shards.session import TenantSession
from contracts import problems

PRODUCT = UUID(int=7)
SINCE = datetime(2026, 1, 1, tzinfo=UTC)


class Shop:
    """A shard with one order for each number; each costs 1 cent and a part takes ``order_s`` for each of its orders."""

    def __init__(self, order_s: float = 0.00001) -> None:
        self.now = 10.0
        self.spans: list[tuple[int, int]] = []
        self.turns = 0
        self.open = 0
        self._order_s = order_s

    async def fetch(self, statement: Any, **values: Any) -> list[Any]:
        assert self.open == 1, "a statement is in a transaction"
        if "product_ids" in values:
            return [{"product_id": PRODUCT, "sku": "a", "name": "A"}]
        after, upto = values["after"], values["upto"]
        self.now += (upto - after) * self._order_s
        if statement is summary._TOTALS:
            self.spans.append((after, upto))
            return [("EUR", 1, upto - after)]
        return [(PRODUCT, "EUR", upto - after, upto - after, upto - after)]

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[TenantSession]:
        self.open += 1
        yield cast("TenantSession", self)
        self.open -= 1

    async def turn(self) -> None:
        assert self.open == 0, "nothing is held while others have their turn"
        self.turns += 1

    def of(self, deadline: float = 1e9) -> Turns:
        return Turns(self.enter, self.turn, deadline, lambda: self.now)


async def test_orders_would_be_counted_twice_or_not_at_all_between_two_parts() -> None:
    shop = Shop()
    found = await summarise(Span(SINCE, 0, 5_000), shop.of())
    assert [(t.currency, t.orders, t.revenue_cents) for t in found.totals] == [("EUR", 5_000, 5_000)]
    assert [(b.product_id, b.orders, b.units, b.revenue_cents, b.sku) for b in found.best] == [
        (PRODUCT, 5_000, 5_000, 5_000, "a")
    ]
    ends = [upto for _, upto in shop.spans]
    assert [after for after, _ in shop.spans] == [0, *ends[:-1]]
    assert ends[-1] == 5_000


async def test_others_would_have_no_turn_between_two_parts() -> None:
    shop = Shop()
    await summarise(Span(SINCE, 0, 5_000), shop.of())
    assert len(shop.spans) > 5
    assert shop.turns == len(shop.spans) + 1  # the names are a part too


async def test_who_waits_for_a_summary_would_hear_only_in_the_end_that_it_takes_too_long() -> None:
    shop = Shop(order_s=0.001)
    with pytest.raises(problems.ProblemError) as refused:
        await summarise(Span(SINCE, 0, 1_000_000), shop.of(deadline=shop.now + 60))
    assert refused.value.problem is problems.SUMMARY_TOO_LONG
    assert shop.now < 15


async def test_a_summary_that_fits_into_its_time_would_be_refused() -> None:
    shop = Shop(order_s=0.001)
    assert (await summarise(Span(SINCE, 0, 10_000), shop.of(deadline=shop.now + 40))).totals[0].orders == 10_000


async def test_a_summary_would_grow_without_end_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "GROUPS_MAX", 0)
    with pytest.raises(problems.ProblemError) as refused:
        await summarise(Span(SINCE, 0, 10), Shop().of())
    assert refused.value.problem is problems.SUMMARY_TOO_LONG


async def test_a_shop_without_orders_would_have_no_summary() -> None:
    shop = Shop()
    assert await summarise(None, shop.of()) == summary.Summary([], [])
    assert shop.turns == 0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_the_median_would_not_be_that_of_postgresql(cents: list[int]) -> None:
    counted = sorted({each: cents.count(each) for each in cents}.items())
    ordered = sorted(cents)
    assert summary.quantile(counted, 0.5) == ordered[-(-len(ordered) // 2) - 1]
    if len(cents) > 40:
        assert summary.quantile(counted, 0.95) >= quantiles(cents, n=20, method="inclusive")[-1] - 50


async def test_a_slow_first_moment_would_refuse_what_fits() -> None:
    shop = Shop(order_s=0.00001)
    turns = shop.turn

    async def disturbed() -> None:
        if shop.turns < 5:
            shop.now += 0.3  # somebody else's work, at the beginning only
        await turns()

    whole, deadline = Span(SINCE, 0, 200_000), shop.now + 20
    found = await summarise(whole, Turns(shop.enter, disturbed, deadline, lambda: shop.now))
    assert found.totals[0].orders == 200_000
