"""Both listeners over real sockets: what the ingress refuses, what it promises, and what it stops."""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
import sqlalchemy as sa
from litestar import Response, Router, get, post
from litestar.di import NamedDependency
from obstore.store import MemoryStore

from cell import access, app, ingress, servers
from cell.blobs import Blobs
from cell.events.stream import connect
from cell.health import Health
from cell.ingress import Ingress
from cell.metering import Meter
from cell.metrics import CellMetrics
from cell.shards.context import TenantContext
from cell.shards.session import Shards
from cell.shards.sql import prepare
from cell.usage import Exchange
from contracts import envelope, problems, transfer
from contracts.transfer import Freeze, Release
from tests.integration.cell.cell_world import wall_of
from tests.integration.cell.platform_parts.two_cells import ADD_COUNTER, FREEZE, SCHEMA, Cell, next_tenant

KEY = secrets.token_bytes(32)
TOKEN = secrets.token_urlsafe(32)
SLEEP = prepare(sa.select(sa.func.pg_sleep(60)))
Asgi = Any


@get("/v1/quick", opt={"access": "public"})
async def quick(tenant: NamedDependency[TenantContext], shards: NamedDependency[Shards]) -> dict[str, int]:
    async with shards.enter(tenant, read_only=True) as session:
        return {"tenant": session.tenant}


@post("/v1/write", opt={"access": "public"})
async def write(tenant: NamedDependency[TenantContext], shards: NamedDependency[Shards]) -> None:
    async with shards.enter(tenant) as session:
        await session.execute(ADD_COUNTER, name=secrets.token_hex(8), value=1)


@get("/v1/slow", opt={"access": "public"})
async def slow(tenant: NamedDependency[TenantContext], shards: NamedDependency[Shards]) -> None:
    async with shards.enter(tenant) as session:
        await session.fetch(SLEEP)


@post("/v1/two", opt={"access": "public"})
async def two(tenant: NamedDependency[TenantContext], shards: NamedDependency[Shards]) -> None:
    """One effect, then a second transaction that waits."""
    async with shards.enter(tenant) as session:
        await session.execute(ADD_COUNTER, name="first", value=1)
    async with shards.enter(tenant) as session:
        await session.fetch(SLEEP)


@get("/v1/liar", opt={"access": "public"})
async def liar() -> Any:
    return Response("", headers={"Cell-Refused": "tenant-frozen", "cell-route": "x", "X-Mine": "1"})


@dataclass
class Listening:
    """A cell that listens."""

    cell: Cell
    data: str
    http: httpx.AsyncClient
    internal: httpx.AsyncClient

    async def call(
        self, target: str, tenant: int, *, method: str = "GET", epoch: int = 1, budget_ms: int = 20_000, **spoilt: str
    ) -> httpx.Response:
        """A request as a router sends it; ``spoilt`` replaces fields after they were signed."""
        fields = enveloped(target, tenant, method=method, epoch=epoch, budget_ms=budget_ms)
        fields |= {name.replace("_", "-"): value for name, value in spoilt.items()}
        return await self.http.request(method, target, headers=fields)

    async def command(self, tenant: int, name: str, body: Any, **headers: str) -> httpx.Response:
        """A command as the control plane sends it."""
        fields = {"authorization": f"Bearer {TOKEN}", transfer.FENCE_FIELD: self.cell.fence().text()} | headers
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return await self.internal.post(f"/transfer/v1/tenants/t{tenant}/{name}", content=content, headers=fields)


def enveloped(target: str, tenant: int, *, method: str, epoch: int, budget_ms: int) -> dict[str, str]:
    values = [f"t{tenant}", str(epoch), str(budget_ms), secrets.token_hex(8), "free"]
    text = envelope.message(*(v.encode() for v in values), method.encode(), target.encode())
    return {n.decode(): v for n, v in zip(envelope.FIELDS, [*values, envelope.signer(KEY)(text).decode()], strict=True)}


