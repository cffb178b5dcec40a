"""What the catalog does about events of others. It reads only the members that it needs (a tolerant reader)."""

from collections import Counter
from typing import Final
from uuid import UUID

import msgspec

from cell.events.outbox import Event
from cell.modules.catalog import service
from cell.shards.session import TenantSession

SOLD: Final = frozenset({"order.created", "order.confirmed"})  # of each order one, when it is sure to stand


class _Line(msgspec.Struct, frozen=True):
    product_id: UUID
    quantity: int


class _Sold(msgspec.Struct, frozen=True):
    lines: list[_Line]


async def count_units(session: TenantSession, event: Event) -> None:
    """Count the units of an order that stands."""
    quantities: Counter[UUID] = Counter()
    for line in msgspec.convert(event.payload, _Sold).lines:
        quantities[line.product_id] += line.quantity
    await service.count_sold(session, quantities)
