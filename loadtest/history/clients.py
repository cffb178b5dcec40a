"""Clients that read and write a few registers, several at once, through every router, and record what they were told.

Each waits for its answer before it asks again, so there are never more operations under way than clients, and the
order of calls and returns is that of one clock. Nothing is sent twice: an operation whose answer does not come is one
whose end is not known, and its client goes on with another.
"""

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf
from typing import Final

from loadtest.history.operation import History, Kind, Operation, Outcome
from loadtest.history.requests import CREATED, Register, created, creation, payload, told
from loadtest.operator import LabError
from loadtest.wire import Answer, ExchangeError, Pool, Target
from loadtest.workload import Account

ANSWER_TIMEOUT_S: Final = 10.0
LAST_READ_TIMEOUT_S: Final = 60.0
LAST_READ_PAUSE_S: Final = 0.1
PAUSE_S: Final = 0.02
CONNECTIONS: Final = 4  # to each router: its workers share them
KINDS: Final = (Kind.READ, Kind.READ, Kind.WRITE, Kind.SWAP)


class Clients:
    """Clients of some registers. ``history`` grows while they work."""

    def __init__(
        self,
        routers: Sequence[Target],
        registers: Sequence[Register],
        history: History,
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._routers = routers
        self._registers = registers
        self.history = history
        self._rng = rng
        self._clock = clock
        self._values = itertools.count(1 + max(state.value or 0 for state in history.initial.values()))
        self._seen = {key: state.version for key, state in history.initial.items()}

    async def client(self, number: int, stop: asyncio.Event, pause_s: float) -> None:
        """One client, until it is told to stop; its last operation ends first."""
        while not stop.is_set():
            await self.operate(number, self._rng.choice(self._registers), self._rng.choice(KINDS))
            await asyncio.sleep(pause_s)

    async def operate(self, client: int, register: Register, kind: Kind) -> Operation:
        """One operation, recorded whatever becomes of it, also where it is cancelled."""
        value = None if kind is Kind.READ else next(self._values)
        expected = self._seen[register.key] if kind is Kind.SWAP else None
        router = self._rng.choice(self._routers)
        outcome, state, via, invoked, returned = Outcome.UNKNOWN, None, router.name, self._clock(), inf
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer = await router.exchange(payload(register, kind, value, expected))
            outcome, state = told(kind, answer)
            via = f"{router.name}, {answer.cell or 'no cell'} at epoch {answer.epoch}"
        except ExchangeError as e:
            outcome = Outcome.FAILED if e.cause == ExchangeError.REFUSED else Outcome.UNKNOWN
        except TimeoutError:
            pass
        finally:
            if outcome is not Outcome.UNKNOWN:
                returned = self._clock()
            done = Operation(register.key, client, kind, invoked, returned, outcome, value, expected, state, via)
            self.history.operations.append(done)
        if state is not None:
            self._seen[register.key] = state.version
        return done

    async def last_reads(self) -> None:
        """Read every register until it answers, so that nothing that was lost at the end stays unseen."""
        for register in self._registers:
            until = self._clock() + LAST_READ_TIMEOUT_S
            while (await self.operate(-1, register, Kind.READ)).outcome is not Outcome.OK:
                if self._clock() > until:
                    raise LabError(f"{register.key} could not be read for {LAST_READ_TIMEOUT_S:.0f} s")
                await asyncio.sleep(LAST_READ_PAUSE_S)


async def make_registers(router: Target, accounts: Sequence[Account], each: int) -> tuple[list[Register], History]:
    """So many new registers of each tenant, and a history that begins with what they hold."""
    registers, history = [], History()
    for account in accounts:
        for _ in range(each):
            answer: Answer = await router.exchange(creation(account, f"register-{secrets.token_hex(6)}", 1))
            if answer.status != CREATED:
                raise LabError(f"a product of {account.tenant} was answered {answer.status}: {answer.body[:200]!r}")
            register, state = created(account, answer)
            registers.append(register)
            history.initial[register.key] = state
    return registers, history


@asynccontextmanager
async def recording(
    routers: Sequence[Target],
    registers: Sequence[Register],
    history: History,
    *,
    clients: int,
    pause_s: float = PAUSE_S,
    seed: int = 0,
) -> AsyncIterator[Clients]:
    """Clients at work for as long as the block runs; afterwards each register is read once more.

    Operations under way at its end are cut off: nobody knows how they ended, which is part of the history.
    """
    working, stop = Clients(routers, registers, history, random.Random(seed)), asyncio.Event()
    tasks = [asyncio.create_task(working.client(number, stop, pause_s)) for number in range(clients)]
    try:
        yield working
    finally:
        stop.set()
        await asyncio.wait(tasks, timeout=max(1.0, 2 * pause_s))
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error
    await working.last_reads()


@asynccontextmanager
async def recorded(
    routers: Mapping[str, tuple[str, int]],
    accounts: Sequence[Account],
    *,
    each: int = 1,
    clients: int = 3,
    pause_s: float = PAUSE_S,
    seed: int = 0,
) -> AsyncIterator[History]:
    """`recording` on new registers, ``each`` of every account, by connections of its own; ``routers``: host and port.

    The history is complete, and to be judged, when the block has ended.
    """
    async with AsyncExitStack() as stack:
        pools = [Pool(*at, name=name, size=CONNECTIONS) for name, at in routers.items()]
        for pool in pools:
            stack.callback(pool.close)
        registers, history = await make_registers(pools[0], accounts, each)
        async with recording(pools, registers, history, clients=clients, pause_s=pause_s, seed=seed):
            yield history
