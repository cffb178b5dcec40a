"""``/v1/orders``."""

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, RawBody
from litestar.status_codes import HTTP_201_CREATED, HTTP_202_ACCEPTED
from msgspec import UNSET, Meta, UnsetType

from cell import idempotency, wire
from cell.access import Caller, Role, guard
from cell.idempotency import Answer
from cell.modules.accounts.public import authenticated
from cell.modules.orders import service
from contracts import problems

SCOPE: Final = "orders.create"  # one space of Idempotency-Keys
LINES_MAX: Final = 100
QUANTITY_MAX: Final = 1_000_000


class LineAdd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of an order that is to be created."""

    product_id: UUID
    quantity: Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]


class Payment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an order is paid. ``method`` is the gateway's own token of a card or account, never a number of one."""

    method: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,128}\Z")]


class OrderAdd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /v1/orders``. ``reference`` is the caller's own name for it; it need not be unique.

    With ``payment`` the order is pending until it is charged.
    """

    lines: Annotated[list[LineAdd], Meta(min_length=1, max_length=LINES_MAX)]
    reference: Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{0,64}\Z")] | None = None
    payment: Payment | UnsetType = UNSET  # so that an order without one has the fingerprint that it always had


class LineView(msgspec.Struct, frozen=True):
    """A line as the API shows it."""

    product_id: UUID
    quantity: int
    unit_price_cents: int


class OrderView(msgspec.Struct, frozen=True):
    """An order as the API shows it."""

    id: UUID
    number: int
    reference: str | None
    status: str
    total_cents: int
    currency: str
    lines: list[LineView]
    created_at: datetime
    version: int

    @classmethod
    def of(cls, o: service.Order) -> "OrderView":
        """The view of an order."""
        lines = [LineView(*line) for line in o.lines]
        head = (o.order_id, o.number, o.reference, o.status, o.total_cents, o.currency)
        return cls(*head, lines, o.created_at, o.version)


class ProgressView(msgspec.Struct, frozen=True):
    """How far an order is that is to be paid. ``due`` is when it goes on, ``note`` why it was cancelled."""

    id: UUID
    step: str
    note: str | None
    failures: int
    due: datetime
    created_at: datetime
    finished_at: datetime | None


_add: Final = wire.Reader(OrderAdd)
_encode: Final = msgspec.json.Encoder().encode


@post("/orders", opt={"access": Role.MEMBER})
async def create_order(
    request: Request[Any, Any, Any],
    body: RawBody,
    caller: NamedDependency[Caller],
    takes_payments: NamedDependency[bool],
) -> Response[bytes]:
    """Create an order, once per Idempotency-Key: a repeat gets the first answer, with ``Idempotent-Replayed: true``."""
    key = idempotency.key_of(request.headers.get(idempotency.FIELD))
    asked = _add(body)
    if asked.payment is not UNSET and not takes_payments:
        raise problems.ProblemError(problems.NO_PAYMENTS)
    method = None if asked.payment is UNSET else asked.payment.method
    wanted = [service.Wanted(line.product_id, line.quantity) for line in asked.lines]
    async with caller.enter() as (session, who):

        async def create() -> Answer:
            order = await service.create(session, who.user_id, asked.reference, wanted, method)
            return Answer(HTTP_201_CREATED, _encode(OrderView.of(order)))

        answer = await idempotency.once(session, SCOPE, key, _encode(asked), create)
    headers = {idempotency.REPLAYED_FIELD: "true"} if answer.replayed else None
    return Response(answer.body, status_code=answer.status, media_type="application/json", headers=headers)


@get("/orders/{order_id:uuid}", opt={"access": Role.VIEWER})
async def get_order(order_id: FromPath[UUID], caller: NamedDependency[Caller]) -> OrderView:
    """One order with its lines."""
    async with caller.enter(read_only=True) as (session, _):
        return OrderView.of(await service.get(session, order_id))


@post("/orders/{order_id:uuid}/cancel", opt={"access": Role.MEMBER}, status_code=HTTP_202_ACCEPTED)
async def cancel_order(order_id: FromPath[UUID], caller: NamedDependency[Caller]) -> OrderView:
    """Have a pending order cancelled: what was charged is given back. 409 where it is not pending any more."""
    async with caller.enter() as (session, _):
        return OrderView.of(await service.cancel(session, order_id))


@get("/orders/{order_id:uuid}/progress", opt={"access": Role.VIEWER})
async def get_progress(order_id: FromPath[UUID], caller: NamedDependency[Caller]) -> ProgressView:
    """How far an order is that is to be paid."""
    async with caller.enter(read_only=True) as (session, _):
        found = await service.progress(session, order_id)
    at = (found.due, found.created_at, found.finished_at)
    return ProgressView(found.order_id, found.step.value, found.note, found.failures, *at)


@get("/orders", opt={"access": Role.VIEWER})
async def list_orders(
    caller: NamedDependency[Caller], limit: FromQuery[int] = wire.PAGE_ITEMS, cursor: FromQuery[str | None] = None
) -> wire.Page[OrderView]:
    """Orders, the newest first. Orders that are added meanwhile do not shift later pages. A page of orders with many
    lines ends before ``limit``: its cursor says that there are more."""
    size, before = wire.page_size(limit), wire.number_of_cursor(cursor)
    async with caller.enter(read_only=True) as (session, _):
        found, more = await service.page(session, before, size)
    views = [OrderView.of(order) for order in found]
    return wire.Page(views, wire.cursor_of_number(views[-1].number) if more else None)


router: Final = Router(
    path="/v1",
    guards=[guard],
    dependencies={"caller": authenticated},
    route_handlers=[create_order, get_order, list_orders, cancel_order, get_progress],
)
