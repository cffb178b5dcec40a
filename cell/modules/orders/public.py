"""What the rest of a cell may use of the orders: the events that they emit, and two relations to read and join."""

from collections.abc import Iterable
from typing import Final
from uuid import UUID

import msgspec
import sqlalchemy as sa

from cell.modules.orders.tables import order_lines, orders
from cell.shards.session import TenantSession

SAGAS: Final = "sagas"  # the kind of work of the order sagas
ORDER_CREATED: Final = "order.created"  # complete at once: nothing was to be paid
ORDER_CONFIRMED: Final = "order.confirmed"  # paid
ORDER_CANCELLED: Final = "order.cancelled"  # nothing was paid, or it was given back

# For statements of others, which name ``tenant_id`` as all do. Columns are added, never changed. These are orders that
# stand: one that waits for its payment joins them when it is confirmed, and never leaves them again. The columns never
# change, and numbers are in the order of their commits: all up to a number, but for those that wait, are a snapshot.
ORDERS: Final = (
    sa.select(
        orders.c.tenant_id,
        orders.c.order_id,
        orders.c.number,
        orders.c.created_at,
        orders.c.currency,
        orders.c.total_cents,
        orders.c.reference,
    )
    .where(orders.c.status != sa.literal_column("'pending'"), orders.c.status != sa.literal_column("'cancelled'"))
    .subquery("orders")
)
ORDER_LINES: Final = sa.select(
    order_lines.c.tenant_id,
    order_lines.c.order_id,
    order_lines.c.line,
    order_lines.c.product_id,
    order_lines.c.quantity,
    order_lines.c.unit_price_cents,
).subquery("order_lines")


class SoldLine(msgspec.Struct, frozen=True):
    """One line of the order that was created."""

    product_id: UUID
    quantity: int
    unit_price_cents: int


class OrderCreated(msgspec.Struct, frozen=True):
    """The payload of ``order.created``. Members are added, never changed: events of old are still under way."""

    order_id: UUID
    number: int
    total_cents: int
    currency: str
    lines: list[SoldLine]


class OrderEnded(msgspec.Struct, frozen=True):
    """The payload of ``order.confirmed`` and ``order.cancelled``; ``note`` says why it was cancelled."""

    order_id: UUID
    number: int
    total_cents: int
    currency: str
    lines: list[SoldLine]
    note: str | None


async def place(session: TenantSession, user_id: UUID, reference: str | None, lines: Iterable[tuple[UUID, int]]) -> int:
    """Create an order of (product, quantity) that is not to be paid here; its number."""
    from cell.modules.orders import service  # which itself names events of this module

    order = await service.create(session, user_id, reference, [service.Wanted(*line) for line in lines])
    return order.number
