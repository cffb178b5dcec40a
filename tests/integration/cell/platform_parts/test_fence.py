"""The fence, and the wall behind it: `enter_tenant` against a freeze in every order, old epochs, a missing WHERE.

Each check is a function, so that the same check that must pass must also fail once its guard is taken away.
"""

import asyncio
import itertools
import math
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from cell.shards import errors, tables
from cell.shards.session import LOCK_PATIENCE_S, Shards
from cell.shards.sql import prepare
from cell.transfer import locks
from cell.transfer.locks import Patience
from contracts.transfer import Freeze, Release, Restore
from tests.integration.cell.platform_parts.two_cells import ADD_COUNTER, COUNTERS, FREEZE, Cell, Mutate, context

SLEEP = prepare(sa.select(sa.func.pg_sleep(60)))
EVERYTHING = prepare(sa.select(tables.counters.c.tenant_id))

# The request's statement is under way, its snapshot taken, and waits for the test before it enters the tenant.
_ENTER_LATE = "SELECT cellwall.enter_tenant($1, 1) FROM (SELECT pg_advisory_xact_lock($2) OFFSET 0) waited"


async def check_acknowledged_write_is_exported(cell: Cell) -> None:
    """Race 1: a request entered before the freeze and commits after it. Ended by the freeze, or part of the export."""
    tenant = await cell.tenant()
    exported, acknowledged = b"", False
    with suppress(errors.ShardError):
        async with cell.shards.enter(context(tenant)) as session:
            await session.execute(ADD_COUNTER, name="late", value=1)
            await cell.transfer.freeze(tenant, cell.fence(), FREEZE)
            exported = await cell.stream(tenant)
        acknowledged = True
    assert exported
    assert not acknowledged or b"late" in exported, "an acknowledged write is not in the export"


async def check_statement_begun_before_a_freeze_is_refused(cell: Cell) -> None:
    """Race 2: the request's statement is older than the freeze, and enters after it."""
    tenant = await cell.tenant()
    gate = tenant + 10**15
    holder, request = await cell.connect(), await cell.connect()
    try:
        await holder.execute("SELECT pg_advisory_lock($1)", gate)
        entering = asyncio.create_task(request.fetchval(_ENTER_LATE, tenant, gate))
        await cell.waits_for_lock(gate)
        await cell.transfer.freeze(tenant, cell.fence(), FREEZE)
        await holder.execute("SELECT pg_advisory_unlock($1)", gate)
        with pytest.raises(asyncpg.PostgresError) as refused:
            await entering
        assert refused.value.sqlstate == "CW503"
    finally:
        await holder.close()
        await request.close()


async def check_old_snapshot_is_refused(cell: Cell) -> None:
    """Race 2 again, with the snapshot of a whole transaction: REPEATABLE READ."""
    tenant = await cell.tenant()
    request = await cell.connect()
    try:
        await request.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM cellwall.work")
        await cell.transfer.freeze(tenant, cell.fence(), FREEZE)
        with pytest.raises(asyncpg.PostgresError) as refused:
            await request.execute(f"SELECT cellwall.enter_tenant({tenant}, 1)")
        assert refused.value.sqlstate in {"CW500", "CW503"}
    finally:
        await request.close()


async def check_old_epoch_writes_nothing(cell: Cell) -> None:
    """The tenant went and came back: a router that still sends the first epoch must not be served."""
    tenant = await cell.tenant(epoch=1)
    await cell.transfer.freeze(tenant, cell.fence(), FREEZE)
    await cell.transfer.restore(tenant, cell.fence(), Restore(7))
    with pytest.raises(errors.NotOursError):
        await cell.write(tenant, "stale", epoch=1)
    await cell.write(tenant, "fresh", epoch=7)
    assert await cell.names(tenant, epoch=7) == ["fresh", "the owner"]


async def check_frozen_and_moved_serve_nothing(cell: Cell) -> None:
    """State decides, also at the right epoch."""
    tenant = await cell.tenant()
    await cell.transfer.freeze(tenant, cell.fence(), FREEZE)
    with pytest.raises(errors.FrozenError):
        await cell.write(tenant, "frozen")
    await cell.transfer.release(tenant, cell.fence(), Release("t1;cell-2;2;signature"))
    with pytest.raises(errors.NotOursError) as refused:
        await cell.write(tenant, "moved")
    assert refused.value.hint == "t1;cell-2;2;signature"


