"""Makes reports: the job of the bulkhead. A crash at any point leaves a row that somebody takes over.

Between the end of its file and the end of its row it also leaves a file that no row names, for the tidying.

The parts are read on the bulkhead's connections; signs of life and the end are written on the worker's own.
"""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import structlog

from cell.blobs import BlobError, Blobs, BlobTooLargeError, BlobWriter, Claim
from cell.fairness.pace import Pace, PartSize
from cell.modules.reports import kinds, service
from cell.modules.reports.kinds import Line, Making, Span, TooManyGroupsError
from cell.modules.reports.metrics import ReportMetrics
from cell.modules.reports.service import Report
from cell.shards import errors
from cell.shards.context import TenantContext
from cell.shards.session import Shards, TenantSession
from contracts.names import Field

PART_ORDERS: Final = 200  # of the first part; those after it follow what it took
PART_TIMEOUT_S: Final = 20.0
REPORT_TIMEOUT_S: Final = 900.0  # most of it is rest
BEAT_S: Final = 0.5  # between two signs of life; also how fast a deleted report is noticed
GIVE_BACK_S: Final = 2.0
_REFUSED: Final = (errors.NotOursError, errors.FrozenError)

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class _SupersededError(Exception):
    """The report is no longer ours to make: deleted, or taken over."""


@dataclass(slots=True)
class _Run:
    """One attempt at a report, and how far it is."""

    tenant: int
    report: Report
    progress: float = 0.0
    rows: int = 0


