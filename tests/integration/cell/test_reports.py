"""Reports: right, whole, of one tenant; made once whatever dies, and in a room of their own."""

import asyncio
import base64
import csv
import hashlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from cell import blobs, worker
from cell.access import Role
from cell.fairness.levels import Enforcement
from cell.modules.reports import api, kinds, maker, public, service
from contracts.transfer import Fence, Freeze, Restore
from tests.integration.cell.cell_world import CELL, EPOCH, Merchant, World

NOW = datetime.now(UTC)
YEAR = {"from": f"{NOW.year}-01-01", "to": f"{NOW.year}-12-31"}


@pytest_asyncio.fixture(autouse=True)
async def _nothing_left(world: World) -> None:
    """No report of an earlier test is still to be made: a worker would make it in this one."""
    for shard in world.databases.shards.names:
        connection = await world.cell.as_superuser(shard)
        await connection.execute("DELETE FROM product.reports; DELETE FROM cellwall.work WHERE kind = 'reports'")
        await connection.close()


async def ask(merchant: Merchant, kind: str = "sales-by-product", **more: Any) -> str:
    answer = await merchant.owner.post("/v1/reports", json={"kind": kind, **YEAR, **more})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def shown(merchant: Merchant, report: str) -> dict[str, Any]:
    return dict((await merchant.owner.get(f"/v1/reports/{report}")).json())


