"""What lives on when a tenant leaves, and what goes ahead of it (moves.md rule 23): with a real modern cell."""

import json
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from cell import app
from cell.modules.old_urls.api import OldUrls
from cell.zero.monolith import cron
from contracts import keys
from contracts.transfer import Activate, Fence, Prepare, Provision
from tests.integration.cell import cell_world
from tests.integration.cell.cell_world import World as Modern
from tests.integration.cell.zero import zero_world
from tests.integration.cell.zero.shop import Shop, links, log_in
from tests.integration.cell.zero.transfer.zero_world import Move
from tests.integration.cell.zero.zero_world import World, until

PATHS = ("/start.php", "/artikel.php", "/artikel.php?artnr={artnr}", "/auftraege.php", "/auftraege.php?seite=2",
         "/auftrag.php?anr={anr}", "/auftrag.php?lfd=20")  # fmt: skip


@pytest.fixture
def cells(cell_databases: Any, redis_server: Any, tmp_path: Path) -> Any:
    return replace(cell_databases, redis_url=redis_server.url, blobs_url=(tmp_path / "blobs").as_uri())


@pytest_asyncio.fixture
async def modern(cells: Any) -> AsyncIterator[Modern]:
    """A modern cell that serves the old URLs."""
    async with cell_world.opened(cells, app.routers_of(OldUrls.SERVE)) as world:
        yield world


@pytest_asyncio.fixture
async def beside(shop: Shop, modern: Modern) -> AsyncIterator[World]:
    """An ambassador that knows the modern cell, which serves ``/v1/products`` already."""
    async with zero_world.served(modern.ingress) as address:
        cells = {"cell-1": {"address": address, "envelope_key": keys.text_of(modern.key)}}
        tenants = await zero_world.enrolled(shop.dsn)
        async with zero_world.opened(shop, tenants, cells=cells, paths={"/v1/products": "cell-1"}) as world:
            yield world


async def counted(shop: Shop) -> None:
    """The cron job has counted what was sold, as the modern cell always has."""
    db = await shop.connect()
    await cron.run(db)
    await db.close()


async def old_ids(shop: Shop, knr: int) -> dict[str, int]:
    db = await shop.connect()
    row = await db.fetchrow(
        "SELECT (SELECT min(artnr) FROM art WHERE knr = $1) artnr, (SELECT min(anr) FROM aufk WHERE knr = $1) anr", knr
    )
    await db.close()
    return dict(row)


def at(modern: Modern, tenant: int, epoch: int, **more: Any) -> httpx.AsyncClient:
    return modern.client(f"t{tenant}", None, epoch=epoch, **more)


def said(answer: httpx.Response) -> tuple[str, bytes]:
    """What a browser shows of an answer depends on."""
    return answer.headers["content-type"], answer.content


async def test_a_bookmark_a_cookie_and_an_old_number_would_die_in_the_move(zero: World, modern: Modern) -> None:
    await counted(zero.shop)
    tenant, numbers = zero.tenants[0], await old_ids(zero.shop, 1)
    foreign = (await old_ids(zero.shop, 2))["anr"]
    async with zero.browser(1) as browser:
        cookie = (await log_in(browser, 1)).headers["set-cookie"].partition(";")[0]
        before = {path: said(await browser.get(path.format(**numbers))) for path in PATHS}
        await Move(tenant, zero.zero.transfer, modern.transfer, 2, 2).whole()
        assert (await browser.get("/start.php")).status_code == 421
    browser = at(modern, tenant, 2)
    browser.headers["cookie"] = cookie
    for path, old in before.items():
        answer = await browser.get(path.format(**numbers))
        assert (answer.status_code, said(answer)) == (200, old), path
    assert (await browser.get(f"/auftrag.php?anr={foreign}")).status_code == 404
    assert (await browser.get("/auftrag.php?anr=1x")).status_code == 400
    form = {"ref": "<neu>", "artnr": [str(numbers["artnr"])] * 2, "mg": ["1", "2"]}
    made = await browser.post("/auftrag.php", data=form)
    assert made.headers["location"] == "/auftrag.php?lfd=21"
    page = (await browser.get(made.headers["location"])).text
    assert "&lt;neu&gt;" in page
    assert links((await browser.get("/auftraege.php")).text, "lfd")[0] == 21
    assert (await browser.post("/auftrag.php", data=form | {"artnr": ["999999"] * 2})).status_code == 400
    crossed = await browser.post("/auftrag.php", data=form, headers={"sec-fetch-site": "cross-site"})
    assert crossed.status_code == 403
    assert (await browser.get("/v1/orders")).status_code == 401  # the cookie is good for the old pages only


