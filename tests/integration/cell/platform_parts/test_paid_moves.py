"""A charge that is slow while its tenant moves: rule 17 of the moves, on two cells and a gateway outside of both."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry

from cell.bulkhead import RUNNING_MAX, Bulkhead
from cell.modules.catalog import service as catalog
from cell.modules.orders import conductor
from cell.modules.orders import service as orders
from cell.modules.orders.conductor import Conductor, SagaMetrics
from cell.modules.payments import public as payments
from cell.modules.payments.http_gateway import HttpGateway
from cell.modules.payments.public import Answer, Asked, Gateway
from cell.shards.errors import NotOursError
from contracts.problems import ProblemError
from contracts.transfer import Release, Restore
from tests.integration.cell import sandbox
from tests.integration.cell.platform_parts.two_cells import FREEZE, Cell, activated, context
from tests.integration.cell.sandbox import Sandbox, until

Cells = tuple[Cell, Cell]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox.opened(tmp_path) as opened:
        yield opened


@pytest.fixture
async def inner(gateway: Sandbox) -> AsyncIterator[Gateway]:
    async with payments.opened(gateway.url, gateway.token, 5.0) as opened:
        yield opened


class Held:
    """The way to the gateway from one cell: a charge waits on it until it is let go, or is refused, as a cable cut."""

    def __init__(self, inner: Gateway) -> None:
        self._inner = inner
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def charge(self, asked: Asked) -> Answer:
        self.asked.set()
        await self.go_on.wait()
        return await self._inner.charge(asked)

    async def cancel(self, key: str) -> str | None:
        return await self._inner.cancel(key)

    async def refund(self, charge: str) -> None:
        await self._inner.refund(charge)


async def ordered(cell: Cell, tenant: int, cents: int = 700) -> UUID:
    """A pending order."""
    async with cell.shards.enter(context(tenant)) as session:
        product = await catalog.add(session, secrets.token_hex(4), "Cup", catalog.Price(cents, "EUR"))
        order = await orders.create(session, UUID(int=1), None, [orders.Wanted(product.product_id, 1)], "card-1")
    return order.order_id


async def attempt(cell: Cell, gateway: Gateway, tenant: int, epoch: int) -> int:
    """One attempt of the cell's worker at what is due of the tenant; how many sagas that were."""
    async with cell.shards.enter(context(tenant, epoch)) as session:
        rows = await orders.QUEUE.take(session, cell.name, 10)
    metrics = SagaMetrics(CollectorRegistry())
    for row in rows:
        await Conductor(cell.shards, gateway, metrics, lambda: 0.0).step(tenant, row)
    return len(rows)


async def moved(source: Cell, target: Cell, tenant: int, epoch: int) -> None:
    """The whole move, as the mover does it."""
    await source.transfer.freeze(tenant, source.fence(), FREEZE)
    await activated(source, target, tenant, epoch)
    await source.transfer.release(tenant, source.fence(), Release(""))


async def status(cell: Cell, tenant: int, epoch: int, order: UUID) -> str:
    async with cell.shards.enter(context(tenant, epoch), read_only=True) as session:
        return (await orders.get(session, order)).status


async def cancel(cell: Cell, tenant: int, epoch: int, order: UUID) -> None:
    async with cell.shards.enter(context(tenant, epoch)) as session:
        await orders.cancel(session, order)


@asynccontextmanager
async def slow_charge(cell: Cell, tenant: int, inner: Gateway) -> AsyncIterator[tuple[Held, "asyncio.Task[int]"]]:
    """A worker of the cell that has asked for a charge which is on its way."""
    held = Held(inner)
    task = asyncio.create_task(attempt(cell, held, tenant, 1))
    await held.asked.wait()
    yield held, task
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def charges(gateway: Sandbox, order: UUID) -> list[tuple[str, bool]]:
    """Every charge that was ever made for the order: its state, and whether it was given back."""
    found = (await gateway.keys()).values()
    return [(e["state"], e["refunded"]) for e in found if str(order) in e["key"] and e["charge"] is not None]


