"""What the rest of a cell may use of the orders: the events that they emit, and two relations to read and join."""

from typing import Final
from uuid import UUID

import msgspec
import sqlalchemy as sa

from cell.modules.orders.tables import order_lines, orders

ORDER_CREATED: Final = "order.created"

# For statements of others, which name ``tenant_id`` as all do. Columns are added, never changed. Orders are never
# changed or taken back, and their numbers are in the order of their commits: all up to a number are a snapshot.
ORDERS: Final = sa.select(
    orders.c.tenant_id, orders.c.order_id, orders.c.number, orders.c.created_at, orders.c.currency, orders.c.total_cents
).subquery("orders")
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
