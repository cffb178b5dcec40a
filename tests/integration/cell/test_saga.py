"""Orders that are paid: charged once, or not at all, whatever the gateway and the worker do."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from cell import errands
from cell.modules.orders import conductor, service
from cell.modules.orders.conductor import Conductor, SagaMetrics
from cell.modules.payments import public as payments
from cell.modules.payments.http_gateway import HttpGateway
from cell.modules.payments.public import Answer, Asked, Gateway
from tests.integration.cell import sandbox
from tests.integration.cell.cell_world import CELL, Merchant
from tests.integration.cell.sandbox import Sandbox, until
from tests.integration.cell.test_worker import started

METHOD = {"payment": {"method": "card-1"}}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox.opened(tmp_path) as opened:
        yield opened


async def pay(merchant: Merchant, *lines: tuple[str, int], **body: Any) -> str:
    """The id of a new order that is to be paid."""
    answer = await merchant.order(*lines, **(METHOD | body))
    assert (answer.status_code, answer.json()["status"]) == (201, "pending"), answer.text
    return str(answer.json()["id"])


async def status(merchant: Merchant, order: str) -> str:
    return str((await merchant.owner.get(f"/v1/orders/{order}")).json()["status"])


async def ended(merchant: Merchant, order: str) -> str:
    """How the order ended."""

    async def end() -> str:
        found = await status(merchant, order)
        return "" if found == "pending" else found

    return str(await until(end))


async def pass_time(merchant: Merchant) -> None:
    """What the tenant's sagas wait for is over, backoff and lease."""
    await merchant.rows("UPDATE product.sagas SET due = now(), lease = now() - interval '1 s' WHERE tenant_id = $1")
    await merchant.rows("UPDATE cellwall.work SET due = now() WHERE tenant_id = $1")


async def pass_backoff(merchant: Merchant) -> None:
    """What waits for its next try has waited; an attempt that is under way is left alone. Not in one go: the gateway
    is given a moment between two tries, or all of them would find the first one still under way."""
    await asyncio.sleep(0.3)
    await merchant.rows("UPDATE product.sagas SET due = now() WHERE tenant_id = $1 AND lease IS NULL")
    await merchant.rows("UPDATE cellwall.work SET due = now() WHERE tenant_id = $1 AND kind = 'sagas'")


async def stock(merchant: Merchant, product: str) -> tuple[int, int]:
    found = (await merchant.owner.get(f"/v1/stock/{product}")).json()
    return found["on_hand"], found["reserved"]


async def check_charged_once(merchant: Merchant, gateway: Sandbox, order: str, cents: int) -> None:
    entry = await gateway.key(merchant.tenant_id, order)
    assert (entry["state"], entry["amount_cents"], entry["refunded"]) == ("charged", cents, False)
    assert [key for key in await gateway.keys() if order in key] == [f"{merchant.tenant_id}:{order}"]


async def check_not_charged(merchant: Merchant, gateway: Sandbox, order: str) -> None:
    entry = (await gateway.keys()).get(f"{merchant.tenant_id}:{order}")
    assert entry is None or entry["charge"] is None or entry["refunded"], entry


async def test_a_paid_order_is_confirmed_charged_and_its_units_leave_the_stock(
    merchant: Merchant, gateway: Sandbox
) -> None:
    product = await merchant.product(price_cents=250)
    assert (await merchant.owner.put(f"/v1/stock/{product}", json={"on_hand": 5})).status_code == 200
    async with merchant.world.worker(**gateway.settings):
        order = await pay(merchant, (product, 2), (product, 1))
        assert await ended(merchant, order) == "confirmed"

        async def sold() -> bool:
            return (await merchant.owner.get(f"/v1/products/{product}")).json()["units_sold"] == 3

        await until(sold)

        async def at_rest() -> bool:
            return not await merchant.rows("SELECT FROM cellwall.work WHERE tenant_id = $1 AND kind = 'sagas'")

        await until(at_rest)
    await check_charged_once(merchant, gateway, order, 750)
    assert await stock(merchant, product) == (2, 0)
    payment = (await merchant.owner.get(f"/v1/payments/{order}")).json()
    assert (payment["state"], payment["amount_cents"]) == ("charged", 750)
    assert (await merchant.owner.get(f"/v1/orders/{order}/progress")).json()["step"] == "confirmed"


