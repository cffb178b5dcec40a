"""``/v1/reports``."""

import base64
import contextlib
import time
from collections.abc import Mapping
from datetime import date, datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

import msgspec
from litestar import Request, Response, Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, RawBody
from litestar.response import Stream
from litestar.status_codes import HTTP_202_ACCEPTED

from cell import idempotency, pages, wire
from cell.access import Caller, Role, guard
from cell.blobs import BlobError, BlobMissingError, Blobs, Claim
from cell.idempotency import Answer
from cell.modules.accounts.public import authenticated
from cell.modules.reports import service, summary
from cell.modules.reports.service import Kind, Period, QueueWall, Status
from cell.modules.reports.summary import Turns
from cell.shards.context import TenantContext
from cell.shards.session import Shards
from contracts import ids, problems

SCOPE: Final = "reports.create"  # one space of Idempotency-Keys
DAYS: Final = 30
DAYS_MAX: Final = 366
YEAR_MAX: Final = 9000
FILE_GONE: Final = "Made again: its file was gone."


class ReportAdd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /v1/reports``: days in UTC, both included."""

    kind: Kind
    first: date = msgspec.field(name="from")
    last: date = msgspec.field(name="to")


class ReportView(msgspec.Struct, frozen=True):
    """A report as the API shows it. ``progress`` is 0 to 1; ``note`` says why it failed, or was made again."""

    id: UUID
    kind: str
    first: date = msgspec.field(name="from")
    last: date = msgspec.field(name="to")
    status: str
    progress: float
    rows: int | None
    bytes: int | None
    note: str | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, r: service.Report) -> "ReportView":
        """The view of a report."""
        head = (r.report_id, r.kind, r.period.first, r.period.last, r.status, round(r.progress, 4), r.rows)
        return cls(*head, None if r.claim is None else r.claim.size, r.note, r.created_at, r.finished_at)


class TotalView(msgspec.Struct, frozen=True):
    """All orders in one currency; the median and the 95th percentile are of single orders."""

    currency: str
    orders: int
    revenue_cents: int
    median_cents: int
    p95_cents: int


class SoldView(msgspec.Struct, frozen=True):
    """What was sold of one product in one currency."""

    product_id: UUID
    sku: str
    name: str
    currency: str
    orders: int
    units: int
    revenue_cents: int


class SummaryView(msgspec.Struct, frozen=True):
    """What was sold in the last ``days``."""

    days: int
    totals: list[TotalView]
    products: list[SoldView]

    @classmethod
    def of(cls, days: int, s: summary.Summary) -> "SummaryView":
        """The view of a summary."""
        totals = [TotalView(t.currency, t.orders, t.revenue_cents, t.median_cents, t.p95_cents) for t in s.totals]
        best = [SoldView(b.product_id, b.sku, b.name, b.currency, b.orders, b.units, b.revenue_cents) for b in s.best]
        return cls(days, totals, best)


_add: Final = wire.Reader(ReportAdd)
_encode: Final = msgspec.json.Encoder().encode
_LATER: Final = {"Retry-After": "1"}


@get("/reports/summary", opt={"access": Role.VIEWER})
async def get_summary(
    caller: NamedDependency[Caller],
    tenant: NamedDependency[TenantContext],
    shards: NamedDependency[Shards],
    days: FromQuery[int] = DAYS,
) -> SummaryView:
    """What was sold in the last days, computed part by part while the caller waits."""
    if not 1 <= days <= DAYS_MAX:
        raise wire.invalid("days", f"Expected 1 to {DAYS_MAX}")
    async with caller.enter(read_only=True) as (session, _):  # who calls is known from here on
        whole = await summary.extent(session, days)
    turns = Turns(partial(shards.enter, tenant, read_only=True), tenant.turn, tenant.deadline, time.monotonic)
    return SummaryView.of(days, await summary.summarise(whole, turns))


@post("/reports", opt={"access": Role.MEMBER}, status_code=HTTP_202_ACCEPTED)
async def ask_report(
    request: Request[Any, Any, Any],
    body: RawBody,
    caller: NamedDependency[Caller],
    reports_wall: NamedDependency[QueueWall],
) -> Response[bytes]:
    """Put a report into the queue. An Idempotency-Key may be sent; then a repeat gets the first answer."""
    asked = _add(body)
    period = _period(asked)
    field = request.headers.get(idempotency.FIELD)
    async with caller.enter() as (session, who):

        async def ask() -> Answer:
            report = await service.ask(session, who.user_id, asked.kind, period, reports_wall)
            return Answer(HTTP_202_ACCEPTED, _encode(ReportView.of(report)))

        if field is None:
            answer = await ask()
        else:
            answer = await idempotency.once(session, SCOPE, idempotency.key_of(field), _encode(asked), ask)
    headers = {idempotency.REPLAYED_FIELD: "true"} if answer.replayed else None
    return Response(answer.body, status_code=answer.status, media_type="application/json", headers=headers)


@get("/reports", opt={"access": Role.VIEWER})
async def list_reports(
    caller: NamedDependency[Caller], limit: FromQuery[int] = wire.PAGE_ITEMS, cursor: FromQuery[str | None] = None
) -> wire.Page[ReportView]:
    """Reports, the newest first."""
    return await pages.by_id(caller, limit, cursor, service.page, ReportView.of)


@get("/reports/{report_id:uuid}", opt={"access": Role.VIEWER})
async def get_report(report_id: FromPath[UUID], caller: NamedDependency[Caller]) -> ReportView:
    """One report, and how far it is."""
    async with caller.enter(read_only=True) as (session, _):
        return ReportView.of(await service.get(session, report_id))


@get("/reports/{report_id:uuid}/result", opt={"access": Role.VIEWER})
async def get_result(
    report_id: FromPath[UUID], caller: NamedDependency[Caller], blobs: NamedDependency[Blobs]
) -> Stream:
    """The file of a report that is done; 409 before. A file that is gone is made again, and 409 until then."""
    async with caller.enter(read_only=True) as (session, _):
        report = await service.get(session, report_id)
    claim = report.claim
    if claim is None:
        raise _not_ready(report)
    try:
        pieces = await blobs.read(ids.tenant_number(caller.tenant_id), claim)
    except BlobMissingError:
        async with caller.enter() as (session, _):
            await service.make_again(session, report, FILE_GONE)
            report = await service.get(session, report_id)
        raise _not_ready(report) from None
    except BlobError as e:
        raise problems.ProblemError(problems.BLOBS_UNAVAILABLE, headers=_LATER) from e
    return Stream(pieces, media_type="text/csv", headers=_fields_of(report, claim))


@delete("/reports/{report_id:uuid}", opt={"access": Role.MEMBER})
async def delete_report(
    report_id: FromPath[UUID], caller: NamedDependency[Caller], blobs: NamedDependency[Blobs]
) -> None:
    """Delete a report with its file; one that is being made is cancelled, down to the query in the database."""
    async with caller.enter() as (session, _):
        report = await service.remove(session, report_id)
    if report.claim is not None:
        with contextlib.suppress(BlobError):  # no row names it any more: what is left goes with its retention
            await blobs.delete([report.claim.key])


def _period(asked: ReportAdd) -> Period:
    days = (asked.last - asked.first).days + 1
    if not 1 <= days <= DAYS_MAX:
        raise wire.invalid("to", f"Expected a day from `from` on, and at most {DAYS_MAX} days in all")
    if asked.last.year > YEAR_MAX:
        raise wire.invalid("to", f"Expected a year up to {YEAR_MAX}")
    return Period(asked.first, asked.last)


def _not_ready(report: service.Report) -> problems.ProblemError:
    failed = report.status == Status.FAILED
    detail = (report.note or "") if failed else f"It is {report.status}."
    return problems.ProblemError(
        problems.REPORT_NOT_READY, detail, headers={} if failed else _LATER, status_of_report=report.status.value
    )


def _fields_of(report: service.Report, claim: Claim) -> Mapping[str, str]:
    """RFC 9530 for the digest, RFC 6266 for the name."""
    name = f"{report.kind}_{report.period.first}_{report.period.last}.csv"
    return {
        "content-length": str(claim.size),
        "content-disposition": f'attachment; filename="{name}"',
        "repr-digest": f"sha-256=:{base64.b64encode(claim.sha256).decode()}:",
        "cache-control": "private, no-store",
    }


router: Final = Router(
    path="/v1",
    guards=[guard],
    dependencies={"caller": authenticated},
    route_handlers=[get_summary, ask_report, list_reports, get_report, get_result, delete_report],
)