async def check_missing_where_reads_one_tenant(cell: Cell) -> None:
    """The application forgot its WHERE clause."""
    mine, theirs = await cell.tenant(), await cell.tenant()
    await cell.write(theirs, "secret")
    async with cell.shards.enter(context(mine)) as session:
        assert {row["tenant_id"] for row in await session.fetch(EVERYTHING)} == {mine}


@pytest.mark.invariant(1)
async def test_a_write_committed_after_the_export_would_be_lost(cell: Cell) -> None:
    await check_acknowledged_write_is_exported(cell)


@pytest.mark.mutation(1)
async def test_without_the_lock_a_freeze_overtakes_an_open_transaction(cell: Cell, mutate: Mutate) -> None:
    await mutate("no_lock")
    with pytest.raises(AssertionError, match="not in the export"):
        await check_acknowledged_write_is_exported(cell)


@pytest.mark.invariant(2)
async def test_a_statement_older_than_the_freeze_would_enter_a_frozen_tenant(cell: Cell) -> None:
    await check_statement_begun_before_a_freeze_is_refused(cell)


@pytest.mark.mutation(2)
async def test_a_stable_fence_lets_a_frozen_tenant_through(cell: Cell, mutate: Mutate) -> None:
    await mutate("stable")
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        await check_statement_begun_before_a_freeze_is_refused(cell)


@pytest.mark.invariant(2)
async def test_a_transaction_with_an_old_snapshot_would_enter_a_frozen_tenant(cell: Cell) -> None:
    await check_old_snapshot_is_refused(cell)


@pytest.mark.mutation(2)
async def test_at_repeatable_read_a_frozen_tenant_is_let_through(cell: Cell, mutate: Mutate) -> None:
    await mutate("any_isolation")
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        await check_old_snapshot_is_refused(cell)


@pytest.mark.invariant(2)
async def test_an_old_epoch_would_write_after_the_tenant_came_back(cell: Cell) -> None:
    await check_old_epoch_writes_nothing(cell)


@pytest.mark.mutation(2)
async def test_without_the_epoch_check_an_old_router_writes(cell: Cell, mutate: Mutate) -> None:
    await mutate("no_epoch")
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        await check_old_epoch_writes_nothing(cell)


@pytest.mark.invariant(2)
async def test_a_frozen_or_moved_tenant_would_be_served(cell: Cell) -> None:
    await check_frozen_and_moved_serve_nothing(cell)


@pytest.mark.mutation(2)
async def test_without_the_state_check_a_frozen_tenant_is_served(cell: Cell, mutate: Mutate) -> None:
    await mutate("no_state")
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        await check_frozen_and_moved_serve_nothing(cell)


@pytest.mark.invariant(3)
async def test_a_missing_where_clause_would_read_other_tenants(cell: Cell) -> None:
    await check_missing_where_reads_one_tenant(cell)


@pytest.mark.mutation(3)
async def test_without_row_level_security_other_tenants_are_read(cell: Cell, mutate: Mutate) -> None:
    await mutate("rls_off")
    with pytest.raises(AssertionError):
        await check_missing_where_reads_one_tenant(cell)


@pytest.mark.invariant(3)
async def test_a_pooled_connection_carries_no_tenant_over(cell: Cell) -> None:
    tenant = await cell.tenant()
    await cell.write(tenant, "mine")
    for _ in range(3):  # whichever connections the pool hands out
        assert await cell.pool.fetch("SELECT tenant_id FROM cellwall.counters") == []


@pytest.mark.invariant(3)
async def test_a_row_of_another_tenant_cannot_be_written(cell: Cell) -> None:
    mine, theirs = await cell.tenant(), await cell.tenant()
    other = sa.bindparam("other", theirs, type_=sa.BigInteger)
    smuggle = prepare(sa.insert(tables.counters).values(tenant_id=other, name="smuggled", value=1))

    async def smuggles() -> None:
        async with cell.shards.enter(context(mine)) as session:
            await session.execute(smuggle)

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await smuggles()
    assert await cell.names(theirs) == ["the owner"]


