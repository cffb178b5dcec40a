"""What the rest of a cell may use of the catalog: prices, and its consumers of events."""

from typing import Final

from cell.events.inbox import Consumer
from cell.modules.catalog.consumers import ORDER_CREATED, count_units
from cell.modules.catalog.service import Price, prices

__all__ = ["CONSUMERS", "Price", "prices"]

CONSUMERS: Final = (Consumer("catalog.units-sold", frozenset({ORDER_CREATED}), count_units),)
