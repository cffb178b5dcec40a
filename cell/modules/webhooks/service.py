"""The rules of the webhooks: who is told of what, one delivery an event and endpoint, and when one is given up.

What deliveries are signed with is sealed (`cell.vault`), and opened only to be shown once and to sign.
"""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal
from uuid import UUID

import asyncpg
import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.sql.functions import func

from cell.errands import Queue
from cell.events.outbox import Event
from cell.events.retry import delay_after
from cell.ids import uuid7
from cell.modules.webhooks.tables import deliveries, endpoints
from cell.shards.session import TenantSession
from cell.shards.sql import above, below, prepare
from cell.vault import Vault
from contracts import problems

WORK_KIND: Final = "webhooks"
EventType = Literal["order.confirmed", "order.cancelled"]
TYPES: Final[tuple[EventType, ...]] = ("order.confirmed", "order.cancelled")
ENDPOINTS_MAX: Final = 10
SECRET_BYTES: Final = 32
SECRET_PREFIX: Final = "whsec_"  # noqa: S105  (what a secret begins with)
TRIES: Final = 12  # over an hour, about
FIRST_DELAY_S: Final = 2.0
DELAY_MAX_S: Final = 1800.0
RETENTION: Final = timedelta(days=7)
QUEUE: Final = Queue(deliveries, "delivery_id", WORK_KIND)