async def test_an_old_password_would_not_open_the_old_form_after_the_move(zero: World, modern: Modern) -> None:
    tenant = zero.tenants[0]
    await Move(tenant, zero.zero.transfer, modern.transfer, 2, 2).whole()
    browser = at(modern, tenant, 2)
    assert (await browser.get("/start.php")).headers["location"] == "/anmelden.php"
    wrong = await browser.post("/anmelden.php", data={"knr": "1", "login": "chef@kunde-1.test", "pwd": "falsch"})
    assert (wrong.status_code, "fehlgeschlagen" in wrong.text) == (200, True)
    assert (await log_in(browser, 1)).headers["location"] == "/start.php"
    assert "Guten Tag" in (await browser.get("/start.php")).text
    reader = at(modern, tenant, 2)
    assert (await log_in(reader, 1, "leser")).status_code == 302
    assert (await reader.post("/auftrag.php", data={"artnr": "1", "mg": "1"})).status_code == 403
    assert (await browser.get("/abmelden.php")).headers["location"] == "/anmelden.php"
    assert (await browser.get("/start.php")).headers["location"] == "/anmelden.php"


async def test_a_redirect_would_lead_to_another_thing_or_past_the_door(zero: World, cells: Any) -> None:
    tenant, numbers = zero.tenants[0], await old_ids(zero.shop, 1)
    async with zero.browser(1) as browser:
        cookie = (await log_in(browser, 1)).headers["set-cookie"].partition(";")[0]
    async with cell_world.opened(cells, app.routers_of(OldUrls.REDIRECT)) as modern:
        await Move(tenant, zero.zero.transfer, modern.transfer, 2, 2).whole()
        browser = at(modern, tenant, 2)
        path = f"/auftrag.php?anr={numbers['anr']}"
        assert (await browser.get(path)).status_code == 401
        browser.headers["cookie"] = cookie
        answer = await browser.get(path)
        assert answer.status_code == 308
        assert re.fullmatch(r"/v1/orders/[0-9a-f-]{36}", answer.headers["location"])
        login = await browser.post(
            "/v1/sessions", json={"email": "chef@kunde-1.test", "password": zero_world.shops.PASSWORD}
        )
        bearer = {"authorization": f"Bearer {login.json()['token']}"}
        assert (await browser.get(answer.headers["location"], headers=bearer)).json()["number"] == 1
        assert (await browser.get("/auftrag.php?anr=999999")).status_code == 404
        assert (await browser.get("/auftraege.php")).headers["location"] == "/v1/orders"


# -- shadow reads -----------------------------------------------------------------------------------------------------


async def rehearsed(zero: World, modern: Modern, tenant: int) -> int:
    """A rehearsal of the tenant in the modern cell, brought there as the mover brings a tenant; its number."""
    number = next(zero_world._numbers)
    fences = (Fence(1, seq, "rehearsal") for seq in range(1, 10))
    async with zero.operator() as operator:
        answer = await operator.post(f"/zero/v1/rehearsals/t{tenant}/t{number}")
        assert answer.status_code == 200, answer.text

    async def pieces() -> AsyncIterator[bytes]:
        yield answer.content

    await modern.transfer.prepare(number, next(fences), Prepare(modern.transfer.info().schema, 1))
    await modern.transfer.import_(number, next(fences), pieces())
    await modern.transfer.activate(number, next(fences), Activate(1))
    return number


