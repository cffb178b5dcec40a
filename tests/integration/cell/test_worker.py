"""The worker as a process: it says how it is, tells its figures to whom may know, and stops when it is told to."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from redis.asyncio import Redis

from cell.events.stream import connect
from infra.local.ports import free_ports
from tests.integration.cell.cell_world import CELL, SECRETS_KEY, CellDatabases, Merchant, World

TOKEN = "w" * 43
PYTHON = (sys.executable, "-m", "cell")
CONSUMED = re.compile(r'cellwall_events_consumed_total{consumer="catalog.units-sold",outcome="done"} [1-9]')


def environment(cell: CellDatabases, port: int) -> dict[str, str]:
    """Of ``python -m cell``, on this cell's databases."""
    settings = {
        "NAME": CELL,
        "DIRECTORY_DSN": cell.directory_dsn,
        "APP_PASSWORD": cell.passwords.app,
        "REDIS_URL": cell.redis_url,
        "BLOBS": cell.blobs_url,
        "SECRETS_KEY": SECRETS_KEY,
        "TRANSFER_TOKEN": TOKEN,
        "WORKER_LISTEN": f"127.0.0.1:{port}",
    }
    return dict(os.environ) | {f"CELLWALL_CELL_{name}": value for name, value in settings.items()}


@asynccontextmanager
async def started(cell: CellDatabases) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    """A worker that is ready, and a client of its listener; killed at the end if it still runs."""
    (port,) = free_ports(1)
    process = await asyncio.create_subprocess_exec(
        *PYTHON, "worker", env=environment(cell, port), stderr=asyncio.subprocess.PIPE
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            await _until_ready(client, process)
            yield process, client
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _until_ready(client: httpx.AsyncClient, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(60):
        while process.returncode is None:
            try:
                if (await client.get("/health/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    raise AssertionError(f"the worker ended with status {process.returncode}")


async def _sold(merchant: Merchant, product: str, units: int) -> None:
    async with asyncio.timeout(60):  # what a killed worker had under way may be its own for half of that
        while (await merchant.owner.get(f"/v1/products/{product}")).json()["units_sold"] != units:
            await asyncio.sleep(0.05)


async def test_a_worker_that_is_killed_loses_no_event_and_its_successor_counts_none_twice(
    world: World, merchant: Merchant
) -> None:
    product = await merchant.product()
    async with started(world.cell) as (process, _):
        await merchant.order((product, 1))
        await _sold(merchant, product, 1)
        await merchant.order((product, 2))
        process.kill()
        await process.wait()
    # What the dead worker had claimed or read is anybody's again after its lease; here that time passes at once.
    for statement in (
        "UPDATE cellwall.outbox SET relayed_at = relayed_at - interval '1 hour' WHERE tenant_id = $1",
        "UPDATE cellwall.work SET due = now() WHERE tenant_id = $1",
    ):
        await merchant.rows(statement)
    async with started(world.cell):
        await _sold(merchant, product, 3)
        await merchant.order((product, 4))
        await _sold(merchant, product, 7)


async def test_a_worker_that_is_killed_at_a_report_leaves_it_to_its_successor(world: World, merchant: Merchant) -> None:
    await merchant.order((await merchant.product(), 1))
    year = datetime.now(UTC).year
    blocker = await world.cell.as_superuser(world.databases.shards.shard_of(merchant.number))
    async with blocker.transaction():
        await blocker.execute("LOCK TABLE product.orders IN ACCESS EXCLUSIVE MODE")
        async with started(world.cell) as (process, _):
            body = {"kind": "order-lines", "from": f"{year}-01-01", "to": f"{year}-12-31"}
            report = (await merchant.owner.post("/v1/reports", json=body)).json()["id"]
            await _status(merchant, report, "running")
            process.kill()
            await process.wait()
    await blocker.close()
    await merchant.rows("UPDATE product.reports SET lease = now() WHERE tenant_id = $1")  # that time passes at once
    await merchant.rows("UPDATE cellwall.work SET due = now() WHERE tenant_id = $1")
    async with started(world.cell):
        await _status(merchant, report, "done")
    lines = (await merchant.owner.get(f"/v1/reports/{report}/result")).text.splitlines()
    assert len(lines) == 2
    files = [path for path in Path(urlsplit(world.cell.blobs_url).path).rglob("*") if path.is_file()]
    assert [path.name for path in files] == [f"{report}-2.csv"]


async def _status(merchant: Merchant, report: str, status: str) -> None:
    async with asyncio.timeout(60):
        while (await merchant.owner.get(f"/v1/reports/{report}")).json()["status"] != status:
            await asyncio.sleep(0.05)


async def test_a_worker_stops_cleanly_and_tells_its_figures_to_nobody_without_the_token(
    world: World, merchant: Merchant
) -> None:
    product = await merchant.product()
    async with started(world.cell) as (process, client):
        await merchant.order((product, 1))
        await _sold(merchant, product, 1)
        refused = await client.get("/metrics")
        assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
        bearer = {"authorization": f"Bearer {TOKEN}"}
        async with asyncio.timeout(60):  # counted after its commit; other tests may have left events, which count too
            while not CONSUMED.search(figures := (await client.get("/metrics", headers=bearer)).text):
                await asyncio.sleep(0.05)
        assert "cellwall_events_relayed_total" in figures
        assert (await client.get("/health/live")).status_code == 200
        process.terminate()
        _, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, stderr.decode()
    assert b"worker_stopped" in stderr


async def test_a_worker_outlives_a_redis_that_is_away(world: World, merchant: Merchant) -> None:
    product = await merchant.product()
    redis: Redis = connect(world.cell.redis_url)
    async with redis, started(world.cell):
        await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await redis.flushall()
        await merchant.order((product, 5))
        await _sold(merchant, product, 5)


async def test_a_port_that_is_taken_is_one_clear_line_and_status_2(world: World) -> None:
    server = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *PYTHON, "worker", env=environment(world.cell, port), stderr=asyncio.subprocess.PIPE
        )
        _, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert stderr.decode().count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}" in stderr.decode()


async def test_an_operator_sees_and_redrives_dead_letters_from_the_shell(world: World, merchant: Merchant) -> None:
    await merchant.rows(
        "INSERT INTO cellwall.outbox (tenant_id, event_id, type, payload)"
        " VALUES ($1, '01890a5d-ac96-774b-bcce-b302099a8057', 'order.created', '{\"lines\": []}')"
    )
    await merchant.rows(
        "INSERT INTO cellwall.inbox (tenant_id, consumer, event_id, state, attempts, error)"
        " SELECT tenant_id, 'catalog.units-sold', event_id, 'dead', 8, 'Boom: it broke'"
        " FROM cellwall.outbox WHERE tenant_id = $1"
    )
    looked = await _redrive(world, "--look", "--tenant", merchant.tenant_id)
    assert looked[0] == 0
    assert "attempts=8 Boom: it broke\ndead letters: 1\n" in looked[1]
    assert (await _redrive(world, "--tenant", merchant.tenant_id))[1].endswith("dead letters redriven: 1\n")
    assert await merchant.rows("SELECT FROM cellwall.inbox WHERE tenant_id = $1 AND state = 'failed' AND attempts = 0")
    assert (await _redrive(world, "--tenant", "t1")) == (1, "", "cell: t1 does not live in this cell\n")
    assert (await _redrive(world, "--tenant", "acme"))[0] == 2


async def _redrive(world: World, *arguments: str) -> tuple[int | None, str, str]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *PYTHON, "redrive", *arguments, env=environment(world.cell, 1), stdout=pipe, stderr=pipe
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, stdout.decode(), stderr.decode()
