"""A large tenant in a real fleet: copied and followed while it writes, rolled back, finalized, and nothing is lost."""

from typing import Any

import asyncpg
import pytest

from contracts.ids import tenant_number
from tests.system.product import Product, Tenant
from tests.system.test_moves import assert_one_clean_owner, ended
from tests.system.waiting import until
from tests.system.writers import writing

ROWS = 100_000
_GROW = """
INSERT INTO product.products (tenant_id, product_id, sku, name, price_cents, currency)
SELECT $1, gen_random_uuid(), 'grown-' || n, repeat('x', 40), 100, 'EUR' FROM generate_series(1, $2) n
"""


async def grow(product: Product, tenant: Tenant, cell: str, rows: int) -> None:
    """Give the tenant rows, as if it had been there for years."""
    number = tenant_number(tenant.id)
    for dsn in product.fleet.cells[cell].shards.values():
        connection = await asyncpg.connect(dsn)
        try:
            if await connection.fetchval("SELECT state FROM cellwall.tenants WHERE tenant_id = $1", number):
                await connection.execute(_GROW, number, rows)
        finally:
            await connection.close()


async def standing(product: Product, move: str) -> dict[str, Any]:
    """The move once its old home follows the new one."""

    async def look() -> dict[str, Any] | None:
        view: dict[str, Any] = (await product.operate("GET", f"/v1/moves/{move}")).json()
        assert view["state"] not in ("failed", "cancelled"), view
        return view if view["state"] == "standby" and view["progress"]["way_back"] == "following" else None

    return await until(look, f"the standby of move {move}", timeout_s=180)


async def streams(product: Product) -> list[str]:
    """Slots and publications of moves, on every server of the fleet."""
    found: list[str] = []
    for cell in product.fleet.cells.values():
        for dsn in cell.shards.values():
            connection = await asyncpg.connect(dsn)
            try:
                query = (
                    "SELECT slot_name::text FROM pg_replication_slots WHERE slot_name LIKE 'cellwall_t%'"
                    " UNION ALL SELECT pubname::text FROM pg_publication"
                )
                found += [row[0] for row in await connection.fetch(query)]
            finally:
                await connection.close()
    return found


@pytest.mark.invariant(1)
@pytest.mark.invariant(2)
async def test_a_large_tenant_that_writes_moves_comes_back_and_loses_nothing(product: Product) -> None:
    tenant = await product.tenant_in("cell-1")
    await grow(product, tenant, "cell-1", ROWS)
    async with writing(product, tenant) as writers:
        await writers.more(20)
        body = {"tenant": tenant.slug, "to": "cell-2"}
        estimate = (await product.operate("POST", "/v1/moves/estimate", json=body)).json()
        assert (estimate["path"], estimate["rows"] > 50_000) == ("large", True)
        move = (await product.operate("POST", "/v1/moves", json=body)).json()["id"]
        view = await standing(product, move)
        assert view["rows"] >= ROWS
        await writers.more(20)
        back = (await product.operate("POST", f"/v1/moves/{move}/rollback")).json()["id"]
        returned = await ended(product, back)
        assert returned["state"] == "done", returned
        await writers.more(20)
    assert writers.failures == []
    assert set(writers.served_by) == {"cell-1", "cell-2"}
    verdict = await writers.audit()
    assert verdict.balanced, verdict.words()
    assert (await product.operate("GET", f"/v1/moves/{move}")).json()["state"] == "rolled_back"
    await assert_one_clean_owner(product, tenant, "cell-1")
    assert await streams(product) == []


@pytest.mark.invariant(1)
async def test_a_standby_that_is_finalized_leaves_nothing_behind(product: Product) -> None:
    tenant = await product.tenant_in("cell-1")
    async with writing(product, tenant, clients=2) as writers:
        await writers.more(5)
        body = {"tenant": tenant.slug, "to": "cell-2", "standby": True}
        move = (await product.operate("POST", "/v1/moves", json=body)).json()["id"]
        await standing(product, move)
        await writers.more(10)
        await product.operate("POST", f"/v1/moves/{move}/finalize")
        assert (await ended(product, move))["state"] == "done"
        await writers.more(5)
    assert writers.failures == []
    verdict = await writers.audit()
    assert verdict.balanced, verdict.words()
    await assert_one_clean_owner(product, tenant, "cell-2")
    assert await streams(product) == []