@pytest.mark.invariant(1)
async def test_a_charge_that_arrives_after_the_move_is_the_one_that_the_new_home_asked_for(
    cells: Cells, gateway: Sandbox, inner: Gateway
) -> None:
    source, target = cells
    tenant = await source.tenant()
    order = await ordered(source, tenant)
    async with slow_charge(source, tenant, inner) as (held, task):
        await moved(source, target, tenant, 2)
        assert await attempt(target, inner, tenant, 2) == 1, "the lease of the old home counts here no more"
        assert await status(target, tenant, 2, order) == "confirmed"
        held.go_on.set()
        with pytest.raises(NotOursError):  # what the old home finds out is recorded nowhere
            await task
    assert await charges(gateway, order) == [("charged", False)]
    assert await status(target, tenant, 2, order) == "confirmed"


async def check_a_late_charge_after_the_move(cells: Cells, gateway: Sandbox, inner: Gateway) -> None:
    """The order is cancelled in its new home while the old home's charge is still on its way."""
    source, target = cells
    tenant = await source.tenant()
    order = await ordered(source, tenant)
    async with slow_charge(source, tenant, inner) as (held, task):
        await moved(source, target, tenant, 2)
        await cancel(target, tenant, 2, order)
        await attempt(target, inner, tenant, 2)
        assert await status(target, tenant, 2, order) == "cancelled"
        held.go_on.set()
        with pytest.raises(NotOursError):
            await task
    assert await charges(gateway, order) in ([], [("cancelled", True)])


@pytest.mark.invariant(1)
async def test_a_charge_of_the_old_home_that_comes_after_the_cancelling_finds_a_tombstone(
    cells: Cells, gateway: Sandbox, inner: Gateway
) -> None:
    await check_a_late_charge_after_the_move(cells, gateway, inner)