class State(StrEnum):
    """How far a delivery is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Who is told."""

    endpoint_id: UUID
    url: str
    events: tuple[str, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one endpoint. ``answer`` is the last status, ``note`` why the last try failed."""

    delivery_id: UUID
    endpoint_id: UUID
    event_id: UUID
    type: str
    state: State
    answer: int | None
    note: str | None
    failures: int
    due: datetime
    created_at: datetime
    finished_at: datetime | None


class _Told(msgspec.Struct):
    type: str
    timestamp: datetime
    data: Any


_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_ENDPOINT = sa.bindparam("endpoint_id", type_=sa.Uuid)
_shown = [endpoints.c[f] for f in Endpoint.__dataclass_fields__]
_logged = [deliveries.c[f] for f in Delivery.__dataclass_fields__]
_mine = endpoints.c.tenant_id == _TENANT
_this = sa.and_(_mine, endpoints.c.endpoint_id == _ENDPOINT)
_after = sa.bindparam("after", type_=sa.Uuid)
_before = sa.bindparam("before", type_=sa.Uuid)
_of_endpoint = sa.and_(deliveries.c.tenant_id == _TENANT, deliveries.c.endpoint_id == _ENDPOINT)

_COUNT = prepare(sa.select(func.count()).select_from(endpoints).where(_mine))
_ADD = prepare(
    sa.insert(endpoints)
    .values({c: sa.bindparam(c) for c in ("tenant_id", "endpoint_id", "url", "secret", "created_by")})
    .values(events=sa.bindparam("events", type_=ARRAY(sa.Text)))
    .returning(*_shown)
)
_GET = prepare(sa.select(*_shown).where(_this))
_SECRET = prepare(sa.select(endpoints.c.secret).where(_this))
# Those of before the vault, sealed by the sweep: nothing is added to their bytes.
_is_bare = sa.and_(_mine, func.octet_length(endpoints.c.secret) == SECRET_BYTES)
_BARE = prepare(sa.select(endpoints.c.endpoint_id, endpoints.c.secret).where(_is_bare).with_for_update())
_SEAL = prepare(sa.update(endpoints).where(_this).values(secret=sa.bindparam("sealed", type_=sa.LargeBinary)))
_LIST = prepare(
    sa.select(*_shown)
    .where(_mine, above(endpoints.c.endpoint_id, _after))
    .order_by(endpoints.c.endpoint_id)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_DELETE = prepare(sa.delete(endpoints).where(_this))
_WANTING = prepare(
    sa.select(endpoints.c.endpoint_id).where(_mine, sa.bindparam("type", type_=sa.Text) == sa.any_(endpoints.c.events))
)
_given = (
    func.unnest(sa.bindparam("delivery_ids", type_=ARRAY(sa.Uuid)), sa.bindparam("endpoint_ids", type_=ARRAY(sa.Uuid)))
    .table_valued(sa.column("delivery_id", sa.Uuid), sa.column("endpoint_id", sa.Uuid), name="given")
    .render_derived()
)
_DELIVER = prepare(
    insert(deliveries)
    .from_select(
        ["tenant_id", "delivery_id", "endpoint_id", "event_id", "type", "body"],
        sa.select(
            _TENANT,
            *_given.c,
            sa.bindparam("event_id", type_=sa.Uuid),
            sa.bindparam("type", type_=sa.Text),
            sa.bindparam("body", type_=sa.LargeBinary),
        ),
    )
    .on_conflict_do_nothing()
)
_LOG = prepare(
    sa.select(*_logged)
    .where(_of_endpoint, below(deliveries.c.delivery_id, _before))
    .order_by(deliveries.c.delivery_id.desc())
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_REDRIVE = prepare(
    sa.update(deliveries)
    .where(_of_endpoint, deliveries.c.state == State.DEAD)
    .values(state=State.PENDING.value, failures=0, due=func.now(), finished_at=None)
)
_outcome = {"answer": sa.bindparam("answer", type_=sa.SmallInteger), "note": sa.bindparam("note", type_=sa.Text)}
_NOTE = prepare(sa.update(deliveries).where(QUEUE.mine).values(_outcome))
_END = prepare(
    sa.update(deliveries)
    .where(QUEUE.mine)
    .values({**_outcome, "state": sa.bindparam("state", type_=sa.Text), "lease": None, "finished_at": func.now()})
)
_over = sa.and_(
    deliveries.c.tenant_id == _TENANT,
    deliveries.c.finished_at < func.now() - sa.bindparam("retention", type_=sa.Interval),
)
_PRUNE = prepare(sa.delete(deliveries).where(_over))
_LOOK = prepare(
    sa.select(
        QUEUE.waiting.label("waiting"),
        sa.select(sa.literal_column("1")).select_from(deliveries).where(_over).exists().label("over"),
        sa.select(sa.literal_column("1")).select_from(endpoints).where(_is_bare).exists().label("bare"),
    )
)


async def add(
    session: TenantSession, vault: Vault, user_id: UUID, url: str, events: Sequence[str]
) -> tuple[Endpoint, str]:
    """A new endpoint and its new secret, as the receiver is shown it, once; 409 where there are `ENDPOINTS_MAX`."""
    if await session.fetchval(_COUNT) >= ENDPOINTS_MAX:
        raise problems.ProblemError(problems.CONFLICT, f"There are {ENDPOINTS_MAX} webhooks already; delete one.")
    endpoint_id, secret = uuid7(), secrets.token_bytes(SECRET_BYTES)
    sealed = (await vault.key(session)).seal(_place(endpoint_id), secret)
    values = {"url": url, "events": list(events), "secret": sealed, "created_by": user_id}
    return _endpoint_of(await session.fetchrow(_ADD, endpoint_id=endpoint_id, **values)), _text(secret)


async def get(session: TenantSession, endpoint_id: UUID) -> Endpoint:
    """One endpoint, or 404."""
    return _endpoint_of(await session.fetchrow(_GET, endpoint_id=endpoint_id))


async def secret_of(session: TenantSession, vault: Vault, endpoint_id: UUID) -> str:
    """What deliveries to the endpoint are signed with, or 404; `VaultError` where it cannot be opened."""
    row = await session.fetchrow(_SECRET, endpoint_id=endpoint_id)
    if row is None:
        raise _missing()
    secret: bytes = row["secret"]
    if len(secret) != SECRET_BYTES:
        secret = (await vault.key(session)).open(_place(endpoint_id), secret)
    return _text(secret)


async def page(session: TenantSession, after: UUID | None, limit: int) -> list[Endpoint]:
    """Endpoints, in the order they were added."""
    return [_endpoint_of(row) for row in await session.fetch(_LIST, after=after, limit=limit)]


async def remove(session: TenantSession, endpoint_id: UUID) -> None:
    """Tell nobody there any more; its deliveries go with it."""
    if not await session.execute(_DELETE, endpoint_id=endpoint_id):
        raise _missing()


async def log(session: TenantSession, endpoint_id: UUID, before: UUID | None, limit: int) -> list[Delivery]:
    """Deliveries of an endpoint, the newest first; 404 where there is no such endpoint."""
    await get(session, endpoint_id)
    rows = await session.fetch(_LOG, endpoint_id=endpoint_id, before=before, limit=limit)
    return [Delivery(**{**row, "state": State(row["state"])}) for row in rows]


async def redrive(session: TenantSession, endpoint_id: UUID) -> int:
    """Give the endpoint's dead deliveries all of their tries again; how many there were."""
    await get(session, endpoint_id)
    count = await session.execute(_REDRIVE, endpoint_id=endpoint_id)
    if count:
        await QUEUE.wake(session)
    return count


async def fan_out(session: TenantSession, event: Event) -> None:
    """A delivery for everybody who is to be told, in the transaction that takes the event."""
    wanting = [row["endpoint_id"] for row in await session.fetch(_WANTING, type=event.type)]
    if not wanting:
        return
    body = msgspec.json.encode(_Told(event.type, event.created_at, event.payload))
    values = {"delivery_ids": [uuid7() for _ in wanting], "endpoint_ids": wanting}
    await session.execute(_DELIVER, event_id=event.event_id, type=event.type, body=body, **values)
    await QUEUE.wake(session)


async def delivered(session: TenantSession, delivery_id: UUID, attempt: int, answer: int) -> bool:
    """It was taken. False where it is no longer this attempt's."""
    values: dict[str, Any] = {"delivery_id": delivery_id, "attempt": attempt, "state": State.DELIVERED.value}
    return bool(await session.execute(_END, answer=answer, note=None, **values))


async def failed(
    session: TenantSession,
    delivery_id: UUID,
    attempt: int,
    failures: int,
    chance: float,
    *,
    answer: int | None,
    note: str,
) -> bool:
    """It was not taken; ``failures`` are those before. Whether it will be tried again."""
    delay = delay_after(failures + 1, chance, attempts_max=TRIES, first_s=FIRST_DELAY_S, max_s=DELAY_MAX_S)
    values: dict[str, Any] = {"delivery_id": delivery_id, "attempt": attempt, "answer": answer, "note": note}
    if delay is None:
        await session.execute(_END, state=State.DEAD.value, **values)
        return False
    await session.execute(_NOTE, **values)
    await QUEUE.again(session, delivery_id, attempt, delay)
    return True


async def look_after(session: TenantSession, vault: Vault, home: str) -> int:
    """Wake the workers of deliveries that nobody sends, seal what is bare, and forget deliveries that ended longer ago
    than `RETENTION`; how many those were. Most tenants have none, and are asked one question."""
    row = await session.fetchrow(_LOOK, home=home, retention=RETENTION)
    assert row is not None, "a SELECT without FROM has one row"
    if row["waiting"]:
        await QUEUE.wake(session)
    if row["bare"]:
        await _seal(session, vault)
    return await session.execute(_PRUNE, retention=RETENTION) if row["over"] else 0


async def _seal(session: TenantSession, vault: Vault) -> None:
    key = await vault.key(session)
    for row in await session.fetch(_BARE):
        endpoint_id = row["endpoint_id"]
        await session.execute(_SEAL, endpoint_id=endpoint_id, sealed=key.seal(_place(endpoint_id), row["secret"]))


def _place(endpoint_id: UUID) -> str:
    return f"webhook_endpoints.secret/{endpoint_id}"


def _text(secret: bytes) -> str:
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def _endpoint_of(row: "asyncpg.Record | None") -> Endpoint:
    if row is None:
        raise _missing()
    return Endpoint(row["endpoint_id"], row["url"], tuple(row["events"]), row["created_at"])


def _missing() -> problems.ProblemError:
    return problems.ProblemError(problems.NOT_FOUND, "There is no such webhook.")
