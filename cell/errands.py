"""Errands: rows of a tenant that wait for a worker, each of which needs a call to the outside. A platform part.

The call is made outside of any transaction, so that a slow answer holds no lock and no freeze has to wait for it.

========================  ==========================================================================================
Guarantee                 How
========================  ==========================================================================================
A row is worked on by     Taking it sets a lease and counts an attempt, in one transaction of the tenant. Who dies with
one worker at a time      it delays the row by `LEASE`.
Only the last attempt     What an attempt found out is written only where the row still names that attempt: an answer
counts                    that comes late, or after a move, changes nothing.
It survives a move        The rows are the tenant's. A lease of another cell is no lease here, and activation wakes the
                          kind; the call may then be made twice, so it must bear being repeated.
Nothing waits for ever    The work table wakes workers, and the sweep wakes them again for whatever it finds due.
A tenant has its turn     At most `AT_ONCE` rows of a tenant at a time in a process.
========================  ==========================================================================================
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
import sqlalchemy as sa
import structlog
from sqlalchemy.sql.functions import func

from cell import work
from cell.events.retry import delay_after
from cell.shards.context import TenantContext
from cell.shards.errors import DATABASE_FAILED, FrozenError, NotOursError, ShardError
from cell.shards.session import Shards, TenantSession
from cell.shards.sql import prepare
from cell.shards.tables import now_column
from contracts.names import Field

LEASE: Final = timedelta(seconds=30)  # longer than any call may take, and the writing down of its end
CALL_S_MAX: Final = 20.0  # of one step's calls together
AT_ONCE: Final = 8
SESSION_S: Final = 10.0
LOOK_S: Final = 5.0  # between two looks while calls are under way; each prolongs the hold
HOLD: Final = timedelta(seconds=15)
FREEZE_TRIES: Final = 20  # a freeze that ends without a move lasts a moment
FREEZE_PAUSE_S: Final = 0.25

T = TypeVar("T")
Step = Callable[[int, asyncpg.Record], Awaitable[None]]

_log = structlog.get_logger(__name__)


def columns() -> Sequence["sa.Column[Any]"]:
    """What a table of errands has besides its own. ``attempt`` guards the end of one; ``failures`` are the module's
    to count; ``home`` is the cell whose worker has the ``lease``."""
    return (
        now_column("due"),
        sa.Column("lease", sa.DateTime(timezone=True)),
        sa.Column("home", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
    )


class Queue:
    """The errands in one table. ``key`` is the column that completes its primary key."""

    def __init__(self, table: sa.Table, key: str, kind: str) -> None:
        self.kind = kind
        self.key = key
        tenant = table.c.tenant_id == sa.bindparam("tenant_id", type_=sa.BigInteger)
        is_open = sa.and_(tenant, table.c.finished_at.is_(None))
        home: sa.BindParameter[str] = sa.bindparam("home", type_=sa.Text)
        leased = func.coalesce(sa.and_(table.c.home == home, table.c.lease >= func.now()), sa.false())
        waits = sa.and_(is_open, table.c.due <= func.now(), sa.not_(leased))
        chosen = (
            sa.select(table.c[key])
            .where(waits)
            .order_by(table.c.due)
            .limit(sa.bindparam("limit", type_=sa.Integer))
            .with_for_update(skip_locked=True)
        )
        one: sa.ColumnElement[int] = sa.literal_column("1", sa.Integer)
        # A statement's condition: the row is open, and still this attempt's.
        self.mine = sa.and_(
            is_open,
            table.c[key] == sa.bindparam(key, type_=sa.Uuid),
            table.c.attempt == sa.bindparam("attempt", type_=sa.Integer),
        )
        self._take = prepare(
            sa.update(table)
            .where(tenant, table.c[key].in_(chosen))
            .values(
                attempt=table.c.attempt + one,
                home=home,
                lease=func.now() + sa.bindparam("lease", type_=sa.Interval),
            )
            .returning(*(c for c in table.c if c.name != "tenant_id"))
        )
        self._again = prepare(
            sa.update(table)
            .where(self.mine)
            .values(
                lease=None,
                due=func.now() + sa.bindparam("delay", type_=sa.Interval),
                failures=table.c.failures + sa.bindparam("failed", type_=sa.Integer),
            )
        )
        rest = func.min(sa.case((leased, func.greatest(table.c.lease, table.c.due)), else_=table.c.due)) - func.now()
        self._rest = prepare(sa.select(rest).where(is_open).select_from(table))
        # For the module's own question in the sweep: whether something waits that nobody works on.
        self.waiting = sa.select(one).select_from(table).where(waits).exists()

    async def wake(self, session: TenantSession) -> None:
        """Have a worker look. Do it last: the wake-up row is locked until the commit."""
        await work.wake(session, self.kind, timedelta())

    async def take(self, session: TenantSession, home: str, limit: int) -> list[asyncpg.Record]:
        """Errands whose time has come, now leased to ``home``; and the tenant's wake-up, held or settled."""
        await work.hold(session, self.kind, HOLD)  # first: what is added from here on wakes it again
        return await session.fetch(self._take, home=home, limit=limit, lease=LEASE)

    async def rest(self, session: TenantSession, home: str) -> None:
        """Let go of the tenant's wake-up until something is due. In the transaction of a `take` that found nothing."""
        wait: timedelta | None = await session.fetchval(self._rest, home=home)
        await work.settle(session, self.kind, None if wait is None else max(wait, timedelta()))

    async def again(
        self, session: TenantSession, key: UUID, attempt: int, delay: timedelta, *, failed: bool = True
    ) -> bool:
        """Have it come up again after ``delay``; False where it is no longer this attempt's."""
        values: dict[str, Any] = {self.key: key, "attempt": attempt, "delay": delay, "failed": int(failed)}
        return bool(await session.execute(self._again, **values))


