"""``/transfer/v1``: the transfer API on the internal listener, behind the cell's transfer token."""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.params import FromPath, FromQuery
from litestar.response import Stream

from cell.shards.errors import DATABASE_FAILED
from cell.transfer.service import Transfer
from contracts import ids, problems, transfer
from contracts.problems import ProblemError
from contracts.transfer import CellInfo, Checksum, Fence, Frozen, Imported, Provisioned, TenantStatus

ACCESS: Final = "operator"  # of every handler here and of the metrics: the bearer of the transfer token
BODY_BYTES_MAX: Final = 1 << 16  # of a command that carries no rows
T = TypeVar("T")
Service = NamedDependency[Transfer]
Target = NamedDependency[tuple[int, Fence]]

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]


def token_guard(token: str) -> Guard:
    """A guard that lets everybody at handlers of access ``health`` and the bearer of ``token`` at all others."""
    expected = f"Bearer {token}".encode()

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        if handler.opt.get("access") == "health":
            return
        given = connection.headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(expected, given):
            raise ProblemError(problems.UNAUTHENTICATED, headers={"WWW-Authenticate": "Bearer"})

    return guard


async def target_of(tenant: FromPath[str], request: Request[Any, Any, Any]) -> tuple[int, Fence]:
    """The tenant and the fence of a command."""
    try:
        return ids.tenant_number(tenant), Fence.parse(request.headers.get(transfer.FENCE_FIELD, ""))
    except ValueError as e:
        raise ProblemError(problems.INVALID, str(e)) from e


async def body_of(request: Request[Any, Any, Any], kind: type[T]) -> T:
    """The arguments of a command."""
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.DecodeError as e:
        raise ProblemError(problems.INVALID, str(e)) from e


def command(name: str, **more: Any) -> Callable[[Callable[..., Any]], HTTPRouteHandler]:
    """A handler of one command."""
    path = f"/tenants/{{tenant:str}}/{name}"
    limits: dict[str, Any] = {"request_max_body_size": BODY_BYTES_MAX} | more
    return post(path, status_code=200, opt={"access": ACCESS}, **limits)


@get("/cell", opt={"access": ACCESS})
async def cell(service: Service) -> CellInfo:
    """Which cell this is."""
    return service.info()


@get("/tenants", opt={"access": ACCESS})
async def tenants(service: Service) -> list[TenantStatus]:
    """All fence rows."""
    return await service.tenants()


@get("/tenants/{tenant:str}", opt={"access": ACCESS})
async def status(tenant: FromPath[str], service: Service, rows: FromQuery[bool] = False) -> TenantStatus:
    """One fence row."""
    try:
        number = ids.tenant_number(tenant)
    except ids.InvalidIdError as e:
        raise ProblemError(problems.NOT_FOUND, str(e)) from e
    return await service.status(number, count_rows=rows)


@command("provision")
async def provision(request: Request[Any, Any, Any], target: Target, service: Service) -> Provisioned:
    """Create an empty active tenant with its owner."""
    return await service.provision(*target, await body_of(request, transfer.Provision))


@command("prepare")
async def prepare(request: Request[Any, Any, Any], target: Target, service: Service) -> transfer.Empty:
    """Make room for a tenant."""
    await service.prepare(*target, await body_of(request, transfer.Prepare))
    return transfer.Empty()


@command("freeze")
async def freeze(request: Request[Any, Any, Any], target: Target, service: Service) -> Frozen:
    """Freeze, soft then hard."""
    return await service.freeze(*target, await body_of(request, transfer.Freeze))


@command("export")
async def export(target: Target, service: Service) -> Stream:
    """The row stream of a frozen tenant."""
    return Stream(await service.export(*target), media_type=transfer.ROWS_CONTENT_TYPE, status_code=200)


@command("import", request_max_body_size=None)
async def import_(request: Request[Any, Any, Any], target: Target, service: Service) -> Imported:
    """Write a row stream: all of it or nothing."""
    return await service.import_(*target, stream_of(request))


@command("checksum")
async def checksum(target: Target, service: Service) -> Checksum:
    """Rows and digest per table."""
    return await service.checksum(*target)


@command("activate")
async def activate(request: Request[Any, Any, Any], target: Target, service: Service) -> transfer.Empty:
    """importing -> active."""
    await service.activate(*target, await body_of(request, transfer.Activate))
    return transfer.Empty()


@command("restore")
async def restore(request: Request[Any, Any, Any], target: Target, service: Service) -> transfer.Empty:
    """frozen -> active, at a higher epoch."""
    await service.restore(*target, await body_of(request, transfer.Restore))
    return transfer.Empty()


@command("release")
async def release(request: Request[Any, Any, Any], target: Target, service: Service) -> transfer.Empty:
    """frozen -> moved."""
    await service.release(*target, await body_of(request, transfer.Release))
    return transfer.Empty()


@command("abort")
async def abort(request: Request[Any, Any, Any], target: Target, service: Service) -> transfer.Empty:
    """Give an import up."""
    await service.abort(*target, await body_of(request, transfer.Abort))
    return transfer.Empty()


@command("purge")
async def purge(target: Target, service: Service) -> transfer.Empty:
    """Drop the rows of a tenant that lives elsewhere."""
    await service.purge(*target)
    return transfer.Empty()


async def stream_of(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    """The body in pieces, as it arrives."""
    async for piece in request.stream():
        if piece:
            yield piece


def unreachable(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The answer where the shard's database failed: whether the command took effect is not known."""
    body = problems.SHARD_UNAVAILABLE.body(type(error).__name__)
    return Response(body, status_code=503, media_type=problems.CONTENT_TYPE)


def router(service: Transfer, more: Sequence[Router] = ()) -> Router:
    """The transfer API over one service; ``more`` are routers of further commands."""

    async def provide() -> Transfer:
        return service

    return Router(
        path="/transfer/v1",
        dependencies={"service": Provide(provide), "target": Provide(target_of)},
        exception_handlers=dict.fromkeys(DATABASE_FAILED, unreachable),
        route_handlers=[
            cell, tenants, status, provision, prepare, freeze, export, import_, checksum, activate, restore, release,
            abort, purge, *more,
        ],
    )  # fmt: skip
