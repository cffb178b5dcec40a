"""``/v1/stock``."""

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

import msgspec
from litestar import Router, delete, get, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, RawBody
from msgspec import UNSET, Meta, UnsetType

from cell import pages, wire
from cell.access import Caller, Role, guard
from cell.modules.accounts.public import authenticated
from cell.modules.inventory import service

UNITS_MAX: Final = 10**12


class StockPut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``PUT /v1/stock/{product_id}``; with ``version``, only if it is still that one (0: not counted so far)."""

    on_hand: Annotated[int, Meta(ge=0, le=UNITS_MAX)]
    version: int | UnsetType = UNSET


class StockView(msgspec.Struct, frozen=True):
    """The units of a product; its id is the product's. ``free`` can still be ordered."""

    id: UUID
    on_hand: int
    reserved: int
    free: int
    version: int
    updated_at: datetime

    @classmethod
    def of(cls, s: service.Stock) -> "StockView":
        """The view of a stock."""
        return cls(s.product_id, s.on_hand, s.reserved, s.on_hand - s.reserved, s.version, s.updated_at)


_put: Final = wire.Reader(StockPut)


@put("/stock/{product_id:uuid}", opt={"access": Role.MEMBER})
async def put_stock(product_id: FromPath[UUID], body: RawBody, caller: NamedDependency[Caller]) -> StockView:
    """Say how many units of a product there are: from then on it is counted."""
    asked = _put(body)
    version = None if asked.version is UNSET else asked.version
    async with caller.enter() as (session, _):
        return StockView.of(await service.put(session, product_id, asked.on_hand, version))


@get("/stock", opt={"access": Role.VIEWER})
async def list_stock(
    caller: NamedDependency[Caller], limit: FromQuery[int] = wire.PAGE_ITEMS, cursor: FromQuery[str | None] = None
) -> wire.Page[StockView]:
    """The products that are counted, with their units."""
    return await pages.by_id(caller, limit, cursor, service.page, StockView.of)


@get("/stock/{product_id:uuid}", opt={"access": Role.VIEWER})
async def get_stock(product_id: FromPath[UUID], caller: NamedDependency[Caller]) -> StockView:
    """The units of one product."""
    async with caller.enter(read_only=True) as (session, _):
        return StockView.of(await service.get(session, product_id))


@delete("/stock/{product_id:uuid}", opt={"access": Role.MEMBER})
async def delete_stock(product_id: FromPath[UUID], caller: NamedDependency[Caller]) -> None:
    """Count a product no more: it can always be ordered."""
    async with caller.enter() as (session, _):
        await service.remove(session, product_id)


router: Final = Router(
    path="/v1",
    guards=[guard],
    dependencies={"caller": authenticated},
    route_handlers=[put_stock, list_stock, get_stock, delete_stock],
)