async def test_a_shadow_read_would_miss_a_difference_or_see_one_that_is_none(beside: World, modern: Modern) -> None:
    await counted(beside.shop)
    tenant, numbers = beside.tenants[0], await old_ids(beside.shop, 1)
    shadows, url = beside.zero.shadows, f"/zero/v1/shadows/t{tenant}"
    async with beside.browser(1) as browser, beside.operator() as operator:
        await log_in(browser, 1)  # the rehearsal knows the session
        body = {"cell": "cell-1", "tenant": f"t{await rehearsed(beside, modern, tenant)}"}
        assert (await operator.put(url, json=body)).status_code == 204
        for path in PATHS:
            assert (await browser.get(path.format(**numbers))).status_code == 200
        await until(lambda: sum(shadows.report().results.values()) == len(PATHS))
        assert shadows.report().results == {"same": len(PATHS)}, shadows.report().differences
        db = await beside.shop.connect()
        await db.execute("UPDATE aufk SET ref = 'anders' WHERE anr = $1", numbers["anr"])
        await db.close()
        path = f"/auftrag.php?anr={numbers['anr']}"
        assert "anders" in (await browser.get(path)).text  # the client gets the old answer, whatever the new one is
        await until(lambda: shadows.report().results.get("different") == 1)
        (found,) = (await operator.get("/zero/v1/shadows")).json()["differences"]
        assert (found["tenant"], found["target"]) == (f"t{tenant}", path)
        assert "-<td>anders</td>" in found["what"]
        assert (await operator.delete(url)).status_code == 204
        assert not shadows.wants(tenant)


async def test_a_shadow_could_be_a_cell_or_a_tenant_that_is_none(beside: World) -> None:
    tenant = beside.tenants[0]
    async with beside.operator() as operator:
        body = {"cell": "cell-1", "tenant": "t9"}
        for where, what, status in (
            (f"t{tenant}", body | {"cell": "cell-9"}, 400),
            (f"t{tenant}", body | {"tenant": f"t{tenant}"}, 400),
            (f"t{tenant}", body | {"tenant": "x"}, 400),
            (f"t{tenant}", body | {"more": 1}, 400),
            ("t77", body, 404),
        ):
            assert (await operator.put(f"/zero/v1/shadows/{where}", json=what)).status_code == status, what


async def test_a_rehearsal_would_leave_rows_behind_or_take_a_tenants_place(zero: World) -> None:
    one, other = zero.tenants[:2]
    async with zero.operator() as operator:
        assert (await operator.post(f"/zero/v1/rehearsals/t{one}/t77")).status_code == 200
        assert (await operator.post(f"/zero/v1/rehearsals/t{one}/t{other}")).status_code == 409
        assert (await operator.post(f"/zero/v1/rehearsals/t88/t{other}")).status_code == 404
        db = await zero.shop.connect()
        try:
            assert await db.fetchval("SELECT count(*) FROM product.orders") == 0
            await db.execute("UPDATE art SET pr = 'auf Anfrage' WHERE artnr = (SELECT min(artnr) FROM art)")
        finally:
            await db.close()
        refused = await operator.post(f"/zero/v1/rehearsals/t{one}/t77")
        assert refused.status_code >= 400
        assert "auf Anfrage" in refused.json()["detail"]


# -- strangling by path -----------------------------------------------------------------------------------------------


async def test_a_path_that_went_ahead_would_take_tenants_along_that_the_modern_cell_does_not_have(
    beside: World, modern: Modern
) -> None:
    """The first tenant has its products at the modern cell already; the second has nothing there."""
    provision = Provision(1, "ahead", "o@example.test", secrets.token_urlsafe(12))
    key = (await modern.transfer.provision(beside.tenants[0], Fence(1, 1, "ahead"), provision)).api_key
    bearer = {"authorization": f"Bearer {key}"}
    body = {"sku": "S-1", "name": "Neu", "price_cents": 100, "currency": "EUR"}
    async with beside.browser(1) as one, beside.browser(2) as two:
        made = await one.post("/v1/products", json=body, headers=bearer)
        assert made.status_code == 201, made.text
        assert made.headers["cell-served"] == "cell-zero;epoch=1"
        assert len((await one.get("/v1/products", headers=bearer)).json()["items"]) == 1
        assert (await one.get("/v1/productsx", headers=bearer)).headers["x-powered-by"] == "PHP/4.3.8"
        assert len(made.headers.get_list("date")) == 1
        theirs = {"authorization": f"Bearer cwk_t{beside.tenants[1]}_{'x' * 43}"}
        for old in (await two.post("/v1/products", json=body, headers=theirs),
                    await two.get("/v1/products", headers=theirs)):  # fmt: skip
            assert (old.status_code, old.headers["x-powered-by"]) == (404, "PHP/4.3.8")
        large = json.dumps(body).encode() + b" " * (1 << 17)  # nobody has kept it for the monolith
        assert (await two.post("/v1/products", content=large, headers=theirs)).status_code == 413
        await beside.set_state(1, "frozen")
        assert (await one.get("/v1/products", headers=bearer)).headers["cell-refused"] == "tenant-frozen"
