"""Creates that may be repeated (draft-ietf-httpapi-idempotency-key-header-07): one key, one effect, one answer.

The record is written in the transaction of the effect, so it exists exactly when the effect does, and moves with it.
"In flight" is a lock that ends with the transaction and never a row: a row left by a crash, or carried along by a
move, would answer 409 for ever (moves.md rule 16).
"""

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import asyncpg
import sqlalchemy as sa
import xxhash
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.functions import func

from cell.shards.session import TenantSession
from cell.shards.sql import prepare
from cell.shards.tables import idempotency
from contracts import problems

FIELD: Final = "Idempotency-Key"
REPLAYED_FIELD: Final = "Idempotent-Replayed"
RETENTION: Final = timedelta(hours=24)
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")

# The two-integer lock space also holds the bucket locks (class 1024): the bit keeps every class of ours above them.
_CLASS_BIT: Final = 1 << 30

_IS_KEY = sa.and_(
    idempotency.c.tenant_id == sa.bindparam("tenant_id"),
    idempotency.c.scope == sa.bindparam("scope"),
    idempotency.c.key == sa.bindparam("key"),
)
_free = sa.select(
    func.pg_try_advisory_xact_lock(
        sa.bindparam("lock_class", type_=sa.Integer), sa.bindparam("lock_object", type_=sa.Integer)
    ).label("free")
).subquery("lock")
_LOCK_AND_FIND = prepare(
    sa.select(_free.c.free, idempotency.c.fingerprint, idempotency.c.status, idempotency.c.body).select_from(
        _free.outerjoin(idempotency, _IS_KEY)
    )
)
_RECORD = prepare(
    insert(idempotency).values(
        tenant_id=sa.bindparam("tenant_id"),
        scope=sa.bindparam("scope"),
        key=sa.bindparam("key"),
        fingerprint=sa.bindparam("fingerprint"),
        status=sa.bindparam("status"),
        body=sa.bindparam("body"),
        expires_at=func.now() + sa.bindparam("retention", type_=sa.Interval),
    )
)
_PRUNE = prepare(
    sa.delete(idempotency).where(
        idempotency.c.tenant_id == sa.bindparam("tenant_id"), idempotency.c.expires_at < func.now()
    )
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was first given. ``replayed`` says that this is a repeat of it."""

    status: int
    body: bytes
    replayed: bool = False


def key_of(field: str | None) -> str:
    """The key in the field's value, or the problem: it is missing, or not 1 to 255 visible ASCII characters."""
    if not field:
        raise problems.ProblemError(problems.KEY_MISSING)
    if not _KEY.fullmatch(field):
        message = "Expected 1 to 255 visible ASCII characters"
        errors = [{"field": FIELD, "message": message}]
        raise problems.ProblemError(problems.INVALID, f"{FIELD}: {message}", errors=errors)
    return field


def fingerprint(payload: bytes) -> bytes:
    """What tells one payload from another. Give it a canonical form: white space is no other payload."""
    return hashlib.sha256(payload).digest()


async def once(
    session: TenantSession, scope: str, key: str, payload: bytes, effect: Callable[[], Awaitable[Answer]]
) -> Answer:
    """Run ``effect`` unless it was run under this key; the answer is stored with it and replayed for `RETENTION`.

    409 while another transaction holds the key; 422 where the key was used with another payload. An effect that
    raises leaves no record, so a corrected request may use the same key.
    """
    print_ = fingerprint(payload)
    lock_class, lock_object = _lock_of(session.tenant, scope, key)
    found = await session.fetchrow(_LOCK_AND_FIND, lock_class=lock_class, lock_object=lock_object, scope=scope, key=key)
    assert found is not None, "there is always an answer about the lock"
    if not found["free"]:
        raise _in_flight()
    if found["fingerprint"] is not None:
        if found["fingerprint"] != print_:
            raise problems.ProblemError(problems.KEY_REUSED)
        return Answer(found["status"], found["body"], replayed=True)
    answer = await effect()
    values = {"fingerprint": print_, "status": answer.status, "body": answer.body, "retention": RETENTION}
    try:
        await session.execute(_RECORD, scope=scope, key=key, **values)
    except asyncpg.UniqueViolationError as e:
        # The lock's last holder committed when this statement had begun to look, and had not got the lock yet. What was
        # done since goes with the transaction; who asks again finds the record.
        raise _in_flight() from e
    return answer


def _in_flight() -> problems.ProblemError:
    return problems.ProblemError(problems.KEY_IN_FLIGHT, headers={"Retry-After": "1"})


async def prune(session: TenantSession) -> int:
    """Forget the tenant's records that are past their retention; how many there were."""
    return await session.execute(_PRUNE)


def _lock_of(tenant: int, scope: str, key: str) -> tuple[int, int]:
    """62 bits of hash as the two signed integers of a lock; two keys that share them cost one needless 409."""
    value = xxhash.xxh3_64_intdigest(f"{tenant}\0{scope}\0{key}".encode())
    high = value >> 34 | _CLASS_BIT
    low = value & 0xFFFFFFFF
    return high, low - (1 << 32) if low >= 1 << 31 else low
