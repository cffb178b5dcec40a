"""``/v1/products``."""

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

import msgspec
from litestar import Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, RawBody
from msgspec import UNSET, Meta, UnsetType

from cell import pages, wire
from cell.access import Caller, Role, guard
from cell.modules.accounts.public import authenticated
from cell.modules.catalog import service

PRICE_CENTS_MAX: Final = 10**10  # so that no order of the largest size overflows a bigint

Sku = Annotated[str, Meta(pattern=r"^[\x21-\x7e]{1,64}\Z")]
Name = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,200}\Z")]
Cents = Annotated[int, Meta(ge=0, le=PRICE_CENTS_MAX)]
Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")]  # ISO 4217


class ProductAdd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /v1/products``."""

    sku: Sku
    name: Name
    price_cents: Cents
    currency: Currency


class ProductPatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``PATCH /v1/products/{id}``: what is not sent stays; with ``version``, only if it is still that one."""

    sku: Sku | UnsetType = UNSET
    name: Name | UnsetType = UNSET
    price_cents: Cents | UnsetType = UNSET
    version: int | UnsetType = UNSET


class ProductView(msgspec.Struct, frozen=True):
    """A product as the API shows it."""

    id: UUID
    sku: str
    name: str
    price_cents: int
    currency: str
    units_sold: int
    version: int
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, p: service.Product) -> "ProductView":
        """The view of a product."""
        counted = (p.price_cents, p.currency, p.units_sold, p.version)
        return cls(p.product_id, p.sku, p.name, *counted, p.created_at, p.updated_at)


_add: Final = wire.Reader(ProductAdd)
_patch: Final = wire.Reader(ProductPatch)


@post("/products", opt={"access": Role.MEMBER})
async def add_product(body: RawBody, caller: NamedDependency[Caller]) -> ProductView:
    """Add a product."""
    new = _add(body)
    async with caller.enter() as (session, _):
        product = await service.add(session, new.sku, new.name, service.Price(new.price_cents, new.currency))
    return ProductView.of(product)


@get("/products", opt={"access": Role.VIEWER})
async def list_products(
    caller: NamedDependency[Caller], limit: FromQuery[int] = wire.PAGE_ITEMS, cursor: FromQuery[str | None] = None
) -> wire.Page[ProductView]:
    """Products, in the order they were added."""
    return await pages.by_id(caller, limit, cursor, service.page, ProductView.of)


@get("/products/{product_id:uuid}", opt={"access": Role.VIEWER})
async def get_product(product_id: FromPath[UUID], caller: NamedDependency[Caller]) -> ProductView:
    """One product, with the units sold so far."""
    async with caller.enter(read_only=True) as (session, _):
        return ProductView.of(await service.get(session, product_id))


@patch("/products/{product_id:uuid}", opt={"access": Role.MEMBER})
async def change_product(product_id: FromPath[UUID], body: RawBody, caller: NamedDependency[Caller]) -> ProductView:
    """Change a product."""
    asked = _patch(body)
    change = service.ProductChange(
        None if asked.sku is UNSET else asked.sku,
        None if asked.name is UNSET else asked.name,
        None if asked.price_cents is UNSET else asked.price_cents,
        None if asked.version is UNSET else asked.version,
    )
    async with caller.enter() as (session, _):
        product = await service.change(session, product_id, change)
    return ProductView.of(product)


@delete("/products/{product_id:uuid}", opt={"access": Role.ADMIN})
async def delete_product(product_id: FromPath[UUID], caller: NamedDependency[Caller]) -> None:
    """Delete a product that was never ordered."""
    async with caller.enter() as (session, _):
        await service.remove(session, product_id)


router: Final = Router(
    path="/v1",
    guards=[guard],
    dependencies={"caller": authenticated},
    route_handlers=[add_product, list_products, get_product, change_product, delete_product],
)