@pytest.mark.mutation(1)
async def test_a_compensation_that_refunds_without_cancelling_the_key_leaves_a_late_charge(
    cells: Cells, gateway: Sandbox, inner: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing_was_charged(*_: object) -> None:
        return None

    monkeypatch.setattr(HttpGateway, "cancel", nothing_was_charged)
    with pytest.raises(AssertionError):
        await check_a_late_charge_after_the_move(cells, gateway, inner)


@pytest.mark.invariant(1)
async def test_a_charge_that_the_gateway_is_slow_with_is_waited_for_by_the_new_home(
    cells: Cells, gateway: Sandbox, inner: Gateway
) -> None:
    source, target = cells
    tenant = await source.tenant()
    order = await ordered(source, tenant)
    await gateway.faults({"operation": "charge", "kind": "slow", "seconds": 2.0})
    task = asyncio.create_task(attempt(source, inner, tenant, 1))

    async def begun() -> bool:
        return await gateway.calls("charge") > 0

    await until(begun)
    await moved(source, target, tenant, 2)
    assert await attempt(target, inner, tenant, 2) == 1  # while it is under way: the key is in flight, or replayed
    await asyncio.gather(task, return_exceptions=True)

    async def done() -> bool:
        await target.fetch("UPDATE product.sagas SET due = now(), lease = NULL WHERE tenant_id = $1", tenant)
        await attempt(target, inner, tenant, 2)
        return await status(target, tenant, 2, order) == "confirmed"

    await until(done)
    assert await charges(gateway, order) == [("charged", False)]


@pytest.mark.invariant(1)
async def test_a_move_back_while_the_charge_is_on_its_way_charges_once(
    cells: Cells, gateway: Sandbox, inner: Gateway
) -> None:
    source, target = cells
    tenant = await source.tenant()
    order = await ordered(source, tenant)
    async with slow_charge(source, tenant, inner) as (held, task):
        await moved(source, target, tenant, 2)
        async with slow_charge_at(target, tenant, inner) as (other, second):
            await moved(target, source, tenant, 3)
            # Home again, where the first attempt is still out. It was overtaken: its end counts no more.
            held.go_on.set()
            await task
            assert await status(source, tenant, 3, order) == "pending"
            await attempt(source, inner, tenant, 3)
            assert await status(source, tenant, 3, order) == "confirmed"
            other.go_on.set()
            with pytest.raises(NotOursError):
                await second
    assert await charges(gateway, order) == [("charged", False)]
    assert await status(source, tenant, 3, order) == "confirmed"


@asynccontextmanager
async def slow_charge_at(cell: Cell, tenant: int, inner: Gateway) -> AsyncIterator[tuple[Held, "asyncio.Task[int]"]]:
    """The same in the second home."""
    held = Held(inner)
    task = asyncio.create_task(attempt(cell, held, tenant, 2))
    await held.asked.wait()
    yield held, task


@pytest.mark.invariant(1)
async def test_a_freeze_that_is_taken_back_loses_no_end_of_a_charge(
    cells: Cells, gateway: Sandbox, inner: Gateway
) -> None:
    source, _ = cells
    tenant = await source.tenant()
    order = await ordered(source, tenant)
    async with slow_charge(source, tenant, inner) as (held, task):
        await source.transfer.freeze(tenant, source.fence(), FREEZE)
        held.go_on.set()

        async def charged() -> bool:
            return bool(await charges(gateway, order))

        await until(charged)
        assert not task.done(), "its end waits for the freeze to end"
        await source.transfer.restore(tenant, source.fence(), Restore(2))
        await task
    assert await status(source, tenant, 2, order) == "confirmed"
    assert await charges(gateway, order) == [("charged", False)]


@asynccontextmanager
async def worker(cell: Cell, gateway: Gateway) -> AsyncIterator[None]:
    """The part of the cell's worker that conducts sagas, woken by the work table alone."""
    job = conductor.job(cell.shards, gateway, cell.name, SagaMetrics(CollectorRegistry()))
    room = Bulkhead(cell.shards, job, None, at_once=RUNNING_MAX, of_shard=RUNNING_MAX, observed=None)
    task = asyncio.create_task(room.run())
    try:
        yield
    finally:
        room.stop()
        await task


async def check_workers_of_both_cells(cells: Cells, gateway: Sandbox, inner: Gateway) -> None:
    """Orders keep coming while the tenant moves to and fro between cells whose workers run, and the gateway is bad."""
    tenant, made, epoch = await cells[0].tenant(), [], 1
    await gateway.faults(
        *(
            {"operation": "charge", "kind": kind, "seconds": 0.2, "count": 4}
            for kind in ("slow", "lost", "late", "error", "slow")
        )
    )
    here, there = cells
    async with worker(cells[0], inner), worker(cells[1], inner):
        for _ in range(4):
            for _ in range(6):
                async with here.shards.enter(context(tenant, epoch)) as session:
                    product = await catalog.add(session, secrets.token_hex(4), "Cup", catalog.Price(700, "EUR"))
                    wanted = [orders.Wanted(product.product_id, 1)]
                    order = await orders.create(session, UUID(int=1), None, wanted, "card-1")
                made.append(order.order_id)
            with suppress(ProblemError):  # the worker was quicker, and it is confirmed
                await cancel(here, tenant, epoch, made[-1])
            epoch += 1
            await moved(here, there, tenant, epoch)
            here, there = there, here

        async def ended() -> bool:
            return not await here.fetch(
                "SELECT FROM product.orders WHERE tenant_id = $1 AND status = 'pending'", tenant
            )

        await until(ended)
    for order_id in made:
        expected = {"confirmed": [("charged", False)]}.get(await status(here, tenant, epoch, order_id))
        assert await charges(gateway, order_id) in ([expected] if expected else [[], [("cancelled", True)]])


@pytest.mark.invariant(1)
async def test_orders_of_a_tenant_that_moves_to_and_fro_are_charged_once_each(
    cells: Cells, gateway: Sandbox, inner: Gateway
) -> None:
    await check_workers_of_both_cells(cells, gateway, inner)
