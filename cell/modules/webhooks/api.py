"""``/v1/webhooks``."""

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

import msgspec
from litestar import Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, RawBody
from litestar.status_codes import HTTP_200_OK
from msgspec import Meta

from cell import pages, wire
from cell.access import Caller, Role, guard
from cell.modules.accounts.public import authenticated
from cell.modules.webhooks import service
from cell.modules.webhooks.guard import check_url
from cell.shards.session import TenantSession
from cell.vault import Vault


class EndpointAdd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /v1/webhooks``; without ``events``, all of them."""

    url: str
    events: Annotated[tuple[service.EventType, ...], Meta(min_length=1, max_length=8)] = service.TYPES


class EndpointView(msgspec.Struct, frozen=True):
    """An endpoint as the API shows it."""

    id: UUID
    url: str
    events: tuple[str, ...]
    created_at: datetime

    @classmethod
    def of(cls, e: service.Endpoint) -> "EndpointView":
        """The view of an endpoint."""
        return cls(e.endpoint_id, e.url, e.events, e.created_at)


class EndpointMade(msgspec.Struct, frozen=True):
    """The answer to a new endpoint: the only one that shows the secret."""

    id: UUID
    url: str
    events: tuple[str, ...]
    secret: str
    created_at: datetime


class DeliveryView(msgspec.Struct, frozen=True):
    """A delivery as the API shows it: the last answer, and why the last try failed."""

    id: UUID
    event: UUID
    type: str
    state: str
    answer: int | None
    note: str | None
    failures: int
    due: datetime
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, d: service.Delivery) -> "DeliveryView":
        """The view of a delivery."""
        tries = (d.state.value, d.answer, d.note, d.failures)
        return cls(d.delivery_id, d.event_id, d.type, *tries, d.due, d.created_at, d.finished_at)


class Redriven(msgspec.Struct, frozen=True):
    """How many deliveries got another chance."""

    redriven: int


_add: Final = wire.Reader(EndpointAdd)


@post("/webhooks", opt={"access": Role.ADMIN})
async def add_endpoint(
    body: RawBody,
    caller: NamedDependency[Caller],
    vault: NamedDependency[Vault],
    webhooks_private: NamedDependency[bool],
) -> EndpointMade:
    """Have a server told. The secret is shown once."""
    asked = _add(body)
    try:
        check_url(asked.url, private=webhooks_private)
    except ValueError as e:
        raise wire.invalid("url", str(e)) from e
    async with caller.enter() as (session, who):
        made, secret = await service.add(session, vault, who.user_id, asked.url, sorted(set(asked.events)))
    return EndpointMade(made.endpoint_id, made.url, made.events, secret, made.created_at)


@get("/webhooks", opt={"access": Role.ADMIN})
async def list_endpoints(
    caller: NamedDependency[Caller], limit: FromQuery[int] = wire.PAGE_ITEMS, cursor: FromQuery[str | None] = None
) -> wire.Page[EndpointView]:
    """Who is told."""
    return await pages.by_id(caller, limit, cursor, service.page, EndpointView.of)


@delete("/webhooks/{endpoint_id:uuid}", opt={"access": Role.ADMIN})
async def delete_endpoint(endpoint_id: FromPath[UUID], caller: NamedDependency[Caller]) -> None:
    """Tell nobody there any more."""
    async with caller.enter() as (session, _):
        await service.remove(session, endpoint_id)


@get("/webhooks/{endpoint_id:uuid}/deliveries", opt={"access": Role.ADMIN})
async def list_deliveries(
    endpoint_id: FromPath[UUID],
    caller: NamedDependency[Caller],
    limit: FromQuery[int] = wire.PAGE_ITEMS,
    cursor: FromQuery[str | None] = None,
) -> wire.Page[DeliveryView]:
    """What was delivered, what waits, and what was given up; the newest first."""

    async def read(session: TenantSession, before: UUID | None, count: int) -> list[service.Delivery]:
        return await service.log(session, endpoint_id, before, count)

    return await pages.by_id(caller, limit, cursor, read, DeliveryView.of)


@post("/webhooks/{endpoint_id:uuid}/redrive", opt={"access": Role.ADMIN}, status_code=HTTP_200_OK)
async def redrive(endpoint_id: FromPath[UUID], caller: NamedDependency[Caller]) -> Redriven:
    """Give what was given up another chance."""
    async with caller.enter() as (session, _):
        return Redriven(await service.redrive(session, endpoint_id))


router: Final = Router(
    path="/v1",
    guards=[guard],
    dependencies={"caller": authenticated},
    route_handlers=[add_endpoint, list_endpoints, delete_endpoint, list_deliveries, redrive],
)
