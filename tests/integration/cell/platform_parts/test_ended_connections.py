"""A freeze ends whoever holds the tenant's lock: first the statement, then the connection. What the request sees."""

import asyncio

import pytest
import sqlalchemy as sa

from cell.ingress import outcome_of
from cell.shards import errors
from cell.shards.session import TenantSession
from cell.shards.sql import prepare
from contracts import problems
from tests.integration.cell.platform_parts.two_cells import ADD_COUNTER, COUNTERS, Cell, context

BACKEND = prepare(sa.select(sa.func.pg_backend_pid()))
SLEEP = prepare(sa.select(sa.func.pg_sleep(60)))
IMPATIENT = prepare(sa.select(sa.func.set_config("lock_timeout", "10ms", True)))


async def end(cell: Cell, backend: int) -> None:
    """End the connection, as a freeze does with a holder that is idle in its transaction; returns when it is gone."""
    await cell.fetch("SELECT pg_terminate_backend($1)", backend)
    async with asyncio.timeout(30):
        while await cell.fetch("SELECT 1 FROM pg_stat_activity WHERE pid = $1", backend):
            await asyncio.sleep(0.005)


async def usable(cell: Cell, tenant: int) -> None:
    """More sessions than the pool has connections: none of them was lost to the pool, or is left in a transaction."""
    for n in range(12):
        await cell.write(tenant, f"after-{n}")


@pytest.mark.parametrize("seen", [False, True], ids=["before-the-client-noticed", "after-the-client-noticed"])
async def test_a_connection_that_ended_between_two_statements_is_an_internal_error(cell: Cell, seen: bool) -> None:
    tenant = await cell.tenant()
    ctx = context(tenant)
    with pytest.raises((errors.ShardUnavailableError, errors.CancelledByServerError)) as failed:  # noqa: PT012
        async with cell.shards.enter(ctx) as session:
            await end(cell, await session.fetchval(BACKEND))
            await _notice(session, seen)
            await session.fetch(COUNTERS)
    assert not ctx.committed
    assert outcome_of(failed.value, committed=False, frozen=True).problem is problems.TENANT_FROZEN
    assert outcome_of(failed.value, committed=False, frozen=False).problem is problems.SHARD_UNAVAILABLE
    await usable(cell, tenant)


async def test_a_connection_that_ended_under_a_statement_is_an_internal_error(cell: Cell) -> None:
    tenant = await cell.tenant()
    async with asyncio.TaskGroup() as group:
        with pytest.raises((errors.ShardUnavailableError, errors.CancelledByServerError)):  # noqa: PT012
            async with cell.shards.enter(context(tenant)) as session:
                group.create_task(end(cell, await session.fetchval(BACKEND)))
                await session.fetch(SLEEP)
    await usable(cell, tenant)


async def test_a_lock_that_is_not_to_be_had_is_an_internal_error(cell: Cell) -> None:
    tenant = await cell.tenant()
    async with cell.shards.enter(context(tenant)) as first:
        await first.execute(ADD_COUNTER, name="same", value=1)
        with pytest.raises(errors.CancelledByServerError) as failed:  # noqa: PT012
            async with cell.shards.enter(context(tenant)) as second:
                await second.fetchval(IMPATIENT)
                await second.execute(ADD_COUNTER, name="same", value=1)
    assert outcome_of(failed.value, committed=False, frozen=False).problem is problems.SHARD_UNAVAILABLE
    await usable(cell, tenant)


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_connection_that_ended_before_its_commit_leaves_the_effect_in_doubt(
    cell: Cell, read_only: bool
) -> None:
    """Where COMMIT was certainly not sent, or nothing could be committed, the request may be told that nothing ran."""
    tenant = await cell.tenant()
    ctx = context(tenant)
    with pytest.raises((errors.ShardUnavailableError, errors.CancelledByServerError)):  # noqa: PT012
        async with cell.shards.enter(ctx, read_only=read_only) as session:
            if not read_only:
                await session.execute(ADD_COUNTER, name="lost", value=1)
            await end(cell, await session.fetchval(BACKEND))
            await _notice(session, True)
    assert not ctx.committed
    assert "lost" not in await cell.names(tenant)
    await usable(cell, tenant)


async def _notice(session: TenantSession, seen: bool) -> None:
    """Let the driver read the server's goodbye."""
    if seen:
        async with asyncio.timeout(30):
            while session._connection._con is not None:
                await asyncio.sleep(0.005)
