"""The control plane as a process: its commands, its settings, and how it stops."""

import asyncio
import base64
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from time import monotonic

import asyncpg
import httpx
import pytest_asyncio

from contracts import routes
from infra.local.ports import free_ports

KEY = base64.urlsafe_b64encode(b"k" * 32).decode()
START_S = 60.0


def environment(dsn: str, **changes: str) -> dict[str, str]:
    ours = {
        "CELLWALL_CP_DATABASE_DSN": dsn,
        "CELLWALL_CP_FLEET_ROOT": KEY,
        "CELLWALL_CP_FRONT_DOOR_KEY": KEY,
        "CELLWALL_CP_BASE_DOMAIN": "example.test",
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CELLWALL_CP_")}
    return kept | {k: v for k, v in (ours | changes).items() if v}


async def start(env: dict[str, str], *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "control_plane", *arguments, env=env, stdout=PIPE, stderr=PIPE
    )


async def run(env: dict[str, str], *arguments: str) -> tuple[int | None, str, str]:
    process = await start(env, *arguments)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest_asyncio.fixture
async def serving(database: str) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    """A running control plane and a client of its API with a router's key."""
    code, key, err = await run(environment(database), "create-key", "--name", "r", "--role", "router")
    assert code == 0, err
    api, door = free_ports(2)
    listeners = {"CELLWALL_CP_LISTEN": f"127.0.0.1:{api}", "CELLWALL_CP_FRONT_DOOR_LISTEN": f"127.0.0.1:{door}"}
    process = await start(environment(database, **listeners), "serve")
    headers = {"authorization": f"Bearer {key.strip()}"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{api}", headers=headers, trust_env=False) as client:
            async with asyncio.timeout(START_S):
                while not await _ready(client):
                    assert process.returncode is None
                    await asyncio.sleep(0.05)
            yield process, client
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _ready(client: httpx.AsyncClient, base: str = "") -> bool:
    try:
        return (await client.get(f"{base}/health/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def test_a_stop_answers_waiting_routers_and_ends_without_error(
    serving: tuple[Process, httpx.AsyncClient], database: str
) -> None:
    process, client = serving
    header, _ = routes.decode((await client.get("/v1/routes")).content.splitlines())
    path = f"/v1/routes?router=r&log={header.log_id}&after={header.revision}&applied={header.revision}&wait_s=50"
    polling = asyncio.create_task(client.get(path, timeout=60))
    watch = await asyncpg.connect(database)
    async with asyncio.timeout(START_S):  # its lease shows that the poll has arrived
        while not await watch.fetchval("SELECT count(*) FROM routers"):
            await asyncio.sleep(0.01)
    await watch.close()
    began = monotonic()
    process.send_signal(signal.SIGTERM)
    answer = await polling
    assert routes.decode(answer.content.splitlines())[1] == []
    assert await process.wait() == 0
    assert monotonic() - began < 30
    stderr = await process.stderr.read() if process.stderr else b""
    assert b"control_plane_stopped" in stderr
    assert b"Traceback" not in stderr


async def test_a_control_plane_that_may_not_lead_leaves_the_lead_to_the_mover(database: str) -> None:
    api, door, mover = free_ports(3)
    serving = environment(
        database,
        CELLWALL_CP_MOVER="false",
        CELLWALL_CP_LISTEN=f"127.0.0.1:{api}",
        CELLWALL_CP_FRONT_DOOR_LISTEN=f"127.0.0.1:{door}",
    )
    moving = environment(database, CELLWALL_CP_MOVER_LISTEN=f"127.0.0.1:{mover}", CELLWALL_CP_FRONT_DOOR_KEY="")
    processes: list[Process] = []
    watch = await asyncpg.connect(database)
    try:
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(START_S):
            for env, command, port in ((serving, "serve", api), (moving, "mover", mover)):
                processes.append(await start(env, command))
                while not await _ready(client, f"http://127.0.0.1:{port}"):
                    assert processes[-1].returncode is None
                    await asyncio.sleep(0.05)
            while not await watch.fetchval("SELECT count(*) FROM leader"):
                await asyncio.sleep(0.05)
            assert (await client.get(f"http://127.0.0.1:{mover}/metrics")).status_code == 401
        # Whoever may lead holds such a connection from its start on, also while another leads.
        candidates = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cellwall-leader'"
        assert await watch.fetchval(candidates) == 1
        processes[1].send_signal(signal.SIGTERM)
        assert await processes[1].wait() == 0
        async with asyncio.timeout(START_S):  # its server's process may end after it
            while await watch.fetchval(candidates):
                await asyncio.sleep(0.05)
    finally:
        await watch.close()
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def test_a_port_in_use_is_one_line_and_status_2(
    serving: tuple[Process, httpx.AsyncClient], database: str
) -> None:
    _, client = serving
    taken = f"127.0.0.1:{client.base_url.port}"
    code, _, err = await run(environment(database, CELLWALL_CP_LISTEN=taken), "serve")
    assert (code, err) == (2, f"control_plane: cannot listen on {taken}: Address already in use\n")


async def test_a_database_without_the_schema_says_what_to_run(postgres_empty: str) -> None:
    code, _, err = await run(environment(postgres_empty), "serve")
    assert code == 2
    assert "run python -m control_plane migrate" in err
    for _ in range(2):  # safe to repeat
        assert (await run(environment(postgres_empty), "migrate"))[0] == 0


async def test_a_database_that_is_down_is_one_line() -> None:
    (port,) = free_ports(1)
    code, _, err = await run(environment(f"postgresql://u:secretpassword@127.0.0.1:{port}/x"), "migrate")
    assert code == 1
    assert err.startswith("control_plane: the database cannot be used")
    assert err.count("\n") == 1
    assert "secretpassword" not in err
