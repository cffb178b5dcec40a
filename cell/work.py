"""The work table: what wakes workers. It grants nothing: whatever it names is done through the fence.

A claim is a lease: the row's due time, put into the future. Who dies with it delays the work by that much.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.sql.functions import func

from cell.shards.session import Shards, TenantSession
from cell.shards.sql import Statement, prepare
from cell.shards.tables import work

_KIND: Final = sa.bindparam("kind", type_=sa.Text)
_DELAY: Final = sa.bindparam("delay", type_=sa.Interval)
_OF_TENANT: Final = sa.bindparam("tenant_id", type_=sa.BigInteger)
_due = (
    sa.select(work.c.tenant_id, work.c.kind)
    .where(work.c.kind == _KIND, work.c.due <= func.now())
    .order_by(work.c.due)
    .limit(sa.bindparam("limit", type_=sa.Integer))
    .with_for_update(skip_locked=True)
    .subquery("ready")
)
_CLAIM = prepare(
    sa.update(work)
    .where(work.c.tenant_id == _due.c.tenant_id, work.c.kind == _due.c.kind)
    .values(due=func.now() + sa.bindparam("lease", type_=sa.Interval))
    .returning(work.c.tenant_id, work.c.due)
)
_CLAIMED = sa.and_(
    work.c.tenant_id == sa.bindparam("tenant", type_=sa.BigInteger),
    work.c.kind == _KIND,
    work.c.due == sa.bindparam("claimed", type_=sa.DateTime(timezone=True)),
)
_DROP = prepare(sa.delete(work).where(_CLAIMED))
_POSTPONE = prepare(sa.update(work).where(_CLAIMED).values(due=func.now() + _DELAY))
_wake = insert(work).values(tenant_id=_OF_TENANT, kind=_KIND, due=func.now() + _DELAY)
_KEY: Final = [work.c.tenant_id, work.c.kind]


def waking(kind: str | None = None) -> Insert:
    """The statement of `wake`, with the parameter ``delay``: for who wakes in one trip with what it writes."""
    given = _wake if kind is None else insert(work).values(tenant_id=_OF_TENANT, kind=kind, due=func.now() + _DELAY)
    return given.on_conflict_do_update(index_elements=_KEY, set_={"due": func.least(work.c.due, given.excluded.due)})


_WAKE = prepare(waking())
_HOLD = prepare(_wake.on_conflict_do_update(index_elements=_KEY, set_={"due": _wake.excluded.due}))
_REST = prepare(sa.delete(work).where(work.c.tenant_id == _OF_TENANT, work.c.kind == _KIND))


@dataclass(frozen=True, slots=True)
class Claim:
    """A tenant to look after, until ``due``: then it is anybody's again."""

    tenant: int
    due: datetime


class Claims:
    """The claims of one kind of work."""

    def __init__(self, shards: Shards, kind: str) -> None:
        self._shards = shards
        self._kind = kind

    async def take(self, shard: str, limit: int, lease: timedelta) -> list[Claim]:
        """Tenants of the shard whose time has come, at most ``limit``; nobody else gets them before the lease ends."""
        arguments = _CLAIM.arguments(0, {"kind": self._kind, "limit": limit, "lease": lease})
        with self._shards.platform(shard) as pool:
            rows = await pool.fetch(_CLAIM.text, *arguments)
        return [Claim(row["tenant_id"], row["due"]) for row in rows]

    async def drop(self, shard: str, claim: Claim) -> None:
        """There is nothing to do; unless the tenant was woken since."""
        await self._settle(shard, claim, _DROP)

    async def postpone(self, shard: str, claim: Claim, delay: timedelta) -> None:
        """Have it come up again after ``delay``; unless the tenant was woken since."""
        await self._settle(shard, claim, _POSTPONE, delay=delay)

    async def _settle(self, shard: str, claim: Claim, statement: Statement, **values: timedelta) -> None:
        values_ = {"kind": self._kind, "tenant": claim.tenant, "claimed": claim.due, **values}
        with self._shards.platform(shard) as pool:
            await pool.execute(statement.text, *statement.arguments(0, values_))


async def wake(session: TenantSession, kind: str, delay: timedelta) -> None:
    """Have a worker look at the tenant after ``delay``, or earlier where that was asked before.

    The row stays locked until the commit.
    """
    await session.execute(_WAKE, kind=kind, delay=delay)


async def hold(session: TenantSession, kind: str, lease: timedelta) -> None:
    """Claim the tenant, or claim it for longer. Until the commit nobody else can hold or wake it."""
    await session.execute(_HOLD, kind=kind, delay=lease)


async def settle(session: TenantSession, kind: str, delay: timedelta | None) -> None:
    """End a claim that is held: look again after ``delay``, or not before the tenant is woken."""
    if delay is None:
        await session.execute(_REST, kind=kind)
    else:
        await session.execute(_HOLD, kind=kind, delay=delay)
