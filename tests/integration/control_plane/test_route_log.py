"""The route log under concurrency, across restarts, and as routers read it."""

import asyncio
import contextlib
from time import monotonic

import pytest

from contracts import routes
from control_plane.models import TENANT_STATES
from control_plane.routes import Cursor, forget_superseded, publish
from tests.integration.control_plane.plane_world import Plane


class AbandonedError(Exception):
    """A publisher that rolls back."""


async def _publish(plane: Plane, *records: routes.Record) -> int:
    async with plane.engine.begin() as conn:
        return await publish(conn, records)


async def test_concurrent_publishers_leave_no_gap_and_readers_miss_nothing(plane: Plane) -> None:
    header, _ = await plane.log()
    last = header.revision + 20 * 5 * 2

    async def publisher(number: int) -> None:
        for turn in range(5):
            tenant = f"t{number * 100 + turn + 1}"
            with contextlib.suppress(AbandonedError):
                async with plane.engine.begin() as conn:
                    await publish(conn, [routes.Gone(tenant)])
                    raise AbandonedError
            await _publish(plane, routes.Gone(tenant), routes.Route(tenant, (f"{tenant}.x",), "cell-1", 1, "free"))

    async def reader() -> list[int]:
        seen: list[int] = []
        at = Cursor(header.log_id, header.revision)
        while at.revision < last:
            batch = await plane.services.route_log.poll(at, 10)
            assert batch.after == at.revision
            seen += [r.revision for r in batch.records]
            at = batch.cursor
        return seen

    reading = asyncio.create_task(reader())
    await asyncio.gather(*(publisher(n) for n in range(20)))
    assert await reading == list(range(header.revision + 1, last + 1))


async def test_a_long_poll_does_not_sleep_through_a_change(plane: Plane) -> None:
    header, _ = await plane.log()
    waiting = asyncio.create_task(plane.services.route_log.poll(Cursor(header.log_id, header.revision), 100))
    while not (await plane.rows("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%' LIMIT 1")):
        await asyncio.sleep(0)
    began = monotonic()
    revision = await _publish(plane, routes.Gone("t1"))
    assert (await waiting).records == (routes.Gone("t1", revision),)
    assert monotonic() - began < 60, "it slept to the end of its time"


async def test_a_change_made_while_the_control_plane_was_down_is_not_missed(plane: Plane) -> None:
    header, _ = await plane.log()
    plane.restart()
    waiting = asyncio.create_task(plane.services.route_log.poll(Cursor(header.log_id, header.revision), 100))
    await asyncio.sleep(0)
    await _publish(plane, routes.Gone("t1"))
    plane.listen()
    began = monotonic()
    assert (await waiting).cursor.revision == header.revision + 1
    assert monotonic() - began < 60, "it slept to the end of its time"


async def test_a_stopping_control_plane_does_not_hold_its_routers(plane: Plane) -> None:
    header, _ = await plane.log()
    waiting = asyncio.create_task(plane.services.route_log.poll(Cursor(header.log_id, header.revision), 100))
    await asyncio.sleep(0)
    plane.services.signals.close()
    batch = await asyncio.wait_for(waiting, 60)
    assert (batch.after, batch.records) == (header.revision, ())


async def test_an_expired_poll_says_that_nothing_changed(plane: Plane) -> None:
    header, _ = await plane.log()
    path = f"/v1/routes?log={header.log_id}&after={header.revision}&wait_s=0.01"
    answer = await plane.call("GET", path, role="router")
    assert answer.headers["content-type"] == routes.CONTENT_TYPE
    assert routes.decode(answer.content.splitlines()) == (
        routes.Header(header.log_id, header.revision, "changes", header.revision),
        [],
    )


@pytest.mark.parametrize("cursor", ["log=another&after=1", "log={log}&after=999999", ""])
async def test_a_router_with_no_usable_cursor_is_not_left_with_a_partial_table(plane: Plane, cursor: str) -> None:
    header, records = await plane.log()
    answer = await plane.call("GET", f"/v1/routes?{cursor.format(log=header.log_id)}", role="router")
    assert routes.decode(answer.content.splitlines()) == (header, records)
    assert header.content == "snapshot"
    assert {r.plan for r in records if isinstance(r, routes.Plan)} == {"free", "standard", "business", "throttled"}
    assert {r.cell for r in records if isinstance(r, routes.Cell)} == {"cell-1", "cell-2"}


async def test_a_deleted_tenant_is_a_tombstone_in_changes_and_absent_from_snapshots(plane: Plane) -> None:
    before = await _publish(plane, routes.Route("t1", ("a.x",), "cell-1", 1, "free"))
    header, _ = await plane.log()
    gone = await _publish(plane, routes.Gone("t1"))
    batch = await plane.services.route_log.poll(Cursor(header.log_id, before), 0)
    assert batch.records == (routes.Gone("t1", gone),)
    assert "a.x" not in await plane.routed()


async def test_forgetting_old_records_never_cuts_what_a_late_router_needs(plane: Plane) -> None:
    header, _ = await plane.log()
    route = routes.Route("t1", ("a.x",), "cell-1", 1, "free")
    await _publish(plane, route, routes.Route("t2", ("b.x",), "cell-1", 1, "free"))
    last = await _publish(plane, routes.Gone("t2"), routes.Route("t1", ("a.x",), "cell-2", 2, "free"))
    async with plane.engine.begin() as conn:
        assert await forget_superseded(conn, 0) == 2
    batch = await plane.services.route_log.poll(Cursor(header.log_id, header.revision), 0)
    assert batch.records == (
        routes.Gone("t2", last - 1),
        routes.Route("t1", ("a.x",), "cell-2", 2, "free", revision=last),
    )


async def test_a_lagging_router_is_named_and_one_that_caught_up_wakes_the_waiter(plane: Plane) -> None:
    header, _ = await plane.log()
    revision = await _publish(plane, routes.Gone("t1"))
    log = plane.services.route_log
    path = "/v1/routes?router={}&log={}&after={}&applied={}&wait_s=0.01"
    for router, applied in (("router-1", header.revision), ("router-2", revision)):
        await plane.call("GET", path.format(router, header.log_id, applied, applied), role="router")
    await plane.rows("UPDATE routers SET live_until = live_until + interval '1 hour'")  # however slow the machine
    assert await log.wait_applied(revision, 0.05) == ["router-1"]
    waiting = asyncio.create_task(log.wait_applied(revision, 100))
    await asyncio.sleep(0)
    began = monotonic()
    await log.renew("router-1", Cursor(header.log_id, revision), 3600)
    assert await waiting == []
    assert monotonic() - began < 60, "it slept to the end of its time"
    shown = (await plane.call("GET", "/v1/routers", role="viewer")).json()["routers"]
    assert [(r["name"], r["revision"], r["live"]) for r in shown] == [
        ("router-1", revision, True),
        ("router-2", revision, True),
    ]


async def test_a_dead_router_or_one_on_another_log_is_counted_right(plane: Plane) -> None:
    revision = await _publish(plane, routes.Gone("t1"))
    log = plane.services.route_log
    await log.renew("dead", Cursor("x", 0), 1)
    await plane.rows("UPDATE routers SET live_until = clock_timestamp() - interval '1 second'")
    await log.renew("restored", Cursor("another-log", revision + 100), 1)
    assert await log.wait_applied(revision, 0.05) == ["restored"]


async def test_states_in_the_database_are_the_states_in_the_code(plane: Plane) -> None:
    with pytest.raises(Exception, match="ck_cells_state"):
        await plane.rows("UPDATE cells SET state = 'invented'")
    assert "invented" not in TENANT_STATES
