"""The worker's loops: relay and sweep per shard, delivery per consumer. Each goes on by itself when another fails."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from cell.events.inbox import Consumer, Inbox, Outcome
from cell.events.relay import CLAIM_TENANTS, Relay
from cell.events.stream import Stream
from cell.work import Claim
from contracts.names import Field

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the loops look, in seconds, and how much they do at a time."""

    poll_s: float = 0.1  # between two looks at the work table
    sweep_s: float = 60.0  # between the beginnings of two sweeps of a shard
    sweep_gap_s: float = 0.005  # between two tenants of a sweep
    retry_max_s: float = 5.0  # the longest wait after faults in a row
    relays: int = 4  # tenants of a shard at a time
    deliveries: int = 8  # of a consumer at a time


DEFAULT_PACE: Final = Pace()
GRACE_S: Final = 10.0  # for what is under way when the worker stops


class Pump:
    """Runs until it is told to stop, then lets what is under way finish within `GRACE_S`."""

    def __init__(
        self,
        relay: Relay,
        inbox: Inbox,
        stream: Stream,
        shards: Sequence[str],
        consumers: Sequence[Consumer],
        pace: Pace = Pace(),
    ) -> None:
        self._relay = relay
        self._inbox = inbox
        self._stream = stream
        self._shards = shards
        self._consumers = consumers
        self._pace = pace
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping.set()

    async def run(self) -> None:
        """All loops, until `stop`. Cancelling it ends them at once; nothing is lost by that but time."""
        loops = [self._forever(self._relay_once, shard) for shard in self._shards]
        loops += [self._forever(self._sweep_once, shard) for shard in self._shards]
        loops += [self._consume(consumer) for consumer in self._consumers]
        tasks = [asyncio.ensure_future(loop) for loop in loops]
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(tasks, timeout=GRACE_S if self._stopping.is_set() else 0)
        finally:
            ended = [task for task in tasks if task.done()]
            for task in (stopping, *tasks):
                task.cancel()
            await asyncio.gather(stopping, *tasks, return_exceptions=True)
        for task in ended:
            task.result()  # a loop that ended by itself is a defect: it raises here

    async def _forever(self, step: Callable[[str], Awaitable[float]], shard: str) -> None:
        """Repeat a step, which says how long to rest; back off from faults, and say so."""
        faults = 0
        while not self._stopping.is_set():
            try:
                rest = await step(shard)
                faults = 0
            except Exception as e:
                faults += 1
                rest = self._after_faults(faults)
                fields = {Field.SHARD: shard, Field.REASON: f"{type(e).__name__}: {e}"}
                _log.warning("worker_step_failed", step=step.__name__.strip("_"), retry_s=rest, **fields)
            await self._rest(rest)

    async def _relay_once(self, shard: str) -> float:
        claims = await self._relay.claim(shard)
        room = asyncio.Semaphore(self._pace.relays)

        async def attend(claim: Claim) -> None:
            async with room:
                await self._relay.attend(shard, claim)

        results = await asyncio.gather(*(attend(claim) for claim in claims), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            raise failures[0]
        # Rest even after work, unless there is a backlog: events gather meanwhile and share a trip.
        return 0.0 if len(claims) == CLAIM_TENANTS else self._pace.poll_s

    async def _sweep_once(self, shard: str) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        tenants = await self._relay.sweep(shard, lambda: self._rest(self._pace.sweep_gap_s))
        _log.debug("shard_swept", **{Field.SHARD: shard}, tenants=tenants)
        return max(0.0, began + self._pace.sweep_s - loop.time())

    async def _consume(self, consumer: Consumer) -> None:
        """Read and deliver, so many at a time: a tenant whose events are slow holds up no more than its places."""
        running: set[asyncio.Task[Outcome]] = set()
        faults = 0
        try:
            while not self._stopping.is_set():
                if len(running) >= self._pace.deliveries:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    continue
                try:
                    messages = await self._stream.read(consumer.name, self._pace.deliveries - len(running))
                    faults = 0
                except Exception as e:
                    faults += 1
                    rest = self._after_faults(faults)
                    reason = f"{type(e).__name__}: {e}"
                    _log.warning("stream_unreadable", consumer=consumer.name, retry_s=rest, **{Field.REASON: reason})
                    await self._rest(rest)
                    continue
                for message in messages:
                    if message.type and message.type not in consumer.types:
                        continue
                    delivery = asyncio.create_task(self._inbox.deliver(consumer, message.tenant, message.event_id))
                    running.add(delivery)
                    delivery.add_done_callback(running.discard)
            await asyncio.gather(*running)
        finally:
            for delivery in running:
                delivery.cancel()

    def _after_faults(self, faults: int) -> float:
        return min(self._pace.retry_max_s, self._pace.poll_s * 2.0**faults)

    async def _rest(self, seconds: float) -> None:
        """Wait, unless the worker stops."""
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