async def test_an_order_without_a_payment_is_as_it_always_was(merchant: Merchant, gateway: Sandbox) -> None:
    product = await merchant.product()
    answer = await merchant.order((product, 1))
    assert answer.json()["status"] == "created"
    assert not await merchant.rows("SELECT FROM product.sagas WHERE tenant_id = $1")
    assert (await merchant.owner.get(f"/v1/orders/{answer.json()['id']}/progress")).status_code == 404
    assert (await merchant.owner.post(f"/v1/orders/{answer.json()['id']}/cancel")).status_code == 409


async def test_units_that_are_short_cancel_the_order_before_anything_is_charged(
    merchant: Merchant, gateway: Sandbox
) -> None:
    product, other = await merchant.product(), await merchant.product()
    for each, units in ((product, 1), (other, 9)):
        await merchant.owner.put(f"/v1/stock/{each}", json={"on_hand": units})
    async with merchant.world.worker(**gateway.settings):
        order = await pay(merchant, (other, 2), (product, 2))
        assert await ended(merchant, order) == "cancelled"
    assert (await merchant.owner.get(f"/v1/orders/{order}/progress")).json()["note"] == f"Out of stock: {product}."
    assert await gateway.keys() == {}
    assert (await stock(merchant, product), await stock(merchant, other)) == ((1, 0), (9, 0))


async def test_the_last_unit_is_not_promised_twice(merchant: Merchant, gateway: Sandbox) -> None:
    product = await merchant.product()
    await merchant.owner.put(f"/v1/stock/{product}", json={"on_hand": 3})
    async with merchant.world.worker(**gateway.settings):
        orders = [await pay(merchant, (product, 1)) for _ in range(6)]
        ends = [await ended(merchant, order) for order in orders]
    assert sorted(ends) == ["cancelled"] * 3 + ["confirmed"] * 3
    assert await stock(merchant, product) == (0, 0)
    assert len([e for e in (await gateway.keys()).values() if e["state"] == "charged"]) == 3


async def test_a_declined_payment_gives_the_units_back(merchant: Merchant, gateway: Sandbox) -> None:
    product = await merchant.product()
    await merchant.owner.put(f"/v1/stock/{product}", json={"on_hand": 3})
    async with merchant.world.worker(**gateway.settings):
        order = await pay(merchant, (product, 2), payment={"method": "declined-1"})
        assert await ended(merchant, order) == "cancelled"
    payment = (await merchant.owner.get(f"/v1/payments/{order}")).json()
    assert (payment["state"], payment["note"]) == ("declined", "The payment method was declined.")
    assert await stock(merchant, product) == (3, 0)
    await check_not_charged(merchant, gateway, order)


@pytest.mark.invariant(1)
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "error"},
        {"kind": "lost"},
        {"kind": "late", "seconds": 0.3},
        {"kind": "slow", "seconds": 0.3},
        {"kind": "slow", "seconds": 1.0},  # longer than the worker waits
        {"kind": "hang", "seconds": 1.0},
    ],
)
async def test_a_gateway_that_fails_is_asked_again_and_charges_once(
    merchant: Merchant, gateway: Sandbox, fault: dict[str, Any]
) -> None:
    product = await merchant.product(price_cents=400)
    await gateway.faults({"operation": "charge", "count": 2, **fault})
    async with merchant.world.worker(**(gateway.settings | {"payments_timeout_s": 0.6})):
        order = await pay(merchant, (product, 1))

        async def done() -> bool:
            await pass_backoff(merchant)
            return await status(merchant, order) != "pending"

        await until(done)
    assert await status(merchant, order) == "confirmed"
    await check_charged_once(merchant, gateway, order, 400)


async def test_a_gateway_that_never_settles_a_charge_leads_to_a_cancelled_key_and_no_charge(
    merchant: Merchant, gateway: Sandbox
) -> None:
    product = await merchant.product()
    await merchant.owner.put(f"/v1/stock/{product}", json={"on_hand": 3})
    # Every charge is made, and no answer ever arrives: only cancelling the key tells what to give back.
    await gateway.faults(
        {"operation": "charge", "kind": "lost", "count": 100},
        {"operation": "cancel", "kind": "error", "count": 2},
        {"operation": "refund", "kind": "lost", "count": 1},
    )
    async with merchant.world.worker(**gateway.settings):
        order = await pay(merchant, (product, 1))

        async def done() -> bool:
            await pass_backoff(merchant)
            return await status(merchant, order) != "pending"

        await until(done)
    assert await status(merchant, order) == "cancelled"
    entry = await gateway.key(merchant.tenant_id, order)
    assert (entry["cancelled"], entry["refunded"]) == (True, True)
    assert (await merchant.owner.get(f"/v1/payments/{order}")).json()["state"] == "refunded"
    assert await stock(merchant, product) == (3, 0)


# -- a worker that dies at every boundary ---------------------------------------------------------------------------