async def test_a_freeze_ends_the_transaction_that_does_not_end(cell: Cell) -> None:
    tenant = await cell.tenant()
    entered = asyncio.Event()

    async def long_report() -> None:
        async with cell.shards.enter(context(tenant)) as session:
            entered.set()
            await session.fetch(SLEEP)

    report = asyncio.create_task(long_report())
    await entered.wait()
    frozen = await cell.transfer.freeze(tenant, cell.fence(), Freeze(10, 5000))
    assert frozen.cancelled == 1
    with pytest.raises(errors.CancelledByServerError):
        await report
    assert await cell.state(tenant) == ("frozen", 1)


async def test_a_freeze_ends_a_holder_that_is_idle_in_its_transaction(cell: Cell) -> None:
    tenant = await cell.tenant()
    with pytest.raises(errors.ShardError):  # its COMMIT finds the connection gone
        async with cell.shards.enter(context(tenant)):
            frozen = await cell.transfer.freeze(tenant, cell.fence(), FREEZE)
    assert frozen.cancelled == 1


class InLine:
    """A connection that counts how often it stood in line for the tenant's lock, and what happens meanwhile."""

    def __init__(
        self, connection: asyncpg.Connection, meanwhile: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> None:
        self._connection = connection
        self._meanwhile = meanwhile
        self.times = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, query: str, *arguments: Any) -> str:
        stands = query.startswith("SELECT pg_advisory_xact_lock")
        self.times += stands
        if not stands or self._meanwhile is None:
            return str(await self._connection.execute(query, *arguments))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._meanwhile())
            done = group.create_task(self._connection.execute(query, *arguments))
        return str(done.result())


