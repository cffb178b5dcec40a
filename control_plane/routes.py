"""The route log: what routers learn, in which order, and who has learnt it (design section 2, moves.md rules 5 and 6).

| Guarantee | How |
|---|---|
| Revisions have no gaps, and commit order is revision order | the cursor's row stays locked from `publish` to commit |
| A reader never misses a change | it reads the log after it subscribed to the signal |
| An increment is never cut by clean-up | the latest record of a subject, tombstones included, is never removed |
| A restored database is noticed | the cursor is ``(log_id, revision)``; another log_id gets a snapshot |
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import ids, routes
from contracts.names import THROTTLED_PLAN
from contracts.transfer import Fence
from control_plane.models import Tenant, route_cursor, route_log, routers, tenants
from control_plane.signals import ROUTERS, ROUTES, Signals

LEASE_GRACE_S: Final = 5.0  # how long past its promised next poll a router still counts as live
MAX_WAIT_S: Final = 60.0


def route_of(tenant: Tenant, state: routes.State) -> routes.Route:
    """The route of a tenant at its present cell and epoch; `publish` gives it its revision.

    Whoever publishes it, a move as well as an operator, keeps the throttle of a tenant that has one.
    """
    return routes.Route(
        tenant=ids.tenant_of(tenant.number),
        hosts=tenant.hosts,
        cell=tenant.cell,
        epoch=tenant.epoch,
        plan=tenant.plan if tenant.throttled_until is None else THROTTLED_PLAN,
        state=state,
    )


def subject_of(record: routes.Record) -> str:
    """What a record is about; a newer record of the same subject replaces an older one."""
    match record:
        case routes.Route(tenant=tenant) | routes.Gone(tenant=tenant):
            return f"tenant:{tenant}"
        case routes.Cell(cell=cell) | routes.CellGone(cell=cell):
            return f"cell:{cell}"
        case routes.Plan(plan=plan):
            return f"plan:{plan}"


async def publish(conn: AsyncConnection, records: Sequence[routes.Record]) -> int:
    """Append ``records`` in the caller's transaction and return the revision of the last one.

    From here to the end of the transaction every other publisher waits: publish last, then commit. A rollback gives
    the revisions back. Needs READ COMMITTED (the default); routers are woken by the commit.
    """
    if not records:
        raise ValueError("nothing to publish")
    high: int = (
        await conn.execute(
            sa.update(route_cursor)
            .values(revision=route_cursor.c.revision + len(records))
            .returning(route_cursor.c.revision)
        )
    ).scalar_one()
    for revision, record in enumerate(records, high - len(records) + 1):
        subject = subject_of(record)
        await conn.execute(
            sa.update(route_log).where(route_log.c.subject == subject, route_log.c.latest).values(latest=False)
        )
        await conn.execute(
            sa.insert(route_log).values(
                revision=revision,
                subject=subject,
                latest=True,
                tombstone=isinstance(record, routes.Gone | routes.CellGone),
                record=msgspec.json.encode(msgspec.structs.replace(record, revision=revision)).decode(),
            )
        )
    await conn.execute(sa.select(sa.func.pg_notify(ROUTES, str(high))))
    return high


async def next_fence(conn: AsyncConnection, number: int, term: int, move: str) -> Fence:
    """The next fence for a command about a tenant: higher than every one given out before (moves.md rule 1).

    Commit before the command is sent, or a crash would give the same fence out again. ``term`` may lag behind the
    highest term used for the tenant; the higher one counts.
    """
    row = (
        await conn.execute(
            sa.update(tenants)
            .where(tenants.c.number == number)
            .values(fence_term=sa.func.greatest(tenants.c.fence_term, term), fence_seq=tenants.c.fence_seq + 1)
            .returning(tenants.c.fence_term, tenants.c.fence_seq)
        )
    ).one()
    return Fence(row.fence_term, row.fence_seq, move)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a reader stands, or where the log does."""

    log_id: str
    revision: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A snapshot (``after`` is None) or the changes after a revision, complete up to ``cursor``."""

    cursor: Cursor
    after: int | None
    records: tuple[routes.Record, ...]

    def lines(self) -> Iterable[bytes]:
        """The wire form: NDJSON of contracts.routes."""
        header = routes.Header(
            self.cursor.log_id,
            self.cursor.revision,
            "snapshot" if self.after is None else "changes",
            self.after,
        )
        return routes.encode(header, self.records)


@dataclass(frozen=True, slots=True)
class RouterLease:
    """What a router last said of itself. ``live`` while its lease runs."""

    name: str
    log_id: str
    revision: int
    last_seen: Any
    live: bool


class RouteLog:
    """Reading the log, and knowing which routers have applied what. Safe for concurrent use."""

    def __init__(self, engine: AsyncEngine, signals: Signals, clock: Callable[[], float]) -> None:
        """``clock`` is monotonic seconds."""
        self._engine = engine
        self._signals = signals
        self._clock = clock

    async def poll(self, since: Cursor | None, wait_s: float) -> Batch:
        """What changed after ``since``, at once if anything did, else when it does, else an empty batch at time-out.

        A snapshot for a reader without a cursor, or with one of another log or of this log's future.
        """
        deadline = self._clock() + min(wait_s, MAX_WAIT_S)
        while True:
            changed = self._signals.subscribe(ROUTES)  # before reading, so that no commit falls in between
            batch = await self._read(since)
            if batch.after is None or batch.records or not await changed.wait(deadline - self._clock()):
                return batch

    async def _read(self, since: Cursor | None) -> Batch:
        async with _repeatable(self._engine) as conn:
            at = await cursor(conn)
            query = sa.select(route_log.c.record).order_by(route_log.c.revision)
            if since is None or since.log_id != at.log_id or since.revision > at.revision:
                after, query = None, query.where(route_log.c.latest, ~route_log.c.tombstone)
            else:
                after, query = since.revision, query.where(route_log.c.revision > since.revision)
            lines = (await conn.execute(query)).scalars().all() if after != at.revision else []
        return Batch(at, after, tuple(_decoded(line) for line in lines))

    async def renew(self, router: str, applied: Cursor, lease_s: float) -> None:
        """Record what every worker of ``router`` has applied; it counts as live for ``lease_s`` and a grace.

        The row is written without waiting for the disk: a lost lease is made again by the next poll.
        """
        values = {
            "name": router,
            "log_id": applied.log_id,
            "applied": applied.revision,
            "last_seen": sa.func.clock_timestamp(),
            "live_until": sa.func.clock_timestamp() + sa.func.make_interval(0, 0, 0, 0, 0, 0, lease_s + LEASE_GRACE_S),
        }
        async with self._engine.begin() as conn:
            await conn.execute(sa.text("SET LOCAL synchronous_commit = off"))
            await conn.execute(
                insert(routers).values(values).on_conflict_do_update(index_elements=["name"], set_=values)
            )
            await conn.execute(sa.select(sa.func.pg_notify(ROUTERS, router)))

    async def wait_applied(self, revision: int, timeout_s: float) -> list[str]:
        """Wait until every live router has applied ``revision``; the names of those that had not at time-out.

        Bounded, and never needed for safety (moves.md rule 6). A router on another log counts as lagging; one whose
        lease ran out does not count.
        """
        deadline = self._clock() + timeout_s
        while True:
            changed = self._signals.subscribe(ROUTERS)
            lagging = await self._lagging(revision)
            left = deadline - self._clock()
            # Leases run out without a signal: look again at least every second.
            if not lagging or (not await changed.wait(min(left, 1.0)) and left <= 1.0):
                return lagging

    async def _lagging(self, revision: int) -> list[str]:
        query = (
            sa.select(routers.c.name)
            .select_from(routers.join(route_cursor, sa.true()))
            .where(
                routers.c.live_until > sa.func.clock_timestamp(),
                sa.or_(routers.c.applied < revision, routers.c.log_id != route_cursor.c.log_id),
            )
            .order_by(routers.c.name)
        )
        async with self._engine.connect() as conn:
            return list((await conn.execute(query)).scalars())

    async def routers(self) -> list[RouterLease]:
        """Every router that ever reported, by name."""
        live = (routers.c.live_until > sa.func.clock_timestamp()).label("live")
        async with self._engine.connect() as conn:
            rows = (await conn.execute(sa.select(routers, live).order_by(routers.c.name))).all()
        return [RouterLease(r.name, r.log_id, r.applied, r.last_seen, r.live) for r in rows]


async def cursor(conn: AsyncConnection) -> Cursor:
    """Where the log stands, as the transaction sees it."""
    row = (await conn.execute(sa.select(route_cursor.c.log_id, route_cursor.c.revision))).one()
    return Cursor(row.log_id, row.revision)


async def latest(conn: AsyncConnection, subject: str) -> routes.Record | None:
    """The newest record of a subject, tombstones included."""
    query = sa.select(route_log.c.record).where(route_log.c.subject == subject, route_log.c.latest)
    line = (await conn.execute(query)).scalar_one_or_none()
    return None if line is None else _decoded(line)


async def forget_superseded(conn: AsyncConnection, older_than_s: float) -> int:
    """Remove records that a newer one of their subject replaced that long ago; how many. Readers miss nothing."""
    age = sa.func.make_interval(0, 0, 0, 0, 0, 0, older_than_s)
    removed = await conn.execute(
        sa.delete(route_log).where(~route_log.c.latest, route_log.c.at < sa.func.clock_timestamp() - age)
    )
    return removed.rowcount


def _decoded(line: str) -> routes.Record:
    record = routes.decode_line(line.encode())
    if isinstance(record, routes.Header | routes.End):
        raise ValueError("a header or end line was stored in the route log")
    return record


@asynccontextmanager
async def _repeatable(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One snapshot for the cursor and the records, or a batch could miss what its header claims."""
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level="REPEATABLE READ")
        async with conn.begin():
            yield conn
