"""The open-loop driver: sends every intent at its time, through every router in turn, and records what came back.

Open loop means that a request is sent when the schedule says so, however many are still waiting. The client policy is
that of a careful client and part of what is measured: a request whose connection was lost is sent once more through
the next router (all are safe to repeat: reads, and creates with an Idempotency-Key), and a create that then meets its
first try still at work (409) is repeated until that is done. Both are counted. Every other failure is final.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from contracts import problems
from loadtest.record import Acknowledged, Failure, Record, Stale, Write
from loadtest.schedule import WRITES, Intent, Kind
from loadtest.wire import Answer, ExchangeError, Target
from loadtest.workload import PAGE, Account, Call, call

ATTEMPT_TIMEOUT_S = 10.0
IN_FLIGHT_PAUSE_S = 0.05
IN_FLIGHT_TRIES = 40
LEAD_IN_S = 0.05
BODY_SHOWN = 200
PENDING = "pending"  # the status of an order that is to be paid

EXPECTED = {kind: 201 if kind in WRITES else 200 for kind in Kind} | {
    Kind.REPORT: 202,
    Kind.UNKNOWN_HOST: 404,
    Kind.BAD_KEY: 401,
}


class _Created(msgspec.Struct):
    id: str
    status: str = ""


@dataclass(slots=True)
class _Shelf:
    """What one tenant knows of its orders."""

    orders: list[str]
    sent: int = 0
    acknowledged: int = 0
    newest: str | None = None
    older: int = 0  # creates that were acknowledged before ``newest`` was sent, so have lower numbers for certain

    def must_show(self) -> tuple[str | None, int]:
        """An order that the first page shows, as long as no more creates than this have been sent when it answers."""
        return self.newest, self.older + PAGE


class Driver:
    """One run. ``orders`` are acknowledged orders per tenant to read; creates of the run are added to them.

    `run` returns when every request has ended. `seconds_in` places an event of the outside on the run's time axis.
    Tenants that come while it runs are told by `admit`, and `also` sends their requests on the same axis.
    ``clock`` is in seconds, and the loop's own where none is given (that of uvloop counts in milliseconds only).
    """

    def __init__(
        self,
        routers: Sequence[Target],
        accounts: Sequence[Account],
        orders: Mapping[str, Sequence[str]],
        run: str,
        record: Record,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._routers = routers
        self._accounts = list(accounts)
        self._shelves = {tenant: _Shelf(list(known)) for tenant, known in orders.items()}
        self._run = run
        self._record = record
        self._clock = clock
        self._today = datetime.now(UTC).date()
        self._start = 0.0
        self._cpu: Callable[[], float] = time.process_time
        self._cpu_start = 0.0

    def seconds_in(self) -> float:
        """Seconds since the start of the run."""
        return self._now() - self._start

    def _now(self) -> float:
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()

    async def run(
        self, intents: Sequence[Intent], *, start: float | None = None, cpu: Callable[[], float] = time.process_time
    ) -> None:
        """Send all of them; ``start`` is second 0 by the clock, now where it is not given.

        Cancelling it cancels what is in flight and leaves the record as far as it got.
        """
        self._start = start if start is not None else self._now() + LEAD_IN_S
        self._cpu, self._cpu_start = cpu, cpu()
        await self.also(intents)

    def admit(self, accounts: Sequence[Account], orders: Mapping[str, Sequence[str]]) -> int:
        """More tenants; returns the number by which intents name the first of them."""
        first = len(self._accounts)
        self._accounts.extend(accounts)
        self._shelves |= {tenant: _Shelf(list(known)) for tenant, known in orders.items()}
        return first

    async def also(self, intents: Sequence[Intent]) -> None:
        """Send these too, while `run` is at work or after it. Their numbers must be others than those of `run`."""
        self._record.intended += len(intents)
        try:
            async with asyncio.TaskGroup() as tasks:
                for intent in intents:
                    delay = self._start + intent.at - self._now()
                    if delay > 0:
                        await asyncio.sleep(delay)
                    tasks.create_task(self._perform(intent))
        finally:
            self._record.seconds = self.seconds_in()
            self._record.cpu_seconds = self._cpu() - self._cpu_start

    async def _perform(self, intent: Intent) -> None:
        account = self._accounts[intent.tenant]
        shelf = self._shelves[account.tenant]
        newest, until = shelf.must_show()
        request = call(account, intent, shelf.orders, self._run, newest, self._today)
        self._record.lag.add(self.seconds_in() - intent.at)
        self._record.sent += 1
        before = shelf.acknowledged
        if request.key is not None:
            shelf.sent += 1
            self._record.unacknowledged[request.key] = account.tenant
        answer = await self._answer(intent, account, request)
        now = self.seconds_in()
        if isinstance(answer, Failure):
            self._record.gave_up(intent, answer)
        else:
            self._record.answered(intent, answer.cell, now)
        if request.key is not None:
            self._record.wrote(account.tenant, Write(intent.at, now, isinstance(answer, Answer)))
            if isinstance(answer, Answer):
                self._acknowledge(account.tenant, request.key, answer, now, before)
        elif request.shows is not None and (intent.kind is Kind.READ or shelf.sent < until):
            self._look(account.tenant, request.shows, answer, now)

    def _acknowledge(self, tenant: str, key: str, answer: Answer, now: float, before: int) -> None:
        made = msgspec.json.decode(answer.body, type=_Created)
        order, pending = made.id, made.status == PENDING
        del self._record.unacknowledged[key]
        self._record.acknowledged.append(Acknowledged(tenant, order, key, now, answer.cell, answer.epoch, pending))
        shelf = self._shelves[tenant]
        shelf.orders.append(order)
        shelf.acknowledged += 1
        shelf.newest, shelf.older = order, before

    def _look(self, tenant: str, order: str, answer: Answer | Failure, now: float) -> None:
        """Whether a read shows what its tenant has written: a 404, or an answer without the order, does not."""
        if isinstance(answer, Answer) and order.encode() not in answer.body:
            what = "an answer without it"
        elif isinstance(answer, Failure) and answer.status == 404:
            what = "404"
        else:
            return
        words = (
            f"order {order} of {tenant} was acknowledged, and a read that was sent after that got {what} at {now:.2f} s"
        )
        self._record.stale.append(Stale(tenant, order, now, words))

    async def _answer(self, intent: Intent, account: Account, request: Call) -> Answer | Failure:
        """The expected answer, or the last failure where there was none; every try that failed is on record."""
        retried = False
        for attempt in range(1 + IN_FLIGHT_TRIES):
            router = self._routers[(intent.number + min(attempt, 1)) % len(self._routers)]
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                    answer = await router.exchange(request.payload)
            except TimeoutError:
                return self._failed(intent, account, router, f"no answer within {ATTEMPT_TIMEOUT_S:.0f} s")
            except ExchangeError as e:
                again = e.cause == ExchangeError.LOST and not retried
                failure = self._failed(intent, account, router, e.cause, error=e, retried=again)
                if not again:
                    return failure
                retried = True
                continue
            if retried and _still_at_work(answer):
                await asyncio.sleep(IN_FLIGHT_PAUSE_S)
                continue
            if answer.status != EXPECTED[request.kind]:
                cause = "refused" if answer.refused else "unexpected status"
                return self._failed(intent, account, router, cause, answer=answer)
            if request.key is not None and not _names_an_order(answer):
                return self._failed(intent, account, router, "an acknowledgement that names no order", answer=answer)
            self._record.retried_well += retried
            return answer
        return self._failed(intent, account, router, "the first try never ended", answer=answer)

    def _failed(
        self,
        intent: Intent,
        account: Account,
        router: Target,
        cause: str,
        *,
        answer: Answer | None = None,
        error: ExchangeError | None = None,
        retried: bool = False,
    ) -> Failure:
        failure = Failure(
            at=self.seconds_in(),
            intended=intent.at,
            tenant=account.tenant,
            kind=intent.kind,
            router=router.name,
            cause=cause,
            status=answer.status if answer else 0,
            body=answer.body[:BODY_SHOWN].decode("utf-8", "replace") if answer else str(error or ""),
            local_port=error.local_port if error else 0,
            connected_at=error.connected_at - self._start if error else 0.0,
            retried=retried,
            refused=answer is not None and answer.refused,
        )
        self._record.failed(failure)
        return failure


def _names_an_order(answer: Answer) -> bool:
    try:
        msgspec.json.decode(answer.body, type=_Created)
    except msgspec.DecodeError:
        return False
    return True


def _still_at_work(answer: Answer) -> bool:
    """A 409 that says the first try of the same key has not ended yet."""
    return answer.status == problems.KEY_IN_FLIGHT.status and problems.KEY_IN_FLIGHT.type.encode() in answer.body
