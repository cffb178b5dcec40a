"""What the old pages show, read from our tables; integers mean what the key map says."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from cell.modules.catalog.public import PRODUCTS
from cell.modules.old_urls.tables import Kind, old_keys
from cell.modules.orders.public import ORDER_LINES, ORDERS
from cell.shards.session import TenantSession
from cell.shards.sql import prepare

PAGE: Final = 50

_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_BIG = sa.BigInteger
_product_key = sa.and_(
    old_keys.c.tenant_id == PRODUCTS.c.tenant_id,
    old_keys.c.kind == sa.literal_column("'product'"),
    old_keys.c.new_id == PRODUCTS.c.product_id,
)
_shown = (
    old_keys.c.old_id,
    PRODUCTS.c.sku,
    PRODUCTS.c.name,
    PRODUCTS.c.price_cents,
    PRODUCTS.c.currency,
    PRODUCTS.c.units_sold,
)
_products = sa.select(*_shown).select_from(PRODUCTS.outerjoin(old_keys, _product_key))
_PRODUCTS = prepare(
    _products.where(PRODUCTS.c.tenant_id == _TENANT).order_by(
        old_keys.c.old_id.asc().nulls_last(), PRODUCTS.c.product_id
    )
)
_PRODUCT = prepare(
    _products.where(PRODUCTS.c.tenant_id == _TENANT, old_keys.c.old_id == sa.bindparam("old_id", type_=_BIG))
)
_order = (
    ORDERS.c.order_id,
    ORDERS.c.number,
    ORDERS.c.reference,
    ORDERS.c.total_cents,
    ORDERS.c.currency,
    ORDERS.c.created_at,
)
_ORDERS = prepare(
    sa.select(*_order)
    .where(ORDERS.c.tenant_id == _TENANT)
    .order_by(ORDERS.c.number.desc())
    .limit(sa.bindparam("limit", type_=_BIG))
    .offset(sa.bindparam("offset", type_=_BIG))
)
_BY_NUMBER = prepare(
    sa.select(*_order).where(ORDERS.c.tenant_id == _TENANT, ORDERS.c.number == sa.bindparam("number", type_=_BIG))
)
_BY_ID = prepare(
    sa.select(*_order).where(
        ORDERS.c.tenant_id == _TENANT, ORDERS.c.order_id == sa.bindparam("order_id", type_=sa.Uuid)
    )
)
_LINES = prepare(
    sa.select(ORDER_LINES.c.line, PRODUCTS.c.sku, ORDER_LINES.c.quantity, ORDER_LINES.c.unit_price_cents)
    .join(
        PRODUCTS,
        sa.and_(PRODUCTS.c.tenant_id == ORDER_LINES.c.tenant_id, PRODUCTS.c.product_id == ORDER_LINES.c.product_id),
    )
    .where(ORDER_LINES.c.tenant_id == _TENANT, ORDER_LINES.c.order_id == sa.bindparam("order_id", type_=sa.Uuid))
    .order_by(ORDER_LINES.c.line)
)
_NEW_IDS = prepare(
    sa.select(old_keys.c.old_id, old_keys.c.new_id).where(
        old_keys.c.tenant_id == _TENANT,
        old_keys.c.kind == sa.bindparam("kind", type_=sa.Text),
        old_keys.c.old_id == sa.any_(sa.bindparam("old_ids", type_=ARRAY(sa.BigInteger))),
    )
)


async def new_ids(session: TenantSession, kind: Kind, old_ids: Sequence[int]) -> dict[int, UUID]:
    """Which of our rows the integers mean; one that means none of this tenant's is left out."""
    rows = await session.fetch(_NEW_IDS, kind=kind, old_ids=list(old_ids))
    return {row["old_id"]: row["new_id"] for row in rows}


async def articles(session: TenantSession) -> list[Any]:
    """All articles, those of the old shop first and as it had them."""
    return list(await session.fetch(_PRODUCTS))


async def article(session: TenantSession, artnr: int) -> Any:
    """One article by its old number, or None."""
    return await session.fetchrow(_PRODUCT, old_id=artnr)


async def orders(session: TenantSession, page: int) -> list[Any]:
    """A page of orders, the newest first."""
    return list(await session.fetch(_ORDERS, limit=PAGE, offset=(page - 1) * PAGE))


async def order(session: TenantSession, *, anr: int | None, lfd: int | None) -> tuple[Any, list[Any]] | None:
    """One order with its positions, by its old number or by its running number, which we both count alike."""
    if anr is not None:
        order_id = (await new_ids(session, "order", [anr])).get(anr)
        head = None if order_id is None else await session.fetchrow(_BY_ID, order_id=order_id)
    else:
        head = None if lfd is None else await session.fetchrow(_BY_NUMBER, number=lfd)
    if head is None:
        return None
    return head, list(await session.fetch(_LINES, order_id=head["order_id"]))
