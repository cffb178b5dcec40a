"""The API as a process: it starts on what it is told, says in one line what is wrong, and stops gently."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from contracts import keys
from infra.local.ports import free_ports
from tests.integration.cell.platform_parts.test_http import TOKEN


def environment(cell_databases: Any, data: int, internal: int) -> dict[str, str]:
    settings = {
        "NAME": "cell-1",
        "DIRECTORY_DSN": cell_databases.directory_dsn,
        "APP_PASSWORD": cell_databases.passwords.app,
        "TRANSFER_PASSWORD": cell_databases.passwords.transfer,
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "BLOBS": (Path(tempfile.gettempdir()) / "blobs").as_uri(),
        "TRANSFER_TOKEN": TOKEN,
        "ENVELOPE_KEY": keys.text_of(b"k" * 32),
        "SECRETS_KEY": keys.text_of(b"s" * 32),
        "LISTEN": f"127.0.0.1:{data}",
        "INTERNAL_LISTEN": f"127.0.0.1:{internal}",
    }
    return os.environ | {f"CELLWALL_CELL_{name}": value for name, value in settings.items()}


@contextlib.asynccontextmanager
async def process(env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cell", "api", env=env, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def answers(http: httpx.AsyncClient, url: str) -> httpx.Response:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(httpx.TransportError):
                return await http.get(url)
            await asyncio.sleep(0.02)


async def test_a_stopping_process_would_be_killed_or_leave_its_port(cell_databases: Any) -> None:
    data, internal = free_ports(2)
    async with (
        process(environment(cell_databases, data, internal)) as running,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        assert (await answers(http, f"http://127.0.0.1:{data}/health/ready")).json() == {"ready": True, "reasons": []}
        assert (await http.get(f"http://127.0.0.1:{internal}/health/startup")).status_code == 200
        refused = await http.get(f"http://127.0.0.1:{data}/v1/me")
        assert refused.status_code == 403
        running.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(running.communicate(), 60)
        assert running.returncode == 0, errors
        with socket.create_server(("127.0.0.1", data)):
            pass


async def test_a_port_in_use_is_one_line_and_status_2(cell_databases: Any) -> None:
    (internal,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with process(environment(cell_databases, taken.getsockname()[1], internal)) as running:
            _, errors = await asyncio.wait_for(running.communicate(), 60)
    assert running.returncode == 2
    (line,) = errors.decode().splitlines()
    assert line.startswith("cell: cannot listen on 127.0.0.1:")


async def test_a_directory_that_is_away_is_one_line_and_status_1(cell_databases: Any) -> None:
    env = environment(cell_databases, *free_ports(2))
    env["CELLWALL_CELL_DIRECTORY_DSN"] = "postgresql://cellwall_app:secret-word@127.0.0.1:1/directory"
    async with process(env) as running:
        _, errors = await asyncio.wait_for(running.communicate(), 60)
    assert running.returncode == 1
    (line,) = errors.decode().splitlines()
    assert line.startswith("cell: the directory cannot be read")
    assert "secret-word" not in line
