"""The old shop as a process, on a database of its own, and a browser for it."""

import asyncio
import contextlib
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx

from cell.zero import database as installation
from cell.zero import staging
from cell.zero.monolith import seed, store
from infra.local.ports import free_ports
from infra.local.servers import with_database

PASSWORD = "geheim und sicher"


@dataclass(frozen=True)
class Shop:
    """A running shop: customers 1, 2, 3 … with twenty orders each."""

    dsn: str
    url: str
    process: asyncio.subprocess.Process

    async def connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        """To its database. Close it."""
        return await asyncpg.connect(self.dsn)


async def log_in(client: httpx.AsyncClient, knr: int, who: str = "chef") -> httpx.Response:
    """Log a browser in."""
    form = {"knr": str(knr), "login": f"{who}@kunde-{knr}.test", "pwd": PASSWORD}
    return await client.post("/anmelden.php", data=form)


def links(page: str, kind: str) -> list[int]:
    """The integers that a page's links name, such as ``artnr``."""
    return [int(number) for number in re.findall(rf"[?&;]{kind}=(\d+)", page)]


async def template(server: Any) -> str:
    """The name of a seeded database with our schemas in it, to make others from."""
    name = f"shop_{secrets.token_hex(4)}"
    dsn: str = await server.create_database(name)
    db = await asyncpg.connect(dsn)
    try:
        await store.install(db)
        await seed.seed(db, customers=3, orders=20, password=PASSWORD)
        await staging.install(dsn)
        await installation.install(db)
    finally:
        await db.close()
    return name


@contextlib.asynccontextmanager
async def database(server: Any, template_name: str) -> AsyncIterator[str]:
    """A database of the shop with three customers, dropped at the end; its DSN."""
    name = f"shop_{secrets.token_hex(4)}"
    admin = await asyncpg.connect(server.superuser_dsn)
    try:
        await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template_name}"')
        yield with_database(server.superuser_dsn, name)
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # or the server's last checkpoint takes a minute
    finally:
        await admin.close()


@contextlib.asynccontextmanager
async def running(dsn: str) -> AsyncIterator[Shop]:
    """The shop's process on that database."""
    (port,) = free_ports(1)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cell.zero.monolith", "serve", "--port", str(port), env=os.environ | {"SHOP_DSN": dsn}
    )
    try:
        shop = Shop(dsn, f"http://127.0.0.1:{port}", process)
        await answers(shop.url + "/anmelden.php")
        yield shop
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def answers(url: str) -> httpx.Response:
    """The first answer of a process that is starting."""
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(60):
        while True:
            with contextlib.suppress(httpx.TransportError):
                return await http.get(url)
            await asyncio.sleep(0.02)
