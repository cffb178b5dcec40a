"""The bulkhead: however many workers and tenants there are, no more at once than the cell's slots."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from cell import work
from cell.bulkhead import Bulkhead, Slots
from cell.shards import pools
from cell.shards.context import TenantContext
from cell.work import Claim, Claims
from tests.integration.cell.cell_world import World

KIND = "counted"
SLOTS = 2
WORKERS = 3
TENANTS = 6


class Counted:
    """A job that lasts until it is known how many run at once: more than there are slots, or others had to wait."""

    kind = KIND

    def __init__(self, world: World) -> None:
        self._shards = world.databases.shards
        self.running: list[int] = []
        self.done: set[int] = set()
        self.peak = 0
        self.known = asyncio.Event()

    async def attend(self, tenant: int) -> None:
        assert tenant not in self.running, "one tenant has two at once"
        self.running.append(tenant)
        self.peak = max(self.peak, len(self.running))
        if self.peak > SLOTS:
            self.known.set()
        await self.known.wait()
        self.running.remove(tenant)
        async with self._shards.enter(TenantContext.for_worker(tenant, 0.0, KIND)) as session:
            await work.settle(session, KIND, None)
        self.done.add(tenant)


async def check_no_more_run_at_once_than_there_are_slots(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Counted(world)
    _tell_when_somebody_waits(job, monkeypatch)
    tenants = {(await world.merchant()).number for _ in range(TENANTS)}
    for tenant in tenants:
        async with world.databases.shards.enter(TenantContext.for_worker(tenant, 0.0, KIND)) as session:
            await work.wake(session, KIND, timedelta())
    async with _workers(world, job), asyncio.timeout(60):
        while job.done != tenants:
            await asyncio.sleep(0.02)
    assert job.peak == SLOTS


def _tell_when_somebody_waits(job: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that found no slot is put off: once every slot is in use, that is the proof that the others wait."""
    postpone = Claims.postpone

    async def told(self: Claims, shard: str, claim: Claim, delay: timedelta) -> None:
        await postpone(self, shard, claim, delay)
        if len(job.running) == SLOTS:
            job.known.set()

    monkeypatch.setattr(Claims, "postpone", told)


@asynccontextmanager
async def _workers(world: World, job: Counted) -> AsyncIterator[None]:
    cell, databases = world.cell, world.databases
    async with pools.apart(databases, cell.directory_dsn, cell.passwords.app, 1, "test-heavy") as heavy:
        slots = Slots(heavy.directory, SLOTS)
        bulkheads = [
            Bulkhead(databases.shards, job, slots, at_once=SLOTS, of_shard=SLOTS, observed=None) for _ in range(WORKERS)
        ]
        tasks = [asyncio.create_task(bulkhead.run()) for bulkhead in bulkheads]
        try:
            yield
        finally:
            for bulkhead in bulkheads:
                bulkhead.stop()
            await asyncio.gather(*tasks)


async def test_no_more_run_at_once_than_there_are_slots(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await check_no_more_run_at_once_than_there_are_slots(world, monkeypatch)


async def test_without_the_slots_more_run_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def unlimited(_: Any) -> AsyncIterator[bool]:
        yield True

    monkeypatch.setattr(Slots, "one", unlimited)
    with pytest.raises(AssertionError):
        await check_no_more_run_at_once_than_there_are_slots(world, monkeypatch)


async def test_a_slot_is_free_again_when_its_worker_dies(world: World) -> None:
    cell = world.cell
    dsn, password = cell.directory_dsn, cell.passwords.app
    async with pools.apart(world.databases, dsn, password, 1, "test-survivor") as survivor:
        async with (
            pools.apart(world.databases, dsn, password, 1, "test-dying") as dying,
            Slots(dying.directory, 1).one() as first,
            Slots(survivor.directory, 1).one() as second,
        ):
            assert (first, second) == (True, False)
            dying.directory.terminate()
        async with asyncio.timeout(60):
            while True:
                async with Slots(survivor.directory, 1).one() as free:
                    if free:
                        return
                await asyncio.sleep(0.05)
