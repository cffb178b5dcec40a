"""The inbox: one event to one consumer, with its effect exactly once."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.sql.functions import func

from cell.events import outbox, retry
from cell.events.metrics import EventMetrics
from cell.shards.context import TenantContext
from cell.shards.errors import (
    CommitUnknownError,
    FrozenError,
    NotOursError,
    ShardUnavailableError,
)
from cell.shards.session import Shards, TenantSession
from cell.shards.sql import prepare
from cell.shards.tables import inbox
from cell.shards.tables import outbox as outbox_table
from contracts.names import Field

DELIVERY_TIMEOUT_S: Final = 10.0
ERROR_CHARACTERS: Final = 500

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Consumer:
    """Somebody who acts on events of some types, in a session of the event's tenant.

    ``handle`` writes only through the session it is given: its effect commits with the inbox row or not at all. What
    it raises counts as a failed attempt. ``name`` is stable: it is in the inbox rows.
    """

    name: str
    types: frozenset[str]
    handle: Callable[[TenantSession, outbox.Event], Awaitable[None]]


class Outcome(StrEnum):
    """How one delivery ended."""

    DONE = "done"
    SKIPPED = "skipped"  # done before, dead, not due yet, pruned, or of no interest to this consumer
    FAILED = "failed"  # to be tried again
    DEAD = "dead"
    REFUSED = "refused"  # the tenant is frozen or not ours: whoever owns it relays the event again
    UNAVAILABLE = "unavailable"  # no answer from the database; the outbox still has it


def subscriptions(consumers: Sequence[Consumer]) -> outbox.Subscriptions:
    """Who must have seen what before an event is finished."""
    pairs = [(type_, consumer.name) for consumer in consumers for type_ in sorted(consumer.types)]
    return outbox.Subscriptions(tuple(t for t, _ in pairs), tuple(c for _, c in pairs))


_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_CONSUMER = sa.bindparam("consumer", type_=sa.Text)
_EVENT = sa.bindparam("event_id", type_=sa.Uuid)
_event_of_outbox = sa.and_(outbox_table.c.tenant_id == _TENANT, outbox_table.c.event_id == _EVENT)

# From the outbox row, so that an event which was pruned or purged claims nothing. A second delivery waits here for the
# first to commit, and then finds "done".
_claim = insert(inbox).from_select(
    ["tenant_id", "consumer", "event_id", "state", "attempts"],
    sa.select(
        outbox_table.c.tenant_id,
        _CONSUMER,
        outbox_table.c.event_id,
        sa.literal_column("'done'"),
        sa.literal_column("1"),
    ).where(_event_of_outbox, outbox_table.c.type == sa.any_(sa.bindparam("types", type_=ARRAY(sa.Text)))),
)
_KEY = [inbox.c.tenant_id, inbox.c.consumer, inbox.c.event_id]
_claimed = (
    _claim.on_conflict_do_update(
        index_elements=_KEY,
        set_={
            "state": sa.literal_column("'done'"),
            "attempts": inbox.c.attempts + sa.literal_column("1"),
            "due": sa.null(),
            "error": sa.null(),
            "updated_at": func.now(),
        },
        where=sa.and_(inbox.c.state == "failed", inbox.c.due <= func.now()),
    )
    .returning(inbox.c.event_id)
    .cte("claimed")
)
# The event's row is locked: of two consumers that have it at once the later one sees what the other has done, and so
# can finish it.
_CLAIM = prepare(
    sa.select(outbox_table.c.type, outbox_table.c.payload, outbox_table.c.created_at)
    .where(_event_of_outbox, outbox_table.c.event_id == _claimed.c.event_id)
    .with_for_update(key_share=True, of=outbox_table)
)
_ATTEMPTS = prepare(
    sa.select(inbox.c.attempts)
    .where(inbox.c.tenant_id == _TENANT, inbox.c.consumer == _CONSUMER, inbox.c.event_id == _EVENT)
    .with_for_update()
)
_fail = insert(inbox).from_select(
    ["tenant_id", "consumer", "event_id", "state", "attempts", "due", "error"],
    sa.select(
        outbox_table.c.tenant_id,
        _CONSUMER,
        outbox_table.c.event_id,
        sa.bindparam("state", type_=sa.Text),
        sa.bindparam("attempts", type_=sa.Integer),
        func.now() + sa.bindparam("delay", type_=sa.Interval),
        sa.bindparam("error", type_=sa.Text),
    ).where(_event_of_outbox),
)
_FAIL = prepare(
    _fail.on_conflict_do_update(
        index_elements=_KEY,
        set_={name: _fail.excluded[name] for name in ("state", "attempts", "due", "error")}
        | {"updated_at": func.now()},
        where=inbox.c.state == "failed",
    )
)


class Inbox:
    """Delivers events to consumers, one transaction each."""

    def __init__(
        self,
        shards: Shards,
        consumers: Sequence[Consumer],
        metrics: EventMetrics,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._shards = shards
        self._subscriptions = subscriptions(consumers)
        self._metrics = metrics
        self._chance = chance

    async def deliver(self, consumer: Consumer, tenant: int, event_id: UUID) -> Outcome:
        """Run the consumer on the event unless its inbox has it. Never raises but for cancellation."""
        try:
            outcome = await self._try(consumer, tenant, event_id)
        except (NotOursError, FrozenError):
            outcome = Outcome.REFUSED
        except (ShardUnavailableError, CommitUnknownError) as e:
            _log.warning("event_delayed", **_fields(consumer, tenant, event_id, e))
            outcome = Outcome.UNAVAILABLE
        except Exception as e:
            outcome = await self._failed(consumer, tenant, event_id, e)
        self._metrics.consumed.labels(consumer=consumer.name, outcome=outcome).inc()
        return outcome

    async def _try(self, consumer: Consumer, tenant: int, event_id: UUID) -> Outcome:
        async with asyncio.timeout(DELIVERY_TIMEOUT_S), self._shards.enter(_context(tenant, event_id)) as session:
            types = sorted(consumer.types)
            row = await session.fetchrow(_CLAIM, consumer=consumer.name, event_id=event_id, types=types)
            if row is None:
                return Outcome.SKIPPED
            await consumer.handle(session, outbox.Event(event_id, row["type"], row["payload"], row["created_at"]))
            await outbox.finish(session, self._subscriptions, event_id)
        return Outcome.DONE

    async def _failed(self, consumer: Consumer, tenant: int, event_id: UUID, error: Exception) -> Outcome:
        try:
            return await self._record(consumer, tenant, event_id, error)
        except Exception as e:
            _log.warning("event_delayed", **_fields(consumer, tenant, event_id, e))
            return Outcome.UNAVAILABLE

    async def _record(self, consumer: Consumer, tenant: int, event_id: UUID, error: Exception) -> Outcome:
        async with asyncio.timeout(DELIVERY_TIMEOUT_S), self._shards.enter(_context(tenant, event_id)) as session:
            attempts = 1 + (await session.fetchval(_ATTEMPTS, consumer=consumer.name, event_id=event_id) or 0)
            delay = retry.delay_after(attempts, self._chance())
            outcome = Outcome.DEAD if delay is None else Outcome.FAILED
            text = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS].replace("\0", "")
            values = {"state": outcome.value, "attempts": attempts, "delay": delay, "error": text}
            await session.execute(_FAIL, consumer=consumer.name, event_id=event_id, **values)
            if delay is not None:
                await outbox.give_back(session, [event_id])
                await outbox.wake(session, delay)
        fields = _fields(consumer, tenant, event_id, error)
        if outcome is Outcome.DEAD:
            self._metrics.dead.labels(consumer=consumer.name).inc()
            _log.error("event_died", attempts=attempts, **fields)
        else:
            _log.warning("event_failed", attempts=attempts, **fields)
        return outcome


def _context(tenant: int, event_id: UUID) -> TenantContext:
    """An effect that a crash of the server takes back goes with its inbox row, and the event is delivered again."""
    deadline = asyncio.get_running_loop().time() + DELIVERY_TIMEOUT_S
    return TenantContext.for_worker(tenant, deadline, f"event-{event_id}", lasting=False)


def _fields(consumer: Consumer, tenant: int, event_id: UUID, error: Exception) -> dict[str, str]:
    return {
        Field.TENANT: f"t{tenant}",
        "consumer": consumer.name,
        "event_id": str(event_id),
        Field.REASON: f"{type(error).__name__}: {error}",
    }
