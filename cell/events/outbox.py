"""The outbox: every statement about events that were emitted, and when one of them is due, finished and pruned."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.sql.functions import func

from cell import work
from cell.ids import uuid7
from cell.shards.session import TenantSession
from cell.shards.sql import prepare
from cell.shards.tables import inbox, outbox

RETENTION: Final = timedelta(hours=24)  # of finished events
REDELIVER_AFTER: Final = timedelta(seconds=30)  # when an event that no inbox has yet goes to the stream again
BATCH_EVENTS: Final = 256
WORK_KIND: Final = "events"


@dataclass(frozen=True, slots=True)
class Event:
    """An event as a consumer gets it; ``payload`` is what `emit` was given, as built-in types."""

    event_id: UUID
    type: str
    payload: Any
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """Which consumer must have seen events of which type: pairs, as two arrays of the same length."""

    types: tuple[str, ...]
    consumers: tuple[str, ...]

    def values(self) -> dict[str, list[str]]:
        """The parameters of the statements below."""
        return {"types": list(self.types), "consumers": list(self.consumers)}


_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_NOW = func.now()
_REDELIVER = sa.bindparam("redeliver_after", type_=sa.Interval)

_emit = (
    insert(outbox)
    .values(
        tenant_id=_TENANT,
        event_id=sa.bindparam("event_id"),
        type=sa.bindparam("type"),
        payload=sa.bindparam("payload", type_=JSONB),
    )
    .returning(outbox.c.event_id)
    .cte("told")
)
_EMIT = prepare(work.waking(WORK_KIND).add_cte(_emit))

_subscription = (
    func.unnest(sa.bindparam("types", type_=ARRAY(sa.Text)), sa.bindparam("consumers", type_=ARRAY(sa.Text)))
    .table_valued(sa.column("type", sa.Text), sa.column("consumer", sa.Text), name="subscription")
    .render_derived()
)
# Per event: its subscriptions, each beside the inbox row of its consumer where there is one.
_deliveries: sa.Select[Any] = (
    sa.select(sa.literal_column("1"))
    .select_from(
        _subscription.outerjoin(
            inbox,
            sa.and_(
                inbox.c.tenant_id == _TENANT,
                inbox.c.consumer == _subscription.c.consumer,
                inbox.c.event_id == outbox.c.event_id,
            ),
        )
    )
    .where(_subscription.c.type == outbox.c.type)
    .correlate(outbox)
)
# Asked first: it says no of what is under way, of which a tenant may have thousands, and the rest is dear.
_not_under_way = sa.or_(outbox.c.relayed_at.is_(None), outbox.c.relayed_at < _NOW - _REDELIVER)
_wanting = sa.or_(inbox.c.state.is_(None), sa.and_(inbox.c.state == "failed", inbox.c.due <= _NOW))
_unfinished = sa.and_(outbox.c.tenant_id == _TENANT, outbox.c.finished_at.is_(None))
_all_done = ~_deliveries.where(inbox.c.state.is_distinct_from("done")).exists()

_due = (
    sa.select(outbox.c.event_id, outbox.c.type)
    .where(_unfinished, _not_under_way, _deliveries.where(_wanting).exists())
    .order_by(outbox.c.event_id)
    .limit(BATCH_EVENTS)
)
_DUE = prepare(_due)
_ids = sa.bindparam("event_ids", type_=ARRAY(sa.Uuid))
_these = sa.and_(outbox.c.tenant_id == _TENANT, outbox.c.event_id == sa.any_(_ids))
_outstanding = (
    sa.select(outbox.c.event_id)
    .where(_unfinished, _deliveries.where(sa.or_(inbox.c.state.is_(None), inbox.c.state == "failed")).exists())
    .exists()
)
# In one trip, because every change of a tenant causes one. What is finished here is none of what is due: all of its
# deliveries are done.
_ready = _due.cte("ready")
_finish_all = sa.update(outbox).where(_unfinished, _not_under_way, _all_done).values(finished_at=_NOW)
_finished = _finish_all.returning(outbox.c.event_id).cte("finished")
_relayed = (
    sa.update(outbox)
    .where(outbox.c.tenant_id == _TENANT, outbox.c.event_id == _ready.c.event_id)
    .values(relayed_at=_NOW)
    .returning(outbox.c.event_id)
    .cte("relayed")
)
_one = sa.select(sa.literal_column("1").label("row")).subquery("one")
_TAKE = prepare(
    sa.select(_outstanding.label("outstanding"), _ready.c.event_id, _ready.c.type)
    .select_from(_one.outerjoin(_ready, sa.true()))
    .order_by(_ready.c.event_id)
    .add_cte(_finished, _relayed)
)
_GIVE_BACK = prepare(sa.update(outbox).where(_these).values(relayed_at=sa.null()))
_FINISH_ONE = prepare(
    sa.update(outbox)
    .where(_unfinished, outbox.c.event_id == sa.bindparam("event_id"), _all_done)
    .values(finished_at=_NOW)
)
_PRUNE = prepare(
    sa.delete(outbox).where(
        outbox.c.tenant_id == _TENANT, outbox.c.finished_at < _NOW - sa.bindparam("retention", type_=sa.Interval)
    )
)


async def emit(session: TenantSession, type_: str, payload: msgspec.Struct) -> UUID:
    """Tell of a change, in its own transaction. Do it last: the wake-up row is locked until the commit."""
    event_id = uuid7()
    await session.execute(_EMIT, event_id=event_id, type=type_, payload=payload, delay=timedelta())
    return event_id


async def wake(session: TenantSession, delay: timedelta) -> None:
    """Have the worker look at this tenant's events after ``delay``, or earlier where that was asked before."""
    await work.wake(session, WORK_KIND, delay)


async def due(session: TenantSession, subscriptions: Subscriptions) -> list[tuple[UUID, str]]:
    """Events to put on the stream now, with their types, oldest first, at most `BATCH_EVENTS`."""
    rows = await session.fetch(_DUE, redeliver_after=REDELIVER_AFTER, **subscriptions.values())
    return [(row["event_id"], row["type"]) for row in rows]


async def take(session: TenantSession, subscriptions: Subscriptions) -> tuple[list[tuple[UUID, str]], bool]:
    """Events to put on the stream now, as `due` has them, and whether some consumer has yet to see some event (dead
    letters wait for an operator and do not count).

    They are marked as relayed, which delays the next redelivery: who could not put them there must `give_back`. What
    every consumer's inbox has without having finished it (a consumer is no more) is marked as finished.
    """
    rows = await session.fetch(_TAKE, redeliver_after=REDELIVER_AFTER, **subscriptions.values())
    ready = [(row["event_id"], row["type"]) for row in rows if row["event_id"] is not None]
    return ready, rows[0]["outstanding"]


async def give_back(session: TenantSession, event_ids: Sequence[UUID]) -> None:
    """These are not on the stream, or were not taken from it: they are due again as soon as their inbox says so."""
    await session.execute(_GIVE_BACK, event_ids=list(event_ids))


async def finish(session: TenantSession, subscriptions: Subscriptions, event_id: UUID) -> int:
    """Mark the event as finished if every consumer's inbox has it."""
    return await session.execute(_FINISH_ONE, event_id=event_id, **subscriptions.values())


async def prune(session: TenantSession) -> int:
    """Delete finished events past `RETENTION`, and with them their inbox rows."""
    return await session.execute(_PRUNE, retention=RETENTION)