class Errands:
    """Does the errands of one queue, a step at a time: a `cell.bulkhead.Job`.

    ``step`` makes the call and records its end through `record`. After an error that it raises the row comes up again,
    each time later: it ended nothing, and failed at nothing that the module would count.
    """

    def __init__(
        self, shards: Shards, queue: Queue, home: str, step: Step, chance: Callable[[], float] = random.random
    ) -> None:
        self.kind = queue.kind
        self._shards = shards
        self._queue = queue
        self._home = home
        self._step = step
        self._chance = chance
        self._attended: dict[int, asyncio.Event] = {}

    async def attend(self, tenant: int) -> None:
        """Everything that is due of the tenant, until nothing is. Who attends it already is told that there is more."""
        bell = self._attended.get(tenant)
        if bell is not None:
            bell.set()
            return
        bell = self._attended[tenant] = asyncio.Event()
        running: set[asyncio.Task[None]] = set()
        try:
            await self._attend(tenant, running, bell)
        except Exception:
            if running:  # the calls are under way in any case: let them end, and their ends be written down if they can
                await asyncio.wait(running)
            raise
        finally:
            del self._attended[tenant]
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    async def _attend(self, tenant: int, running: set[asyncio.Task[None]], bell: asyncio.Event) -> None:
        while True:
            bell.clear()
            async with self._shards.enter(context(tenant, self.kind)) as session:
                rows = await self._queue.take(session, self._home, AT_ONCE - len(running))
                if not rows and not running:
                    await self._queue.rest(session, self._home)
            for row in rows:
                task = asyncio.create_task(self._run(tenant, row))
                running.add(task)
                task.add_done_callback(running.discard)
            if not running:
                if bell.is_set():
                    continue
                return
            rung = asyncio.create_task(bell.wait())
            try:
                await asyncio.wait({rung, *running}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                rung.cancel()

    async def _run(self, tenant: int, row: asyncpg.Record) -> None:
        key, attempt = row[self._queue.key], row["attempt"]
        try:
            await self._step(tenant, row)
        except (NotOursError, FrozenError):
            _log.info("errand_left_to_new_home", **self._fields(tenant, key))
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(tenant, key, attempt, timedelta()))
            raise
        except Exception as e:
            _log.warning("errand_broke", **self._fields(tenant, key), **{Field.REASON: f"{type(e).__name__}: {e}"})
            await self._give_back(tenant, key, attempt, _after_breaking(attempt, self._chance()))

    async def _give_back(self, tenant: int, key: UUID, attempt: int, delay: timedelta) -> None:
        """Nobody need wait for the lease. Where it cannot be said, the lease ends by itself."""
        try:
            async with self._shards.enter(context(tenant, self.kind)) as session:
                if await self._queue.again(session, key, attempt, delay, failed=False):
                    await self._queue.wake(session)
        except (ShardError, *DATABASE_FAILED) as e:
            _log.warning("errand_not_given_back", **self._fields(tenant, key), **{Field.REASON: str(e)})

    def _fields(self, tenant: int, key: UUID) -> dict[str, str]:
        return {Field.TENANT: f"t{tenant}", "kind": self.kind, "errand": str(key)}


def _after_breaking(attempt: int, chance: float) -> timedelta:
    """It is never given up here: what goes on breaking comes up as often as a lease would end."""
    delay = delay_after(attempt, chance, attempts_max=attempt + 1, max_s=LEASE.total_seconds())
    assert delay is not None, "there is always one more try"
    return delay


async def record(shards: Shards, tenant: int, kind: str, write: Callable[[TenantSession], Awaitable[T]]) -> T:
    """``write`` in a transaction of the tenant. A freeze is waited for a little: most end in a move, some do not."""
    for _ in range(FREEZE_TRIES):
        try:
            async with shards.enter(context(tenant, kind)) as session:
                return await write(session)
        except FrozenError:
            await asyncio.sleep(FREEZE_PAUSE_S)
    raise FrozenError


def context(tenant: int, kind: str) -> TenantContext:
    """The context of one transaction of an errand."""
    return TenantContext.for_worker(tenant, asyncio.get_running_loop().time() + SESSION_S, kind)
