"""The manners of a cell, before a monolith that has none (moves.md rules 4 and 21)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest

from cell.ingress import BODY_PIECES
from cell.zero import door as door_of_zero
from contracts.names import Refusal
from tests.integration.cell.zero import zero_world
from tests.integration.cell.zero.shop import Shop, links, log_in
from tests.integration.cell.zero.zero_world import World, until


async def orders(world: World) -> int:
    db = await world.shop.connect()
    try:
        return int(await db.fetchval("SELECT count(*) FROM aufk"))
    finally:
        await db.close()


@contextlib.asynccontextmanager
async def held_up(world: World, knr: int) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """The monolith's pages that write for this customer wait within the block."""
    db = await world.shop.connect()
    try:
        async with db.transaction():
            await db.execute("SELECT 1 FROM knd WHERE knr = $1 FOR UPDATE", knr)
            yield db
    finally:
        await db.close()


async def order_form(browser: httpx.AsyncClient) -> dict[str, str]:
    (artnr, *_) = links((await browser.get("/artikel.php")).text, "artnr")
    return {"ref": "neu", "artnr": str(artnr), "mg": "1"}


async def waits_in_monolith(db: Any) -> None:
    """A page of the shop waits for what the test holds."""
    async with asyncio.timeout(60):
        while not await db.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shop' AND wait_event_type = 'Lock'"
            " AND datname = current_database()"
        ):
            await asyncio.sleep(0.005)


async def test_the_shop_would_answer_otherwise_behind_the_ambassador(zero: World) -> None:
    async with zero.browser(1) as browser, httpx.AsyncClient(base_url=zero.shop.url, trust_env=False) as direct:
        await log_in(browser, 1)
        await log_in(direct, 1)
        for path in ("/start.php", "/kunden.php?knr=1", "/artikel.php", "/auftraege.php?seite=1", "/auftrag.php?anr=1",
                     "/export.php", "/nirgends.php", "/auftrag.php?anr=x"):  # fmt: skip
            old, new = await direct.get(path), await browser.get(path)
            assert (new.status_code, new.content) == (old.status_code, old.content), path
            assert new.headers["x-powered-by"] == "PHP/4.3.8"
            assert new.headers["cell-served"] == "cell-zero;epoch=1"
        made = await browser.post("/auftrag.php", data=await order_form(browser))
        assert made.status_code == 302
        assert "Auftrag 21" in (await browser.get(made.headers["location"])).text


@pytest.mark.parametrize("state", ["importing", "standby", "moved", "aborted", "gone"])
async def test_a_tenant_that_is_elsewhere_would_be_served(zero: World, state: str) -> None:
    async with zero.browser(1) as browser:
        await log_in(browser, 1)
        form = await order_form(browser)
        await zero.set_state(1, state, hint="the-route")
        refused = await browser.post("/auftrag.php", data=form)
    assert (refused.status_code, refused.headers["cell-refused"]) == (421, Refusal.MISDIRECTED)
    assert refused.headers["cell-route"] == "the-route"
    assert await orders(zero) == 60


async def test_a_frozen_tenant_an_old_epoch_or_a_stranger_would_be_served(zero: World) -> None:
    async with zero.browser(1) as browser, zero.browser(2, epoch=2) as newer:
        await log_in(browser, 1)
        assert (await newer.get("/start.php")).status_code == 421
        await zero.set_state(1, "frozen")
        refused = await browser.get("/start.php")
        assert (refused.status_code, refused.headers["cell-refused"]) == (503, Refusal.FROZEN)
        assert refused.headers["retry-after"] == "1"
        zero.tenants[1] = 77
        async with zero.browser(2) as stranger:
            assert (await stranger.get("/start.php")).status_code == 421
    async with httpx.AsyncClient(base_url=zero.url, trust_env=False) as nobody:
        assert (await nobody.get("/start.php")).status_code == 403


async def test_a_freeze_would_overtake_a_request_that_is_under_way(zero: World) -> None:
    door, tenant = zero.zero.door, zero.tenants[0]
    async with zero.browser(1) as browser:
        await log_in(browser, 1)
        form = await order_form(browser)
        async with held_up(zero, 1) as db:
            under_way = asyncio.create_task(browser.post("/auftrag.php", data=form))
            await waits_in_monolith(db)
            with door.closed(tenant):
                assert not await door.drain(tenant, 0.05)
                assert door.busy == "1 requests in flight"
                refused = await browser.get("/start.php")
                assert (refused.status_code, refused.headers["cell-refused"]) == (503, Refusal.FROZEN)
        assert (await under_way).status_code == 302
        with door.closed(tenant):
            assert await door.drain(tenant, 60)
    assert await orders(zero) == 61


