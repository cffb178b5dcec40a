"""The interleavings that break a stream: late, doubled, cut, crossing, restarted, zombie, lost."""

import asyncio
from typing import Any

import asyncpg
import pytest

from cell.shards import errors
from cell.transfer import reader
from cell.vault import TenantKey
from contracts import ids, problems
from contracts.problems import ProblemError
from contracts.transfer import (
    Abort,
    Activate,
    ChangesQuery,
    CloseStream,
    Fence,
    Mark,
    OpenStream,
    Prepare,
    SnapshotQuery,
    Verified,
    stream_name,
)
from tests.integration.cell.platform_parts.two_cells import FREEZE, SCHEMA, context, next_tenant
from tests.integration.cell.transfer_large.large_world import MOVE, Large, copied, cut_over, drained, large, named

Cells = tuple[Large, Large]


async def refused(problem: problems.Problem, command: Any) -> str:
    """The detail with which the command is refused."""
    with pytest.raises(ProblemError) as error:
        await command
    assert error.value.problem is problem, error.value
    return error.value.detail


async def count(cell: Large, tenant: int) -> int:
    """Rows that `write` wrote, whatever the tenant's state."""
    rows = await cell.cell.fetch("SELECT count(*) AS n FROM cellwall.counters WHERE tenant_id = $1", tenant)
    return int(rows[0]["n"]) - 1  # the owner


# -- rule 1: late commands ----------------------------------------------------------------------------------------


