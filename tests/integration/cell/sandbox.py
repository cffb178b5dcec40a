"""The sandbox gateway in the test's own process, on a real socket."""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from loadtest.gateway.app import Gateway
from loadtest.gateway.till import Till

WAIT_S = 60.0


@dataclass
class Sandbox:
    """A gateway that listens. ``token`` opens it."""

    url: str
    token: str
    http: httpx.AsyncClient = field(repr=False)

    async def faults(self, *faults: dict[str, Any]) -> None:
        """What it does wrong from now on."""
        answer = await self.http.put("/v1/faults", json=list(faults))
        assert answer.status_code == 200, answer.text

    async def keys(self) -> dict[str, dict[str, Any]]:
        """What became of every key."""
        return {entry["key"]: entry for entry in (await self.http.get("/v1/keys")).json()}

    async def key(self, tenant: str, order: str) -> dict[str, Any]:
        """What became of an order's key."""
        return (await self.keys())[f"{tenant}:{order}"]

    async def calls(self, operation: str) -> int:
        """How often something was asked for."""
        return int((await self.http.get("/v1/calls")).json()[operation])

    async def deliveries(self) -> list[dict[str, Any]]:
        """The webhooks that came."""
        return list((await self.http.get("/v1/deliveries")).json())

    @property
    def settings(self) -> dict[str, Any]:
        """What a worker must be told to find it."""
        return {"payments_url": self.url, "payments_token": self.token, "payments_timeout_s": 5.0}


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Sandbox]:
    """A gateway with an empty till."""
    token, till = secrets.token_urlsafe(32), Till(folder / "till.db")
    gateway = Gateway(till, token)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(gateway, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve([listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    headers = {"authorization": f"Bearer {token}"}
    try:
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=WAIT_S) as http:
            yield Sandbox(url, token, http)
    finally:
        await gateway.close()
        server.should_exit = server.force_exit = True
        await serving
        listener.close()
        till.close()


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """What the condition answers as soon as that is something."""
    async with asyncio.timeout(WAIT_S):
        while not (found := await condition()):
            await asyncio.sleep(0.02)
    return found
