"""The transfer API's commands against each other: late, repeated, crossing, cut."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from cell.events.outbox import WORK_KIND
from cell.schema.operations import APP, TRANSFER, WALL
from cell.shards import errors, tables
from cell.shards.sql import prepare
from cell.transfer import fence as fences
from cell.transfer import locks, rows, rules
from cell.transfer.locks import Patience
from contracts import problems
from contracts.problems import ProblemError
from contracts.transfer import Abort, Activate, Checksum, Fence, Freeze, Prepare, Provision, Release, Restore
from tests.integration.cell.platform_parts.two_cells import (
    FREEZE,
    FUNCTIONS,
    SCHEMA,
    Cell,
    activated,
    context,
    create_owner,
    moved_in,
    next_tenant,
    pieces,
)

Cells = tuple[Cell, Cell]

ADD_EVENT = prepare(sa.insert(tables.outbox).values(
    tenant_id=sa.bindparam("tenant_id"), event_id=sa.bindparam("event_id"), type=sa.bindparam("type"),
    payload=sa.bindparam("payload"), relayed_at=sa.bindparam("relayed_at"),
))  # fmt: skip

ODD_ROWS = """
INSERT INTO cellwall.outbox (tenant_id, event_id, type, payload, created_at, finished_at) VALUES
  ($1, '00000000-0000-0000-0000-000000000000', '', 'null', '-infinity', 'infinity'),
  ($1, 'ffffffff-ffff-ffff-ffff-ffffffffffff', E'tab\\t nl\\n "q" \\\\ \\x01 ', '{"a": [1.10, "\\u00e9", {}]}',
   '0044-03-15 12:00:00.000001 BC', NULL),
  ($1, '00000000-0000-7000-8000-000000000001', repeat('ä€😀', 30000), '"x"', '2026-03-29 02:30:00+02', NULL);
"""
ODD_KEYS = """
INSERT INTO cellwall.idempotency (tenant_id, scope, key, fingerprint, status, body, expires_at) VALUES
  ($1, '', ' ', '', -32768, decode(repeat('00ff', 70000), 'hex'), 'infinity'),
  ($1, 'NULL', '\\N', '\\x5c4e', 32767, '', '-infinity');
"""
ODD_COUNTERS = """
INSERT INTO cellwall.counters (tenant_id, name, value) VALUES
  ($1, 'least', -9223372036854775808), ($1, 'most', 9223372036854775807), ($1, 'two', 2);
