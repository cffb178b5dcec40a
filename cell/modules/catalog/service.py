"""The rules of the catalog: one SKU once per tenant, prices in integer cents, and what was sold stays."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.functions import func

from cell.ids import uuid7
from cell.modules.catalog.tables import products
from cell.shards.session import TenantSession
from cell.shards.sql import above, prepare
from contracts import problems

_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_shown = [c for c in products.c if c.name != "tenant_id"]
_product = sa.and_(products.c.tenant_id == _TENANT, products.c.product_id == sa.bindparam("product_id"))
_after = sa.bindparam("after", type_=sa.Uuid)

_ADD = prepare(
    sa.insert(products)
    .values({c: sa.bindparam(c) for c in ("tenant_id", "product_id", "sku", "name", "price_cents", "currency")})
    .returning(*_shown)
)
_GET = prepare(sa.select(*_shown).where(_product))
_LOCK = prepare(sa.select(*_shown).where(_product).with_for_update())
_LIST = prepare(
    sa.select(*_shown)
    .where(products.c.tenant_id == _TENANT, above(products.c.product_id, _after))
    .order_by(products.c.product_id)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_CHANGE = prepare(
    sa.update(products)
    .where(_product)
    .values(
        sku=func.coalesce(sa.bindparam("sku", type_=sa.Text), products.c.sku),
        name=func.coalesce(sa.bindparam("name", type_=sa.Text), products.c.name),
        price_cents=func.coalesce(sa.bindparam("price_cents", type_=sa.BigInteger), products.c.price_cents),
        version=products.c.version + sa.literal_column("1"),
        updated_at=func.now(),
    )
    .returning(*_shown)
)
_DELETE = prepare(sa.delete(products).where(_product))
_ids = sa.any_(sa.bindparam("product_ids", type_=ARRAY(sa.Uuid)))
_PRICES = prepare(
    sa.select(products.c.product_id, products.c.price_cents, products.c.currency).where(
        products.c.tenant_id == _TENANT, products.c.product_id == _ids
    )
)
_sold = (
    func.unnest(
        sa.bindparam("product_ids", type_=ARRAY(sa.Uuid)), sa.bindparam("quantities", type_=ARRAY(sa.BigInteger))
    )
    .table_valued(sa.column("product_id", sa.Uuid), sa.column("quantity", sa.BigInteger), name="sold")
    .render_derived()
)
# Locked in the order of their ids: two events with the same products must not wait for each other in a circle.
_locked = (
    sa.select(products.c.product_id)
    .where(products.c.tenant_id == _TENANT, products.c.product_id == _ids)
    .order_by(products.c.product_id)
    .with_for_update(key_share=True)
    .cte("locked")
)
_COUNT_SOLD = prepare(
    sa.update(products)
    .where(
        products.c.tenant_id == _TENANT,
        products.c.product_id == _locked.c.product_id,
        _sold.c.product_id == _locked.c.product_id,
    )
    .values(units_sold=products.c.units_sold + _sold.c.quantity)
)


@dataclass(frozen=True, slots=True)
class Product:
    """A product. ``units_sold`` follows the orders by a moment: it is counted from their events."""

    product_id: UUID
    sku: str
    name: str
    price_cents: int
    currency: str
    units_sold: int
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ProductChange:
    """What to change; None leaves a field as it is. ``version`` is the one that the caller has seen."""

    sku: str | None
    name: str | None
    price_cents: int | None
    version: int | None


@dataclass(frozen=True, slots=True)
class Price:
    """What one unit costs, in the smallest unit of the currency (ISO 4217)."""

    cents: int
    currency: str


async def add(session: TenantSession, sku: str, name: str, price: Price) -> Product:
    """Add a product; 409 where the SKU is taken."""
    values = {"sku": sku, "name": name, "price_cents": price.cents, "currency": price.currency}
    try:
        return _product_of(await session.fetchrow(_ADD, product_id=uuid7(), **values))
    except asyncpg.UniqueViolationError as e:
        raise _taken(sku) from e


async def get(session: TenantSession, product_id: UUID) -> Product:
    """One product, or 404."""
    return _product_of(await session.fetchrow(_GET, product_id=product_id))


async def page(session: TenantSession, after: UUID | None, limit: int) -> list[Product]:
    """Products in the order they were added."""
    return [_product_of(row) for row in await session.fetch(_LIST, after=after, limit=limit)]


async def change(session: TenantSession, product_id: UUID, asked: ProductChange) -> Product:
    """Change a product; orders that exist keep the price they were made at."""
    product = _product_of(await session.fetchrow(_LOCK, product_id=product_id))
    if asked.version is not None and asked.version != product.version:
        detail = f"The product has version {product.version}."
        raise problems.ProblemError(problems.CONFLICT, detail, version=product.version)
    values = {"sku": asked.sku, "name": asked.name, "price_cents": asked.price_cents}
    try:
        return _product_of(await session.fetchrow(_CHANGE, product_id=product_id, **values))
    except asyncpg.UniqueViolationError as e:
        raise _taken(asked.sku or product.sku) from e


async def remove(session: TenantSession, product_id: UUID) -> None:
    """Delete a product; 409 where it was ever ordered."""
    try:
        found = await session.execute(_DELETE, product_id=product_id)
    except asyncpg.ForeignKeyViolationError as e:
        raise problems.ProblemError(problems.CONFLICT, "The product is part of orders and stays.") from e
    if not found:
        raise _missing()


async def prices(session: TenantSession, product_ids: list[UUID]) -> Mapping[UUID, Price]:
    """The prices of those products that exist."""
    rows = await session.fetch(_PRICES, product_ids=product_ids)
    return {row["product_id"]: Price(row["price_cents"], row["currency"]) for row in rows}


async def count_sold(session: TenantSession, quantities: Mapping[UUID, int]) -> None:
    """Add to the units sold. Products that are gone are passed over."""
    product_ids = sorted(quantities)
    await session.execute(_COUNT_SOLD, product_ids=product_ids, quantities=[quantities[i] for i in product_ids])


def _product_of(row: "asyncpg.Record | None") -> Product:
    if row is None:
        raise _missing()
    return Product(**row)


def _missing() -> problems.ProblemError:
    return problems.ProblemError(problems.NOT_FOUND, "There is no such product.")


def _taken(sku: str) -> problems.ProblemError:
    return problems.ProblemError(problems.CONFLICT, f"A product with the SKU {sku} exists.")