async def test_a_slow_report_behind_a_wanted_lock_would_make_the_tenant_look_frozen(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locks.IN_LINE_S < LOCK_PATIENCE_S
    monkeypatch.setattr("cell.shards.session.LOCK_PATIENCE_S", 10.0)  # however late the server ends a wait in line
    tenant = await cell.tenant()
    connection = await cell.connect("cellwall_transfer")
    freezer = InLine(connection)

    async def wants_the_lock() -> None:
        async with connection.transaction():
            await locks.exclusive(freezer, tenant, Patience(60, 60), asyncio.get_running_loop().time)

    async with cell.shards.enter(context(tenant)):  # the slow report
        waiting = asyncio.create_task(wants_the_lock())
        while freezer.times < 3:
            async with cell.shards.enter(context(tenant), read_only=True) as session:
                assert await session.fetch(COUNTERS)
    await waiting
    await connection.close()


async def check_a_tenant_is_locked_that_somebody_is_always_in(cell: Cell) -> None:
    """Between two tries of the loop somebody new comes in before the one before leaves."""
    tenant = await cell.tenant()
    inside, coming, connection = await cell.connect(), await cell.connect(), await cell.connect("cellwall_transfer")

    async def enters(user: asyncpg.Connection) -> bool:
        await user.execute("BEGIN")
        return bool(await user.fetchval("SELECT pg_try_advisory_xact_lock_shared($1)", tenant))

    async def one_comes_and_one_leaves(_: float) -> None:
        nonlocal inside, coming
        assert await enters(coming)
        await inside.execute("COMMIT")
        inside, coming = coming, inside

    async def nobody_comes_and_one_leaves() -> None:
        await cell.waits_for_lock(tenant)
        assert not await enters(coming)
        await inside.execute("COMMIT")

    assert await enters(inside)
    freezer = InLine(connection, nobody_comes_and_one_leaves)
    seconds = itertools.count(0.0, 0.04)
    try:
        async with connection.transaction():
            timeout = await connection.fetchval("SHOW lock_timeout")
            await locks.exclusive(freezer, tenant, Patience(2, 60), lambda: next(seconds), one_comes_and_one_leaves)
            assert freezer.times == 1
            assert await connection.fetchval("SHOW lock_timeout") == timeout
    finally:
        for each in (inside, coming, connection):
            await each.close()


async def test_a_tenant_that_somebody_is_always_in_would_never_be_locked(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "IN_LINE_S", 60.0)  # however busy this machine is
    await check_a_tenant_is_locked_that_somebody_is_always_in(cell)
    monkeypatch.setattr(locks, "ALWAYS_HELD_S", math.inf)
    with pytest.raises(locks.LockBusyError):
        await check_a_tenant_is_locked_that_somebody_is_always_in(cell)


async def test_a_command_that_is_fenced_by_now_would_end_the_newer_one_that_is_at_work(cell: Cell) -> None:
    tenant, clock = await cell.tenant(), asyncio.get_running_loop().time
    newer, older = [await cell.connect("cellwall_transfer") for _ in range(2)]

    async def fenced() -> None:
        raise LookupError

    try:
        await newer.execute("BEGIN")
        await locks.exclusive(newer, tenant, Patience(60, 60), clock)
        with pytest.raises(LookupError):
            async with older.transaction():
                await locks.exclusive(older, tenant, Patience(60, 0), clock, before_ending=fenced)
        assert await newer.fetchval("SELECT 1") == 1
        async with older.transaction():  # without that it ends the newer one
            assert await locks.exclusive(older, tenant, Patience(60, 0), clock) == 1
    finally:
        newer.terminate()
        await older.close()


async def test_waiting_in_line_is_what_makes_it_look_frozen(cell: Cell) -> None:
    """The counter-proof: PostgreSQL's own waiting lock shuts everybody out behind the report."""
    tenant = await cell.tenant()
    freezer = await cell.connect("cellwall_transfer")
    async with cell.shards.enter(context(tenant)):
        waiting = asyncio.create_task(freezer.execute(f"BEGIN; SELECT pg_advisory_xact_lock({tenant})"))
        await cell.waits_for_lock(tenant)
        with pytest.raises(errors.FrozenError):
            await cell.names(tenant)
    await waiting
    await freezer.close()


async def test_a_lock_that_is_busy_for_a_moment_does_not_look_like_a_freeze(cell: Cell) -> None:
    tenant = await cell.tenant()
    barrier = await cell.connect("cellwall_transfer")
    await barrier.execute(f"BEGIN; SELECT pg_advisory_xact_lock({tenant})")
    naps = 0

    async def nap(_: float) -> None:
        nonlocal naps
        naps += 1
        if naps == 3:
            await barrier.execute("COMMIT")

    patient = Shards(cell.databases.shard_map, {cell.shard.name: cell.pool}, nap)
    async with patient.enter(context(tenant), read_only=True) as session:
        assert await session.fetch(COUNTERS)
    assert naps == 3
    await barrier.close()


async def test_committed_is_noted_for_writes_only(cell: Cell) -> None:
    tenant = await cell.tenant()
    ctx = context(tenant)
    async with cell.shards.enter(ctx, read_only=True) as session:
        await session.fetch(COUNTERS)
    assert not ctx.committed
    async with cell.shards.enter(ctx):
        pass
    assert ctx.committed


async def test_a_swallowed_failure_is_not_taken_for_a_commit(cell: Cell) -> None:
    tenant = await cell.tenant()
    ctx = context(tenant)
    wrong = prepare(sa.insert(tables.counters).values(tenant_id=tenant, name=None, value=1))

    async def swallows() -> None:
        async with cell.shards.enter(ctx) as session:
            with suppress(asyncpg.NotNullViolationError):
                await session.execute(wrong)

    with pytest.raises(errors.TransactionAbortedError):
        await swallows()
    assert not ctx.committed


async def test_cancelling_a_request_cancels_its_statement_and_frees_the_lock(cell: Cell) -> None:
    tenant = await cell.tenant()
    entered = asyncio.Event()

    async def request() -> None:
        async with cell.shards.enter(context(tenant)) as session:
            entered.set()
            await session.fetch(SLEEP)

    running = asyncio.create_task(request())
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    frozen = await cell.transfer.freeze(tenant, cell.fence(), FREEZE)
    assert frozen.cancelled == 0
