"""Paid orders in a real fleet: their tenant moves, workers are killed, the gateway is bad, and each is charged once."""

import asyncio
import secrets
from signal import SIGKILL

import asyncpg
import pytest

from contracts.ids import tenant_number
from infra.local.fleet import Fleet
from loadtest.outside import FAULTS, METHOD, Outside
from tests.system.product import Product, Tenant
from tests.system.test_moves import ended
from tests.system.waiting import until

ORDERS = 6  # in each home


async def pay(product: Product, tenant: Tenant, item: str, method: str = METHOD) -> str:
    body = {"lines": [{"product_id": item, "quantity": 1}], "payment": {"method": method}}
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    answer = await product.ask(tenant, "POST", "/v1/orders", json=body, headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (201, "pending"), answer.text
    made: str = answer.json()["id"]
    return made


async def pass_time(fleet: Fleet, number: int, *, leases: bool = False) -> None:
    """What waits for its next try has waited; with ``leases``, what a dead worker had taken is anybody's again."""
    for cell in fleet.cells.values():
        for dsn in cell.shards.values():
            connection = await asyncpg.connect(dsn)
            try:
                for table in ("sagas", "webhook_deliveries"):
                    if leases:
                        await connection.execute(
                            f"UPDATE product.{table} SET lease = NULL WHERE tenant_id = $1", number
                        )
                    await connection.execute(
                        f"UPDATE product.{table} SET due = now() WHERE tenant_id = $1 AND lease IS NULL", number
                    )
                await connection.execute("UPDATE cellwall.work SET due = now() WHERE tenant_id = $1", number)
            finally:
                await connection.close()


@pytest.mark.invariant(1)
async def test_orders_are_charged_once_while_their_tenant_moves_and_workers_are_killed(
    fleet: Fleet, product: Product
) -> None:
    outside = Outside.at(fleet.gateway.url, fleet.gateway.token)
    tenant = await product.tenant_in("cell-1")
    number, shards = tenant_number(tenant.id), {cell.name: cell.shards for cell in fleet.cells.values()}
    item = await product.product(tenant)
    url = f"{fleet.gateway.url}/sinks/{tenant.id}"
    secret = (await product.ask(tenant, "POST", "/v1/webhooks", json={"url": url})).json()["secret"]
    await outside.http.put(f"/v1/sinks/{tenant.id}", json={"secret": secret})
    await outside.faults(FAULTS)
    try:
        promised = [await pay(product, tenant, item) for _ in range(ORDERS)]
        promised.append(await pay(product, tenant, item, "declined-1"))
        moved = await product.operate("POST", "/v1/moves", json={"tenant": tenant.slug, "to": "cell-2"})
        await fleet.kill("cell-1-worker", SIGKILL)  # with charges on their way, before or after the freeze
        promised += [await pay(product, tenant, item) for _ in range(ORDERS)]
        assert (await ended(product, moved.json()["id"]))["state"] == "done"
        await fleet.kill("cell-2-worker", SIGKILL)
        await pass_time(fleet, number, leases=True)
        await asyncio.gather(fleet.revive("cell-1-worker"), fleet.revive("cell-2-worker"))

        async def settled() -> bool:
            await asyncio.sleep(0.5)  # or all tries of a slow charge would find the first one still under way
            await pass_time(fleet, number)
            return all(each["status"] != "pending" for each in (await orders(product, tenant)))

        await until(settled, "the end of every order")
        assert await outside.settled(shards, [number])
        effects = await outside.books(shards, [number], dict.fromkeys(promised, tenant.id))
    finally:
        await outside.faults([])
        await outside.aclose()
        for worker in ("cell-1-worker", "cell-2-worker"):
            await fleet.revive(worker)
    assert effects.examples() == []
    assert (effects.orders, effects.confirmed, effects.cancelled) == (2 * ORDERS + 1, 2 * ORDERS, 1)
    assert effects.told == effects.orders


async def orders(product: Product, tenant: Tenant) -> list[dict[str, str]]:
    found: list[dict[str, str]] = (await product.ask(tenant, "GET", "/v1/orders?limit=50")).json()["items"]
    return found
