"""``/v1/payments``: read only. Orders are paid by being created with a ``payment``."""

from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from litestar import Router, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from cell import pages, wire
from cell.access import Caller, Role, guard
from cell.modules.accounts.public import authenticated
from cell.modules.payments import service


class PaymentView(msgspec.Struct, frozen=True):
    """A payment as the API shows it; its id is the order's. ``charge`` is the gateway's name of the charge."""

    id: UUID
    state: str
    amount_cents: int
    currency: str
    charge: str | None
    note: str | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, p: service.Payment) -> "PaymentView":
        """The view of a payment."""
        times = (p.created_at, p.updated_at)
        return cls(p.order_id, p.state.value, p.amount_cents, p.currency, p.charge, p.note, *times)


@get("/payments/{order_id:uuid}", opt={"access": Role.VIEWER})
async def get_payment(order_id: FromPath[UUID], caller: NamedDependency[Caller]) -> PaymentView:
    """The payment of one order."""
    async with caller.enter(read_only=True) as (session, _):
        return PaymentView.of(await service.get(session, order_id))


@get("/payments", opt={"access": Role.VIEWER})
async def list_payments(
    caller: NamedDependency[Caller], limit: FromQuery[int] = wire.PAGE_ITEMS, cursor: FromQuery[str | None] = None
) -> wire.Page[PaymentView]:
    """Payments, those of the newest orders first."""
    return await pages.by_id(caller, limit, cursor, service.page, PaymentView.of)


router: Final = Router(
    path="/v1",
    guards=[guard],
    dependencies={"caller": authenticated},
    route_handlers=[get_payment, list_payments],
)