class Killed(BaseException):
    """The worker is gone: nothing of it runs any more, not even its error handling."""


class Mortal:
    """A gateway and a session through which a worker dies when its countdown ends: before or after each call of the
    gateway, and before or after each commit."""

    def __init__(self, inner: Gateway, lives: int) -> None:
        self._inner = inner
        self.lives = lives

    def boundary(self) -> None:
        if self.lives == 0:
            raise Killed
        self.lives -= 1

    async def charge(self, asked: Asked) -> Answer:
        self.boundary()
        answer = await self._inner.charge(asked)
        self.boundary()
        return answer

    async def cancel(self, key: str) -> str | None:
        self.boundary()
        charge = await self._inner.cancel(key)
        self.boundary()
        return charge

    async def refund(self, charge: str) -> None:
        self.boundary()
        await self._inner.refund(charge)
        self.boundary()


class Plant:
    """The saga's queue of a cell, with each attempt by hand."""

    def __init__(self, merchant: Merchant, gateway: Gateway, home: str = CELL) -> None:
        self.merchant = merchant
        self.shards = merchant.world.databases.shards
        self.home = home
        self.conductor = Conductor(self.shards, gateway, SagaMetrics(CollectorRegistry()), lambda: 0.0)

    async def take(self) -> list[asyncpg.Record]:
        async with self.shards.enter(self.merchant.context()) as session:
            return await service.QUEUE.take(session, self.home, 10)

    async def attempt(self) -> bool:
        """One attempt at whatever is due; False where nothing was."""
        rows = await self.take()
        for row in rows:
            await self.conductor.step(self.merchant.number, row)
        return bool(rows)


