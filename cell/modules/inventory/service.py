"""The rules of the inventory: nothing is promised twice, and only what is counted can be short."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.sql.functions import func

from cell.modules.inventory.tables import reservations, stock
from cell.shards.session import TenantSession
from cell.shards.sql import above, prepare
from contracts import problems

_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_ORDER = sa.bindparam("order_id", type_=sa.Uuid)
_ONE: sa.ColumnElement[int] = sa.literal_column("1", sa.Integer)
_shown = [c for c in stock.c if c.name != "tenant_id"]
_this = sa.and_(stock.c.tenant_id == _TENANT, stock.c.product_id == sa.bindparam("product_id", type_=sa.Uuid))
_after = sa.bindparam("after", type_=sa.Uuid)
_of_order = sa.and_(reservations.c.tenant_id == _TENANT, reservations.c.order_id == _ORDER)
_reserved_here = sa.and_(_of_order, stock.c.tenant_id == _TENANT, reservations.c.product_id == stock.c.product_id)

_set = insert(stock).values(
    tenant_id=_TENANT, product_id=sa.bindparam("product_id"), on_hand=sa.bindparam("on_hand", type_=sa.BigInteger)
)
_SET = prepare(
    _set.on_conflict_do_update(
        index_elements=[stock.c.tenant_id, stock.c.product_id],
        set_={"on_hand": _set.excluded.on_hand, "version": stock.c.version + _ONE, "updated_at": func.now()},
    ).returning(*_shown)
)
_GET = prepare(sa.select(*_shown).where(_this))
_LOCK = prepare(sa.select(*_shown).where(_this).with_for_update())
_LIST = prepare(
    sa.select(*_shown)
    .where(stock.c.tenant_id == _TENANT, above(stock.c.product_id, _after))
    .order_by(stock.c.product_id)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_DELETE = prepare(sa.delete(stock).where(_this))
# Locked in the order of their ids: two orders of the same products must not wait for each other in a circle.
_LOCK_THESE = prepare(
    sa.select(stock.c.product_id, (stock.c.on_hand - stock.c.reserved).label("free"))
    .where(
        stock.c.tenant_id == _TENANT,
        stock.c.product_id == sa.any_(sa.bindparam("product_ids", type_=ARRAY(sa.Uuid))),
    )
    .order_by(stock.c.product_id)
    .with_for_update()
)
_LOCK_OF_ORDER = prepare(
    sa.select(stock.c.product_id).where(_reserved_here).order_by(stock.c.product_id).with_for_update(of=stock)
)
_given = (
    func.unnest(
        sa.bindparam("product_ids", type_=ARRAY(sa.Uuid)), sa.bindparam("quantities", type_=ARRAY(sa.BigInteger))
    )
    .table_valued(sa.column("product_id", sa.Uuid), sa.column("quantity", sa.BigInteger), name="given")
    .render_derived()
)
_PROMISE = prepare(
    sa.update(stock)
    .where(stock.c.tenant_id == _TENANT, stock.c.product_id == _given.c.product_id)
    .values(reserved=stock.c.reserved + _given.c.quantity)
)
_NOTE = prepare(
    sa.insert(reservations).from_select(
        ["tenant_id", "order_id", "product_id", "quantity"],
        sa.select(sa.bindparam("tenant_id", type_=sa.BigInteger), _ORDER, *_given.c),
    )
)
_SELL = prepare(
    sa.update(stock)
    .where(_reserved_here)
    .values(
        on_hand=stock.c.on_hand - reservations.c.quantity,
        reserved=stock.c.reserved - reservations.c.quantity,
        updated_at=func.now(),
    )
)
_RELEASE = prepare(sa.update(stock).where(_reserved_here).values(reserved=stock.c.reserved - reservations.c.quantity))
_FORGET = prepare(sa.delete(reservations).where(_of_order))


@dataclass(frozen=True, slots=True)
class Stock:
    """The units of a product. ``reserved`` of those ``on_hand`` are promised to orders whose payment is under way."""

    product_id: UUID
    on_hand: int
    reserved: int
    version: int
    updated_at: datetime


async def put(session: TenantSession, product_id: UUID, on_hand: int, version: int | None) -> Stock:
    """Say how many units there are, from now on. 409 where fewer than are reserved, or at another version."""
    row = await session.fetchrow(_LOCK, product_id=product_id)
    if version is not None and version != (0 if row is None else row["version"]):
        found = 0 if row is None else row["version"]
        raise problems.ProblemError(problems.CONFLICT, f"The stock has version {found}.", version=found)
    if row is not None and on_hand < row["reserved"]:
        raise problems.ProblemError(problems.CONFLICT, f"{row['reserved']} units are reserved for orders.")
    try:
        return _stock_of(await session.fetchrow(_SET, product_id=product_id, on_hand=on_hand))
    except asyncpg.ForeignKeyViolationError as e:
        raise problems.ProblemError(problems.NOT_FOUND, "There is no such product.") from e
    except asyncpg.CheckViolationError as e:  # an order reserved units meanwhile, of a product first counted just now
        raise problems.ProblemError(problems.CONFLICT, "More units are reserved for orders.") from e


async def get(session: TenantSession, product_id: UUID) -> Stock:
    """The stock of one product, or 404."""
    return _stock_of(await session.fetchrow(_GET, product_id=product_id))


async def page(session: TenantSession, after: UUID | None, limit: int) -> list[Stock]:
    """The stock of the products that are counted, in the order of their ids."""
    return [_stock_of(row) for row in await session.fetch(_LIST, after=after, limit=limit)]


async def remove(session: TenantSession, product_id: UUID) -> None:
    """Count the product no more; 409 while units are reserved."""
    try:
        found = await session.execute(_DELETE, product_id=product_id)
    except asyncpg.ForeignKeyViolationError as e:
        raise problems.ProblemError(problems.CONFLICT, "Units are reserved for orders.") from e
    if not found:
        raise _missing()


async def reserve(session: TenantSession, order_id: UUID, quantities: Mapping[UUID, int]) -> list[UUID]:
    """Promise the units of those products that are counted: all of them, or none. The products that are short."""
    rows = await session.fetch(_LOCK_THESE, product_ids=sorted(quantities))
    short = [row["product_id"] for row in rows if row["free"] < quantities[row["product_id"]]]
    if short or not rows:
        return short
    counted = [row["product_id"] for row in rows]
    values = {"product_ids": counted, "quantities": [quantities[product] for product in counted]}
    await session.execute(_PROMISE, **values)
    await session.execute(_NOTE, order_id=order_id, **values)
    return []


async def sell(session: TenantSession, order_id: UUID) -> None:
    """What was promised to the order has left the house."""
    await session.fetch(_LOCK_OF_ORDER, order_id=order_id)
    await session.execute(_SELL, order_id=order_id)
    await session.execute(_FORGET, order_id=order_id)


async def release(session: TenantSession, order_id: UUID) -> None:
    """What was promised to the order is free again."""
    await session.fetch(_LOCK_OF_ORDER, order_id=order_id)
    await session.execute(_RELEASE, order_id=order_id)
    await session.execute(_FORGET, order_id=order_id)


def _stock_of(row: "asyncpg.Record | None") -> Stock:
    if row is None:
        raise _missing()
    return Stock(**row)


def _missing() -> problems.ProblemError:
    return problems.ProblemError(problems.NOT_FOUND, "The stock of such a product is not counted.")
