"""A tenant leaves the monolith, works, comes back and leaves again: nothing is lost, doubled or rewritten."""

import asyncio

from cell.shards.context import TenantContext
from cell.vault import Vault
from cell.zero.monolith import store
from contracts import keys
from tests.integration.cell.cell_world import SECRETS_KEY, World
from tests.integration.cell.zero.transfer.zero_world import PASSWORD, Journey, Zero


async def test_a_tenant_leaves_with_its_logins_orders_and_cookies(zero: Zero, world: World) -> None:
    tenant, knr = await zero.customer()
    async with zero.pool.acquire() as connection:
        cookie = await store.log_in(connection, knr, f"chef@kunde-{knr}.test", PASSWORD)
    before = await zero.rows(knr)
    await Journey(zero, world, tenant).out().whole()

    client = world.client(f"t{tenant}", None, epoch=2)
    login = {"email": f"Chef@Kunde-{knr}.test", "password": PASSWORD}
    token = (await client.post("/v1/sessions", json=login)).json()["token"]
    owner = world.client(f"t{tenant}", token, epoch=2)
    orders = (await owner.get("/v1/orders")).json()["items"]
    assert [order["number"] for order in orders] == [6, 5, 4, 3, 2, 1]
    assert (await client.post("/v1/sessions", json={**login, "password": "wrong"})).status_code == 401
    with_cookie = world.client(f"t{tenant}", f"cws_t{tenant}_{cookie}", epoch=2)
    assert (await with_cookie.get("/v1/me")).json()["role"] == "owner"
    sold = {p["sku"]: p["units_sold"] for p in (await owner.get("/v1/products")).json()["items"]}
    assert sum(sold.values()) == sum(position.mg for position in before.aufp)
    assert await zero.rows(knr) == before  # purged at the source: and yet no row of the monolith is gone
    assert (await zero.transfer.status(tenant)).state == "gone"


async def test_a_rollback_after_new_writes_brings_them_and_rewrites_nothing_else(zero: Zero, world: World) -> None:
    tenant, knr = await zero.customer()
    before = await zero.rows(knr)
    journey = Journey(zero, world, tenant)
    await journey.out().whole()

    client = world.client(f"t{tenant}", None, epoch=2)
    login = {"email": f"chef@kunde-{knr}.test", "password": PASSWORD}
    owner = world.client(f"t{tenant}", (await client.post("/v1/sessions", json=login)).json()["token"], epoch=2)
    key = (await owner.post("/v1/api-keys", json={"name": "kept", "role": "member"})).json()["key"]
    first = (await owner.get("/v1/products")).json()["items"][0]
    await owner.patch(f"/v1/products/{first['id']}", json={"price_cents": 4321})
    new = {"sku": "B-1", "name": "Neu", "price_cents": 99, "currency": "EUR"}
    made = (await owner.post("/v1/products", json=new)).json()
    order = {"lines": [{"product_id": made["id"], "quantity": 3}], "reference": "after the move"}
    assert (await owner.post("/v1/orders", json=order, headers={"Idempotency-Key": "k1"})).status_code == 201

    await journey.back().whole()
    after = await zero.rows(knr)
    assert (after.ben, after.sess) == (before.ben, before.sess)
    changed = {a.best: a for a in after.art if a not in before.art}
    assert set(changed) == {first["sku"], "B-1"}
    assert (changed[first["sku"]].pr, changed["B-1"].pr, changed["B-1"].whg) == ("43,21", "0,99", "E")
    assert [row for row in after.aufk if row in before.aufk] == list(before.aufk)
    (head,) = [row for row in after.aufk if row not in before.aufk]
    assert (head.lfd, head.ref, head.sum) == (7, "after the move", "2,97")
    (line,) = [row for row in after.aufp if row.anr == head.anr]
    assert (line.artnr, line.mg, line.ep) == (changed["B-1"].artnr, 3, "0,99")
    assert changed["B-1"].vk == 3  # its event was counted nowhere yet

    assert (await zero.transfer.status(tenant)).state == "active"  # the monolith goes on where the cell stopped
    await zero.pool.execute("UPDATE art SET pr = '1,00' WHERE artnr = $1", changed["B-1"].artnr)
    await journey.out().whole()
    again = world.client(f"t{tenant}", key, epoch=4)  # what the monolith has no place for came back too
    products = {p["sku"]: p for p in (await again.get("/v1/products")).json()["items"]}
    assert (products["B-1"]["id"], products["B-1"]["price_cents"]) == (made["id"], 100)
    assert (products["B-1"]["units_sold"], products["B-1"]["version"]) == (3, made["version"] + 1)
    assert products[first["sku"]]["updated_at"] > first["updated_at"]
    assert (await world.client(f"t{tenant}", None, epoch=4).post("/v1/sessions", json=login)).status_code == 201
    async with world.worker():  # nobody counts the pending event a second time
        async with asyncio.timeout(60):
            while await _pending(world, tenant):
                await asyncio.sleep(0.02)
    assert (await again.get(f"/v1/products/{made['id']}")).json()["units_sold"] == 3


async def _pending(world: World, tenant: int) -> int:
    connection = await world.cell.as_superuser(world.databases.shards.shard_of(tenant))
    try:
        query = "SELECT count(*) FROM cellwall.outbox WHERE tenant_id = $1 AND finished_at IS NULL"
        return int(await connection.fetchval(query, tenant))
    finally:
        await connection.close()


async def test_a_stay_in_the_monolith_would_cost_a_tenant_its_secrets(zero: Zero, world: World) -> None:
    tenant, _ = await zero.customer()
    journey, vault = Journey(zero, world, tenant), Vault(keys.cell_key(SECRETS_KEY))
    await journey.out().whole()
    async with world.databases.shards.enter(TenantContext.for_worker(tenant, 0.0, "test")) as session:
        sealed = (await vault.key(session)).seal("things.secret/1", b"the secret")
    await journey.back().whole()
    await journey.out().whole()
    async with world.databases.shards.enter(TenantContext.for_worker(tenant, 0.0, "test")) as session:
        assert (await vault.key(session)).open("things.secret/1", sealed) == b"the secret"
