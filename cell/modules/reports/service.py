"""The rules of the reports: a bounded queue, one at a time, and an end that counts for its own attempt only."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.functions import func

from cell import work
from cell.blobs import Claim
from cell.fairness.levels import Enforcement
from cell.ids import uuid7
from cell.modules.reports.tables import reports
from cell.shards.session import TenantSession
from cell.shards.sql import below, prepare
from contracts import problems

WORK_KIND: Final = "reports"
QUEUED_MAX: Final = 5  # of a tenant, the one that is being made included
KEPT_MAX: Final = 100  # of a tenant; the oldest go first
RETENTION: Final = timedelta(days=7)  # of finished reports
LEASE: Final = timedelta(seconds=15)  # a maker that says nothing for so long is dead
FAILURES_MAX: Final = 3
RETRY: Final = timedelta(seconds=5)
RETRY_S: Final = 10  # what a refused caller is told to wait


class Kind(StrEnum):
    """What a report tells."""

    SALES_BY_PRODUCT = "sales-by-product"
    SALES_BY_DAY = "sales-by-day"
    ORDER_LINES = "order-lines"


class Status(StrEnum):
    """How far it is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Period:
    """Days in UTC, both included."""

    first: date
    last: date


@dataclass(frozen=True, slots=True)
class QueueWall:
    """Whether a full queue refuses. ``observed`` is told what it would have refused, where it only observes."""

    enforcement: Enforcement = Enforcement.ON
    observed: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Report:
    """A report. ``progress`` is 0 to 1; ``note`` says why it failed, or why it is made again; ``claim`` where it is."""

    report_id: UUID
    kind: Kind
    period: Period
    status: Status
    progress: float
    rows: int | None
    note: str | None
    home: str | None
    attempt: int
    created_at: datetime
    finished_at: datetime | None
    claim: Claim | None


_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_HOME = sa.bindparam("home", type_=sa.Text)
_NOTE = sa.bindparam("note", type_=sa.Text)
_LEASE_END = func.now() + sa.bindparam("lease", type_=sa.Interval)
_ONE: sa.ColumnElement[int] = sa.literal_column("1", sa.Integer)
_shown = [c for c in reports.c if c.name not in ("tenant_id", "created_by", "due", "lease", "failures")]
_mine = reports.c.tenant_id == _TENANT
_this = sa.and_(_mine, reports.c.report_id == sa.bindparam("report_id", type_=sa.Uuid))
_open = sa.and_(_mine, reports.c.finished_at.is_(None))
_before = sa.bindparam("before", type_=sa.Uuid)
_attempt = sa.and_(_this, reports.c.status == Status.RUNNING, reports.c.attempt == sa.bindparam("attempt"))
_alive = sa.and_(reports.c.status == Status.RUNNING, reports.c.home == _HOME, reports.c.lease >= func.now())
_waits = sa.and_(reports.c.status == Status.QUEUED, reports.c.due <= func.now())
_abandoned = sa.and_(reports.c.status == Status.RUNNING, sa.or_(reports.c.home != _HOME, reports.c.lease < func.now()))
_nothing: dict[str, Any] = {"progress": 0, "rows": None, "bytes": None, "digest": None, "blob": None}
_again: dict[str, Any] = {**_nothing, "status": Status.QUEUED, "lease": None, "finished_at": None}

