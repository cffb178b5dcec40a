"""What a client holds of its tenant works after a move: credentials, cursors, and keys of what it has sent."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from infra.local.fleet import Fleet
from tests.system.hooked import Hooked
from tests.system.product import Product, Tenant
from tests.system.test_large_moves import shard_of
from tests.system.test_moves import assert_one_clean_owner, ended, exists, start_move
from tests.system.waiting import until

PRODUCTS = 3
PAGE = "/v1/products?limit=1"
_BLOCKED = "SELECT count(*) FROM pg_locks WHERE NOT granted AND $1 = ANY (pg_blocking_pids(pid))"


@contextlib.asynccontextmanager
async def nobody_may_change(fleet: Fleet, shard: str, item: str) -> AsyncIterator[asyncpg.Connection]:
    """The row of a product of cell-1 is locked for as long as the block runs."""
    connection = await asyncpg.connect(fleet.cells["cell-1"].shards[shard])
    try:
        async with connection.transaction():
            await connection.fetchval("SELECT 1 FROM product.products WHERE product_id = $1 FOR UPDATE", item)
            yield connection
    finally:
        await connection.close()


async def reads(product: Product, tenant: Tenant, credential: str, path: str = "/v1/me") -> httpx.Response:
    headers = {"Authorization": f"Bearer {credential}"}
    answer = await product.ask(tenant, "GET", path, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.invariant(1)
async def test_a_move_does_not_void_what_a_client_holds_nor_leave_its_keys_in_flight_for_ever(
    fleet: Fleet, product: Product, hooked: Hooked, tmp_path: Path
) -> None:
    tenant = await product.tenant_in("cell-1")
    login = {"email": f"ada@{tenant.slug}.test", "password": "correct-horse"}
    session = (await product.ask(tenant, "POST", "/v1/sessions", json=login)).json()["token"]
    made = await product.ask(tenant, "POST", "/v1/api-keys", json={"name": "till", "role": "viewer"})
    key = made.json()["key"]
    items = [await product.product(tenant) for _ in range(PRODUCTS)]
    first = (await reads(product, tenant, session, PAGE)).json()
    sent, open_key = secrets.token_hex(8), secrets.token_hex(8)
    known = await product.order(tenant, items[0], key=sent)
    assert known.status_code == 201, known.text

    await hooked.start(f"pause:frozen:{tmp_path}")
    async with nobody_may_change(fleet, await shard_of(product, tenant), items[1]) as holder:
        under_way = asyncio.create_task(product.order(tenant, items[1], key=open_key))
        pid = await holder.fetchval("SELECT pg_backend_pid()")
        await until(lambda: holder.fetchval(_BLOCKED, pid), "the order in the middle of its transaction")
        move = await start_move(product, tenant, "cell-2")
        await until(lambda: exists(tmp_path / "reached"), "the freeze")
    (tmp_path / "go").touch()
    assert (await ended(product, move))["state"] == "done"
    await assert_one_clean_owner(product, tenant, "cell-2")

    for credential in (tenant.key, session, key):
        assert (await reads(product, tenant, credential)).headers["cell-served"].startswith("cell-2;")
    seen, page = [first["items"][0]["id"]], first
    while page["next"]:
        page = (await reads(product, tenant, session, f"{PAGE}&cursor={page['next']}")).json()
        seen += [each["id"] for each in page["items"]]
    assert seen == items

    again = await product.order(tenant, items[0], key=sent)
    assert (again.status_code, again.json(), again.headers["idempotent-replayed"]) == (201, known.json(), "true")
    ran = await under_way
    assert ran.status_code in (201, 503), ran.text  # the freeze ended its transaction; the router may have sent it anew
    answers = [await product.order(tenant, items[1], key=open_key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201], answers[0].text
    made_ids = {answer.json()["id"] for answer in [*answers, *([ran] if ran.status_code == 201 else [])]}
    assert len(made_ids) == 1
    view = (await product.ask(tenant, "GET", f"/v1/products/{items[1]}")).json()
    assert view["units_sold"] == 2, "one order of two pieces, however often it was sent"
