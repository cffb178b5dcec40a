"""The open-loop driver: sends every intent at its time, through every router in turn, and records what came back.

Open loop means that a request is sent when the schedule says so, however many are still waiting. The client policy is
that of a careful client and part of what is measured: a request whose connection was lost is sent once more through
the next router (all are safe to repeat: reads, and creates with an Idempotency-Key), and a create that then meets its
first try still at work (409) is repeated until that is done. Both are counted. Every other failure is final.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from contracts import problems
from loadtest.record import Acknowledged, Failure, Record, Write
from loadtest.schedule import Intent, Kind
from loadtest.wire import Answer, ExchangeError, Target
from loadtest.workload import Account, Call, call

ATTEMPT_TIMEOUT_S = 10.0
IN_FLIGHT_PAUSE_S = 0.05
IN_FLIGHT_TRIES = 40
LEAD_IN_S = 0.05
BODY_SHOWN = 200

EXPECTED = {Kind.CREATE: 201, Kind.READ: 200, Kind.LIST: 200, Kind.PRODUCT: 200}


class _Created(msgspec.Struct):
    id: str


class Driver:
    """One run. ``orders`` are acknowledged orders per tenant to read; creates of the run are added to them.

    `run` returns when every request has ended. `seconds_in` places an event of the outside on the run's time axis.
    Tenants that come while it runs are told by `admit`, and `also` sends their requests on the same axis.
    """

    def __init__(
        self,
        routers: Sequence[Target],
        accounts: Sequence[Account],
        orders: Mapping[str, Sequence[str]],
        run: str,
        record: Record,
    ) -> None:
        self._routers = routers
        self._accounts = list(accounts)
        self._orders = {tenant: list(known) for tenant, known in orders.items()}
        self._run = run
        self._record = record
        self._start = 0.0
        self._cpu: Callable[[], float] = time.process_time
        self._cpu_start = 0.0

    def seconds_in(self) -> float:
        """Seconds since the start of the run."""
        return asyncio.get_running_loop().time() - self._start

    async def run(self, intents: Sequence[Intent], *, cpu: Callable[[], float] = time.process_time) -> None:
        """Send all of them. Cancelling it cancels what is in flight and leaves the record as far as it got."""
        self._start = asyncio.get_running_loop().time() + LEAD_IN_S
        self._cpu, self._cpu_start = cpu, cpu()
        await self.also(intents)

    def admit(self, accounts: Sequence[Account], orders: Mapping[str, Sequence[str]]) -> int:
        """More tenants; returns the number by which intents name the first of them."""
        first = len(self._accounts)
        self._accounts.extend(accounts)
        self._orders |= {tenant: list(known) for tenant, known in orders.items()}
        return first

    async def also(self, intents: Sequence[Intent]) -> None:
        """Send these too, while `run` is at work or after it. Their numbers must be others than those of `run`."""
        loop = asyncio.get_running_loop()
        self._record.intended += len(intents)
        try:
            async with asyncio.TaskGroup() as tasks:
                for intent in intents:
                    delay = self._start + intent.at - loop.time()
                    if delay > 0:
                        await asyncio.sleep(delay)
                    tasks.create_task(self._perform(intent))
        finally:
            self._record.seconds = self.seconds_in()
            self._record.cpu_seconds = self._cpu() - self._cpu_start

    async def _perform(self, intent: Intent) -> None:
        account = self._accounts[intent.tenant]
        request = call(account, intent, self._orders[account.tenant], self._run)
        self._record.lag.add(self.seconds_in() - intent.at)
        self._record.sent += 1
        if request.key is not None:
            self._record.unacknowledged[request.key] = account.tenant
        answer = await self._answer(intent, account, request)
        now = self.seconds_in()
        if answer is not None:
            self._record.answered(answer.cell, request.kind, now - intent.at)
        if request.key is not None:
            self._record.wrote(account.tenant, Write(intent.at, now, answer is not None))
            if answer is not None:
                self._acknowledge(account.tenant, request.key, answer, now)

    def _acknowledge(self, tenant: str, key: str, answer: Answer, now: float) -> None:
        order = msgspec.json.decode(answer.body, type=_Created).id
        del self._record.unacknowledged[key]
        self._record.acknowledged.append(Acknowledged(tenant, order, key, now, answer.cell, answer.epoch))
        self._orders[tenant].append(order)

    async def _answer(self, intent: Intent, account: Account, request: Call) -> Answer | None:
        """The expected answer, or None where there was none; every try that failed is on record."""
        retried = False
        for attempt in range(1 + IN_FLIGHT_TRIES):
            router = self._routers[(intent.number + min(attempt, 1)) % len(self._routers)]
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                    answer = await router.exchange(request.payload)
            except TimeoutError:
                self._failed(intent, account, router, f"no answer within {ATTEMPT_TIMEOUT_S:.0f} s")
                return None
            except ExchangeError as e:
                again = e.cause == ExchangeError.LOST and not retried
                self._failed(intent, account, router, e.cause, error=e, retried=again)
                if not again:
                    return None
                retried = True
                continue
            if retried and _still_at_work(answer):
                await asyncio.sleep(IN_FLIGHT_PAUSE_S)
                continue
            if answer.status != EXPECTED[request.kind]:
                self._failed(intent, account, router, "unexpected status", answer=answer)
                return None
            if request.key is not None and not _names_an_order(answer):
                self._failed(intent, account, router, "an acknowledgement that names no order", answer=answer)
                return None
            self._record.retried_well += retried
            return answer
        self._failed(intent, account, router, "the first try never ended", answer=answer)
        return None

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
    ) -> None:
        self._record.failures.append(
            Failure(
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
            )
        )


def _names_an_order(answer: Answer) -> bool:
    try:
        msgspec.json.decode(answer.body, type=_Created)
    except msgspec.DecodeError:
        return False
    return True


def _still_at_work(answer: Answer) -> bool:
    """A 409 that says the first try of the same key has not ended yet."""
    return answer.status == problems.KEY_IN_FLIGHT.status and problems.KEY_IN_FLIGHT.type.encode() in answer.body