_ADD = prepare(
    sa.insert(reports)
    .values(
        {c: sa.bindparam(c) for c in ("tenant_id", "report_id", "kind", "period_from", "period_to", "created_by")}
        | {"status": Status.QUEUED}
    )
    .returning(*_shown)
)
_COUNT_OPEN = prepare(sa.select(func.count()).where(_open).select_from(reports))
_GET = prepare(sa.select(*_shown).where(_this))
_LIST = prepare(
    sa.select(*_shown)
    .where(_mine, below(reports.c.report_id, _before))
    .order_by(reports.c.report_id.desc())
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_REMOVE = prepare(sa.delete(reports).where(_this).returning(*_shown))
_other = reports.alias("other")
_running = sa.and_(
    _other.c.tenant_id == _TENANT,
    _other.c.status == Status.RUNNING,
    _other.c.home == _HOME,
    _other.c.lease >= func.now(),
)
_next = (
    sa.select(reports.c.report_id)
    .where(_open, sa.or_(_waits, _abandoned), ~sa.select(_ONE).select_from(_other).where(_running).exists())
    .order_by(reports.c.report_id)
    .limit(1)
    .scalar_subquery()
)
_died_here = sa.and_(reports.c.status == Status.RUNNING, reports.c.home == _HOME)
_BEGIN = prepare(
    sa.update(reports)
    .where(_mine, reports.c.report_id == _next)
    .values(
        **_nothing,
        status=Status.RUNNING,
        attempt=reports.c.attempt + _ONE,
        failures=reports.c.failures + sa.case((_died_here, _ONE), else_=sa.literal_column("0")),
        home=_HOME,
        lease=_LEASE_END,
    )
    .returning(*_shown, reports.c.failures)
)
_PROGRESS = prepare(
    sa.update(reports)
    .where(_attempt)
    .values(progress=sa.bindparam("progress"), rows=sa.bindparam("rows", type_=sa.BigInteger), lease=_LEASE_END)
)
_DONE = prepare(
    sa.update(reports)
    .where(_attempt)
    .values(
        {c: sa.bindparam(c) for c in ("rows", "bytes", "digest", "blob")}
        | {"status": Status.DONE, "progress": 1, "lease": None, "finished_at": func.now()}
    )
)
_FAIL = prepare(
    sa.update(reports)
    .where(_attempt)
    .values(**_nothing, status=Status.FAILED, note=_NOTE, lease=None, finished_at=func.now())
)
_RETRY = prepare(
    sa.update(reports)
    .where(_attempt)
    .values(
        **_again,
        failures=reports.c.failures + sa.bindparam("counted", type_=sa.Integer),
        due=func.now() + sa.bindparam("delay", type_=sa.Interval),
    )
    .returning(reports.c.failures)
)
_GIVE_UP = prepare(
    sa.update(reports)
    .where(_this, reports.c.status == Status.QUEUED, reports.c.attempt == sa.bindparam("attempt"))
    .values(status=Status.FAILED, note=_NOTE, finished_at=func.now())
)
_AGAIN = prepare(
    sa.update(reports)
    .where(_this, reports.c.status == Status.DONE, reports.c.attempt == sa.bindparam("attempt"))
    .values(**_again, note=_NOTE, failures=0, due=func.now())
)
_STRANDED = prepare(
    sa.update(reports)
    .where(_mine, reports.c.status == Status.DONE, reports.c.home != _HOME)
    .values(**_again, note=_NOTE, failures=0, due=func.now())
)
_ELSEWHERE = prepare(sa.select(reports.c.blob).where(_mine, reports.c.status == Status.DONE, reports.c.home != _HOME))
_ADOPT = prepare(
    sa.update(reports)
    .where(
        _mine,
        reports.c.status == Status.DONE,
        reports.c.home != _HOME,
        reports.c.blob == sa.any_(sa.bindparam("keys", type_=ARRAY(sa.Text))),
    )
    .values(home=_HOME)
)
_REST = prepare(
    sa.select(func.min(sa.case((_alive, reports.c.lease), else_=reports.c.due)) - func.now())
    .where(_open)
    .select_from(reports)
)
_ABANDONED = prepare(sa.select(sa.select(_ONE).select_from(reports).where(_open, sa.or_(_waits, _abandoned)).exists()))
_ANY = prepare(sa.select(sa.select(_ONE).select_from(reports).where(_mine).exists()))
_finished = sa.and_(_mine, reports.c.finished_at.is_not(None))
_kept = (
    sa.select(reports.c.report_id)
    .where(_finished)
    .order_by(reports.c.report_id.desc())
    .limit(sa.bindparam("kept", type_=sa.Integer))
    .scalar_subquery()
)
_PRUNE = prepare(
    sa.delete(reports)
    .where(
        _finished,
        sa.or_(
            reports.c.finished_at < func.now() - sa.bindparam("retention", type_=sa.Interval),
            reports.c.report_id.not_in(_kept),
        ),
    )
    .returning(reports.c.blob)
)


async def ask(session: TenantSession, user_id: UUID, kind: Kind, period: Period, wall: QueueWall) -> Report:
    """Put a report into the tenant's queue; 429 where it is full."""
    await work.wake(session, WORK_KIND, timedelta())  # locked until the commit: nobody else counts meanwhile
    if wall.enforcement is not Enforcement.OFF and await session.fetchval(_COUNT_OPEN) >= QUEUED_MAX:
        if wall.enforcement is Enforcement.ON:
            headers = {"Retry-After": str(RETRY_S)}
            detail = f"{QUEUED_MAX} reports are waiting or being made."
            raise problems.ProblemError(problems.REPORTS_QUEUE_FULL, detail, headers=headers)
        wall.observed()
    values = {"kind": kind.value, "period_from": period.first, "period_to": period.last}
    return _report_of(await session.fetchrow(_ADD, report_id=uuid7(), created_by=user_id, **values))


async def get(session: TenantSession, report_id: UUID) -> Report:
    """One report, or 404."""
    return _report_of(await session.fetchrow(_GET, report_id=report_id))


async def page(session: TenantSession, before: UUID | None, limit: int) -> list[Report]:
    """Reports, the newest first."""
    return [_report_of(row) for row in await session.fetch(_LIST, before=before, limit=limit)]


async def remove(session: TenantSession, report_id: UUID) -> Report:
    """Delete a report in whatever state; its maker notices at its next sign of life. 404 where there is none."""
    return _report_of(await session.fetchrow(_REMOVE, report_id=report_id))


async def make_again(session: TenantSession, report: Report, note: str) -> None:
    """Queue a finished report again, because its file is gone; unless that has happened already."""
    await session.execute(_AGAIN, report_id=report.report_id, attempt=report.attempt, note=note)
    await work.wake(session, WORK_KIND, timedelta())


# -- for the maker ------------------------------------------------------------------------------------------------


async def begin(session: TenantSession, home: str) -> Report | None:
    """The tenant's next report, now running at ``home``; None where there is none or another one is being made.

    The row of the work table is held from here on. A report whose maker died too often here is given up instead.
    """
    await work.hold(session, WORK_KIND, LEASE)
    while True:
        row = await session.fetchrow(_BEGIN, home=home, lease=LEASE)
        if row is None:
            return None
        report = _report_of(row)
        if row["failures"] < FAILURES_MAX:
            return report
        await fail(session, report, "What made it died each time.")


async def alive(session: TenantSession, report: Report, progress: float, rows: int) -> bool:
    """A sign of life; False where the report is no longer this attempt's: deleted, or taken over."""
    await work.hold(session, WORK_KIND, LEASE)
    values = {"attempt": report.attempt, "progress": progress, "rows": rows, "lease": LEASE}
    return bool(await session.execute(_PROGRESS, report_id=report.report_id, **values))


async def finish(session: TenantSession, report: Report, rows: int, claim: Claim) -> bool:
    """It is done; False where it is no longer this attempt's."""
    values = {"rows": rows, "bytes": claim.size, "digest": claim.sha256, "blob": claim.key}
    return bool(await session.execute(_DONE, report_id=report.report_id, attempt=report.attempt, **values))


async def fail(session: TenantSession, report: Report, note: str) -> None:
    """It cannot be made."""
    await session.execute(_FAIL, report_id=report.report_id, attempt=report.attempt, note=note)


async def retry(session: TenantSession, report: Report, note: str) -> None:
    """Queue it again after a failure that may pass, or give it up after `FAILURES_MAX` of them, with the last one."""
    key: dict[str, Any] = {"report_id": report.report_id, "attempt": report.attempt}
    failures = await session.fetchval(_RETRY, **key, delay=RETRY, counted=1)
    if failures is not None and failures >= FAILURES_MAX:
        await session.execute(_GIVE_UP, **key, note=note)


async def give_back(session: TenantSession, report: Report) -> None:
    """Queue it again at once: its maker stops."""
    key: dict[str, Any] = {"report_id": report.report_id, "attempt": report.attempt}
    await session.execute(_RETRY, **key, delay=timedelta(), counted=0)


async def rest(session: TenantSession, home: str) -> None:
    """Let go of the tenant's row of the work table, until there is something to do."""
    await work.hold(session, WORK_KIND, LEASE)  # first: what is queued from here on waits, and wakes it again
    wait: timedelta | None = await session.fetchval(_REST, home=home)
    await work.settle(session, WORK_KIND, None if wait is None else max(wait, timedelta()))


async def any_of(session: TenantSession) -> bool:
    """Whether the tenant has reports: most have none."""
    return bool(await session.fetchval(_ANY))


async def made_elsewhere(session: TenantSession, home: str) -> bool:
    """Whether the tenant has finished reports that another cell made: it has moved."""
    return bool(await session.fetch(_ELSEWHERE, home=home))


async def adopt(session: TenantSession, home: str, keys: list[str]) -> None:
    """Finished reports whose files are in this cell's store are at home here: the move brought them along."""
    await session.execute(_ADOPT, home=home, keys=keys)


async def recover(session: TenantSession, home: str) -> int:
    """Queue again what has no file in this cell, and wake the makers of what nobody makes; how many were queued."""
    stranded = await session.execute(_STRANDED, home=home, note="Made again: its file stayed in the cell before.")
    if await session.fetchval(_ABANDONED, home=home):
        await work.wake(session, WORK_KIND, timedelta())
    return stranded


async def prune(session: TenantSession) -> list[str]:
    """Delete finished reports past `RETENTION` or beyond `KEPT_MAX`; the keys of their files."""
    return [
        row["blob"]
        for row in await session.fetch(_PRUNE, retention=RETENTION, kept=KEPT_MAX)
        if row["blob"] is not None
    ]


def _report_of(row: "asyncpg.Record | None") -> Report:
    if row is None:
        raise problems.ProblemError(problems.NOT_FOUND, "There is no such report.")
    claim = None if row["blob"] is None else Claim(row["blob"], row["bytes"], row["digest"])
    values = {name: row[name] for name in ("progress", "rows", "note", "home", "attempt", "created_at", "finished_at")}
    period = Period(row["period_from"], row["period_to"])
    return Report(row["report_id"], Kind(row["kind"]), period, Status(row["status"]), claim=claim, **values)
