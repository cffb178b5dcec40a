"""The relay: from the tenants' outboxes to the stream, woken by the work table and made sure of by a sweep.

The work table only wakes: what it names is done through the fence (moves.md rule 14). A claim is a lease, a due time
in the future; it doubles as the moment to look whether the consumers have seen what was relayed. The sweep goes over
every tenant that is active here, so a lost wake-up, a flushed Redis or a tenant that just moved in costs at most one
round of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog
from redis.exceptions import RedisError

from cell.events import outbox
from cell.events.metrics import EventMetrics
from cell.events.stream import Message, Stream
from cell.events.tenants import active
from cell.shards.context import TenantContext
from cell.shards.errors import FrozenError, NotOursError
from cell.shards.session import Shards, TenantSession
from cell.work import Claim, Claims
from contracts.names import Field

JOB_TIMEOUT_S: Final = 10.0
CLAIM_TENANTS: Final = 32
AGAIN_SOON: Final = timedelta(seconds=1)  # after a refusal that may pass: frozen, Redis away

Chore = Callable[[TenantSession], Awaitable[int]]
_log = structlog.get_logger(__name__)


class Relay:
    """Moves events of all tenants of a cell onto the stream."""

    def __init__(
        self,
        shards: Shards,
        stream: Stream,
        subscriptions: outbox.Subscriptions,
        metrics: EventMetrics,
        chores: Sequence[Chore] = (),
    ) -> None:
        self._shards = shards
        self._stream = stream
        self._subscriptions = subscriptions
        self._metrics = metrics
        self._chores = (outbox.prune, *chores)
        self._claims = Claims(shards, outbox.WORK_KIND)

    async def claim(self, shard: str) -> list[Claim]:
        """Tenants of the shard whose time has come, at most `CLAIM_TENANTS`; nobody else gets them meanwhile."""
        return await self._claims.take(shard, CLAIM_TENANTS, outbox.REDELIVER_AFTER)

    async def attend(self, shard: str, claim: Claim) -> None:
        """Relay what is due of a claimed tenant, and let the claim go where nothing is outstanding."""
        try:
            async with asyncio.timeout(JOB_TIMEOUT_S):
                outstanding = await self.relay(claim.tenant)
        except NotOursError:
            outstanding = False
        except (FrozenError, RedisError, TimeoutError) as e:
            _log.warning("relay_postponed", **{Field.TENANT: f"t{claim.tenant}", Field.REASON: str(e)})
            await self._claims.postpone(shard, claim, AGAIN_SOON)
            return
        if not outstanding:
            await self._claims.drop(shard, claim)

    async def relay(self, tenant: int) -> bool:
        """Put every due event of the tenant on the stream; whether some consumer still has to see one.

        They are marked in the transaction that reads them and go to the stream after it: nothing of the tenant is held
        while Redis is asked. Where Redis fails the mark is taken back; a crash in between delays the events by
        `outbox.REDELIVER_AFTER`, as long as the claim would.
        """
        context = _context(tenant)
        while True:
            async with self._shards.enter(context) as session:
                ready, outstanding = await outbox.take(session, self._subscriptions)
            if ready:
                await self._publish(context, ready)
            if len(ready) < outbox.BATCH_EVENTS:
                return outstanding

    async def _publish(self, context: TenantContext, ready: Sequence[tuple[UUID, str]]) -> None:
        try:
            await self._stream.publish(Message(context.tenant, event_id, type_) for event_id, type_ in ready)
        except RedisError:
            async with self._shards.enter(context) as session:
                await outbox.give_back(session, [event_id for event_id, _ in ready])
            raise
        self._metrics.relayed.inc(len(ready))

    async def sweep(self, shard: str, pause: Callable[[], Awaitable[None]]) -> int:
        """Look after every active tenant of the shard, with a ``pause`` behind each; how many there were."""
        seen = 0
        async for tenant in active(self._shards, shard):
            await self._look_after(tenant)
            await pause()
            seen += 1
        return seen

    async def _look_after(self, tenant: int) -> None:
        """Wake the relay where an event is due, and do the chores. A tenant that left meanwhile is no fault."""
        try:
            async with asyncio.timeout(JOB_TIMEOUT_S), self._shards.enter(_context(tenant)) as session:
                if await outbox.due(session, self._subscriptions):
                    await outbox.wake(session, timedelta())
                for chore in self._chores:
                    await chore(session)
        except (NotOursError, FrozenError):
            return


def _context(tenant: int) -> TenantContext:
    """A mark that a crash of the server takes back costs one more message, and a chore is done again."""
    return TenantContext.for_worker(tenant, asyncio.get_running_loop().time() + JOB_TIMEOUT_S, "relay", lasting=False)
