"""What the rest of a cell may use of the orders: the events that they emit."""

from typing import Final
from uuid import UUID

import msgspec

ORDER_CREATED: Final = "order.created"


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