async def test_a_batch_that_is_late_would_be_laid_over_what_a_user_wrote(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    await source.cell.write(tenant, "one")
    _, batch = await source.changes(tenant, stream.position)
    late = target.fence()
    await target.apply(tenant, batch)
    await source.transfer.freeze(tenant, source.fence(), FREEZE)
    await target.transfer.activate(tenant, target.fence(), Activate(2))
    await refused(problems.FENCED, target.streams.receivers.apply(tenant, late, batch))
    await refused(problems.WRONG_STATE, target.apply(tenant, batch))
    assert await target.cell.names(tenant, 2) == ["one", "the owner"]


async def test_a_batch_whose_answer_was_lost_would_be_applied_twice(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    await source.cell.write(tenant, "one")
    _, batch = await source.changes(tenant, stream.position)
    fence = target.fence()
    first = await target.streams.receivers.apply(tenant, fence, batch)
    assert await target.streams.receivers.apply(tenant, fence, batch) == first
    again = await target.apply(tenant, batch)  # a new leader does not know that it was applied
    assert (again.position, again.changes) == (first.position, 0)
    head, resent = await source.changes(tenant, stream.position)  # nor was the sender told
    assert head.changes == 1
    assert (await target.apply(tenant, resent)).changes == 0
    assert await count(target, tenant) == 1


async def test_a_batch_that_overtakes_another_would_leave_a_gap(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    await source.cell.write(tenant, "one")
    first, batch = await source.changes(tenant, stream.position)
    await source.cell.write(tenant, "two")
    _, following = await source.changes(tenant, first.position)
    await refused(problems.WRONG_STATE, target.apply(tenant, following))
    await target.apply(tenant, batch)
    await target.apply(tenant, following)
    assert await target.cell.fetch("SELECT FROM cellwall.stream_touched") == []
    assert await count(target, tenant) == 2


async def test_a_paused_leader_would_read_apply_or_close_after_a_newer_one(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    old = [source.fence() for _ in range(4)]
    stream = await copied(source, target, tenant)
    await source.streams.senders.open(tenant, source.fence(2), OpenStream(stream.stream))
    query = ChangesQuery(stream.stream, stream.position)
    await refused(problems.FENCED, source.streams.senders.changes(tenant, old[0], query))
    await refused(problems.FENCED, source.streams.close(tenant, old[1], stream.stream))
    await refused(problems.FENCED, source.streams.senders.marker(tenant, old[2], Mark(stream.stream, "m")))
    other = Fence(1, 10**9, "move-2")
    await refused(problems.FENCED, source.streams.senders.changes(tenant, other, query))
    assert await source.slots() == [stream.stream]


# -- rules 7 and 8: order -----------------------------------------------------------------------------------------


async def test_a_write_between_the_slot_and_the_copy_would_be_lost_or_doubled(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    await source.cell.write(tenant, "before")
    stream = await source.open(tenant)
    await source.cell.write(tenant, "between")
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 2))
    pieces = await source.streams.senders.snapshot(tenant, source.fence(), SnapshotQuery(stream.stream))
    await target.transfer.import_(tenant, target.fence(), pieces)
    assert await count(target, tenant) == 1
    marked = await source.mark(tenant, "m-1")
    await drained(source, target, tenant, stream.position, "m-1")
    assert await count(target, tenant) == 2
    assert marked.checksum == await target.checksum(tenant)


async def test_an_import_that_was_cut_could_not_be_repeated_from_the_same_snapshot(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await source.open(tenant)
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 2))

    async def cut() -> Any:
        pieces = await source.streams.senders.snapshot(tenant, source.fence(), SnapshotQuery(stream.stream))
        yield await anext(pieces)
        await pieces.aclose()  # type: ignore[attr-defined]

    await refused(problems.INVALID, target.transfer.import_(tenant, target.fence(), cut()))
    assert [s for s in await target.streams.receivers.list() if s.state == "receiving"] == []
    pieces = await source.streams.senders.snapshot(tenant, source.fence(), SnapshotQuery(stream.stream))
    await target.transfer.import_(tenant, target.fence(), pieces)
    _, batch = await source.changes(tenant, stream.position, wait_ms=0)
    await target.apply(tenant, batch)
    # The first read gave the snapshot up: what is copied now would not be what the stream continues.
    await refused(
        problems.STREAM_LOST, source.streams.senders.snapshot(tenant, source.fence(), SnapshotQuery(stream.stream))
    )


async def test_a_unique_value_that_passes_from_row_to_row_would_break_the_apply(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    table = "CREATE UNIQUE INDEX counters_swap ON cellwall.counters (tenant_id, value) WHERE value > 1000"
    try:
        for cell in cells:
            await cell.cell.as_owner(table)
        insert = "INSERT INTO cellwall.counters (tenant_id, name, value) VALUES ($1, 'a', 1001), ($1, 'b', 1002)"
        await source.cell.fetch(insert, tenant)
        stream = await copied(source, target, tenant)
        for name, value in (("a", 1003), ("b", 1001), ("a", 1002)):  # swapped, by way of a third value
            update = "UPDATE cellwall.counters SET value = $2 WHERE tenant_id = $1 AND name = $3"
            await source.cell.fetch(update, tenant, value, name)
        marked = await source.mark(tenant, "m-1")
        await drained(source, target, tenant, stream.position, "m-1")
        assert marked.checksum == await target.checksum(tenant)
    finally:
        for cell in cells:
            await cell.cell.as_owner("DROP INDEX IF EXISTS cellwall.counters_swap")


async def test_a_large_value_that_an_update_left_alone_would_be_lost(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    insert = (
        "INSERT INTO cellwall.idempotency (tenant_id, scope, key, fingerprint, status, body, expires_at)"
        " SELECT $1, 's', k::text, '', 200, decode(string_agg(md5(random()::text || k), ''), 'hex'), 'infinity'"
        " FROM generate_series(1, 2) k, generate_series(1, 3000) g GROUP BY k"
    )
    await source.cell.fetch(insert, tenant)
    stream = await copied(source, target, tenant)
    await source.cell.fetch("UPDATE cellwall.idempotency SET status = 201 WHERE tenant_id = $1", tenant)
    await source.cell.fetch("UPDATE cellwall.idempotency SET key = '3' WHERE tenant_id = $1 AND key = '2'", tenant)
    marked = await source.mark(tenant, "m-1")
    await drained(source, target, tenant, stream.position, "m-1")
    assert marked.checksum == await target.checksum(tenant)


async def test_an_update_of_a_row_that_is_missing_would_pass_for_an_insert(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    await source.cell.write(tenant, "one")
    stream = await copied(source, target, tenant)
    await target.cell.fetch("DELETE FROM cellwall.counters WHERE tenant_id = $1 AND name = 'one'", tenant)
    await source.cell.fetch("UPDATE cellwall.counters SET value = 9 WHERE tenant_id = $1 AND name = 'one'", tenant)
    _, batch = await source.changes(tenant, stream.position)
    assert "found 0 of 1 rows" in await refused(problems.CONFLICT, target.apply(tenant, batch))
    assert await count(target, tenant) == 0


async def test_a_cascade_would_happen_at_both_ends(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    event = "00000000-0000-7000-8000-000000000001"
    await source.cell.fetch(
        "INSERT INTO cellwall.outbox (tenant_id, event_id, type, payload) VALUES ($1, $2, 't', '{}')", tenant, event
    )
    await source.cell.fetch(
        "INSERT INTO cellwall.inbox (tenant_id, consumer, event_id) VALUES ($1, 'c', $2)", tenant, event
    )
    stream = await copied(source, target, tenant)
    await source.cell.fetch("DELETE FROM cellwall.outbox WHERE tenant_id = $1", tenant)
    marked = await source.mark(tenant, "m-1")
    await drained(source, target, tenant, stream.position, "m-1")
    assert marked.checksum == await target.checksum(tenant)
    assert await target.cell.fetch("SELECT FROM cellwall.inbox WHERE tenant_id = $1", tenant) == []


async def test_the_changes_of_a_neighbour_would_travel_with_a_tenant(cells: Cells) -> None:
    source, target = cells
    tenant, neighbour = await source.cell.tenant(), await source.cell.tenant()
    stream = await copied(source, target, tenant)
    await source.cell.write(neighbour, "theirs")
    await source.cell.write(tenant, "ours")
    head, batch = await source.changes(tenant, stream.position)
    assert head.changes == 1
    await target.apply(tenant, batch)
    # A batch that says another tenant's name is refused whatever the stream is called.
    forged = batch.replace(str(tenant).encode(), str(neighbour).encode())
    await refused(problems.INVALID, target.apply(tenant, forged))
    assert await target.cell.fetch("SELECT FROM cellwall.counters WHERE tenant_id = $1", neighbour) == []


# -- rule 9: markers ----------------------------------------------------------------------------------------------


async def test_a_checksum_at_a_position_would_miss_commits_beside_it(cells: Cells) -> None:
    """Under sustained writes every marker's checksum is exactly what the target has when it stops there."""
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    position, stop = stream.position, asyncio.Event()

    async def write(writer: int) -> int:
        written = 0
        while not stop.is_set():
            await source.cell.write(tenant, f"{writer}-{written}")
            written += 1
        return written

    writers = [asyncio.create_task(write(n)) for n in range(3)]
    try:
        for number in range(5):
            name = f"m-{number}"
            marking = asyncio.create_task(source.mark(tenant, name, budget_ms=20_000))
            applied = await drained(source, target, tenant, position, name)
            position = applied.position
            assert (await marking).checksum == await target.checksum(tenant)
    finally:
        stop.set()
        written = sum(await asyncio.gather(*writers))
    await source.freeze(tenant, "end")
    await drained(source, target, tenant, position, "end")
    assert await count(target, tenant) == written


async def test_a_marker_behind_a_slow_report_would_make_every_request_look_frozen(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cell.shards.session.LOCK_PATIENCE_S", 0.15)  # half of the marker's: the server may be late
    source, _ = cells
    tenant = await source.cell.tenant()
    await source.open(tenant)
    async with source.cell.shards.enter(context(tenant)):  # a report that takes its time
        marking = asyncio.create_task(source.mark(tenant, "m-1", budget_ms=300))
        for number in range(20):
            await source.cell.write(tenant, f"w-{number}")
        await refused(problems.FREEZE_BUSY, marking)
    marked = await source.mark(tenant, "m-2")
    assert marked.checksum is not None
    assert marked.checksum.tables["cellwall.counters"][0] == 21


async def test_a_target_that_did_not_stop_at_the_marker_would_count_as_verified(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    await source.mark(tenant, "m-1")
    applied = await drained(source, target, tenant, stream.position, "m-1")
    await source.cell.write(tenant, "later")
    _, batch = await source.changes(tenant, applied.position)
    await target.apply(tenant, batch)
    verified = Verified(named(tenant), "m-1")
    await refused(problems.WRONG_STATE, target.streams.receivers.verified(tenant, target.fence(), verified))
    assert not (await target.remainder(tenant)).complete


# -- the remainder ------------------------------------------------------------------------------------------------


async def test_a_difference_among_the_changes_after_the_marker_would_go_unseen(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    for name in ("kept", "gone", "changed"):
        await source.cell.write(tenant, name)
    stream = await copied(source, target, tenant)
    await source.mark(tenant, "m-1")
    applied = await drained(source, target, tenant, stream.position, "m-1")
    await target.verify(tenant, "m-1")
    await source.cell.write(tenant, "new")
    await source.cell.fetch("DELETE FROM cellwall.counters WHERE tenant_id = $1 AND name = 'gone'", tenant)
    await source.cell.fetch("UPDATE cellwall.counters SET value = 5 WHERE tenant_id = $1 AND name = 'changed'", tenant)
    await source.freeze(tenant, "end")
    await drained(source, target, tenant, applied.position, "end")
    theirs = await target.remainder(tenant)
    assert theirs.complete
    assert theirs.tables == {"cellwall.counters": [["changed"], ["gone"], ["new"]]}
    assert theirs.checksum.rows == 2
    assert (await source.remainder(tenant, theirs.tables)).checksum == theirs.checksum
    await target.cell.fetch("UPDATE cellwall.counters SET value = 6 WHERE tenant_id = $1 AND name = 'changed'", tenant)
    assert (await target.remainder(tenant, theirs.tables)).checksum != theirs.checksum
    await refused(problems.INVALID, source.remainder(tenant, {"cellwall.tenants": [["1"]]}))


async def test_more_keys_than_are_remembered_would_pass_for_all_of_them(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cell.transfer.progress.REMAINDER_KEYS_MAX", 2)
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    await source.mark(tenant, "m-1")
    applied = await drained(source, target, tenant, stream.position, "m-1")
    await target.verify(tenant, "m-1")
    for number in range(3):
        await source.cell.write(tenant, f"w-{number}")
    await source.freeze(tenant, "end")
    applied = await drained(source, target, tenant, applied.position, "end")
    assert applied.touched == 3
    assert not (await target.remainder(tenant)).complete


# -- rule 10: slots -----------------------------------------------------------------------------------------------


async def test_a_process_that_died_would_take_the_stream_with_it(cells: Cells, tmp_path: Any) -> None:
    """The slot stays; another process ends the zombie and reads on from where the receiver stands."""
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    await source.cell.write(tenant, "one")
    _, batch = await source.changes(tenant, stream.position)
    applied = await target.apply(tenant, batch)
    await source.cell.write(tenant, "two")
    async with large(source.cell, tmp_path / "other") as successor:  # while the first still holds the slot
        _, batch = await successor.changes(tenant, applied.position)
        applied = await target.apply(tenant, batch)
        assert await count(target, tenant) == 2
    await source.cell.write(tenant, "three")
    async with asyncio.timeout(60):  # the first finds its connection ended, then reads on
        while await count(target, tenant) < 3:
            try:
                _, batch = await source.changes(tenant, applied.position)
            except ProblemError as e:
                if e.problem is not problems.SHARD_UNAVAILABLE:
                    raise
                continue
            applied = await target.apply(tenant, batch)


async def test_a_stream_that_was_opened_anew_would_be_continued_with_a_gap(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    await source.cell.write(tenant, "lost")
    again = await source.open(tenant)
    assert again.position > stream.position
    await refused(problems.STREAM_LOST, source.changes(tenant, stream.position))


async def test_an_opening_whose_answer_was_lost_would_lose_its_snapshot(cells: Cells) -> None:
    source, _ = cells
    tenant = await source.cell.tenant()
    fence, body = source.fence(), OpenStream(named(tenant))
    first = await source.streams.senders.open(tenant, fence, body)
    assert await source.streams.senders.open(tenant, fence, body) == first
    assert [s.state for s in await source.streams.list()] == ["snapshot"]


async def test_a_slot_would_wait_for_ever_for_an_old_writer(cells: Cells) -> None:
    source, _ = cells
    tenant = await source.cell.tenant()
    writer = await source.cell.connect("cellwall_transfer")
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("SELECT pg_current_xact_id()")
    body = OpenStream(named(tenant), budget_ms=1000)
    await refused(problems.FREEZE_BUSY, source.streams.senders.open(tenant, source.fence(), body))
    await transaction.rollback()
    await writer.close()
    await source.open(tenant)


async def test_a_slot_that_the_server_gave_up_would_be_read_with_a_gap(cells: Cells, cell_databases: Any) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    admin = await asyncpg.connect(min(cell_databases.admin_dsns.items())[1], database="shard")
    try:
        await admin.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        await admin.execute("SELECT pg_reload_conf()")
        await source.streams.shut()
        async with asyncio.timeout(60):
            while (await source.streams.list())[0].state != "lost":
                # 4 MB segments: switched until the slot's own is removed.
                await admin.execute("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 4000000))")
                await admin.execute("SELECT pg_switch_wal()")
                await admin.execute("CHECKPOINT")
        await refused(problems.STREAM_LOST, source.changes(tenant, stream.position))
    finally:
        await admin.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        await admin.execute("SELECT pg_reload_conf()")
        await admin.close()


async def test_a_change_that_came_by_a_stream_would_go_back_by_the_other(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    back = await target.open(tenant, "back")
    await source.cell.write(tenant, "forward")
    _, batch = await source.changes(tenant, stream.position)
    await target.apply(tenant, batch)
    head, _ = await target.changes(tenant, back.position, "back", wait_ms=300)
    assert head.changes == 0


async def test_an_idle_tenant_would_keep_the_log_of_its_busy_neighbours(cells: Cells) -> None:
    source, target = cells
    tenant, neighbour = await source.cell.tenant(), await source.cell.tenant()
    stream = await copied(source, target, tenant)
    position = stream.position
    async with asyncio.timeout(60):
        while position < stream.position + 10_000:
            await source.cell.write(neighbour, f"w-{position}-{asyncio.get_running_loop().time()}")
            head, batch = await source.changes(tenant, position, wait_ms=20)
            assert head.changes == 0
            position = (await target.apply(tenant, batch)).position
    (status,) = [s for s in await source.streams.senders.list() if s.stream == stream.stream]
    assert status.position >= stream.position


# -- rules 11 and 12, and what stands in the way ------------------------------------------------------------------


async def test_a_table_without_a_primary_key_would_be_found_when_the_application_breaks(cells: Cells) -> None:
    source, _ = cells
    tenant = await source.cell.tenant()
    try:
        await source.cell.as_owner(
            "CREATE TABLE product.keyless (tenant_id bigint);"
            " ALTER TABLE product.keyless ENABLE ROW LEVEL SECURITY;"
            " ALTER TABLE product.keyless FORCE ROW LEVEL SECURITY;"
            " GRANT SELECT ON product.keyless TO cellwall_transfer"
        )
        assert "product.keyless" in await refused(problems.NOT_REPLICABLE, source.open(tenant))
        assert "product.keyless" in (await source.streams.preflight(tenant)).obstacles[0]
        assert await source.publications() == []
    finally:
        await source.cell.as_owner("DROP TABLE product.keyless")


async def test_the_application_could_publish_the_rows_of_a_tenant(cells: Cells) -> None:
    source, _ = cells
    connection = await source.cell.connect()
    try:
        for statement in (
            "SELECT cellwall.open_publication('cellwall_t1_m1_out', 1)",
            "SELECT cellwall.close_publication('cellwall_t1_m1_out')",
            "SET session_replication_role = 'replica'",
            "CREATE PUBLICATION all_of_it FOR TABLE cellwall.counters",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()
    transfer = await source.cell.connect("cellwall_transfer")
    try:
        for name in ("all_of_it", "cellwall_t2_m1_out", "cellwall_t1_m1_out; DROP TABLE x", "cellwall_t1_m1_out\n"):
            with pytest.raises(asyncpg.InvalidParameterValueError):
                await transfer.execute("SELECT cellwall.open_publication($1, 1)", name)
    finally:
        await transfer.close()


async def test_a_stream_of_another_tenant_would_be_opened_read_or_closed(cells: Cells) -> None:
    source, target = cells
    tenant, other = await source.cell.tenant(), await source.cell.tenant()
    stream = named(other)
    senders, fence = source.streams.senders, source.fence()
    await refused(problems.INVALID, senders.open(tenant, fence, OpenStream(stream)))
    await refused(problems.INVALID, senders.changes(tenant, fence, ChangesQuery(stream, 0)))
    await refused(problems.INVALID, senders.marker(tenant, fence, Mark(stream, "m")))
    await refused(problems.INVALID, source.streams.close(tenant, fence, CloseStream(stream).stream))
    await refused(problems.INVALID, senders.snapshot(tenant, fence, SnapshotQuery("postgres")))
    await refused(problems.STREAM_LOST, target_changes(source, tenant))
    assert await target.slots() == []


async def target_changes(source: Large, tenant: int) -> Any:
    """Changes of a stream that nobody opened."""
    return await source.changes(tenant, 0)


# -- standby and leftovers ----------------------------------------------------------------------------------------


async def test_a_standby_would_serve_or_be_emptied_by_a_rollback_that_was_given_up(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    back = await cut_over(source, target, tenant, stream.position, 2)
    with pytest.raises(errors.NotOursError):
        await source.cell.write(tenant, "at the standby")
    await source.transfer.abort(tenant, source.fence(), Abort(4))
    assert await source.cell.state(tenant) == ("standby", 1)
    assert await count(source, tenant) == 0
    await refused(problems.WRONG_STATE, source.transfer.activate(tenant, source.fence(), Activate(3)))
    await target.cell.write(tenant, "after", 2)
    _, batch = await target.changes(tenant, back.position, "back")
    await source.apply(tenant, batch)
    assert await count(source, tenant) == 1
    await source.standby(tenant, back)  # a newer leader says it again: the progress stays
    (status,) = [s for s in await source.streams.receivers.list() if s.state == "receiving"]
    assert status.position > back.position
    await source.close(tenant, "back")
    await source.transfer.purge(tenant, source.fence())
    assert await source.cell.rows(tenant) == 0


async def test_a_late_prepare_would_empty_a_standby(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    await cut_over(source, target, tenant, stream.position, 2)
    await refused(problems.WRONG_STATE, source.transfer.prepare(tenant, source.fence(), Prepare(SCHEMA, 9)))


async def test_leftovers_would_stay_for_ever(cells: Cells) -> None:
    source, target = cells
    unknown = next_tenant()
    name = stream_name(ids.tenant_of(unknown), MOVE, "out")
    await source.cell.fetch("SELECT cellwall.open_publication($1, $2)", name, unknown)
    await target.cell.fetch("SELECT pg_replication_origin_create($1)", name)
    tenant = await source.cell.tenant()
    await copied(source, target, tenant)
    states = {(s.stream, s.role): s.state for s in await source.streams.list() + await target.streams.list()}
    assert states == {
        (name, "sender"): "unpublished",
        (name, "receiver"): "unpublished",
        (named(tenant), "sender"): "snapshot",
        (named(tenant), "receiver"): "receiving",
    }
    for cell in cells:
        await cell.streams.close(unknown, cell.fence(), name)
        await cell.close(tenant)
        await cell.close(tenant)  # repeatable
        assert await cell.streams.list() == []


async def test_a_transaction_that_is_too_large_to_carry_would_fill_the_memory(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "TRANSACTION_BYTES_MAX", 10_000)
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    await source.cell.fetch(
        "INSERT INTO cellwall.counters (tenant_id, name, value) SELECT $1, 'n' || g, g FROM generate_series(1, 1000) g",
        tenant,
    )
    detail = await refused(problems.SHARD_UNAVAILABLE, source.changes(tenant, stream.position))
    assert "10000 bytes" in detail


async def test_more_than_fits_in_memory_would_be_read_ahead(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "AHEAD_BYTES_MAX", 2_000)
    source, target = cells
    tenant = await source.cell.tenant()
    stream = await copied(source, target, tenant)
    for number in range(60):
        await source.cell.write(tenant, f"name-{number}-{'x' * 50}")
    marked = await source.mark(tenant, "m-1")
    position = stream.position
    while True:
        head, batch = await source.changes(tenant, position, max_bytes=500)
        assert head.bytes < 4_000
        position = (await target.apply(tenant, batch)).position
        if head.marker:
            break
    assert marked.checksum == await target.checksum(tenant)


# -- secrets --------------------------------------------------------------------------------------------------------


async def _key(cell: Large, tenant: int) -> bytes | None:
    connection = await cell.cell.connect("cellwall_transfer")
    try:
        return await cell.cell.vault.unwrapped(connection, tenant)
    finally:
        await connection.close()


async def test_a_secret_that_is_sealed_while_its_tenant_is_copied_could_not_be_opened_there(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    assert await _key(source, tenant) is None
    await copied(source, target, tenant)
    async with source.cell.shards.enter(context(tenant)) as session:
        sealed = (await source.cell.vault.key(session)).seal("things.secret/1", b"the secret")
    brought = await _key(target, tenant)
    assert brought is not None
    assert TenantKey(tenant, brought).open("things.secret/1", sealed) == b"the secret"


async def test_the_wrapped_key_of_one_cell_would_be_streamed_to_the_other(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    await copied(source, target, tenant)
    query = "SELECT tablename FROM pg_publication_tables WHERE pubname = $1"
    tables = {row["tablename"] for row in await source.cell.fetch(query, named(tenant))}
    assert "counters" in tables
    assert "tenant_keys" not in tables