async def until(merchant: Merchant, report: str, *statuses: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (found := await shown(merchant, report))["status"] not in statuses:
            await asyncio.sleep(0.02)
    return found


async def lines(merchant: Merchant, report: str) -> list[list[str]]:
    answer = await merchant.owner.get(f"/v1/reports/{report}/result")
    assert answer.status_code == 200, answer.text
    return list(csv.reader(io.StringIO(answer.text)))


async def seeded(merchant: Merchant, orders: int = 3) -> str:
    product = await merchant.product(100)
    for _ in range(orders):
        await merchant.order((product, 1))
    return product


@asynccontextmanager
async def held_up(merchant: Merchant) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Statements about the tenant's orders wait, as if they were very heavy; yields who holds them up."""
    blocker = await merchant.world.cell.as_superuser(merchant.world.databases.shards.shard_of(merchant.number))
    try:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE product.orders IN ACCESS EXCLUSIVE MODE")
            yield blocker
    finally:
        await blocker.close()


async def heavy(connection: "asyncpg.Connection[asyncpg.Record]", *, held_up: bool = False) -> int:
    """How many statements of the bulkhead are at work on the shard, or of these, wait for what is held up."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'cellwall-reports-%' AND state = 'active'"
        + (" AND wait_event_type = 'Lock' AND wait_event = 'relation'" if held_up else "")
    )
    await connection.execute("SELECT pg_stat_clear_snapshot()")  # a transaction would see the same again and again
    return int(await connection.fetchval(query))


async def waits(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


async def busy(connection: "asyncpg.Connection[asyncpg.Record]", count: int) -> None:
    """Wait until so many are held up, which one that only begins is not yet; with 0, until none is at work."""

    async def reached() -> bool:
        return await heavy(connection, held_up=count > 0) == count

    await waits(reached)


def files(world: World) -> list[str]:
    root = Path(unquote(urlsplit(world.cell.blobs_url).path))
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


# -- what is in it ------------------------------------------------------------------------------------------------


async def test_the_file_of_a_report_is_what_was_sold(
    world: World, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "PART_ORDERS", 2)  # so that there are parts to add up
    cup, pot = await merchant.product(100), await merchant.product(5_000)
    today = datetime.now(UTC).date().isoformat()  # not the day on which the run began
    for quantity in (1, 2, 3):
        await merchant.order((cup, quantity))
    await merchant.order((cup, 1), (pot, 2), (cup, 1))
    async with world.worker():
        asked = [await ask(merchant, kind) for kind in ("sales-by-product", "sales-by-day", "order-lines")]
        done = [await until(merchant, report, "done", "failed") for report in asked]
    assert [(d["status"], d["progress"], d["rows"], d["note"]) for d in done] == [
        ("done", 1, 2, None), ("done", 1, 1, None), ("done", 1, 6, None),
    ]  # fmt: skip
    products, days, sold = [await lines(merchant, report) for report in asked]
    assert products[0] == ["product_id", "sku", "name", "currency", "orders", "units", "revenue_cents"]
    assert [(row[0], row[3:]) for row in products[1:]] == [
        (pot, ["EUR", "1", "2", "10000"]), (cup, ["EUR", "4", "8", "800"]),
    ]  # fmt: skip
    assert days[1:] == [[today, "EUR", "4", "10", "10800"]]
    assert [(row[0], row[2], row[4], row[5]) for row in sold[1:]] == [
        ("1", "1", "1", "100"), ("2", "1", "2", "100"), ("3", "1", "3", "100"),
        ("4", "1", "1", "100"), ("4", "2", "2", "5000"), ("4", "3", "1", "100"),
    ]  # fmt: skip
    assert {row[1][:10] for row in sold[1:]} == {today}


async def test_a_result_says_what_it_is_and_how_long(world: World, merchant: Merchant) -> None:
    await seeded(merchant)
    async with world.worker():
        report = await ask(merchant)
        found = await until(merchant, report, "done")
    answer = await merchant.owner.get(f"/v1/reports/{report}/result")
    digest = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert int(answer.headers["content-length"]) == len(answer.content) == found["bytes"]
    name = f"sales-by-product_{YEAR['from']}_{YEAR['to']}.csv"
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'


async def test_orders_of_other_days_are_not_in_it(world: World, merchant: Merchant) -> None:
    await seeded(merchant, 4)
    for number, day in ((1, "2024-03-31 23:59:59.9Z"), (2, "2024-04-01 00:00Z"), (3, "2024-04-30 23:59:59.9Z")):
        await merchant.rows(
            "UPDATE product.orders SET created_at = $2::text::timestamptz WHERE tenant_id = $1 AND number = $3",
            day,
            number,
        )
    period = {"from": "2024-04-01", "to": "2024-04-30"}
    async with world.worker():
        report, empty = (
            await ask(merchant, "order-lines", **period),
            await ask(merchant, **period | {"from": "2024-04-02", "to": "2024-04-02"}),
        )
        await until(merchant, report, "done")
        assert (await until(merchant, empty, "done"))["rows"] == 0
    assert [row[0] for row in (await lines(merchant, report))[1:]] == ["2", "3"]


@pytest.mark.invariant(3)
async def test_a_report_and_its_file_do_not_exist_for_another_tenant(world: World, merchant: Merchant) -> None:
    other = await world.merchant()
    await seeded(other)
    async with world.worker():
        theirs, mine = await ask(other), await ask(merchant)
        await until(other, theirs, "done")
        assert (await until(merchant, mine, "done"))["rows"] == 0
    for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
        assert (await merchant.owner.request(method, f"/v1/reports/{theirs}{path}")).status_code == 404
    # A claim check of another tenant, as an error of ours might write it, opens nothing.
    stolen = (await other.rows("SELECT blob, bytes, digest FROM product.reports WHERE tenant_id = $1"))[0]
    await merchant.rows(
        "UPDATE product.reports SET blob = $2, bytes = $3, digest = $4 WHERE tenant_id = $1", *stolen.values()
    )
    assert (await merchant.owner.get(f"/v1/reports/{mine}/result")).status_code == 409
    assert len(await lines(other, theirs)) == 2


async def test_reports_are_listed_the_newest_first(merchant: Merchant) -> None:
    asked = [await ask(merchant) for _ in range(3)]
    page = (await merchant.owner.get("/v1/reports?limit=2")).json()
    rest = (await merchant.owner.get("/v1/reports", params={"limit": 2, "cursor": page["next"]})).json()
    assert [item["id"] for item in page["items"] + rest["items"]] == asked[::-1]
    assert rest["next"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "kind"),
        ({"kind": "everything", **YEAR}, "kind"),
        ({"kind": "sales-by-day", "from": "2026-02-01", "to": "2026-01-31"}, "to"),
        ({"kind": "sales-by-day", "from": "2024-01-01", "to": "2026-01-31"}, "to"),
        ({"kind": "sales-by-day", "from": "2026-02-30", "to": "2026-03-31"}, "from"),
        ({"kind": "sales-by-day", "from": "9999-12-31", "to": "9999-12-31"}, "to"),
        ({"kind": "sales-by-day", **YEAR, "format": "pdf"}, "format"),
    ],
)
async def test_a_wrong_report_names_the_field(merchant: Merchant, body: dict[str, object], field: str) -> None:
    answer = await merchant.owner.post("/v1/reports", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert [error["field"] for error in answer.json()["errors"]] == [field], answer.text


# -- once, and whatever happens -----------------------------------------------------------------------------------


async def test_the_same_key_asks_for_one_report(merchant: Merchant) -> None:
    body, headers = {"kind": "sales-by-day", **YEAR}, {"Idempotency-Key": "once"}
    first = await merchant.owner.post("/v1/reports", json=body, headers=headers)
    again = await merchant.owner.post("/v1/reports", json=body, headers=headers)
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert len(await merchant.rows("SELECT FROM product.reports WHERE tenant_id = $1")) == 1


async def test_a_full_queue_is_refused_however_many_ask_at_once(merchant: Merchant) -> None:
    answers = await asyncio.gather(
        *(merchant.owner.post("/v1/reports", json={"kind": "sales-by-day", **YEAR}) for _ in range(9))
    )
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 9 - service.QUEUED_MAX
    assert refused[0].json()["type"] == "urn:cellwall:problem:reports-queue-full"
    assert int(refused[0].headers["retry-after"]) > 0
    assert len(await merchant.rows("SELECT FROM product.reports WHERE tenant_id = $1")) == service.QUEUED_MAX


async def test_a_result_is_not_ready_before_it_is_done(merchant: Merchant) -> None:
    report = await ask(merchant)
    answer = await merchant.owner.get(f"/v1/reports/{report}/result")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:cellwall:problem:report-not-ready")
    assert answer.json()["status_of_report"] == "queued"
    assert answer.headers["retry-after"] == "1"


async def test_a_worker_that_stops_gives_its_report_back_and_the_next_one_makes_it(
    world: World, merchant: Merchant
) -> None:
    await seeded(merchant)
    async with held_up(merchant) as blocker:
        async with world.worker():
            report = await ask(merchant)
            await busy(blocker, 1)
        assert (await shown(merchant, report))["status"] == "queued"
        assert await heavy(blocker) == 0
    async with world.worker():
        assert (await until(merchant, report, "done", "failed"))["status"] == "done"
    assert len(await lines(merchant, report)) == 2
    assert len(files(world)) == 1


async def test_a_report_whose_worker_died_is_made_by_another(world: World, merchant: Merchant) -> None:
    await seeded(merchant)
    report = await ask(merchant)
    await _abandoned(merchant)
    async with world.worker():
        found = await until(merchant, report, "done", "failed")
    assert found["status"] == "done"
    assert (await merchant.rows("SELECT attempt, failures FROM product.reports WHERE tenant_id = $1"))[0] == (2, 1)


async def test_a_report_that_kills_its_workers_is_given_up(world: World, merchant: Merchant) -> None:
    report = await ask(merchant)
    await _abandoned(merchant, failures=service.FAILURES_MAX - 1)
    async with world.worker():
        found = await until(merchant, report, "done", "failed")
        assert (found["status"], found["note"]) == ("failed", "What made it died each time.")
        answer = await merchant.owner.get(f"/v1/reports/{report}/result")
    assert (answer.status_code, answer.json()["detail"]) == (409, found["note"])


async def _abandoned(merchant: Merchant, failures: int = 0) -> None:
    """As a worker leaves it that was killed at work: running under a lease that has ended, woken by nobody."""
    await merchant.rows(
        "UPDATE product.reports SET status = 'running', attempt = 1, failures = $2, home = $3, progress = 0.5,"
        " lease = now() - interval '1 s' WHERE tenant_id = $1",
        failures,
        CELL,
    )
    await merchant.rows("DELETE FROM cellwall.work WHERE tenant_id = $1")


async def test_who_lost_a_report_to_another_worker_neither_ends_it_nor_leaves_a_file(
    world: World, merchant: Merchant
) -> None:
    await seeded(merchant)
    async with held_up(merchant) as blocker, world.worker():
        report = await ask(merchant)
        await busy(blocker, 1)
        # Another one takes over: a later attempt, alive.
        await merchant.rows(
            "UPDATE product.reports SET attempt = attempt + 1, lease = now() + interval '1 hour' WHERE tenant_id = $1"
        )
        await busy(blocker, 0)  # its own next sign of life was refused, and the query was cancelled
        assert (await shown(merchant, report))["status"] == "running"
    assert files(world) == []


async def test_a_deleted_report_is_cancelled_down_to_the_query(world: World, merchant: Merchant) -> None:
    await seeded(merchant)
    async with held_up(merchant) as blocker, world.worker():
        report = await ask(merchant)
        await busy(blocker, 1)
        assert (await merchant.owner.delete(f"/v1/reports/{report}")).status_code == 204
        await busy(blocker, 0)
    assert (await merchant.owner.get(f"/v1/reports/{report}")).status_code == 404
    assert files(world) == []


async def test_a_deleted_report_takes_its_file_with_it(world: World, merchant: Merchant) -> None:
    async with world.worker():
        report = await ask(merchant)
        await until(merchant, report, "done")
    assert len(files(world)) == 1
    assert (await merchant.owner.delete(f"/v1/reports/{report}")).status_code == 204
    assert files(world) == []


async def test_a_part_that_takes_too_long_is_ended_tried_again_and_given_up(
    world: World, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "PART_TIMEOUT_S", 1.0)  # of its short transactions, too
    monkeypatch.setattr(service, "RETRY", service.timedelta())
    await seeded(merchant)
    async with held_up(merchant) as blocker:
        async with world.worker():
            report = await ask(merchant)
            found = await until(merchant, report, "failed")
        assert await heavy(blocker) == 0
    assert found["note"] == "The database was away, or needed too long."
    assert await _attempts(merchant, service.FAILURES_MAX)


async def _attempts(merchant: Merchant, count: int) -> bool:
    rows = await merchant.rows("SELECT attempt FROM product.reports WHERE tenant_id = $1")
    return bool(rows and rows[0]["attempt"] >= count)


async def test_a_report_that_would_be_too_large_fails_and_stores_nothing(
    world: World, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await seeded(merchant)
    async with world.worker() as running:
        monkeypatch.setattr(running.files, "_bytes_max", 100)
        found = await until(merchant, await ask(merchant, "order-lines"), "done", "failed")
    assert (found["status"], "too large" in found["note"]) == ("failed", True)
    assert files(world) == []


async def test_more_groups_than_fit_fail_instead_of_filling_the_memory(
    world: World, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "GROUPS_MAX", 1)
    product, other = await merchant.product(), await merchant.product()
    await merchant.order((product, 1), (other, 1))
    async with world.worker():
        assert (await until(merchant, await ask(merchant), "done", "failed"))["status"] == "failed"


# -- freezes, moves, and files that are gone ----------------------------------------------------------------------


@pytest.mark.invariant(2)
async def test_a_freeze_does_not_wait_for_a_report_and_the_report_goes_on_after_it(
    world: World, merchant: Merchant
) -> None:
    await seeded(merchant)
    async with world.worker():
        async with held_up(merchant) as blocker:
            report = await ask(merchant)
            await busy(blocker, 1)
            frozen = await world.transfer.freeze(merchant.number, Fence(2, 1, "m"), Freeze(0, 5_000))
            assert frozen.cancelled >= 1
            await busy(blocker, 0)
        await world.transfer.restore(merchant.number, Fence(2, 2, "m"), Restore(EPOCH + 1))
        await merchant.rows(  # that time passes at once; the worker may have put the report back already
            "UPDATE product.reports SET due = now(), lease = CASE WHEN status = 'running' THEN now() END"
            " WHERE tenant_id = $1"
        )
        owner = world.client(merchant.tenant_id, merchant.key, epoch=EPOCH + 1)
        async with asyncio.timeout(60):
            while (await owner.get(f"/v1/reports/{report}")).json()["status"] != "done":
                await asyncio.sleep(0.05)
    assert len(files(world)) == 1


@pytest.mark.parametrize("status", ["done", "running"])
async def test_a_report_that_moved_in_without_its_file_is_made_again_and_says_so(
    world: World, merchant: Merchant, status: str
) -> None:
    await seeded(merchant)
    report = await ask(merchant)
    moved = {
        "done": "status = 'done', blob = 'x', bytes = 1, digest = '\\x00', rows = 1, progress = 1, finished_at = now()",
        "running": "status = 'running', lease = now() + interval '1 hour'",
    }
    await merchant.rows(
        f"UPDATE product.reports SET attempt = 1, home = 'cell-9', {moved[status]} WHERE tenant_id = $1"
    )
    await merchant.rows("DELETE FROM cellwall.work WHERE tenant_id = $1")  # it is not copied
    async with world.worker():
        async with asyncio.timeout(60):
            while (await merchant.rows("SELECT home FROM product.reports WHERE tenant_id = $1"))[0]["home"] != CELL:
                await asyncio.sleep(0.02)
        found = await until(merchant, report, "done", "failed")
    assert found["status"] == "done"
    assert len(await lines(merchant, report)) == 2
    assert found["note"] == ("Made again: its file stayed in the cell before." if status == "done" else None)


async def test_a_report_that_moved_in_with_its_file_would_be_made_again(world: World, merchant: Merchant) -> None:
    await seeded(merchant)
    async with world.worker() as running:
        report = await ask(merchant)
        await until(merchant, report, "done")
        (file,) = files(world)
        await merchant.rows("UPDATE product.reports SET home = 'cell-9' WHERE tenant_id = $1")
        async with asyncio.timeout(60):
            while (await merchant.rows("SELECT home FROM product.reports WHERE tenant_id = $1"))[0]["home"] != CELL:
                await asyncio.sleep(0.02)
        assert files(world) == [file]
        assert len(await lines(merchant, report)) == 2
        assert [found.key async for found in running.files.all()] == [file]


async def test_a_result_whose_file_is_gone_is_made_again_and_says_so(world: World, merchant: Merchant) -> None:
    await seeded(merchant)
    async with world.worker() as running:
        report = await ask(merchant)
        await until(merchant, report, "done")
        await running.files.delete(files(world))
        answer = await merchant.owner.get(f"/v1/reports/{report}/result")
        assert answer.status_code == 409
        found = await until(merchant, report, "done")
    assert found["note"] == api.FILE_GONE
    assert len(await lines(merchant, report)) == 2


# -- the bulkhead -------------------------------------------------------------------------------------------------


async def test_one_tenant_has_one_report_made_at_a_time_and_the_cell_no_more_than_its_slots(
    world: World, merchant: Merchant
) -> None:
    shard = world.databases.shards.shard_of(merchant.number)
    tenants = [merchant]
    while len(tenants) < 4:  # all on one shard: the others must wait for its two connections
        other = await world.merchant()
        if world.databases.shards.shard_of(other.number) == shard:
            tenants.append(other)
    for tenant in tenants:
        await seeded(tenant, 1)
    async with held_up(merchant) as blocker, world.worker(), world.worker():  # two workers share the cell's slots
        reports = [(tenant, await ask(tenant)) for tenant in tenants for _ in range(2)]
        await busy(blocker, 2)
        running = await blocker.fetch(
            "SELECT tenant_id, count(*) AS n FROM product.reports WHERE status = 'running' GROUP BY 1"
        )
        assert [row["n"] for row in running] == [1, 1]
    async with world.worker():
        for tenant, report in reports:
            await until(tenant, report, "done")


async def test_requests_have_their_connections_while_reports_are_held_up(world: World, merchant: Merchant) -> None:
    await seeded(merchant)
    async with held_up(merchant) as blocker, world.worker():
        await ask(merchant)
        await busy(blocker, 1)
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(merchant.owner.get("/v1/products") for _ in range(12)))
        assert {answer.status_code for answer in answers} == {200}


async def test_a_viewer_reads_reports_and_asks_for_none(merchant: Merchant) -> None:
    viewer = await merchant.user(Role.VIEWER)
    assert (await viewer.get("/v1/reports")).status_code == 200
    assert (await viewer.post("/v1/reports", json={"kind": "sales-by-day", **YEAR})).status_code == 403


async def test_without_the_wall_nothing_holds_reports_back_and_observing_counts_them(
    world: World, merchant: Merchant
) -> None:
    shard, tenants = world.databases.shards.shard_of(merchant.number), [merchant]
    while len(tenants) < 3:
        other = await world.merchant()
        if world.databases.shards.shard_of(other.number) == shard:
            tenants.append(other)
    async with held_up(merchant) as blocker, world.worker(walls={"reports": "observe"}) as running:
        for tenant in tenants:
            await ask(tenant)

        async def all_at_once() -> bool:
            return running.bulkhead.running == len(tenants)

        await waits(all_at_once)
        assert await heavy(blocker) == 0  # they are on the connections that events need
        assert _figure(running, "cellwall_reports_observed_total") == 1.0
        assert _figure(running, "cellwall_reports_running") == 3.0


async def test_an_observed_queue_refuses_nobody_and_counts(merchant: Merchant) -> None:
    counted: list[int] = []
    wall = service.QueueWall(Enforcement.OBSERVE, lambda: counted.append(1))
    period = service.Period(NOW.date(), NOW.date())
    async with merchant.world.databases.shards.enter(merchant.context()) as session:
        for _ in range(service.QUEUED_MAX + 2):
            await service.ask(session, UUID(merchant.user_id), service.Kind.SALES_BY_DAY, period, wall)
    assert len(counted) == 2


# -- retention ----------------------------------------------------------------------------------------------------


async def test_old_reports_and_those_beyond_the_kept_ones_go_with_their_files(
    world: World, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.worker() as running:
        reports = [await ask(merchant) for _ in range(4)]
        for report in reports:
            await until(merchant, report, "done")
        assert len(files(world)) == 4
        await merchant.rows(
            "UPDATE product.reports SET finished_at = now() - $3::interval WHERE tenant_id = $1 AND report_id = $2",
            UUID(reports[0]),
            service.RETENTION + service.timedelta(days=1),
        )
        await waits(lambda: _left(world, 3))
        monkeypatch.setattr(service, "KEPT_MAX", 2)
        await waits(lambda: _left(world, 2))

        async def forgotten() -> bool:  # a file goes before the commit that forgets its report
            listed = (await merchant.owner.get("/v1/reports")).json()["items"]
            return [item["id"] for item in listed] == reports[:1:-1]

        await waits(forgotten)
        assert await public.tidy(running.files, running.shards, datetime.now(UTC)) == 0


async def _left(world: World, count: int) -> bool:
    return len(files(world)) == count


async def test_files_that_no_row_can_name_are_deleted_and_those_of_a_moved_tenant_are_kept(
    world: World, merchant: Merchant
) -> None:
    store, gone = blobs.opened(world.cell.blobs_url), await world.merchant()
    for tenant in (merchant, gone):
        async with store.writing(tenant.number, "reports/x-1.csv") as file:
            await file.write(b"x")
    await gone.rows("UPDATE cellwall.tenants SET state = 'gone' WHERE tenant_id = $1")
    await merchant.rows("UPDATE cellwall.tenants SET state = 'moved' WHERE tenant_id = $1")
    assert await public.tidy(store, world.databases.shards, datetime.now(UTC)) == 1
    assert files(world) == [f"{merchant.tenant_id}/reports/x-1.csv"]
    assert await public.tidy(store, world.databases.shards, datetime.now(UTC) + public.FORGOTTEN_AFTER) == 1
    assert files(world) == []


async def test_a_tenant_that_comes_back_while_its_old_files_are_deleted_keeps_those_that_its_move_counts_on(
    world: World,
) -> None:
    store, back = blobs.opened(world.cell.blobs_url), await world.merchant()
    for number in range(3):
        async with store.writing(back.number, f"reports/x-{number}.csv") as file:
            await file.write(b"x")
    await back.rows("UPDATE cellwall.tenants SET state = 'gone' WHERE tenant_id = $1")

    class Coming(blobs.Blobs):
        async def delete(self, keys: Any) -> None:
            await super().delete(keys)
            if keys:  # its move prepares, and looks what is there
                await back.rows("UPDATE cellwall.tenants SET state = 'importing' WHERE tenant_id = $1")

    assert await public.tidy(Coming(store._store), world.databases.shards, datetime.now(UTC)) == 1
    assert len(files(world)) == 2


def _figure(running: worker.Worker, name: str) -> float | None:
    return running.registry.get_sample_value(name)
