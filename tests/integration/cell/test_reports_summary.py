"""The summary: right to the cent, of the asked days and of one tenant only."""

import pytest

from tests.integration.cell.cell_world import Merchant, World


async def test_a_summary_counts_what_was_sold_by_currency_and_product(merchant: Merchant) -> None:
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