class Maker:
    """Makes the next report of a tenant. ``home`` is the cell's name, ``clock`` the loop's, in seconds.

    ``share`` is the part of each shard's time that all reports together may take; None where nothing holds them back.
    """

    kind = service.WORK_KIND

    def __init__(
        self,
        *,
        heavy: Shards,
        shards: Shards,
        blobs: Blobs,
        home: str,
        metrics: ReportMetrics,
        clock: Callable[[], float],
        share: float | None,
    ) -> None:
        self._heavy = heavy
        self._shards = shards
        self._blobs = blobs
        self._home = home
        self._metrics = metrics
        self._clock = clock
        self._paces = {} if share is None else {shard: Pace(share) for shard in heavy.names}

    async def attend(self, tenant: int) -> None:
        """Make one report, or find that there is none, and settle the tenant's row of the work table."""
        async with self._session(tenant, "reports") as session:
            report = await service.begin(session, self._home)
        if report is not None:
            await self._attempt(_Run(tenant, report))
        async with self._session(tenant, "reports") as session:
            await service.rest(session, self._home)

    async def _attempt(self, run: _Run) -> None:
        began = self._clock()
        outcome = "refused"
        try:
            outcome = await self._ended(run)
        finally:
            self._metrics.ended.labels(outcome=outcome).inc()
            self._metrics.duration.observe(self._clock() - began)
            fields = {Field.TENANT: f"t{run.tenant}", "report": str(run.report.report_id), "outcome": outcome}
            _log.info("report_attempt_ended", **fields, attempt=run.report.attempt, rows=run.rows)

    async def _ended(self, run: _Run) -> str:
        """Make it and write down how that ended. A refusal by the fence is raised: the row is not ours to write."""
        try:
            claim = await self._watched(run)
        except _REFUSED:
            raise
        except _SupersededError:
            return "superseded"
        except asyncio.CancelledError:
            await self._give_back(run)
            raise
        except (BlobTooLargeError, TooManyGroupsError, TimeoutError) as e:
            async with self._enter(run) as session:
                await service.fail(session, run.report, _permanent(e))
            return "failed"
        except Exception as e:
            _log.warning("report_attempt_failed", **{Field.TENANT: f"t{run.tenant}"}, exc_info=e)
            async with self._enter(run) as session:
                await service.retry(session, run.report, _passing(e))
            return "retried"
        async with self._enter(run) as session:
            done = await service.finish(session, run.report, run.rows, claim)
        if not done:
            await self._blobs.delete([claim.key])
        return "done" if done else "superseded"

    async def _watched(self, run: _Run) -> Claim:
        """Make it, with signs of life; ends as soon as one of them is refused."""
        making = asyncio.ensure_future(self._make(run))
        try:
            async with asyncio.timeout(REPORT_TIMEOUT_S):
                while True:
                    done, _ = await asyncio.wait({making}, timeout=BEAT_S)
                    if done:
                        return making.result()
                    await self._beat(run)
        finally:
            making.cancel()  # reaches PostgreSQL: a statement that runs is cancelled there
            await asyncio.gather(making, return_exceptions=True)

    async def _beat(self, run: _Run) -> None:
        async with self._enter(run) as session:
            if not await service.alive(session, run.report, run.progress, run.rows):
                raise _SupersededError

    async def _make(self, run: _Run) -> Claim:
        report = run.report
        making = kinds.MAKINGS[report.kind]()
        async with self._blobs.writing(run.tenant, f"reports/{report.report_id}-{report.attempt}.csv") as file:
            await file.write(_csv([making.header]))
            whole = await self._read(run, kinds.bounds)
            if whole is not None:
                await self._parts(run, making, whole, file)
            await _add(run, file, await self._read(run, making.rest))
        return file.claim

    async def _parts(self, run: _Run, making: Making, whole: Span, file: BlobWriter) -> None:
        after, size = whole.after, PartSize(PART_ORDERS)
        while after < whole.upto:
            span = Span(after, min(after + size.count, whole.upto))
            lines = await self._read(run, partial(making.part, period=run.report.period, span=span), size)
            await _add(run, file, lines)
            after = span.upto
            run.progress = (after - whole.after) / (whole.upto - whole.after)

    async def _read(self, run: _Run, read: Callable[[TenantSession], Awaitable[T]], size: PartSize | None = None) -> T:
        """One transaction on the bulkhead's connections, when it is the reports' turn at that shard; PostgreSQL ends a
        statement that outlives its time. ``size`` is told how long it took."""
        pace = self._paces.get(self._heavy.shard_of(run.tenant))
        if pace is not None:
            await pace.rest(self._clock, asyncio.sleep)
        began = self._clock()
        context = self._context(run.tenant, f"report-{run.report.report_id}")
        context.statement_by = context.deadline
        try:
            async with asyncio.timeout(PART_TIMEOUT_S), self._heavy.enter(context, read_only=True) as session:
                return await read(session)
        except TimeoutError as e:
            raise errors.ShardUnavailableError("a part of a report took too long") from e
        finally:
            now = self._clock()
            if pace is not None:
                pace.spent(now - began, now, now)
            if size is not None:
                size.took(context.cost.database_s)

    async def _give_back(self, run: _Run) -> None:
        """The worker stops: the next one need not wait until the lease has ended."""
        try:
            async with asyncio.timeout(GIVE_BACK_S), self._enter(run) as session:
                await service.give_back(session, run.report)
                await service.rest(session, self._home)
        except (errors.ShardError, TimeoutError) as e:
            _log.info("report_left_to_its_lease", **{Field.TENANT: f"t{run.tenant}", Field.REASON: str(e)})

    def _enter(self, run: _Run) -> AbstractAsyncContextManager[TenantSession]:
        return self._session(run.tenant, f"report-{run.report.report_id}")

    @asynccontextmanager
    async def _session(self, tenant: int, job: str) -> AsyncIterator[TenantSession]:
        """A short transaction on the worker's own connections."""
        try:
            async with asyncio.timeout(PART_TIMEOUT_S), self._shards.enter(self._context(tenant, job)) as session:
                yield session
        except TimeoutError as e:
            raise errors.ShardUnavailableError("the shard did not answer in time") from e

    def _context(self, tenant: int, job: str) -> TenantContext:
        return TenantContext.for_worker(tenant, self._clock() + PART_TIMEOUT_S, job)


async def _add(run: _Run, file: BlobWriter, lines: Sequence[Line]) -> None:
    if lines:
        await file.write(_csv(lines))
        run.rows += len(lines)


def _csv(lines: Iterable[Line]) -> bytes:
    """As RFC 4180 has it, in UTF-8."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()


def _permanent(error: Exception) -> str:
    if isinstance(error, BlobTooLargeError):
        return "The result would be too large. Ask for a shorter period."
    if isinstance(error, TooManyGroupsError):
        return "It has too many lines. Ask for a shorter period."
    return "It took too long. Ask for a shorter period."


def _passing(error: Exception) -> str:
    """In words for the tenant, who is told no innards."""
    if isinstance(error, BlobError):
        return "The store of files was away."
    if isinstance(error, errors.ShardError):
        return "The database was away, or needed too long."
    return "Something broke on our side."