async def test_a_client_that_leaves_would_leave_a_write_behind_that_comes_after_the_freeze(zero: World) -> None:
    door, tenant = zero.zero.door, zero.tenants[0]
    async with zero.browser(1) as browser:
        await log_in(browser, 1)
        form = await order_form(browser)
        async with held_up(zero, 1) as db:
            leaving = asyncio.create_task(browser.post("/auftrag.php", data=form))
            await waits_in_monolith(db)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            await until(lambda: not door.in_flight)  # the ambassador has noticed
            with door.closed(tenant):
                assert not await door.drain(tenant, 0.02)
                assert "in flight" in door.busy or "still be working" in door.busy or "pid" in door.busy
                held = asyncio.create_task(door.drain(tenant, 60))
                assert await orders(zero) == 60
        assert await held
        frozen_with = await orders(zero)
        await asyncio.sleep(0)
    assert frozen_with == 61


async def test_a_request_cut_in_its_body_would_count_as_over(zero: World) -> None:
    door, tenant = zero.zero.door, zero.tenants[0]

    async def half() -> AsyncIterator[bytes]:
        for _ in range(2 * BODY_PIECES):  # more than the ingress reads ahead, so that some of it has gone
            yield b"X-1;Neu;1,00;E\n"
            await asyncio.sleep(0.005)
        await until(lambda: door._exchanges.get(tenant, 0) == 1)
        raise httpx.WriteError("the line is cut")

    async with zero.browser(1) as browser:
        await log_in(browser, 1)
        with contextlib.suppress(httpx.HTTPError):
            await browser.post("/import.php", content=half())
        await until(lambda: not door._exchanges)
        assert door._at_work(tenant).startswith("requests that the monolith may still be working on")
        with door.closed(tenant):
            assert await door.drain(tenant, 60)
        assert "X-1" not in (await browser.get("/artikel.php")).text


async def test_a_request_that_takes_too_long_would_be_replayed_or_count_as_over(zero: World) -> None:
    door, tenant = zero.zero.door, zero.tenants[0]
    async with zero.browser(1) as browser:
        await log_in(browser, 1)
        form = await order_form(browser)
        zero.zero.ingress._application._monolith.longest_s = 0.2  # type: ignore[attr-defined]
        async with held_up(zero, 1):
            answer = await browser.post("/auftrag.php", data=form)
            assert (answer.status_code, answer.headers["cell-refused"]) == (503, Refusal.INTERRUPTED)
            assert tenant in door._uncertain
            with door.closed(tenant):
                assert not await door.drain(tenant, 0.0)
        with door.closed(tenant):
            assert await door.drain(tenant, 60)


async def test_a_restarted_ambassador_would_freeze_before_requests_of_its_forerunner_end(shop: Shop) -> None:
    tenants = await zero_world.enrolled(shop.dsn)
    older = await shop.connect()
    try:
        transaction = older.transaction()
        await transaction.start()  # a request of before: it has read, and is going to write
        await older.execute("SELECT 1 FROM knd")
        async with zero_world.opened(shop, tenants, sole=False) as world:
            door = world.zero.door
            door._longest_s = 1.0  # long enough to be met, however busy this machine is
            await until(lambda: door.is_sole)
            with door.closed(tenants[0]):
                assert not await door.drain(tenants[0], 0.0)
                assert "may still be working on" in door.busy
                assert not await door.drain(tenants[0], 2 * door._longest_s)
                assert door.busy.startswith("transactions that began before: pid")
                await transaction.rollback()
                assert await door.drain(tenants[0], 60)
    finally:
        await older.close()


async def test_a_freeze_would_not_wait_for_what_an_ambassador_lets_in_that_does_not_know_of_its_lost_lock(
    shop: Shop,
) -> None:
    tenants = await zero_world.enrolled(shop.dsn)
    other = await shop.connect()
    await other.fetchval("SELECT pg_advisory_lock($1)", door_of_zero._SOLE)
    async with zero_world.opened(shop, tenants, sole=False) as world:
        door = world.zero.door
        await until(lambda: door._contested)
        assert not door.is_sole
        other.terminate()  # its session is gone, and it may learn of that much later
        await until(lambda: door.is_sole)
        assert door._since is not None
        assert door._since[0] > asyncio.get_running_loop().time()
        with door.closed(tenants[0]):
            assert not await door.drain(tenants[0], 0.0)
            assert "may still be working on" in door.busy


async def test_a_transaction_that_writes_past_the_ambassador_would_commit_after_the_freeze(zero: World) -> None:
    door, tenant = zero.zero.door, zero.tenants[0]
    db = await zero.shop.connect()
    try:
        cron, report = db.transaction(), (await zero.shop.connect())
        await cron.start()
        await db.execute("UPDATE art SET vk = vk + 1 WHERE knr = 1")
        with door.closed(tenant):
            assert not await door.drain(tenant, 0.05)
            assert "transactions that began before" in door.busy
            await cron.commit()
            async with report.transaction(isolation="repeatable_read", readonly=True):
                await report.execute("SELECT 1 FROM knd")  # only reads: nothing to wait for
                assert await door.drain(tenant, 60)
        await report.close()
    finally:
        await db.close()


