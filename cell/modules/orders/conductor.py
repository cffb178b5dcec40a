"""Conducts order sagas in the worker: a step, its record, the next step.

What a step finds out is recorded by a transaction that holds only for the attempt that the saga still names: a worker
that was slow, or whose tenant has moved meanwhile, records nothing, and whoever came after it decides.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import asyncpg
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as Counted

from cell import errands
from cell.events import outbox
from cell.modules.inventory import public as inventory
from cell.modules.orders import saga, service
from cell.modules.orders.public import ORDER_CANCELLED, ORDER_CONFIRMED, OrderEnded, SoldLine
from cell.modules.orders.saga import ENDS, Next, Step, Unsure
from cell.modules.orders.service import QUEUE, Order
from cell.modules.payments import public as payments
from cell.modules.payments.public import Answer, Asked, Charged, Gateway, GatewayError
from cell.shards.session import Shards, TenantSession
from contracts.names import Field, Metric

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class SagaMetrics:
    """The counters of the sagas, in the registry that the worker's metrics page shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = Counted(Metric.SAGAS_ENDED, "Order sagas that ended", ["outcome"], registry=registry)
        self.unsure = Counted(
            Metric.SAGAS_UNSURE, "Calls of the gateway that settled nothing", ["step"], registry=registry
        )
        self.stuck = Counted(
            Metric.SAGAS_STUCK, "Sagas that a sweep found open for ten minutes and more", registry=registry
        )


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt at the saga of one order."""

    tenant: int
    order_id: UUID
    attempt: int
    failures: int

    @classmethod
    def of(cls, tenant: int, row: asyncpg.Record) -> "_Attempt":
        return cls(tenant, row["order_id"], row["attempt"], row["failures"])


class Conductor:
    """Does one order's steps until it ends or has to wait: the step of `cell.errands.Errands`."""

    def __init__(
        self,
        shards: Shards,
        gateway: Gateway,
        metrics: SagaMetrics,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._shards = shards
        self._gateway = gateway
        self._metrics = metrics
        self._chance = chance

    async def step(self, tenant: int, row: asyncpg.Record) -> None:
        """From where the saga is, as far as it goes now."""
        attempt = _Attempt.of(tenant, row)
        step: Step | None = Step(row["step"])
        asked: Asked | None = None
        if step is Step.RESERVE:
            step, asked = await self._reserve(attempt)
        if step is Step.CHARGE:
            if asked is None:
                asked = await self._record(attempt, self._asked(attempt))
            step = await self._charge(attempt, asked)
        if step is Step.CANCEL:
            await self._cancel(attempt)

    async def _reserve(self, attempt: _Attempt) -> tuple[Step | None, Asked | None]:
        """Promise the units and write the charge's key down, or cancel: one transaction."""

        async def write(session: TenantSession) -> tuple[Step | None, Asked | None]:
            found = await service.hold_saga(session, attempt.order_id, attempt.attempt)
            if found is None:
                return None, None
            order, method = await service.get(session, attempt.order_id), found["method"]
            quantities: Counter[UUID] = Counter()
            for line in order.lines:
                quantities[line.product_id] += line.quantity
            short = await inventory.reserve(session, order.order_id, quantities)
            decided, asked = saga.after_reserving(short, order.total_cents), None
            if decided.step is Step.CHARGE:
                asked = await payments.open_(session, order.order_id, method, order.total_cents, order.currency)
            await self._go_on(session, attempt, order, decided, None)
            return decided.step, asked

        return await self._record(attempt, write)

    async def _charge(self, attempt: _Attempt, asked: Asked) -> Step | None:
        """Ask for the charge, under its key. The next step if there is one to be done now."""
        answer = await self._answer(asked)
        decided = saga.after_charging(answer, attempt.failures, self._chance())
        if isinstance(answer, Unsure):
            self._unsure(attempt, Step.CHARGE, answer)

        async def write(session: TenantSession) -> Step | None:
            if await service.hold_saga(session, attempt.order_id, attempt.attempt) is None:
                return None
            if decided.step is Step.CHARGE:
                await QUEUE.again(session, attempt.order_id, attempt.attempt, decided.delay)
                return None
            if isinstance(answer, Charged):
                await payments.end(session, attempt.order_id, payments.State.CHARGED, charge=answer.charge)
            elif decided.step is Step.CANCELLED:
                state = payments.State.DECLINED
                await payments.end(session, attempt.order_id, state, note=decided.note)
            order = await service.get(session, attempt.order_id)
            await self._go_on(session, attempt, order, decided, None)
            return decided.step

        return await self._record(attempt, write)

    async def _answer(self, asked: Asked) -> Answer | Unsure:
        try:
            return await self._gateway.charge(asked)
        except GatewayError as e:
            return Unsure(str(e))

    async def _cancel(self, attempt: _Attempt) -> None:
        """Cancel the key, then give back what was charged under it: in this order, a late charge finds a tombstone."""
        charge, unsure = None, None
        try:
            charge = await self._gateway.cancel(payments.key_of(attempt.tenant, attempt.order_id))
            if charge is not None:
                await self._gateway.refund(charge)
        except GatewayError as e:
            unsure = Unsure(str(e))
            self._unsure(attempt, Step.CANCEL, unsure)
        decided = saga.after_cancelling(unsure, attempt.failures, self._chance())

        async def write(session: TenantSession) -> None:
            if await service.hold_saga(session, attempt.order_id, attempt.attempt) is None:
                return
            if decided.step is Step.CANCEL:
                await QUEUE.again(session, attempt.order_id, attempt.attempt, decided.delay)
                return
            state = payments.State.CANCELLED if charge is None else payments.State.REFUNDED
            await payments.end(session, attempt.order_id, state, charge=charge)
            await self._go_on(session, attempt, await service.get(session, attempt.order_id), decided, charge)

        await self._record(attempt, write)

    async def _go_on(
        self, session: TenantSession, attempt: _Attempt, order: Order, decided: Next, refunded: str | None
    ) -> None:
        """Record the next step; at an end, the order's status, its units and the event, in the same transaction."""
        await service.move_saga(session, order.order_id, attempt.attempt, decided.step, decided.note)
        if decided.step not in ENDS:
            return
        confirmed = decided.step is Step.CONFIRMED
        await (inventory.sell if confirmed else inventory.release)(session, order.order_id)
        await service.end(session, order.order_id, service.CONFIRMED if confirmed else service.CANCELLED)
        sold = [SoldLine(*line) for line in order.lines]
        told = OrderEnded(order.order_id, order.number, order.total_cents, order.currency, sold, decided.note)
        await outbox.emit(session, ORDER_CONFIRMED if confirmed else ORDER_CANCELLED, told)
        self._metrics.ended.labels(outcome=decided.step.value).inc()
        _log.info("saga_ended", **_fields(attempt), outcome=decided.step.value, refunded=refunded)

    def _asked(self, attempt: _Attempt) -> Callable[[TenantSession], Awaitable[Asked]]:
        return lambda session: payments.asked(session, attempt.order_id)

    async def _record(self, attempt: _Attempt, write: Callable[[TenantSession], Awaitable[T]]) -> T:
        return await errands.record(self._shards, attempt.tenant, QUEUE.kind, write)

    def _unsure(self, attempt: _Attempt, step: Step, unsure: Unsure) -> None:
        self._metrics.unsure.labels(step=step.value).inc()
        fields = {**_fields(attempt), Field.REASON: unsure.words}
        _log.warning("gateway_unsure", step=step.value, failures=attempt.failures + 1, **fields)


def job(shards: Shards, gateway: Gateway, home: str, metrics: SagaMetrics) -> errands.Errands:
    """What the worker does for every tenant whose sagas wait; ``home`` is this cell."""
    return errands.Errands(shards, QUEUE, home, Conductor(shards, gateway, metrics).step)


def chore(home: str, metrics: SagaMetrics) -> Callable[[TenantSession], Awaitable[int]]:
    """What the sweep does for each tenant: wake the workers of sagas that nobody conducts, and count the old ones."""

    async def look(session: TenantSession) -> int:
        stuck = await service.look_after(session, home, saga.STUCK_AFTER)
        if stuck:
            metrics.stuck.inc(stuck)
            _log.warning("sagas_stuck", **{Field.TENANT: f"t{session.tenant}"}, count=stuck)
        return stuck

    return look


def _fields(attempt: _Attempt) -> dict[str, str]:
    return {Field.TENANT: f"t{attempt.tenant}", "order": str(attempt.order_id)}