@contextlib.asynccontextmanager
async def serving(application: Asgi) -> AsyncIterator[str]:
    """The address of a real server of the application."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    address = f"127.0.0.1:{sock.getsockname()[1]}"
    server = servers._server(application)
    running = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        async with asyncio.timeout(60):
            while not server.started:
                await asyncio.sleep(0.005)
        yield address
    finally:
        server.should_exit = True
        await running
        sock.close()


@pytest_asyncio.fixture
async def listening(cell: Cell) -> AsyncIterator[Listening]:
    """The first cell, listening on both of its listeners."""
    clock = asyncio.get_running_loop().time
    health = Health(cell.databases, ("", ""), clock)
    metrics = CellMetrics(cell.name, lambda: cell.gate.in_flight)
    router = Router(path="/", route_handlers=[quick, write, slow, two, liar], guards=[access.guard])
    product = app.product(cell.shards, health, Blobs(MemoryStore()), [router], vault=cell.vault)
    wall = wall_of(product, cell.databases.shard_map.shard_of, metrics)
    parts = {"gate": cell.gate, "metrics": metrics, "meter": Meter("test"), "wall": wall}
    outer = Ingress(product, cell="cell-1", envelope_key=KEY, **parts, clock=clock)
    inner = app.internal(
        cell.transfer, health, metrics.registry, TOKEN, Exchange(connect("redis://127.0.0.1:1"), "cell-1")
    )
    async with (
        serving(outer) as data,
        serving(inner) as internal,
        httpx.AsyncClient(base_url=f"http://{data}", trust_env=False, timeout=60) as http,
        httpx.AsyncClient(base_url=f"http://{internal}", trust_env=False, timeout=60) as command,
    ):
        yield Listening(cell, data, http, command)


def problem_of(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == problems.CONTENT_TYPE
    return str(answer.json()["type"]).rpartition(":")[2]


async def starts(cell: Cell) -> None:
    async with asyncio.timeout(60):
        while not await at_work(cell):
            await asyncio.sleep(0.005)


async def stops(cell: Cell, budget_s: float = 20.0) -> None:
    async with asyncio.timeout(budget_s):
        while await at_work(cell):
            await asyncio.sleep(0.005)


async def at_work(cell: Cell) -> bool:
    """Whether the database works for a slow handler."""
    query = "SELECT 1 FROM pg_stat_activity WHERE usename = 'cellwall_app' AND wait_event = 'PgSleep'"
    connection = await cell.connect("cellwall_app")
    try:
        return bool(await connection.fetch(query))
    finally:
        await connection.close()


async def test_asking_for_the_methods_of_a_path_is_no_error_of_ours(listening: Listening) -> None:
    tenant = await listening.cell.tenant()
    for path, methods in (("/v1/quick", "GET"), ("/v1/write", "POST")):
        for method in ("OPTIONS", "PATCH", "PROPFIND"):
            answer = await listening.call(path, tenant, method=method)
            assert (answer.status_code, problem_of(answer)) == (405, "method-not-allowed")
            assert answer.headers["allow"] == methods
        assert (await listening.http.options(path)).status_code == 403  # around the router


async def test_requests_that_no_router_sent_would_be_served(listening: Listening) -> None:
    tenant = await listening.cell.tenant()
    assert (await listening.call("/v1/quick?a=1", tenant)).json() == {"tenant": tenant}
    assert (await listening.call("/v1/quick?", tenant)).status_code == 200
    other = await listening.cell.tenant()
    for answer in (
        await listening.http.get("/v1/quick"),
        await listening.call("/v1/quick", tenant, cell_tenant=f"t{other}"),
        await listening.call("/v1/quick", tenant, cell_epoch="2"),
        await listening.call("/v1/quick", tenant, cell_signature="A" * 43),
    ):
        assert (answer.status_code, problem_of(answer)) == (403, "envelope-invalid")
        assert answer.headers["cell-refused"] == "envelope"
    fields = list(enveloped("/v1/quick", tenant, method="GET", epoch=1, budget_ms=1000).items())
    twice = await listening.http.get("/v1/quick", headers=[*fields, ("cell-tenant", f"t{other}")])
    assert twice.status_code == 403


async def test_not_ours_carries_the_new_route_and_frozen_a_retry(listening: Listening) -> None:
    cell = listening.cell
    tenant = await cell.tenant()
    for epoch in (0, 2):  # 0 means any epoch to the fence, for workers: no request may say it
        stale = await listening.call("/v1/quick", tenant, epoch=epoch)
        assert (stale.status_code, stale.headers["cell-refused"]) == (421, "misdirected")
    assert "cell-route" not in stale.headers
    await cell.transfer.freeze(tenant, cell.fence(), FREEZE)
    frozen = await listening.call("/v1/quick", tenant)
    assert (frozen.status_code, frozen.headers["cell-refused"]) == (503, "tenant-frozen")
    assert frozen.headers["retry-after"] == "1"
    await cell.transfer.release(tenant, cell.fence(), Release(f"t{tenant};cell-2;2;signature"))
    moved = await listening.call("/v1/quick", tenant)
    assert (moved.status_code, moved.headers["cell-route"]) == (421, f"t{tenant};cell-2;2;signature")
    unknown = await listening.call("/v1/quick", next_tenant())
    assert (unknown.status_code, problem_of(unknown)) == (421, "misdirected")


async def test_an_application_could_promise_that_nothing_ran(listening: Listening) -> None:
    answer = await listening.call("/v1/liar", await listening.cell.tenant())
    assert answer.headers["x-mine"] == "1"
    assert answer.headers["cell-served"] == "cell-1;epoch=1"
    assert not {"cell-refused", "cell-route"} & set(answer.headers)


async def check_disconnect_stops_the_query(listening: Listening, budget_s: float = 5.0) -> None:
    tenant = await listening.cell.tenant()
    host, _, port = listening.data.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    fields = enveloped("/v1/slow", tenant, method="GET", epoch=1, budget_ms=60_000)
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"GET /v1/slow HTTP/1.1\r\nHost: a\r\n{head}\r\n".encode())
    await starts(listening.cell)
    writer.close()
    await stops(listening.cell, budget_s)
    async with asyncio.timeout(budget_s):  # the statement has ended; the request has yet to roll back and to leave
        while listening.cell.gate.in_flight:
            await asyncio.sleep(0.005)


@pytest.mark.invariant(7)
async def test_a_client_that_left_would_keep_its_query_running(listening: Listening) -> None:
    await check_disconnect_stops_the_query(listening)


@pytest.mark.mutation(7)
async def test_without_the_watch_the_query_of_a_client_that_left_runs_on(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingress._Watch, "_end", lambda *_: None)
    with pytest.raises(TimeoutError):
        await check_disconnect_stops_the_query(listening, budget_s=0.5)
    connection = await listening.cell.connect("cellwall_app")
    await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    await connection.close()


@pytest.mark.invariant(7)
async def test_a_request_past_its_deadline_would_keep_its_query_running(listening: Listening) -> None:
    answer = await listening.call("/v1/slow", await listening.cell.tenant(), budget_ms=300)
    assert (answer.status_code, problem_of(answer)) == (504, "deadline-exceeded")
    assert answer.headers["cell-refused"] == "deadline"
    await stops(listening.cell)


async def test_a_deadline_after_an_effect_must_not_look_like_nothing_happened(listening: Listening) -> None:
    tenant = await listening.cell.tenant()
    answer = await listening.call("/v1/two", tenant, method="POST", budget_ms=1500)
    assert (answer.status_code, answer.headers["cell-refused"]) == (503, "interrupted")
    assert await listening.cell.names(tenant) == ["first", "the owner"]


@pytest.mark.invariant(1)
async def test_a_freeze_between_two_transactions_would_let_the_router_replay_the_first(listening: Listening) -> None:
    cell = listening.cell
    tenant = await cell.tenant()
    request = asyncio.create_task(listening.call("/v1/two", tenant, method="POST"))
    await starts(cell)
    await cell.transfer.freeze(tenant, cell.fence(), Freeze(0, 5000))
    answer = await request
    assert (answer.status_code, answer.headers["cell-refused"]) == (503, "interrupted")


async def test_a_request_that_the_freeze_ended_may_be_replayed(listening: Listening) -> None:
    cell = listening.cell
    tenant = await cell.tenant()
    request = asyncio.create_task(listening.call("/v1/slow", tenant))
    await starts(cell)
    await cell.transfer.freeze(tenant, cell.fence(), Freeze(0, 5000))
    answer = await request
    assert (answer.status_code, answer.headers["cell-refused"]) == (503, "tenant-frozen")


async def test_writes_during_a_freeze_are_acknowledged_or_refused_but_never_lost(listening: Listening) -> None:
    cell = listening.cell
    tenant = await cell.tenant()
    acknowledged, stop = 0, asyncio.Event()

    async def writer() -> None:
        nonlocal acknowledged
        while not stop.is_set():
            answer = await listening.call("/v1/write", tenant, method="POST")
            if answer.status_code != 201:
                assert answer.headers["cell-refused"] == "tenant-frozen"
                return
            acknowledged += 1

    writers = [asyncio.create_task(writer()) for _ in range(4)]
    async with asyncio.timeout(60):
        while acknowledged < 20:
            await asyncio.sleep(0.005)
    frozen = await cell.transfer.freeze(tenant, cell.fence(), Freeze(2000, 2000))
    exported = await cell.rows(tenant)
    stop.set()
    await asyncio.gather(*writers)
    assert frozen.cancelled == 0
    assert exported == acknowledged + 1


async def test_the_transfer_api_is_closed_to_everybody_else(listening: Listening) -> None:
    tenant = next_tenant()
    for authorization in ("", "Bearer", f"Bearer {TOKEN}x", "Basic eDp5"):
        answer = await listening.command(tenant, "purge", {}, authorization=authorization)
        assert (answer.status_code, problem_of(answer)) == (401, "unauthenticated")
        assert (await listening.internal.get("/metrics", headers={"authorization": authorization})).status_code == 401
    assert (await listening.internal.get("/health/live")).status_code == 200
    assert (await listening.http.get("/health/live")).status_code == 200


async def test_a_tenant_goes_through_the_wire_and_back(listening: Listening) -> None:
    tenant = next_tenant()
    provision = {"epoch": 1, "name": "the owner", "owner_email": "o@example.test", "owner_password": "password"}
    assert (await listening.command(tenant, "provision", provision)).json()["user_id"] == "user-1"
    assert (await listening.command(tenant, "freeze", Freeze(0, 1000))).json()["epoch"] == 1
    checksum = (await listening.command(tenant, "checksum", {})).json()
    rows = await listening.command(tenant, "export", {})
    assert rows.headers["content-type"] == transfer.ROWS_CONTENT_TYPE
    assert (await listening.command(tenant, "release", Release("hint"))).status_code == 200
    assert (await listening.command(tenant, "purge", {})).status_code == 200
    assert (await listening.command(tenant, "prepare", {"schema": SCHEMA, "min_epoch": 2})).status_code == 200
    imported = await listening.command(tenant, "import", rows.content)
    assert imported.json()["rows"] == 1
    assert (await listening.command(tenant, "checksum", {})).json() == checksum
    assert (await listening.command(tenant, "activate", {"epoch": 2})).status_code == 200
    assert (await listening.call("/v1/quick", tenant, epoch=2)).status_code == 200
    wrong = await listening.command(tenant, "activate", {"epoch": "two"})
    assert (wrong.status_code, problem_of(wrong)) == (400, "invalid-input")
    unfenced = await listening.command(tenant, "purge", {}, **{transfer.FENCE_FIELD: "x"})
    assert (unfenced.status_code, problem_of(unfenced)) == (400, "invalid-input")
    listed = await listening.internal.get(
        f"/transfer/v1/tenants/t{tenant}", headers={"authorization": f"Bearer {TOKEN}"}
    )
    assert (listed.json()["state"], listed.json()["epoch"]) == ("active", 2)
