"""The control plane, its mover and its batches with a real cell zero and a real modern cell, in one process."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from litestar import Litestar
from litestar.types import ControllerRouterHandler

from cell import answers, blobs
from cell.schema import migrate
from cell.transfer import api as transfer_api
from cell.transfer import streams_api
from cell.transfer.reader import Login
from cell.transfer.streams import Streams
from cell.zero import api as zero_api
from contracts.keys import Purpose, bearer
from tests.integration.cell.cell_world import World
from tests.integration.cell.zero.transfer import zero_world
from tests.integration.cell.zero.transfer.zero_world import Zero
from tests.integration.control_plane.fake_cell import FLEET_ROOT
from tests.integration.control_plane.plane_world import Plane

ZERO, MODERN = "cell-zero", "cell-1"
PATIENCE_S = 60.0


class Net(httpx.AsyncBaseTransport):
    """Reaches each cell's internal listener by its name."""

    def __init__(self, cells: dict[str, Litestar]) -> None:
        self._cells = {f"{name}.test": httpx.ASGITransport(app) for name, app in cells.items()}  # type: ignore[arg-type]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._cells[request.url.host].handle_async_request(request)


def listener(name: str, *routers: ControllerRouterHandler) -> Litestar:
    guard = transfer_api.token_guard(bearer(FLEET_ROOT, Purpose.TRANSFER, name))
    return Litestar(
        list(routers), guards=[guard], exception_handlers=answers.HANDLERS, openapi_config=None, logging_config=None
    )


@contextlib.asynccontextmanager
async def alone(postgres: Any) -> AsyncIterator[Zero]:
    """Cell zero on a database of the test's own: it counts all customers."""
    dsn = await postgres.create_database(f"shop_{secrets.token_hex(4)}")
    await zero_world.install(dsn)
    async with zero_world.opened(dsn) as zero:
        yield zero


@contextlib.asynccontextmanager
async def streams_of(world: World, folder: Path) -> AsyncIterator[Streams]:
    """The streams of the modern cell, as its process composes them."""
    transfer, shards = world.transfer, world.databases.shard_map.shards
    streams = Streams(
        pools=transfer._pools,
        shard_of=transfer._shard_of,
        login=lambda name: Login.to(shards[name], world.cell.passwords.transfer, "test-stream"),
        blobs=blobs.opened(folder.as_uri()),
        vault=transfer._vault,
        clock=transfer._clock,
    )
    try:
        yield streams
    finally:
        await streams.shut()


async def join(plane: Plane, zero: Zero, world: World, streams: Streams) -> None:
    """Let the control plane have both cells in the place of its fake ones."""
    old = streams_api.router(zero.streams)
    net = Net(
        {
            ZERO: listener(ZERO, transfer_api.router(zero.transfer, [old]), zero_api.router(zero.pool)),
            MODERN: listener(MODERN, transfer_api.router(world.transfer, [streams_api.router(streams)])),
        }
    )
    plane.http = httpx.AsyncClient(transport=net)
    plane.restart(secrets.randbits(32))  # the real cells keep what other tests left in them
    schema = migrate.head(migrate.SHARD)
    await plane.register(MODERN, schema=schema)
    await plane.register(ZERO, schema=schema, capacity=0, shards=["monolith"])
    await plane.rows(
        "UPDATE cells SET last_seen = clock_timestamp() + interval '1 hour', schema_revision = :s", s=schema
    )
    await plane.rows("UPDATE cells SET state = 'closed' WHERE name = 'cell-2'")
    plane.listen()


@contextlib.asynccontextmanager
async def leading(plane: Plane, term: int = 1) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work(term)) for work in (plane.services.runner.run, plane.services.waves.run)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def asked(fleet: Plane, method: str, path: str, body: object = None, status: int = 200) -> dict[str, Any]:
    answer = await fleet.call(method, path, body)
    assert answer.status_code == status, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def until_over(fleet: Plane, path: str, *states: str) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while (told := await asked(fleet, "GET", path))["state"] not in states:
            await asyncio.sleep(0.02)
    return told


async def newcomers(zero: Zero, count: int) -> list[int]:
    """Customers who are no tenants yet."""
    return [await zero.stranger() for _ in range(count)]
