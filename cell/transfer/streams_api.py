"""The commands of large moves, beside those of `cell.transfer.api` and behind the same token."""

from typing import Any, Final

import msgspec
from litestar import Request, Response, Router, get, put
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath
from litestar.response import Stream as StreamResponse

from cell.transfer.api import ACCESS, Target, body_of, command, stream_of
from cell.transfer.reader import TRANSACTION_BYTES_MAX
from cell.transfer.streams import Streams
from contracts import ids, problems, transfer
from contracts.problems import ProblemError
from contracts.transfer import Applied, BlobInfo, Empty, Marked, Preflight, Remainder, Stream, StreamRoom, StreamStatus

BATCH_BYTES_MAX: Final = TRANSACTION_BYTES_MAX + (64 << 20)
KEYS_BYTES_MAX: Final = 16 << 20
_BINARY: Final = "application/octet-stream"
Service = NamedDependency[Streams]


@get("/streams", opt={"access": ACCESS})
async def streams(streams_service: Service) -> list[StreamStatus]:
    """Every part of a stream that this cell has."""
    return await streams_service.list()


@get("/tenants/{tenant:str}/preflight", opt={"access": ACCESS})
async def preflight(tenant: FromPath[str], streams_service: Service) -> Preflight:
    """What a move would carry."""
    return await streams_service.preflight(_number(tenant))


@get("/tenants/{tenant:str}/room", opt={"access": ACCESS})
async def room(tenant: FromPath[str], streams_service: Service) -> StreamRoom:
    """Whether the tenant's server takes another stream."""
    return await streams_service.room(_number(tenant))


@command("stream/open")
async def open_(request: Request[Any, Any, Any], target: Target, streams_service: Service) -> Stream:
    """Make slot, snapshot and publication."""
    return await streams_service.senders.open(*target, await body_of(request, transfer.OpenStream))


@command("stream/close")
async def close(request: Request[Any, Any, Any], target: Target, streams_service: Service) -> Empty:
    """Drop all that is here of a stream."""
    await streams_service.close(*target, (await body_of(request, transfer.CloseStream)).stream)
    return Empty()


@command("snapshot")
async def snapshot(request: Request[Any, Any, Any], target: Target, streams_service: Service) -> StreamResponse:
    """The row stream of the stream's snapshot."""
    query = await body_of(request, transfer.SnapshotQuery)
    pieces = await streams_service.senders.snapshot(*target, query)
    return StreamResponse(pieces, media_type=transfer.ROWS_CONTENT_TYPE, status_code=200)


@command("changes")
async def changes(request: Request[Any, Any, Any], target: Target, streams_service: Service) -> Response[bytes]:
    """The next batch."""
    head, data = await streams_service.senders.changes(*target, await body_of(request, transfer.ChangesQuery))
    headers = {transfer.BATCH_FIELD: msgspec.json.encode(head).decode()}
    return Response(data, media_type=transfer.CHANGES_CONTENT_TYPE, status_code=200, headers=headers)


@command("apply", request_max_body_size=BATCH_BYTES_MAX)
async def apply(request: Request[Any, Any, Any], target: Target, streams_service: Service) -> Applied:
    """Apply a batch: all of it or nothing."""
    return await streams_service.receivers.apply(*target, await request.body())


@command("marker")
async def marker(request: Request[Any, Any, Any], target: Target, streams_service: Service) -> Marked:
    """A marker, and the checksum there."""
    return await streams_service.senders.marker(*target, await body_of(request, transfer.Mark))


@command("verified")
async def verified(request: Request[Any, Any, Any], target: Target, streams_service: Service) -> Empty:
    """Both sides were the same at a marker."""
    await streams_service.receivers.verified(*target, await body_of(request, transfer.Verified))
    return Empty()


@command("remainder", request_max_body_size=KEYS_BYTES_MAX)
async def remainder(request: Request[Any, Any, Any], target: Target, streams_service: Service) -> Remainder:
    """The checksum over what was touched."""
    return await streams_service.receivers.remainder(*target, await body_of(request, transfer.RemainderQuery))


@command("standby")
async def standby(request: Request[Any, Any, Any], target: Target, streams_service: Service) -> Empty:
    """frozen -> standby."""
    await streams_service.receivers.standby(*target, await body_of(request, transfer.Standby))
    return Empty()


@get("/tenants/{tenant:str}/blobs", opt={"access": ACCESS})
async def blobs(tenant: FromPath[str], streams_service: Service) -> list[BlobInfo]:
    """The tenant's files."""
    return list(await streams_service.blobs(_number(tenant)))


@get("/tenants/{tenant:str}/blobs/{name:path}", opt={"access": ACCESS})
async def blob(tenant: FromPath[str], name: FromPath[str], streams_service: Service) -> StreamResponse:
    """One file."""
    pieces = await streams_service.blob(_number(tenant), str(name).lstrip("/"))
    return StreamResponse(pieces, media_type=_BINARY, status_code=200)


@put("/tenants/{tenant:str}/blobs/{name:path}", opt={"access": ACCESS}, status_code=200, request_max_body_size=None)
async def store_blob(
    request: Request[Any, Any, Any], name: FromPath[str], target: Target, streams_service: Service
) -> Empty:
    """Store one file."""
    await streams_service.store_blob(*target, str(name).lstrip("/"), stream_of(request))
    return Empty()


def _number(tenant: str) -> int:
    try:
        return ids.tenant_number(tenant)
    except ids.InvalidIdError as e:
        raise ProblemError(problems.NOT_FOUND, str(e)) from e


def router(service: Streams) -> Router:
    """The commands over one service, for `cell.transfer.api.router`."""

    async def provide() -> Streams:
        return service

    return Router(
        path="/",
        dependencies={"streams_service": Provide(provide)},
        route_handlers=[
            streams, preflight, room, open_, close, snapshot, changes, apply, marker, verified, remainder, standby,
            blobs, blob, store_blob,
        ],
    )  # fmt: skip
