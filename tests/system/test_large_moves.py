"""A large tenant in a real fleet: copied and followed while it writes, rolled back, finalized, and nothing is lost."""

from pathlib import Path
from typing import Any

import asyncpg
import pytest

from contracts.ids import tenant_number
from infra.local.spec import CONTROL_PLANE
from tests.system.hooked import Hooked
from tests.system.product import Product, Tenant
from tests.system.test_moves import assert_one_clean_owner, ended, exists, fences
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


async def shard_of(product: Product, tenant: Tenant) -> str:
    """The shard of the tenant: the same in both cells, whose bucket maps are alike."""
    for shard, dsn in product.fleet.cells["cell-1"].shards.items():
        connection = await asyncpg.connect(dsn)
        try:
            query = "SELECT 1 FROM cellwall.tenants WHERE tenant_id = $1"
            if await connection.fetchval(query, tenant_number(tenant.id)):
                return shard
        finally:
            await connection.close()
    raise AssertionError(f"no shard of cell-1 has {tenant.slug}")


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
    await no_streams(product)


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
    await no_streams(product)


@pytest.mark.invariant(6)
@pytest.mark.invariant(1)
@pytest.mark.parametrize("state", ["copying", "catching_up", "frozen", "standby"])
async def test_a_control_plane_killed_in_a_large_move_finishes_it_after_its_return(
    product: Product, hooked: Hooked, state: str
) -> None:
    tenant = await product.tenant_in("cell-1")
    await hooked.start(f"kill:{state}")
    async with writing(product, tenant, clients=2) as writers:
        await writers.more(5)
        body = {"tenant": tenant.slug, "to": "cell-2", "standby": True, "finalize_after_s": 0.0}
        move = (await product.operate("POST", "/v1/moves", json=body)).json()["id"]
        killed = product.fleet.runner.process(CONTROL_PLANE)
        assert killed is not None
        reached = await killed.wait_ended(180)
        assert reached, f"never {state}: {(await product.operate('GET', f'/v1/moves/{move}')).text}"
        await hooked.plainly()
        view = await ended(product, move)
        await writers.more(5)
    # A hold that outlived its budget while nobody was at the wheel goes back; after the decision it never does.
    assert view["state"] in ({"done"} if state == "standby" else {"done", "failed"}), view
    assert writers.failures == []
    verdict = await writers.audit()
    assert verdict.balanced, verdict.words()
    await assert_one_clean_owner(product, tenant, "cell-2" if view["state"] == "done" else "cell-1")
    await no_streams(product)


@pytest.mark.invariant(6)
@pytest.mark.parametrize(
    ("process", "state"),
    [
        ("cell-1-api", "copying"), ("cell-2-{shard}", "copying"), ("cell-1-api", "catching_up"),
        ("cell-2-api", "catching_up"), ("cell-1-{shard}", "catching_up"),
    ],
)  # fmt: skip
async def test_a_cell_that_dies_while_it_is_copied_or_followed_delays_the_move_and_loses_nothing(
    product: Product, hooked: Hooked, tmp_path: Path, process: str, state: str
) -> None:
    tenant = await product.tenant_in("cell-1")
    await grow(product, tenant, "cell-1", 2_000)
    process = process.format(shard=await shard_of(product, tenant))
    before = (await fences(product.fleet, tenant))["cell-1"][2]
    await hooked.start(f"pause:{state}:{tmp_path}")
    body = {"tenant": tenant.slug, "to": "cell-2", "standby": True, "finalize_after_s": 0.0}
    move = (await product.operate("POST", "/v1/moves", json=body)).json()["id"]
    await until(lambda: exists(tmp_path / "reached"), state)
    await product.fleet.kill(process)
    (tmp_path / "go").touch()
    await product.fleet.revive(process)
    view = await ended(product, move)
    assert view["state"] == "done", view
    await assert_one_clean_owner(product, tenant, "cell-2")
    assert (await fences(product.fleet, tenant))["cell-2"][2] == before
    await no_streams(product)


async def no_streams(product: Product) -> None:
    async def clean() -> bool:
        return await streams(product) == []

    await until(clean, "the end of every slot and publication", timeout_s=120)
