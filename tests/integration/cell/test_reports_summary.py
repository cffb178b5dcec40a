"""The summary: right to the cent, of the asked days and of one tenant only."""

import asyncio

import httpx
import pytest

from cell.fairness.levels import Level
from cell.fairness.queues import Ticket
from cell.fairness.station import Station
from cell.modules.reports import summary
from tests.integration.cell.cell_world import Merchant, World

MANY = 5_000  # some dozen parts: each may be slow, and be followed by a long rest, on a busy machine
_ORDERS = """
WITH made AS (
  INSERT INTO product.orders (tenant_id, order_id, number, status, total_cents, currency, created_by)
  SELECT $1, gen_random_uuid(), 1000 + n, 'created', n, 'EUR', gen_random_uuid() FROM generate_series(1, $3::int) AS n
  RETURNING order_id
)
INSERT INTO product.order_lines (tenant_id, order_id, line, product_id, quantity, unit_price_cents)
SELECT $1, order_id, 1, $2, 1, 1 FROM made
"""


@pytest.mark.parametrize("first_part", [1, 3, 200])
async def test_a_summary_counts_what_was_sold_by_currency_and_product(
    merchant: Merchant, monkeypatch: pytest.MonkeyPatch, first_part: int
) -> None:
    monkeypatch.setattr(summary, "FIRST_PART", first_part)  # so that there are parts to add up
    cup, pot, franc = await merchant.product(100), await merchant.product(5_000), await merchant.product(7, "CHF")
    for quantity in (1, 2, 3):
        await merchant.order((cup, quantity))
    await merchant.order((cup, 1), (pot, 2), (cup, 1))
    await merchant.order((franc, 4))
    found = (await merchant.owner.get("/v1/reports/summary")).json()
    assert found["days"] == 30
    assert found["totals"] == [
        {"currency": "CHF", "orders": 1, "revenue_cents": 28, "median_cents": 28, "p95_cents": 28},
        {"currency": "EUR", "orders": 4, "revenue_cents": 10_800, "median_cents": 200, "p95_cents": 10_200},
    ]
    sold = [(p["product_id"], p["currency"], p["orders"], p["units"], p["revenue_cents"]) for p in found["products"]]
    assert sold == [(pot, "EUR", 1, 2, 10_000), (cup, "EUR", 4, 8, 800), (franc, "CHF", 1, 4, 28)]
    assert all(p["name"] == f"Product {p['sku']}" for p in found["products"])


async def test_orders_before_the_asked_days_are_not_counted(merchant: Merchant) -> None:
    product = await merchant.product(100)
    for _ in range(3):
        await merchant.order((product, 1))
    await merchant.rows(
        "UPDATE product.orders SET created_at = now() - interval '3 days' WHERE tenant_id = $1 AND number = 2"
    )
    assert (await merchant.owner.get("/v1/reports/summary?days=2")).json()["totals"][0]["orders"] == 2
    assert (await merchant.owner.get("/v1/reports/summary?days=4")).json()["totals"][0]["orders"] == 3


@pytest.mark.invariant(3)
async def test_a_summary_has_nothing_of_another_tenant(world: World, merchant: Merchant) -> None:
    other = await world.merchant()
    await other.order((await other.product(), 1))
    assert (await merchant.owner.get("/v1/reports/summary")).json() == {"days": 30, "totals": [], "products": []}


@pytest.mark.parametrize("days", ["0", "367", "-1", "x"])
async def test_wrong_days_are_named(merchant: Merchant, days: str) -> None:
    answer = await merchant.owner.get(f"/v1/reports/summary?days={days}")
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert answer.json()["errors"][0]["field"] == "days"


async def test_the_summary_of_many_orders_is_that_of_one_query(world: World, merchant: Merchant) -> None:
    product = await merchant.product(100)
    await merchant.rows(_ORDERS, product, MANY)
    found = (await patient(world, merchant).get("/v1/reports/summary")).json()
    (row,) = await merchant.rows(
        "SELECT count(*), sum(total_cents), percentile_disc(0.5) WITHIN GROUP (ORDER BY total_cents),"
        " percentile_disc(0.95) WITHIN GROUP (ORDER BY total_cents) FROM product.orders WHERE tenant_id = $1"
    )
    assert list(found["totals"][0].values()) == ["EUR", *(int(value) for value in row)]
    assert [(p["orders"], p["units"], p["revenue_cents"]) for p in found["products"]] == [(MANY, MANY, MANY)]


def patient(world: World, merchant: Merchant) -> httpx.AsyncClient:
    """A client of the owner that waits as long as a busy machine takes."""
    return world.client(merchant.tenant_id, merchant.key, timeout_ms=110_000)


async def beside(world: World, merchant: Merchant) -> list[str]:
    """A heavy summary and, once that is at work, a light one at the same shard; in the order in which they ended."""
    shard_of, ended = world.databases.shards.shard_of, []
    light = await world.merchant()
    while shard_of(light.number) != shard_of(merchant.number):
        light = await world.merchant()
    await merchant.rows(_ORDERS, await merchant.product(100), MANY)
    await light.order((await light.product(100), 1))

    async def ask(name: str, who: Merchant) -> None:
        answer = await patient(world, who).get("/v1/reports/summary")
        assert answer.status_code == 200, answer.text
        ended.append(name)

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        group.create_task(ask("heavy", merchant))
        while not world.ingress._wall.seats(Level.BATCH)[1]:
            await asyncio.sleep(0)
        group.create_task(ask("light", light))
    return ended


async def test_a_light_tenant_does_not_wait_for_the_summary_of_a_heavy_one(world: World, merchant: Merchant) -> None:
    assert await beside(world, merchant) == ["light", "heavy"]


async def test_it_would_wait_without_turns_between_the_parts(
    world: World, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keeps_its_seat(_station: Station, ticket: Ticket, _cost: float, _estimate: float, now: float) -> list[Ticket]:
        ticket.seated_at = now
        return []

    monkeypatch.setattr(Station, "turn", keeps_its_seat)
    assert await beside(world, merchant) == ["heavy", "light"]