async def test_two_ambassadors_would_each_count_their_own_requests_only(zero: World) -> None:
    async with zero_world.opened(zero.shop, zero.tenants, sole=False) as second:
        async with second.browser(1) as browser:
            refused = await browser.get("/start.php")
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:cellwall:problem:shard-unavailable")
        assert not await second.zero.door.drain(second.tenants[0], 0.0)
        assert (await second.zero.health.report()).reasons == ("another ambassador is at work, or was until just now",)


async def test_an_unreachable_frozen_set_would_mean_nobody_is_frozen(zero: World, postgres: Any) -> None:
    name = zero.shop.dsn.rpartition("/")[2].partition("?")[0]
    admin = await asyncpg.connect(postgres.superuser_dsn)
    try:
        async with zero.browser(1) as browser:
            assert (await browser.get("/start.php")).status_code == 302
            door, since = zero.zero.door, zero.zero.door._since
            await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
            refused = await browser.get("/start.php")
            assert refused.status_code == 503
            assert "cell-refused" not in refused.headers
            await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
            await until(lambda: door.is_sole and door._since != since)  # it notices late that the old lock is gone
            assert (await browser.get("/start.php")).status_code == 302
    finally:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin.close()


async def test_a_browser_at_one_tenants_host_would_write_to_another_tenant(zero: World) -> None:
    await zero.set_state(2, "moved")
    async with zero.browser(1) as browser, httpx.AsyncClient(base_url=zero.shop.url, trust_env=False) as direct:
        foreign = (await log_in(direct, 2)).headers["set-cookie"].partition(";")[0]
        for cookie in (foreign, f"{foreign}; SITZUNG=x", f"a=b {foreign}", foreign.replace("=", '="') + '"'):
            refused = await browser.get("/artikel.php", headers={"cookie": cookie})
            assert (refused.status_code, refused.json()["type"]) == (401, "urn:cellwall:problem:unauthenticated")
        assert (await log_in(browser, 2)).status_code == 403
        assert (await browser.get("/kunden.php?knr=2")).status_code == 403
        assert (await browser.get("/kunden.php?knr=1&knr=2")).status_code == 403
        assert (await browser.get("/artikel.php", headers={"cookie": "SITZUNG=unknown"})).status_code == 302
        assert (await log_in(browser, 1)).status_code == 302


async def test_a_large_body_would_be_gathered_or_have_no_bound(zero: World, shop: Shop) -> None:
    async with zero_world_of_small_bodies(zero) as small, small.browser(1) as browser:
        await log_in(browser, 1)
        lines = [f"Y-{i:05};Neu;1,00;E\n".encode() for i in range(2000)]

        async def upload(count: int) -> AsyncIterator[bytes]:
            for line in lines[:count]:
                yield line

        assert "2000 Artikel" in (await browser.post("/import.php", content=upload(2000))).text
        for content in (b"".join(lines) * 3, upload_of(lines * 3)):
            refused = await browser.post("/import.php", content=content)
            assert (refused.status_code, refused.json()["status"]) == (413, 413)


async def upload_of(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@contextlib.asynccontextmanager
async def zero_world_of_small_bodies(zero: World) -> AsyncIterator[World]:
    """The same world with a bound of 64 KiB, in the place of the first."""
    zero.zero.ingress._application._monolith.most = 1 << 16  # type: ignore[attr-defined]
    yield zero


async def test_an_answer_would_be_gathered_before_it_is_sent(zero: World) -> None:
    db = await zero.shop.connect()
    await db.execute(
        "INSERT INTO aufk (knr, lfd, sum, whg, bnr, dat)"
        " SELECT 1, 20 + n, '1,00', 'E', 1, '01.01.2024 00:00:00' FROM generate_series(1, 60000) n"
    )
    await db.close()
    async with zero.browser(1) as browser:
        await log_in(browser, 1)
        async with browser.stream("GET", "/export.php") as answer:
            total, sizes = 0, 0
            async for piece in answer.aiter_raw():
                total, sizes = total + piece.count(b"\n"), sizes + 1
        assert total == 60_021
        assert sizes > 10


async def test_what_operators_watch_would_not_count_cell_zero(zero: World) -> None:
    async with zero.browser(1) as browser, zero.operator() as operator:
        await browser.get("/start.php")
        metrics = (await operator.get("/metrics")).text
        assert 'cellwall_cell_requests_total{cell="cell-zero",code="3xx"} 1.0' in metrics
        assert 'cellwall_zero_forwarded_total{cell="cell-zero",to="monolith"} 1.0' in metrics
        assert (await operator.get("/health/ready")).json() == {"ready": True, "reasons": []}
        assert (await browser.get("/health/ready")).status_code == 200
    async with httpx.AsyncClient(base_url=zero.inner, trust_env=False) as nobody:
        assert (await nobody.get("/metrics")).status_code == 401
