"""The old shop by itself: it must be a real one, or nothing that is proven of leaving it is worth anything."""

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta

import httpx

from cell.zero.monolith import cron, values
from tests.integration.cell.zero.shop import Shop, links, log_in


async def test_two_orders_at_once_would_get_one_running_number(shop: Shop) -> None:
    async with httpx.AsyncClient(base_url=shop.url, trust_env=False, timeout=60) as browser:
        assert (await log_in(browser, 1)).headers["location"] == "/start.php"
        (artnr, *_) = links((await browser.get("/artikel.php")).text, "artnr")
        forms = [{"ref": f"r{i}", "artnr": str(artnr), "mg": "2"} for i in range(6)]
        answers = await asyncio.gather(*(browser.post("/auftrag.php", data=form) for form in forms))
        assert {a.status_code for a in answers} == {302}
        pages = [(await browser.get(a.headers["location"])).text for a in answers]
        assert sorted(f"Auftrag {21 + i}" for i in range(6)) == sorted(p[p.find("Auftrag") :][:10] for p in pages)
        first = await browser.get("/auftraege.php")
        assert links(first.text, "lfd") == list(range(26, 0, -1))


async def test_a_customer_would_see_what_is_another_ones(shop: Shop) -> None:
    db = await shop.connect()
    foreign = await db.fetchval("SELECT min(anr) FROM aufk WHERE knr = 2")
    await db.close()
    async with httpx.AsyncClient(base_url=shop.url, trust_env=False, timeout=60) as browser:
        assert (await browser.get("/auftrag.php?anr=1")).headers["location"] == "/anmelden.php"
        refused = await browser.post("/anmelden.php", data={"knr": "1", "login": "chef@kunde-1.test", "pwd": "x"})
        assert (refused.status_code, "fehlgeschlagen" in refused.text) == (200, True)
        await log_in(browser, 1)
        assert (await browser.get(f"/auftrag.php?anr={foreign}")).status_code == 404
        assert (await browser.get("/kunden.php?knr=2")).status_code == 403
        assert (await browser.get("/kunden.php?knr=1")).status_code == 200


async def test_a_reader_could_write_and_a_bad_list_would_be_half_stored(shop: Shop) -> None:
    async with httpx.AsyncClient(base_url=shop.url, trust_env=False, timeout=60) as browser:
        await log_in(browser, 1, "leser")
        assert (await browser.post("/import.php", content=b"X-1;Neu;1,00;E\n")).status_code == 400
        await log_in(browser, 1, "mitarbeiter")
        half = await browser.post("/import.php", content=b"X-1;Neu;1,00;E\nX-2;Neu;teuer;E\n")
        assert half.status_code == 400
        assert "X-1" not in (await browser.get("/artikel.php")).text
        lines = "".join(f"X-{i};Neu {i};1,50;E\n" for i in range(3000)).encode()
        assert "3000 Artikel" in (await browser.post("/import.php", content=lines)).text
        export = (await browser.get("/export.php")).text.splitlines()
        assert (len(export), export[0]) == (21, "nr;ref;summe;whg;datum")


async def test_what_a_page_shows_would_run_as_script(shop: Shop) -> None:
    async with httpx.AsyncClient(base_url=shop.url, trust_env=False, timeout=60) as browser:
        await log_in(browser, 1)
        form = {"best": "<script>", "bez": "<script>x</script>", "pr": "1,00", "whg": "E"}
        made = await browser.post("/artikel.php", data=form)
        assert "<script>" not in (await browser.get(made.headers["location"])).text
        assert "<script>" not in (await browser.get("/artikel.php?artnr=<script>")).text


async def test_the_cron_job_writes_past_everybody(shop: Shop) -> None:
    db = await shop.connect()
    try:
        assert await db.fetchval("SELECT sum(vk) FROM art") == 0
        old = values.stamp(datetime.now(UTC) - timedelta(days=1))
        await db.execute("INSERT INTO sess (sid, bnr, bis) SELECT 'over', min(bnr), $1 FROM ben", old)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cell.zero.monolith", "cron", env=os.environ | {"SHOP_DSN": shop.dsn}
        )
        assert await asyncio.wait_for(process.wait(), 60) == 0
        assert await db.fetchval("SELECT sum(vk) FROM art") == await db.fetchval("SELECT sum(mg) FROM aufp")
        assert await db.fetchval("SELECT min(mahn) FROM aufk") == 1
        assert await db.fetchval("SELECT count(*) FROM sess") == 0
        assert (await cron.run(db)) == (0, 60)
    finally:
        await db.close()


async def test_a_process_without_its_database_is_one_line_and_status_2() -> None:
    env = {k: v for k, v in os.environ.items() if k != "SHOP_DSN"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cell.zero.monolith", "serve", "--port", "1", env=env, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (2, b"shop: SHOP_DSN is not set\n")