"""

GENERATED = f"""
CREATE TABLE product.generated (
  tenant_id bigint, id integer, cents bigint NOT NULL, doubled bigint GENERATED ALWAYS AS (cents * 2) STORED,
  note text NOT NULL, PRIMARY KEY (tenant_id, id)
);
ALTER TABLE product.generated ENABLE ROW LEVEL SECURITY;
ALTER TABLE product.generated FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_wall ON product.generated USING ({WALL}) WITH CHECK ({WALL});
GRANT SELECT, INSERT, UPDATE, DELETE ON product.generated TO {APP}, {TRANSFER};
"""


async def refused(problem: problems.Problem, command: object) -> str:
    """The detail with which the command is refused."""
    with pytest.raises(ProblemError) as error:
        await command  # type: ignore[misc]
    assert error.value.problem is problem, error.value
    return error.value.detail


async def test_odd_values_survive_a_move_and_a_difference_is_noticed(cells: Cells) -> None:
    source, target = cells
    tenant = await source.tenant()
    connection = await source.connect("cellwall_transfer")
    for statement in (ODD_ROWS, ODD_KEYS, ODD_COUNTERS):
        await connection.execute(statement.replace("$1", str(tenant)))
    await connection.close()
    await source.transfer.freeze(tenant, source.fence(), FREEZE)
    await moved_in(source, target, tenant, 2)
    before = await source.transfer.checksum(tenant, source.fence())
    after = await target.transfer.checksum(tenant, target.fence())
    assert before == after
    assert before.rows == 9
    assert set(before.tables) >= {"cellwall.outbox", "cellwall.idempotency", "product.orders", "product.users"}
    await target.as_owner("ALTER TABLE cellwall.counters NO FORCE ROW LEVEL SECURITY")
    await target.as_owner(f"UPDATE cellwall.counters SET value = 3 WHERE tenant_id = {tenant} AND name = 'two'")
    await target.as_owner("ALTER TABLE cellwall.counters FORCE ROW LEVEL SECURITY")
    changed = await target.transfer.checksum(tenant, target.fence())
    assert _differing(before, changed) == {"cellwall.counters"}


async def test_a_generated_column_in_a_tenant_table_would_stop_every_move(cells: Cells) -> None:
    source, target = cells
    tenant = await source.tenant()
    try:
        for cell in cells:
            await cell.as_owner(GENERATED)
        written = "INSERT INTO product.generated VALUES ($1, 1, 21, DEFAULT, 'a'), ($1, 2, -4, DEFAULT, 'b')"
        await source.fetch(written, tenant)
        await source.transfer.freeze(tenant, source.fence(), FREEZE)
        data = await source.stream(tenant)
        await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 2))
        await target.transfer.import_(tenant, target.fence(), pieces(data))
        before = await source.transfer.checksum(tenant, source.fence())
        after = await target.transfer.checksum(tenant, target.fence())
        assert before == after
        assert before.tables["product.generated"][0] == 2
        found = await target.fetch("SELECT * FROM product.generated WHERE tenant_id = $1 ORDER BY id", tenant)
        assert [tuple(row)[1:] for row in found] == [(1, 21, 42, "a"), (2, -4, -8, "b")]
    finally:
        for cell in cells:
            await cell.as_owner("DROP TABLE IF EXISTS product.generated")


async def test_a_checksum_that_depends_on_the_servers_settings_would_differ(cells: Cells) -> None:
    source, target = cells
    tenant = await source.frozen()
    await moved_in(source, target, tenant, 2)
    odd = "ALTER ROLE cellwall_transfer SET {} "
    connection = await target.connect("cellwall_transfer")
    await connection.execute("ALTER ROLE cellwall_transfer SET timezone = 'Asia/Kathmandu'")
    await connection.execute("ALTER ROLE cellwall_transfer SET datestyle = 'German'")
    try:
        for pool in target.transfer._pools.values():
            await pool.expire_connections()
        assert await source.transfer.checksum(tenant, source.fence()) == await target.transfer.checksum(
            tenant, target.fence()
        )
    finally:
        await connection.execute(odd.format("timezone = 'UTC'"))
        await connection.execute(odd.format("datestyle = 'ISO'"))
        await connection.close()


async def test_a_move_that_loses_the_way_back_would_be_one_way(cells: Cells) -> None:
    source, target = cells
    tenant = await source.tenant()
    await source.write(tenant, "before")
    await source.transfer.freeze(tenant, source.fence(), FREEZE)
    await activated(source, target, tenant, 2)
    await source.transfer.release(tenant, source.fence(), Release("hint"))
    with pytest.raises(errors.NotOursError):
        await source.names(tenant, 2)
    await target.write(tenant, "after", 2)
    # The same path backwards, into the home that still has the rows of before.
    await target.transfer.freeze(tenant, target.fence(), FREEZE)
    await activated(target, source, tenant, 3)
    assert await source.names(tenant, 3) == ["after", "before", "the owner"]
    assert await source.state(tenant) == ("active", 3)


async def test_a_retried_import_would_double_or_lose_rows(cells: Cells) -> None:
    source, target = cells
    tenant = await source.frozen()
    data = await source.stream(tenant)
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 2))
    fence = target.fence()
    first = await target.transfer.import_(tenant, fence, pieces(data))
    again = await target.transfer.import_(tenant, fence, pieces(b"", 1))  # the stored answer; the body is not needed
    assert first == again
    newer = await target.transfer.import_(tenant, target.fence(), pieces(data, 7))
    assert newer == first
    assert await target.rows(tenant) == first.rows == 1


async def test_an_import_that_arrives_after_activation_would_overwrite_new_writes(cells: Cells) -> None:
    source, target = cells
    tenant = await source.frozen()
    data = await source.stream(tenant)
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 2))
    late = target.fence()
    await target.transfer.import_(tenant, target.fence(), pieces(data))
    await target.transfer.activate(tenant, target.fence(), Activate(2))
    await target.write(tenant, "new", 2)
    await refused(problems.FENCED, target.transfer.import_(tenant, late, pieces(data)))
    await refused(problems.WRONG_STATE, target.transfer.import_(tenant, target.fence(), pieces(data)))
    assert await target.names(tenant, 2) == ["new", "the owner"]


async def test_an_import_overtaken_by_a_newer_command_would_still_commit(cells: Cells) -> None:
    source, target = cells
    tenant = await source.frozen()
    data = await source.stream(tenant)
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 2))
    reading, never = asyncio.Event(), asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield data[:-5]
        reading.set()
        await never.wait()
        yield data[-5:]

    slow = asyncio.create_task(target.transfer.import_(tenant, target.fence(), stalled()))
    await reading.wait()
    await target.transfer.abort(tenant, target.fence(), Abort(3))  # ends the import, which holds the lock
    never.set()
    with pytest.raises(Exception):  # noqa: B017 - its connection is gone, or its fence
        await slow
    assert await target.state(tenant) == ("aborted", 0)
    assert await target.rows(tenant) == 0


async def check_activate_and_abort_leave_one_owner(cells: Cells, rounds: int, patch: pytest.MonkeyPatch) -> None:
    """The commit point: whichever of the two comes first at the target wins, and the other knows that it lost."""
    source, target = cells
    exclusive = locks.exclusive

    async def patient(connection: Any, tenant: int, _: Patience, clock: Any, **more: Any) -> int:
        """Who comes second waits, however long the first one takes here, and does not end it."""
        return await exclusive(connection, tenant, Patience(60, 60), clock, **more)

    patch.setattr(locks, "exclusive", patient)
    for round_ in range(rounds):
        tenant = await source.frozen()
        await moved_in(source, target, tenant, 2)
        activate = target.transfer.activate(tenant, target.fence(), Activate(2))
        abort = target.transfer.abort(tenant, target.fence(), Abort(3))
        both = (activate, abort) if round_ % 2 else (abort, activate)
        outcomes = await asyncio.gather(*both, return_exceptions=True)
        failed = [o for o in outcomes if o is not None]
        assert len(failed) == 1, f"both or neither took effect: {outcomes}"
        assert isinstance(failed[0], ProblemError)
        state, epoch = await target.state(tenant)
        assert (state, epoch) in {("active", 2), ("aborted", 0)}
        if state == "aborted":  # the source may be put back: nothing can activate the target below 3 any more
            await source.transfer.restore(tenant, source.fence(), Restore(3))
            await refused(problems.WRONG_STATE, target.transfer.activate(tenant, target.fence(), Activate(2)))
        assert [(await c.state(tenant))[0] for c in cells].count("active") == 1


@pytest.mark.invariant(6)
async def test_activate_and_abort_at_once_would_leave_two_owners(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    await check_activate_and_abort_leave_one_owner(cells, 6, monkeypatch)


@pytest.mark.mutation(6)
async def test_without_compare_and_set_activate_and_abort_both_take_effect(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def whatever(connection: Any, tenant: int, fence: Fence, command: str) -> Any:
        row = await fences.read(connection, tenant)
        assert row is not None
        return row

    monkeypatch.setattr(fences, "_own", whatever)
    conditions = "term = $2 AND seq = $3 AND command = $4 AND state = $5"
    assert conditions in fences._SETTLE
    unconditional = fences._SETTLE.replace(conditions, "($2::bigint, $3::bigint, $4::text, $5::text) IS NOT NULL")
    monkeypatch.setattr(fences, "_SETTLE", unconditional)
    monkeypatch.setattr(rules, "is_newer", lambda *_: True)
    monkeypatch.setattr(rules, "check_activation", lambda *_: None)
    with pytest.raises(AssertionError, match="both or neither"):
        await check_activate_and_abort_leave_one_owner(cells, 1, monkeypatch)


async def test_an_abort_that_comes_first_must_stop_a_late_prepare_and_activation(cells: Cells) -> None:
    target = cells[1]
    tenant = next_tenant()
    late_prepare, late_activate = target.fence(), target.fence()
    await target.transfer.abort(tenant, target.fence(), Abort(5))
    await refused(problems.FENCED, target.transfer.prepare(tenant, late_prepare, Prepare(SCHEMA, 2)))
    await refused(problems.FENCED, target.transfer.activate(tenant, late_activate, Activate(2)))
    # Said at activation only, it would come after the decision and freeze the tenant for good.
    detail = await refused(problems.WRONG_STATE, target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 4)))
    assert detail == "epoch 4 is used up, 5 is the lowest"
    status = await target.transfer.status(tenant)
    assert (status.state, status.min_epoch) == ("aborted", 5)
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 5))
    await refused(problems.WRONG_STATE, target.transfer.activate(tenant, target.fence(), Activate(4)))
    await target.transfer.activate(tenant, target.fence(), Activate(5))


async def test_a_paused_old_leader_would_purge_what_was_put_back(cell: Cell) -> None:
    tenant = await cell.frozen()
    old_leader = cell.fence(term=1)
    await cell.transfer.restore(tenant, cell.fence(term=2), Restore(2))
    detail = await refused(problems.FENCED, cell.transfer.purge(tenant, old_leader))
    assert "restore at term 2" in detail
    assert await cell.names(tenant, 2) == ["the owner"]


async def test_one_fence_for_two_commands_is_refused(cell: Cell) -> None:
    tenant = await cell.tenant()
    fence = cell.fence()
    await cell.transfer.freeze(tenant, fence, FREEZE)
    await refused(problems.FENCED, cell.transfer.restore(tenant, fence, Restore(2)))
    await refused(problems.FENCED, cell.transfer.freeze(tenant, Fence(fence.term, fence.seq, "another"), FREEZE))


async def test_a_repeated_command_answers_as_the_first_did(cell: Cell) -> None:
    tenant = await cell.tenant()
    fence = cell.fence()
    first = await cell.transfer.freeze(tenant, fence, FREEZE)
    assert await cell.transfer.freeze(tenant, fence, FREEZE) == first
    for name, body in (("restore", Restore(2)), ("freeze", FREEZE), ("release", Release("hint"))):
        fence = cell.fence()
        for _ in range(2):
            await getattr(cell.transfer, name)(tenant, fence, body)
    fence = cell.fence()
    for _ in range(2):
        await cell.transfer.purge(tenant, fence)
    assert await cell.state(tenant) == ("gone", 2)
    assert await cell.rows(tenant) == 0


async def test_restore_and_activate_never_use_an_epoch_twice(cells: Cells) -> None:
    source, target = cells
    tenant = await source.frozen()
    await refused(problems.WRONG_STATE, source.transfer.restore(tenant, source.fence(), Restore(1)))
    await source.transfer.restore(tenant, source.fence(), Restore(2))
    await source.transfer.restore(tenant, source.fence(), Restore(2))  # a new leader says it again
    await refused(problems.WRONG_STATE, source.transfer.restore(tenant, source.fence(), Restore(1)))
    await source.transfer.freeze(tenant, source.fence(), FREEZE)
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 3))
    await refused(problems.WRONG_STATE, target.transfer.activate(tenant, target.fence(), Activate(2)))


async def test_commands_out_of_order_change_nothing(cell: Cell) -> None:
    tenant = await cell.tenant()
    for command in (
        cell.transfer.release(tenant, cell.fence(), Release("hint")),
        cell.transfer.purge(tenant, cell.fence()),
        cell.transfer.abort(tenant, cell.fence(), Abort(9)),
        cell.transfer.prepare(tenant, cell.fence(), Prepare(SCHEMA, 9)),
        cell.transfer.activate(tenant, cell.fence(), Activate(9)),
        cell.transfer.import_(tenant, cell.fence(), pieces(b"")),
        cell.transfer.export(tenant, cell.fence()),
        cell.transfer.checksum(tenant, cell.fence()),
        cell.transfer.provision(tenant, cell.fence(), Provision(2, "n", "e", "p")),
    ):
        await refused(problems.WRONG_STATE, command)
    assert await cell.state(tenant) == ("active", 1)
    assert await cell.names(tenant) == ["the owner"]
    await refused(problems.NOT_FOUND, cell.transfer.freeze(next_tenant(), cell.fence(), FREEZE))
    await refused(problems.SCHEMA_MISMATCH, cell.transfer.prepare(next_tenant(), cell.fence(), Prepare("s0", 9)))
    await refused(problems.INVALID, cell.transfer.release(tenant, cell.fence(), Release("a\r\nb: c")))


async def test_a_cut_or_foreign_stream_leaves_nothing(cells: Cells) -> None:
    source, target = cells
    tenant, other = await source.frozen(), await source.frozen()
    data, foreign = await source.stream(tenant), await source.stream(other)
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 2))
    for broken in (b"", b"x" * 100, data[:-1], data[: len(data) // 2], foreign):
        await refused(problems.INVALID, target.transfer.import_(tenant, target.fence(), pieces(broken)))
        assert await target.rows(tenant) == 0
    found = await target.fetch("SELECT 1 FROM cellwall.counters WHERE tenant_id = $1", other)
    assert not found


async def test_a_lost_answer_of_provision_would_leave_a_tenant_without_a_key(cell: Cell) -> None:
    tenant, fence = next_tenant(), cell.fence()
    body = Provision(1, "the owner", "o@example.test", "password")
    first = await cell.transfer.provision(tenant, fence, body)
    again = await cell.transfer.provision(tenant, fence, body)
    assert again.api_key != first.api_key
    assert await cell.rows(tenant) == 1
    await refused(problems.WRONG_STATE, cell.transfer.provision(tenant, cell.fence(), body))


async def test_a_provision_that_fails_leaves_no_half_tenant(cell: Cell) -> None:
    async def fails(*_: object) -> tuple[str, str]:
        raise ProblemError(problems.INVALID, "email: not an address")

    tenant = next_tenant()
    body = Provision(1, "the owner", "o@example.test", "password")
    cell.transfer._create_owner = fails
    await refused(problems.INVALID, cell.transfer.provision(tenant, cell.fence(), body))
    assert await cell.state(tenant) == ("gone", 0)
    cell.transfer._create_owner = create_owner
    await cell.transfer.provision(tenant, cell.fence(), body)
    assert await cell.state(tenant) == ("active", 1)


async def test_an_event_relayed_at_the_old_home_only_would_be_lost(cells: Cells) -> None:
    source, target = cells
    tenant = await source.tenant()
    async with source.shards.enter(context(tenant)) as session:
        event = {"event_id": uuid.UUID(int=5), "type": "t", "payload": {"a": 1}}
        await session.execute(ADD_EVENT, relayed_at=datetime.now(UTC), **event)
    await source.transfer.freeze(tenant, source.fence(), FREEZE)
    await activated(source, target, tenant, 2)
    (row,) = await target.fetch("SELECT relayed_at FROM cellwall.outbox WHERE tenant_id = $1", tenant)
    assert row["relayed_at"] is None
    assert await target.fetch("SELECT 1 FROM cellwall.work WHERE tenant_id = $1 AND kind = $2", tenant, WORK_KIND)


async def test_a_freeze_waits_softly_for_admitted_requests_and_admits_no_more(cell: Cell) -> None:
    tenant = await cell.tenant()
    assert cell.gate.admit(tenant)
    freezing = asyncio.create_task(cell.transfer.freeze(tenant, cell.fence(), Freeze(60_000, 5000)))
    async with asyncio.timeout(60):
        while cell.gate.admit(tenant):
            cell.gate.leave(tenant)
            await asyncio.sleep(0.005)
    await cell.write(tenant, "admitted before")  # the admitted request is not disturbed
    cell.gate.leave(tenant)
    assert (await freezing).cancelled == 0
    assert cell.gate.admit(tenant), "the gate is open again: the fence has taken over"
    cell.gate.leave(tenant)
    assert b"admitted before" in await cell.stream(tenant)


async def test_a_freeze_beyond_its_budget_leaves_the_tenant_served(cell: Cell) -> None:
    tenant = await cell.tenant()
    stubborn = await cell.connect("cellwall_transfer")
    # A holder that cannot be ended: the database's own superuser would be one; here, the freeze may end nobody.
    await cell.as_owner("CREATE OR REPLACE FUNCTION cellwall.end_holders(wanted bigint, terminate boolean)"
                        " RETURNS integer[] LANGUAGE sql VOLATILE AS $$ SELECT '{}'::integer[] $$")  # fmt: skip
    try:
        await stubborn.execute(f"BEGIN; SELECT pg_advisory_xact_lock_shared({tenant})")
        await refused(problems.FREEZE_BUSY, cell.transfer.freeze(tenant, cell.fence(), Freeze(0, 60)))
        assert await cell.names(tenant) == ["the owner"]
    finally:
        await cell.as_owner((FUNCTIONS / "end_holders.sql").read_text())
        await stubborn.close()


async def test_a_lock_that_nobody_may_end_is_named_and_does_not_protect_the_other_holders(
    cell: Cell, superuser: Any
) -> None:
    tenant = await cell.tenant()
    other = await cell.connect()
    for holder in (superuser, other):
        await holder.execute(f"BEGIN; SELECT cellwall.enter_tenant({tenant}, 1)")
    pid, role = await superuser.fetchrow("SELECT pg_backend_pid(), session_user")
    detail = await refused(problems.FREEZE_BUSY, cell.transfer.freeze(tenant, cell.fence(), Freeze(0, 1000)))
    assert f"held by pid {pid} ({role})" in detail
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await other.execute("SELECT 1")
    assert await cell.state(tenant) == ("active", 1)


async def test_a_tenant_that_a_freeze_never_took_would_wait_for_its_epoch_behind_a_lock(
    cell: Cell, superuser: Any
) -> None:
    tenant = await cell.tenant()
    await superuser.execute(f"BEGIN; SELECT cellwall.enter_tenant({tenant}, 1)")
    late = cell.fence()
    await refused(problems.FREEZE_BUSY, cell.transfer.freeze(tenant, cell.fence(), Freeze(0, 60)))
    fence = cell.fence()
    for _ in range(2):
        await cell.transfer.restore(tenant, fence, Restore(3))
    assert await cell.names(tenant, 3) == ["the owner"]
    with pytest.raises(errors.NotOursError):
        await cell.names(tenant, 1)
    await refused(problems.FENCED, cell.transfer.freeze(tenant, late, FREEZE))
    assert await cell.state(tenant) == ("active", 3)


async def test_the_list_names_every_tenant_with_its_fence(cell: Cell) -> None:
    tenant = await cell.frozen()
    (found,) = [t for t in await cell.transfer.tenants() if t.tenant == f"t{tenant}"]
    assert (found.state, found.epoch, found.shard, found.move) == ("frozen", 1, "cell-1", "move-1")
    assert found.rows is None


def _differing(one: Checksum, other: Checksum) -> set[str]:
    return {name for name in one.tables if one.tables[name] != other.tables[name]}


async def test_a_cell_that_knows_no_short_cut_could_not_read_a_table_without_rows(
    superuser: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    """What is sent for such a table is byte for byte what PostgreSQL sends."""
    sent = bytearray()

    async def put(data: bytes) -> None:
        sent.extend(data)

    await superuser.copy_from_query("SELECT 1 WHERE false", output=put, format="binary")
    assert bytes(sent) == rows.NO_ROWS
