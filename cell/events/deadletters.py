"""Dead letters: events that a consumer failed on too often. They are rows of the tenant, and move with it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.sql.functions import func

from cell.events import outbox
from cell.shards.context import TenantContext
from cell.shards.session import Shards
from cell.shards.sql import prepare
from cell.shards.tables import inbox
from cell.shards.tables import outbox as outbox_table

TENANT_TIMEOUT_S: Final = 30.0
LETTERS_SHOWN: Final = 100  # of one tenant

_CONSUMER = sa.bindparam("consumer", type_=sa.Text)
_dead = sa.and_(
    inbox.c.tenant_id == sa.bindparam("tenant_id"),
    inbox.c.state == sa.literal_column("'dead'"),  # written out: the index is of these only
    sa.or_(_CONSUMER.is_(None), inbox.c.consumer == _CONSUMER),
)
_LIST = prepare(
    sa.select(
        inbox.c.consumer, inbox.c.event_id, outbox_table.c.type, inbox.c.attempts, inbox.c.error, inbox.c.updated_at
    )
    .join(
        outbox_table,
        sa.and_(outbox_table.c.tenant_id == inbox.c.tenant_id, outbox_table.c.event_id == inbox.c.event_id),
    )
    .where(_dead)
    .order_by(inbox.c.updated_at)
    .limit(LETTERS_SHOWN)
)
_REDRIVE = prepare(
    sa.update(inbox)
    .where(_dead)
    .values(state=sa.literal_column("'failed'"), attempts=sa.literal_column("0"), due=func.now(), updated_at=func.now())
    .returning(inbox.c.event_id)
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event that one consumer has given up, and the last error in words."""

    tenant: int
    consumer: str
    event_id: UUID
    type: str
    attempts: int
    error: str
    at: datetime


async def letters(shards: Shards, tenant: int, consumer: str | None = None) -> Sequence[DeadLetter]:
    """The oldest `LETTERS_SHOWN` dead letters of the tenant; `NotOursError` where it is not served here."""
    async with shards.enter(_context(tenant), read_only=True) as session:
        rows = await session.fetch(_LIST, consumer=consumer)
    return [
        DeadLetter(tenant, r["consumer"], r["event_id"], r["type"], r["attempts"], r["error"], r["updated_at"])
        for r in rows
    ]


async def redrive(shards: Shards, tenant: int, consumer: str | None = None) -> int:
    """Give the tenant's dead letters all of their attempts again, from now; how many there were."""
    async with shards.enter(_context(tenant)) as session:
        redriven = [row["event_id"] for row in await session.fetch(_REDRIVE, consumer=consumer)]
        if redriven:
            await outbox.give_back(session, redriven)
            await outbox.wake(session, timedelta())
    return len(redriven)


def _context(tenant: int) -> TenantContext:
    deadline = asyncio.get_running_loop().time() + TENANT_TIMEOUT_S
    return TenantContext.for_worker(tenant, deadline, "dead-letters")
