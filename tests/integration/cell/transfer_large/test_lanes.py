"""A snapshot on several connections at once is one import all the same: whole, or given up without a row left."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cell.transfer import frames, lanes, rows
from cell.transfer.frames import Kind
from contracts import problems
from contracts.problems import ProblemError
from contracts.transfer import Abort, Activate, Prepare, SnapshotQuery, Stream
from tests.integration.cell.platform_parts.two_cells import SCHEMA
from tests.integration.cell.transfer_large.large_world import Large, named

Cells = tuple[Large, Large]
WRITTEN = 2000


async def opened(source: Large, target: Large) -> tuple[int, Stream]:
    """A tenant with rows in two tables, its stream, and room for it at the target."""
    tenant = await source.cell.tenant()
    await source.cell.fetch(
        "INSERT INTO cellwall.counters (tenant_id, name, value) SELECT $1, 'n' || g, g FROM generate_series(1, $2) g",
        tenant, WRITTEN,
    )  # fmt: skip
    await source.cell.fetch(
        "INSERT INTO product.products (tenant_id, product_id, sku, name, price_cents, currency)"
        " SELECT $1, gen_random_uuid(), 'sku-' || g, 'a name', g, 'EUR' FROM generate_series(1, $2) g",
        tenant, WRITTEN,
    )  # fmt: skip
    await source.cell.as_owner("ANALYZE cellwall.counters, product.products")
    stream = await source.open(tenant)
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 2))
    return tenant, stream


async def snapshot(source: Large, tenant: int) -> AsyncIterator[bytes]:
    return await source.streams.senders.snapshot(tenant, source.fence(), SnapshotQuery(named(tenant), 2))


async def refused(command: Any) -> problems.Problem:
    with pytest.raises(ProblemError) as error:
        await command
    return error.value.problem


async def held(pieces: AsyncIterator[bytes], reached: asyncio.Event, go: asyncio.Event) -> AsyncIterator[bytes]:
    """The stream up to its last frame, which waits."""
    last = b""
    async for piece in pieces:
        if last:
            yield last
        last = piece
    reached.set()
    await go.wait()
    yield last


@pytest.mark.parametrize("pages", [lanes.PART_PAGES, 8])
async def test_tables_that_travel_beside_each_other_and_in_parts_arrive_whole(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    monkeypatch.setattr(lanes, "PART_PAGES", pages)
    source, target = cells
    tenant, _ = await opened(source, target)
    seen: set[int] = set()
    parts = 0
    carried = b"".join([piece async for piece in await snapshot(source, tenant)])
    reader = frames.Reader(once(carried))
    await reader.start()
    while True:
        lane, kind, _ = await reader.laned()
        if kind is Kind.END:
            break
        seen.add(lane)
        parts += kind is Kind.TABLE
    assert seen == {0, 1}
    fence = target.fence()
    imported = await target.transfer.import_(tenant, fence, once(carried))
    assert (parts > imported.tables) is (pages == 8)
    assert imported.rows >= 2 * WRITTEN
    assert await target.transfer.import_(tenant, fence, once(b"")) == imported
    assert await target.cell.rows(tenant) == await source.cell.rows(tenant)
    assert [s.state for s in await target.streams.receivers.list() if s.stream == named(tenant)] == ["receiving"]


@pytest.mark.parametrize("lost", [1, 2000, 100_000])
async def test_a_snapshot_that_was_cut_leaves_no_row_that_could_be_served(cells: Cells, lost: int) -> None:
    source, target = cells
    tenant, _ = await opened(source, target)
    carried = b"".join([piece async for piece in await snapshot(source, tenant)])
    failed = target.transfer.import_(tenant, target.fence(), once(carried[:-lost]))
    assert await refused(failed) is problems.INVALID
    assert await target.cell.rows(tenant) == 0
    await target.transfer.import_(tenant, target.fence(), once(carried))
    assert await target.cell.rows(tenant) == await source.cell.rows(tenant)


@pytest.mark.invariant(6)
async def test_an_abort_would_wait_for_lanes_or_leave_what_they_wrote(cells: Cells) -> None:
    source, target = cells
    tenant, _ = await opened(source, target)
    reached, go = asyncio.Event(), asyncio.Event()
    importing = asyncio.create_task(
        target.transfer.import_(tenant, target.fence(), held(await snapshot(source, tenant), reached, go))
    )
    async with asyncio.timeout(60):
        await reached.wait()
        await target.transfer.abort(tenant, target.fence(), Abort(3))  # ends who holds the tenant's lock
    go.set()
    with pytest.raises(Exception):  # noqa: B017 - the server's word for it, or ours
        await importing
    while await target.transfer.shedder.sweep():
        pass
    assert (await target.cell.state(tenant), await target.cell.rows(tenant)) == (("aborted", 0), 0)
    assert await refused(target.transfer.activate(tenant, target.fence(), Activate(2))) is problems.WRONG_STATE


@pytest.mark.invariant(6)
async def test_lanes_that_were_committed_by_a_process_that_died_would_be_in_the_next_import_twice(cells: Cells) -> None:
    source, target = cells
    tenant, _ = await opened(source, target)
    carried = b"".join([piece async for piece in await snapshot(source, tenant)])
    done = target.transfer._effect
    target.transfer._effect = _Dying(done)  # after the lanes have committed, before the import has
    try:
        with pytest.raises(ConnectionError):
            await target.transfer.import_(tenant, target.fence(), once(carried))
    finally:
        target.transfer._effect = done
    assert (await target.cell.rows(tenant) or 0) >= 2 * WRITTEN
    assert (await target.transfer.status(tenant)).state == "importing"
    await target.transfer.import_(tenant, target.fence(), once(carried))
    assert await target.cell.rows(tenant) == await source.cell.rows(tenant)


async def test_a_row_of_another_tenant_would_be_written_by_whoever_sends_it(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = cells
    other = await source.cell.tenant()
    tenant, _ = await opened(source, target)
    query = rows.all_of
    monkeypatch.setattr(rows, "all_of", lambda table, _: query(table, tenant) + f" OR tenant_id = {other}")
    carried = b"".join([piece async for piece in await snapshot(source, tenant)])
    assert await refused(target.transfer.import_(tenant, target.fence(), once(carried))) is problems.INVALID
    assert not await target.cell.rows(tenant)
    assert not await target.cell.fetch("SELECT FROM cellwall.counters WHERE tenant_id = $1", other)


class _Dying:
    """The second effect of an import ends as if its process had died."""

    def __init__(self, effect: Any) -> None:
        self._effect = effect
        self._left = 1

    def __call__(self, *arguments: Any) -> Any:
        if not self._left:
            raise ConnectionError
        self._left -= 1
        return self._effect(*arguments)


async def once(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 50_000):
        yield data[start : start + 50_000]
