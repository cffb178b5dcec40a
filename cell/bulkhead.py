"""The bulkhead: heavy work of tenants, in a room of its own so that it cannot take what requests need.

A platform part; what the work is, its `Job` says. The worker runs it on connections that nothing else uses.

============================  ======================================================================================
Guarantee                     How
============================  ======================================================================================
At most so many at once in    A slot is an advisory lock in the directory's database, whichever worker takes it, and
the cell                      ends with its connection. A directory that restarts under running work gives its slots
                              out again: for that moment there may be more.
At most so many of a shard    Work of a shard begins where a connection of its own pool is free.
One at a time of a tenant     The job holds the tenant's row of the work table (`cell.work.hold`).
Tenants take turns            The work table is in order of due times, and a tenant that had its turn goes to the end.
A freeze ends it              The job's transactions enter the tenant like all others; it comes up again when the
                              tenant is active, here or in the cell that it moved to.
============================  ======================================================================================
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from typing import Any, Final, Protocol

import structlog

from cell.shards.errors import FrozenError, NotOursError
from cell.shards.session import Pool, Shards
from cell.work import Claim, Claims
from contracts.names import Field

POLL_S: Final = 0.2
RETRY_MAX_S: Final = 5.0
FIRST_LEASE: Final = timedelta(seconds=15)  # of a claim, before the job holds it for as long as it needs
AGAIN_SOON: Final = timedelta(seconds=1)
STOP_S: Final = 10.0
RUNNING_MAX: Final = 64  # of one process, whatever the wall does
_SLOT_CLASS: Final = 0x5107  # of advisory locks in the directory's database
_TRY: Final = "SELECT pg_try_advisory_lock($1, $2)"

Observed = Callable[[], None]

_log = structlog.get_logger(__name__)


class Job(Protocol):
    """One kind of heavy work."""

    kind: str  # in the work table

    async def attend(self, tenant: int) -> None:
        """Do one piece of the tenant's work and settle its row of the work table. Cancellation ends it at once."""


class Slots:
    """The places of a cell, shared by all of its workers."""

    def __init__(self, directory: Pool, count: int) -> None:
        self._directory = directory
        self._count = count

    @asynccontextmanager
    async def one(self) -> AsyncIterator[bool]:
        """A slot for the length of the block, or False where all are taken."""
        async with self._directory.acquire() as connection:  # giving it back unlocks everything (asyncpg's reset)
            for slot in range(self._count):
                if await connection.fetchval(_TRY, _SLOT_CLASS, slot):
                    yield True
                    return
            yield False


class Bulkhead:
    """Runs a job for every tenant whose time has come, until it is told to stop."""

    def __init__(
        self, shards: Shards, job: Job, slots: Slots | None, *, at_once: int, of_shard: int, observed: Observed | None
    ) -> None:
        """Without ``slots`` the wall is off: as much as one process can take, and ``observed`` is told of what the
        wall would have made wait."""
        self._shards = shards
        self._job = job
        self._claims = Claims(shards, job.kind)
        self._slots = slots
        self._at_once = at_once
        self._of_shard = of_shard
        self._observed = observed
        self._running: dict[asyncio.Task[None], str] = {}
        self._stopping = asyncio.Event()

    @property
    def running(self) -> int:
        """How much is under way in this process."""
        return len(self._running)

    def stop(self) -> None:
        """Begin nothing new, and give back what is under way."""
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`. Cancelling it ends everything at once; nothing is lost by that but time."""
        faults = 0
        try:
            while not self._stopping.is_set():
                try:
                    begun = len(self._running) < RUNNING_MAX and await self._begin()
                    faults = 0
                except Exception as e:
                    faults, begun = faults + 1, False
                    _log.warning("bulkhead_look_failed", **{Field.REASON: f"{type(e).__name__}: {e}"})
                if not begun:
                    await self._rest(min(RETRY_MAX_S, POLL_S * 2.0**faults))
        finally:
            tasks = list(self._running)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=STOP_S)

    async def _begin(self) -> bool:
        """Begin the work that has waited longest on some shard with room; whether there was any."""
        busy = Counter(self._running.values())
        for shard in sorted(self._shards.names, key=lambda name: busy[name]):
            fits = len(self._running) < self._at_once and busy[shard] < self._of_shard
            if not fits and self._slots is not None:
                continue
            claims = await self._claims.take(shard, 1, FIRST_LEASE)
            if claims:
                if not fits and self._observed is not None:
                    self._observed()
                return await self._start(shard, claims[0])
        return False

    async def _start(self, shard: str, claim: Claim) -> bool:
        started: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._work(shard, claim, started))
        self._running[task] = shard
        task.add_done_callback(self._running.pop)
        both: list[asyncio.Future[Any]] = [started, task]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return started.done() and started.result()

    async def _work(self, shard: str, claim: Claim, started: "asyncio.Future[bool]") -> None:
        fields = {Field.SHARD: shard, Field.TENANT: f"t{claim.tenant}"}
        try:
            async with self._slots.one() if self._slots is not None else nullcontext(True) as free:
                started.set_result(free)
                if free:
                    await self._job.attend(claim.tenant)
                else:
                    await self._claims.postpone(shard, claim, timedelta(seconds=POLL_S))
        except NotOursError:
            await self._claims.drop(shard, claim)
        except FrozenError:
            await self._claims.postpone(shard, claim, AGAIN_SOON)
        except Exception as e:
            _log.warning("heavy_work_failed", **fields, **{Field.REASON: f"{type(e).__name__}: {e}"})

    async def _rest(self, seconds: float) -> None:
        """Wait, unless the worker stops."""
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
