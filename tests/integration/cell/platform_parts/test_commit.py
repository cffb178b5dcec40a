"""COMMIT between a client that gave up and a connection that broke: done and known, or said to be unknown.

A request that is cancelled (deadline, disconnect) while its COMMIT is under way has an effect. Were COMMIT cancelled
with it, nobody would know which, and the connection would come back to the pool in the middle of it (rule 20).
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Literal

import pytest
import pytest_asyncio
import sqlalchemy as sa

from cell.ingress import outcome_of
from cell.shards import errors, pools
from cell.shards.context import TenantContext
from cell.shards.directory import ShardMap
from cell.shards.session import Shards
from cell.shards.sql import prepare
from contracts import ids, problems
from tests.integration.cell.platform_parts.commit_proxy import CommitProxy, commit_proxy
from tests.integration.cell.platform_parts.two_cells import ADD_COUNTER, COUNTERS, Cell, context

BACKEND = prepare(sa.select(sa.func.pg_backend_pid()))
TURNS = 50  # of the loop: more than any chain of callbacks that a cancellation sets off


@pytest_asyncio.fixture
async def proxied(cell: Cell) -> AsyncIterator[tuple[Shards, CommitProxy]]:
    """The cell's sessions behind a proxy, on a single connection: what is lost or left unclean shows at once."""
    async with commit_proxy(cell.shard.host, cell.shard.port) as (proxy, port):
        shard = replace(cell.shard, host="127.0.0.1", port=port)
        async with pools.app_pool(shard, cell.passwords.app, 1, "test-commit") as pool:
            shard_map = ShardMap({shard.name: shard}, (shard.name,) * ids.BUCKETS, {})
            yield Shards(shard_map, {shard.name: pool}), proxy


async def write(shards: Shards, ctx: TenantContext, name: str) -> None:
    async with shards.enter(ctx) as session:
        await session.execute(ADD_COUNTER, name=name, value=1)


async def names(shards: Shards, tenant: int) -> list[str]:
    async with shards.enter(context(tenant), read_only=True) as session:
        return [row["name"] for row in await session.fetch(COUNTERS)]


async def served_by(shards: Shards, tenant: int) -> int:
    """The process at the server behind the one connection."""
    async with shards.enter(context(tenant), read_only=True) as session:
        backend: int = await session.fetchval(BACKEND)
        return backend


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


@pytest.mark.parametrize("kept", ["commit", "answer"])
async def test_a_request_cancelled_during_its_commit_leaves_an_effect_that_nobody_counted(
    cell: Cell, proxied: tuple[Shards, CommitProxy], kept: Literal["commit", "answer"]
) -> None:
    shards, proxy = proxied
    ctx = context(await cell.tenant())
    await write(shards, ctx, "first")
    backend = await served_by(shards, ctx.tenant)
    ctx.committed, proxy.keep = False, kept
    writing = asyncio.create_task(write(shards, ctx, "written"))
    await (proxy.sent if kept == "commit" else proxy.answered).wait()
    for _ in range(3):  # a deadline, a disconnect, the end of the process
        writing.cancel()
        await turns()
        assert not writing.done(), "the request ended while its COMMIT was under way"
    proxy.let_go()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert ctx.committed
    assert proxy.cancels == 0, "the server was asked to give COMMIT up"
    assert await names(shards, ctx.tenant) == ["first", "the owner", "written"]
    await write(shards, ctx, "after")
    assert await served_by(shards, ctx.tenant) == backend, "the connection was given up instead of given back"


@pytest.mark.parametrize("kept", ["commit", "answer"])
@pytest.mark.parametrize("cancelled", [False, True], ids=["waiting", "cancelled"])
async def test_a_connection_cut_after_commit_was_sent_would_pass_for_nothing_done(
    cell: Cell, proxied: tuple[Shards, CommitProxy], kept: Literal["commit", "answer"], cancelled: bool
) -> None:
    shards, proxy = proxied
    ctx = context(await cell.tenant())
    proxy.keep = kept
    writing = asyncio.create_task(write(shards, ctx, "perhaps"))
    await (proxy.sent if kept == "commit" else proxy.answered).wait()
    if cancelled:
        writing.cancel()
        await turns()
    proxy.cut()
    with pytest.raises(errors.CommitUnknownError) as unknown:
        await writing
    assert ctx.committed, "the request may have had an effect"
    assert outcome_of(unknown.value, committed=False, frozen=True).problem is problems.INTERRUPTED
    assert ("perhaps" in await names(shards, ctx.tenant)) == (kept == "answer")
    await write(shards, context(ctx.tenant), "after")
