"""What the rest of a cell may use of the catalog: prices, a relation to join, and its consumers of events."""

from typing import Final

import sqlalchemy as sa

from cell.events.inbox import Consumer
from cell.modules.catalog.consumers import SOLD, count_units
from cell.modules.catalog.service import Price, prices
from cell.modules.catalog.tables import products

__all__ = ["CONSUMERS", "PRODUCTS", "Price", "prices"]

# For statements of others, which name ``tenant_id`` as all do. Columns are added, never changed.
PRODUCTS: Final = sa.select(
    products.c.tenant_id,
    products.c.product_id,
    products.c.sku,
    products.c.name,
    products.c.price_cents,
    products.c.currency,
    products.c.units_sold,
).subquery("products")

CONSUMERS: Final = (Consumer("catalog.units-sold", SOLD, count_units),)
