"""Many rows are deleted in parts: by whoever says so last, and never of a tenant that could still be served."""

import asyncio

import pytest

from cell.transfer import rows
from contracts import problems
from contracts.problems import ProblemError
from contracts.transfer import Abort, Activate, Prepare, SnapshotQuery
from tests.integration.cell.platform_parts.two_cells import SCHEMA
from tests.integration.cell.transfer_large.large_world import Large, copied, cut_over

Cells = tuple[Large, Large]
WRITTEN = 50


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "DROPPED_AT_ONCE", 10)


async def written(cell: Large) -> int:
    """A tenant with many rows."""
    tenant = await cell.cell.tenant()
    await cell.cell.fetch(
        "INSERT INTO cellwall.counters (tenant_id, name, value) SELECT $1, 'n' || g, g FROM generate_series(1, $2) g",
        tenant,
        WRITTEN,
    )
    return tenant


async def test_an_abort_would_keep_the_source_waiting_for_every_row(cells: Cells) -> None:
    source, target = cells
    tenant = await written(source)
    await copied(source, target, tenant)
    await target.transfer.abort(tenant, target.fence(), Abort(3))
    assert await target.cell.state(tenant) == ("aborted", 0)
    assert await target.cell.rows(tenant) == WRITTEN + 1
    with pytest.raises(ProblemError):
        await target.transfer.activate(tenant, target.fence(), Activate(2))
    assert await target.transfer.shedder.sweep() == 1
    assert await target.cell.rows(tenant) == 0
    assert await target.transfer.shedder.sweep() == 0


async def test_a_process_that_died_after_an_abort_would_leave_the_rows(cells: Cells) -> None:
    source, target = cells
    tenant = await written(source)
    await copied(source, target, tenant)
    await target.transfer.abort(tenant, target.fence(), Abort(3))
    running = asyncio.create_task(target.transfer.shedder.run())  # as the next process does
    try:
        async with asyncio.timeout(60):
            while await target.cell.rows(tenant):
                await asyncio.sleep(0.02)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_rows_of_a_new_import_would_be_shed_for_the_one_before(cells: Cells) -> None:
    source, target = cells
    tenant = await written(source)
    stream = await copied(source, target, tenant)
    await target.transfer.abort(tenant, target.fence(), Abort(3))
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 4))
    pieces = await source.streams.senders.snapshot(tenant, source.fence(), SnapshotQuery(stream.stream))
    await target.transfer.import_(tenant, target.fence(), pieces)
    assert await target.transfer.shedder.sweep() == 0
    assert await target.cell.rows(tenant) == WRITTEN + 1


async def test_a_purge_that_is_overtaken_would_begin_again_and_never_end(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = cells
    tenant = await written(source)
    stream = await copied(source, target, tenant)
    await cut_over(source, target, tenant, stream.position, 2)
    parts, real = 0, rows.drop_some

    async def impatient(*arguments: object) -> bool:
        nonlocal parts
        parts += 1
        if parts % 3 == 0:  # the caller gave up, and says it again
            raise ConnectionError
        return await real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rows, "drop_some", impatient)
    with pytest.raises(ConnectionError):
        await source.transfer.purge(tenant, source.fence())
    assert 0 < (await source.cell.rows(tenant) or 0) < WRITTEN
    # Half of it is gone: nothing may serve it any more.
    assert await source.cell.state(tenant) == ("moved", 1)
    with pytest.raises(ProblemError) as refused:
        await source.transfer.activate(tenant, source.fence(), Activate(9))
    assert refused.value.problem is problems.WRONG_STATE
    async with asyncio.timeout(60):
        while (await source.cell.state(tenant))[0] != "gone":
            try:
                await source.transfer.purge(tenant, source.fence())
            except ConnectionError:
                continue
    assert await source.cell.rows(tenant) == 0
