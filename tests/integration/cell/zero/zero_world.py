"""Cell zero in the test's own process, on real sockets, before a shop that is a process of its own."""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx

from cell import servers
from cell.zero import app, database
from cell.zero.app import Zero
from cell.zero.settings import AmbassadorSettings
from contracts import keys
from infra.local.ports import free_ports
from tests.integration.cell.cell_world import Enveloped
from tests.integration.cell.zero import shop as shops
from tests.integration.cell.zero.shop import Shop

TOKEN = "z" * 43
LONGEST_S = 0.3  # what the door waits where it cannot see; requests themselves have the usual time
_numbers = itertools.count(secrets.randbelow(10**11) + 10**9)


@dataclass
class World:
    """The ambassador, its shop, and tenants for the shop's customers 1, 2, 3."""

    zero: Zero
    shop: Shop
    url: str
    inner: str
    key: bytes
    tenants: list[int]

    def browser(self, knr: int, **enveloped: Any) -> httpx.AsyncClient:
        """A browser at a tenant's host, behind a router."""
        auth = Enveloped(self.key, f"t{self.tenants[knr - 1]}", **enveloped)
        return httpx.AsyncClient(base_url=self.url, auth=auth, trust_env=False, timeout=60)

    def operator(self) -> httpx.AsyncClient:
        """The control plane."""
        headers = {"authorization": f"Bearer {TOKEN}"}
        return httpx.AsyncClient(base_url=self.inner, headers=headers, trust_env=False, timeout=60)

    async def set_state(self, knr: int, state: str, **more: Any) -> None:
        """As a transfer command leaves the fence row."""
        db = await self.shop.connect()
        try:
            values = {"state": state} | more
            names = ", ".join(f"{name} = ${at}" for at, name in enumerate(values, 2))
            query = f"UPDATE cellwall.tenants SET {names} WHERE tenant_id = $1"
            await db.execute(query, self.tenants[knr - 1], *values.values())
        finally:
            await db.close()


async def enrolled(dsn: str, customers: int = 3) -> list[int]:
    """Tenants for the shop's first customers."""
    numbers = [next(_numbers) for _ in range(customers)]
    db = await asyncpg.connect(dsn)
    try:
        await database.enrol(db, [(number, knr) for knr, number in enumerate(numbers, 1)])
    finally:
        await db.close()
    return numbers


def settings(shop: Shop, listen: str, internal: str, key: bytes, **more: Any) -> AmbassadorSettings:
    """Of an ambassador before that shop."""
    values: dict[str, Any] = {
        "dsn": shop.dsn,
        "listen": listen,
        "internal_listen": internal,
        "envelope_key": keys.text_of(key),
        "secrets_key": keys.text_of(b"z" * 32),
        "transfer_token": TOKEN,
        "monolith": shop.url,
    }
    return AmbassadorSettings(**values | more)


@contextlib.asynccontextmanager
async def served(application: Any) -> AsyncIterator[str]:
    """An application on a socket; its HOST:PORT."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    server = servers._server(application)
    with servers.listen(address) as socket:
        task = asyncio.create_task(server.serve(sockets=[socket]))
        try:
            yield address
        finally:
            server.should_exit = True
            server.force_exit = True
            await task


@contextlib.asynccontextmanager
async def opened(shop: Shop, tenants: list[int], *, sole: bool = True, **more: Any) -> AsyncIterator[World]:
    """Cell zero; with ``sole`` it has the lock when the block begins, and no older request is under way any more."""
    key = secrets.token_bytes(32)
    async with contextlib.AsyncExitStack() as stack:
        zero = await stack.enter_async_context(app.composed(settings(shop, "127.0.0.1:1", "127.0.0.1:2", key, **more)))
        zero.door._longest_s = LONGEST_S
        await stack.enter_async_context(servers.running(*zero.tasks))
        data = await stack.enter_async_context(served(zero.ingress))
        inner = await stack.enter_async_context(served(zero.inside))
        if sole:
            await until(lambda: zero.door.is_sole)
            assert await zero.door.drain(tenants[0], 60)
        yield World(zero, shop, f"http://{data}", f"http://{inner}", key, tenants)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.005)


__all__ = ["LONGEST_S", "TOKEN", "World", "enrolled", "opened", "served", "settings", "shops", "until"]