async def _killed(merchant: Merchant, inner: Gateway, lives: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """One attempt that dies at its boundary number ``lives``; False where it has fewer."""
    mortal = Mortal(inner, lives)
    recorded = errands.record

    async def record(*arguments: Any) -> Any:
        mortal.boundary()
        result = await recorded(*arguments)
        mortal.boundary()
        return result

    with monkeypatch.context() as patched:
        patched.setattr(errands, "record", record)
        try:
            await Plant(merchant, mortal).attempt()
        except Killed:
            return True
    return False


@pytest.mark.invariant(1)
@pytest.mark.parametrize("how", ["confirmed", "declined", "cancelled", "refunded"])
async def test_a_worker_that_dies_at_any_boundary_charges_once_and_finishes_the_order(
    merchant: Merchant, gateway: Sandbox, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = await merchant.product(price_cents=300)
    await merchant.owner.put(f"/v1/stock/{product}", json={"on_hand": 100})
    method = {"payment": {"method": "declined-1" if how == "declined" else "card-1"}}
    async with payments.opened(gateway.url, gateway.token, 5.0) as inner:
        ends, boundary, died = [], 0, True
        while died:
            order = await pay(merchant, (product, 1), **method)
            if how == "refunded":  # a charge whose answer was lost, and then the merchant wants it cancelled
                await gateway.faults({"operation": "charge", "kind": "lost"})
                await Plant(merchant, inner).attempt()
            if how in ("cancelled", "refunded"):
                assert (await merchant.owner.post(f"/v1/orders/{order}/cancel")).status_code == 202
            died = await _killed(merchant, inner, boundary, monkeypatch)
            await pass_time(merchant)
            while await Plant(merchant, inner).attempt():
                await pass_time(merchant)
            ends.append((order, await status(merchant, order)))
            boundary += 1
        assert boundary >= 5, "the boundaries were not found"
    expected = "confirmed" if how == "confirmed" else "cancelled"
    assert {end for _, end in ends} == {expected}
    for order, _ in ends:
        if expected == "confirmed":
            await check_charged_once(merchant, gateway, order, 300)
        else:
            await check_not_charged(merchant, gateway, order)
    sold = len(ends) if expected == "confirmed" else 0
    assert await stock(merchant, product) == (100 - sold, 0)
    types = await merchant.rows("SELECT type, count(*) FROM cellwall.outbox WHERE tenant_id = $1 GROUP BY 1")
    assert [tuple(row) for row in types] == [(f"order.{expected}", len(ends))]


async def test_a_step_that_breaks_comes_up_again_before_its_lease_has_ended(
    merchant: Merchant, gateway: Sandbox
) -> None:
    order = await pay(merchant, (await merchant.product(price_cents=90), 1))
    leases = []
    async with payments.opened(gateway.url, gateway.token, 5.0) as inner:
        plant = Plant(merchant, inner)

        async def step(tenant: int, row: asyncpg.Record) -> None:
            leases.append(row["lease"])
            if len(leases) == 1:
                raise RuntimeError("nobody foresaw this")
            await plant.conductor.step(tenant, row)

        worked = errands.Errands(plant.shards, service.QUEUE, CELL, step, chance=lambda: 0.0)

        async def confirmed() -> bool:
            await worked.attend(merchant.number)
            return await status(merchant, order) == "confirmed"

        await until(confirmed)
    assert leases[1] < leases[0] + errands.LEASE
    (row,) = await merchant.rows("SELECT attempt, failures FROM product.sagas WHERE tenant_id = $1")
    assert tuple(row) == (2, 0), "what broke here is no failure of the gateway's"
    await check_charged_once(merchant, gateway, order, 90)


async def check_a_late_charge_finds_a_tombstone(merchant: Merchant, gateway: Sandbox) -> None:
    """A worker hangs in a charge; meanwhile the order is cancelled. Then the charge arrives at the gateway."""
    product = await merchant.product()
    order = await pay(merchant, (product, 1))
    async with payments.opened(gateway.url, gateway.token, 5.0) as inner:
        held, go_on = asyncio.Event(), asyncio.Event()

        class Slow(Mortal):
            async def charge(self, asked: Asked) -> Answer:
                held.set()
                await go_on.wait()
                return await inner.charge(asked)

        slow = asyncio.create_task(Plant(merchant, Slow(inner, 99)).attempt())
        await held.wait()
        assert (await merchant.owner.post(f"/v1/orders/{order}/cancel")).status_code == 202
        await Plant(merchant, inner).attempt()
        assert await status(merchant, order) == "cancelled"
        go_on.set()
        await slow
    await check_not_charged(merchant, gateway, order)
    assert await status(merchant, order) == "cancelled"


@pytest.mark.invariant(1)
async def test_a_charge_that_comes_after_the_cancelling_finds_a_tombstone(merchant: Merchant, gateway: Sandbox) -> None:
    await check_a_late_charge_finds_a_tombstone(merchant, gateway)


@pytest.mark.mutation(1)
async def test_without_cancelling_the_key_a_late_charge_is_kept(
    merchant: Merchant, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr("cell.modules.payments.http_gateway.HttpGateway.cancel", nothing)
    with pytest.raises(AssertionError):
        await check_a_late_charge_finds_a_tombstone(merchant, gateway)


async def check_two_workers_charge_once(merchant: Merchant, gateway: Sandbox) -> None:
    product = await merchant.product(price_cents=120)
    order = await pay(merchant, (product, 1))
    async with payments.opened(gateway.url, gateway.token, 5.0) as inner:
        # The first one's lease has run out while it waits; the second one asks too.
        await gateway.faults({"operation": "charge", "kind": "slow", "seconds": 0.5})
        first = asyncio.create_task(Plant(merchant, inner).attempt())
        await until(lambda: _count(gateway))
        await pass_time(merchant)
        await Plant(merchant, inner, home="cell-2").attempt()
        await first
        await pass_time(merchant)
        await Plant(merchant, inner).attempt()
    assert await status(merchant, order) == "confirmed"
    assert sum(e["charge"] is not None for e in (await gateway.keys()).values()) == 1
    await check_charged_once(merchant, gateway, order, 120)


async def _count(gateway: Sandbox) -> bool:
    return await gateway.calls("charge") > 0


@pytest.mark.invariant(1)
async def test_two_workers_that_both_think_it_is_theirs_charge_once(merchant: Merchant, gateway: Sandbox) -> None:
    await check_two_workers_charge_once(merchant, gateway)


@pytest.mark.mutation(1)
async def test_with_a_key_of_its_own_for_each_attempt_an_order_is_charged_twice(
    merchant: Merchant, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, keys = HttpGateway.charge, iter(range(99))

    async def fresh(self: HttpGateway, asked: Asked) -> Answer:
        return await inner(self, Asked(f"{asked.key}-{next(keys)}", *_rest(asked)))

    monkeypatch.setattr(HttpGateway, "charge", fresh)
    with pytest.raises(AssertionError):
        await check_two_workers_charge_once(merchant, gateway)


def _rest(asked: Asked) -> tuple[str, int, str, str]:
    return asked.method, asked.amount_cents, asked.currency, asked.reference


async def test_the_key_is_on_disk_before_the_gateway_is_called(merchant: Merchant, gateway: Sandbox) -> None:
    order = await pay(merchant, (await merchant.product(), 1))
    seen: list[str] = []

    class Looking(payments.NoGateway):
        async def charge(self, asked: Asked) -> Answer:
            rows = await merchant.rows("SELECT key FROM product.payments WHERE tenant_id = $1")
            seen.extend(row["key"] for row in rows)
            return await super().charge(asked)

    await Plant(merchant, Looking()).attempt()
    assert seen == [f"{merchant.tenant_id}:{order}"] == [payments.key_of(merchant.number, UUID(order))]
    progress = (await merchant.owner.get(f"/v1/orders/{order}/progress")).json()
    assert (progress["step"], progress["failures"]) == ("charge", 1)


async def test_a_saga_that_nobody_wakes_is_found_by_the_sweep_and_finished(
    merchant: Merchant, gateway: Sandbox
) -> None:
    order = await pay(merchant, (await merchant.product(), 1))
    await merchant.rows("DELETE FROM cellwall.work WHERE tenant_id = $1")
    async with merchant.world.worker(**gateway.settings):
        assert await ended(merchant, order) == "confirmed"


async def test_an_old_saga_is_counted_as_stuck(merchant: Merchant) -> None:
    await pay(merchant, (await merchant.product(), 1))
    metrics = SagaMetrics(CollectorRegistry())
    look = conductor.chore(CELL, metrics)
    for _ in range(2):
        async with merchant.world.databases.shards.enter(merchant.context()) as session:
            await look(session)
        await merchant.rows("UPDATE product.sagas SET created_at = now() - interval '1 hour' WHERE tenant_id = $1")
    assert metrics.stuck._value.get() == 1


async def test_a_worker_that_stops_in_a_charge_leaves_the_order_to_the_next_one_at_once(
    merchant: Merchant, gateway: Sandbox
) -> None:
    await gateway.faults({"operation": "charge", "kind": "slow", "seconds": 1.0})
    order = await pay(merchant, (await merchant.product(price_cents=90), 1))
    async with merchant.world.worker(**gateway.settings):
        await until(lambda: _count(gateway))
    rows = await merchant.rows("SELECT FROM product.sagas WHERE tenant_id = $1 AND lease IS NULL AND due <= now()")
    assert len(rows) == 1
    async with merchant.world.worker(**gateway.settings):

        async def done() -> bool:
            await pass_backoff(merchant)
            return await status(merchant, order) != "pending"

        await until(done)
    await check_charged_once(merchant, gateway, order, 90)


@pytest.mark.invariant(1)
async def test_a_worker_that_is_killed_in_a_charge_leaves_it_to_its_successor_and_charges_once(
    merchant: Merchant, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("URL", gateway.url), ("TOKEN", gateway.token)):
        monkeypatch.setenv(f"CELLWALL_CELL_PAYMENTS_{name}", value)
    await gateway.faults({"operation": "charge", "kind": "slow", "seconds": 1.0})
    order = await pay(merchant, (await merchant.product(price_cents=330), 1))
    async with started(merchant.world.cell) as (process, _):
        await until(lambda: _count(gateway))
        process.kill()
        await process.wait()
    await pass_time(merchant)  # the dead one's lease
    async with started(merchant.world.cell):

        async def done() -> bool:
            await pass_backoff(merchant)
            return await status(merchant, order) != "pending"

        await until(done)
    assert await status(merchant, order) == "confirmed"
    await check_charged_once(merchant, gateway, order, 330)


async def test_a_payment_is_refused_where_nobody_could_charge_it(merchant: Merchant) -> None:
    product = await merchant.product()
    for body in ({"payment": {"method": "4111 1111 1111 1111"}}, {"payment": {}}, {"payment": None}):
        answer = await merchant.order((product, 1), **body)
        assert answer.status_code == 400, answer.text


async def test_an_order_of_nothing_to_pay_is_confirmed_without_the_gateway(
    merchant: Merchant, gateway: Sandbox
) -> None:
    order = await pay(merchant, (await merchant.product(price_cents=0), 1))
    async with merchant.world.worker():
        assert await ended(merchant, order) == "confirmed"
    assert await gateway.keys() == {}


async def test_reports_count_an_order_when_it_is_paid_and_not_before(merchant: Merchant, gateway: Sandbox) -> None:
    product = await merchant.product(price_cents=500)
    await pay(merchant, (product, 1), payment={"method": "declined-x"})
    waiting = await pay(merchant, (product, 1))

    async def revenue() -> list[int]:
        totals = (await merchant.owner.get("/v1/reports/summary?days=2")).json()["totals"]
        return [total["revenue_cents"] for total in totals]

    assert await revenue() == []
    async with merchant.world.worker(**gateway.settings):
        assert await ended(merchant, waiting) == "confirmed"
    assert await revenue() == [500]
