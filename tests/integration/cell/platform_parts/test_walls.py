"""The wall between tenants on real PostgreSQL and sockets: an aggressor, a victim, and who begins when.

Nothing is timed: a request of the aggressor is at work for as long as the test keeps a lock in the database.
"""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio
import sqlalchemy as sa
from litestar import Request, Response, Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery
from litestar.response import Stream
from obstore.store import MemoryStore

from cell import access, app
from cell.blobs import Blobs
from cell.fairness.levels import Enforcement, Level, Rule
from cell.fairness.limits import Limits
from cell.fairness.wall import Config, Enforced, Wall
from cell.health import Health
from cell.ingress import Ingress
from cell.metering import Meter
from cell.metrics import CellMetrics
from cell.shards import errors
from cell.shards.context import TenantContext
from cell.shards.session import Shards
from cell.shards.sql import prepare
from contracts.envelope import LARGE_BODY
from contracts.names import Refusal
from tests.integration.cell.platform_parts.test_http import KEY, enveloped, problem_of, serving
from tests.integration.cell.platform_parts.two_cells import Cell, context
from tests.mutations import walls

LIMIT_S = 60.0
SOON_S = 20.0  # below the limits that end requests and statements without the wall, too
WITHOUT_S = 2.0  # without a wall it does not come at all
LOCK = prepare(sa.select(sa.func.pg_advisory_xact_lock_shared(sa.bindparam("key", type_=sa.BigInteger))))
PATIENCE = prepare(sa.select(sa.func.set_config("lock_timeout", "0", True)))
SLEEP = prepare(sa.select(sa.func.pg_sleep(60)))
TIMEOUT = prepare(sa.select(sa.func.current_setting("statement_timeout")))
WORKERS = prepare(sa.select(sa.func.current_setting("max_parallel_workers_per_gather")))
KEYS = itertools.count(secrets.randbelow(10**9) << 20)
CONFIG = Config.fit(8, interactive=3, batch=1, tenant_room=20, room=60)
OBSERVING = Enforced(Enforcement.OBSERVE, Enforcement.OBSERVE, Enforcement.OBSERVE)
OFF = Enforced(Enforcement.OFF, Enforcement.OFF, Enforcement.OFF)
Check = Callable[["Walled"], Awaitable[None]]

_began: list[int] = []


@get(["/v1/held", "/v1/heavy"], opt={"access": "public"})
async def held(tenant: NamedDependency[TenantContext], shards: NamedDependency[Shards], key: FromQuery[int]) -> None:
    _began.append(tenant.tenant)
    async with shards.enter(tenant, read_only=True) as session:
        await session.fetch(PATIENCE)
        await session.fetch(LOCK, key=key)


@post("/v1/body", opt={"access": "public"})
async def body(request: Request[Any, Any, Any], tenant: NamedDependency[TenantContext]) -> int:
    _began.append(tenant.tenant)
    return len(await request.body())


@get("/v1/long", opt={"access": "public"})
async def long(tenant: NamedDependency[TenantContext]) -> Response[Any]:
    _began.append(tenant.tenant)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 100_000

    return Stream(pieces())


@dataclass
class Walled:
    """A cell that listens, with its wall."""

    cell: Cell
    http: httpx.AsyncClient
    address: str
    wall: Wall
    metrics: CellMetrics
    holder: "asyncpg.Connection[asyncpg.Record]"
    limit_s: float  # for what comes at once where the wall stands
    tasks: list["asyncio.Task[httpx.Response]"] = field(default_factory=list)

    @property
    def began(self) -> list[int]:
        """Whose handlers began, in order."""
        return _began

    def send(self, path: str, tenant: int, key: str | None = None) -> "asyncio.Task[httpx.Response]":
        """A request on its way. ``key`` is the API key."""
        fields = enveloped(path, tenant, method="GET", epoch=1, budget_ms=60_000)
        if key is not None:
            fields["authorization"] = f"Bearer {key}"
        task = asyncio.create_task(self.http.get(path, headers=fields))
        self.tasks.append(task)
        return task

    async def hold(self, tenant: int, count: int, path: str = "/v1/held", key: str | None = None) -> list[int]:
        """So many requests that are at work until `release`; they have all arrived. The locks they want."""
        before = sum(self.wall.seats(level)[1] + self.wall.seats(level)[2] for level in Level)
        locks = list(itertools.islice(KEYS, count))
        for lock in locks:
            await self.holder.execute("SELECT pg_advisory_lock($1)", lock)
            self.send(f"{path}?key={lock}", tenant, key)
        await until(
            lambda: sum(self.wall.seats(level)[1] + self.wall.seats(level)[2] for level in Level) == before + count
        )
        return locks

    async def release(self, *locks: int) -> None:
        """Let the requests that wait for these go on."""
        for lock in locks:
            await self.holder.execute("SELECT pg_advisory_unlock($1)", lock)

    def waiting(self, level: Level = Level.INTERACTIVE) -> int:
        """How many requests wait."""
        return self.wall.seats(level)[2]

    def taken(self, level: Level = Level.INTERACTIVE) -> int:
        """How many seats are taken."""
        return self.wall.seats(level)[1]

    def observed(self, wall: str, reason: str) -> float:
        """How many requests a wall that only observes would have refused."""
        labels = {"cell": self.cell.name, "wall": wall, "reason": reason}
        return self.metrics.registry.get_sample_value("cellwall_cell_observed_total", labels) or 0.0


async def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def walled(cell: Cell, config: Config = CONFIG, *, limit_s: float = LIMIT_S) -> AsyncIterator[Walled]:
    """The cell behind its ingress."""
    _began.clear()
    clock = asyncio.get_running_loop().time
    metrics = CellMetrics(cell.name, lambda: cell.gate.in_flight)
    product = app.product(
        cell.shards,
        Health(cell.databases, ("", ""), clock),
        Blobs(MemoryStore()),
        [Router(path="/", route_handlers=[held, body, long], guards=[access.guard])],
        vault=cell.vault,
    )
    operations = app.operations(product, [Rule("GET", "/v1/heavy", Level.BATCH)])
    shard_of = cell.databases.shard_map.shard_of
    wall = Wall(config, operations, shard_of, metrics, clock=time.monotonic, seed=7)
    parts: dict[str, Any] = {"gate": cell.gate, "metrics": metrics, "meter": Meter("test"), "wall": wall}
    outer = Ingress(product, cell=cell.name, envelope_key=KEY, **parts, clock=time.monotonic)
    holder = await cell.connect()
    limits = httpx.Limits(max_connections=None)
    async with (
        serving(outer) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=LIMIT_S, limits=limits) as http,
    ):
        world = Walled(cell, http, address, wall, metrics, holder, limit_s)
        try:
            yield world
        finally:
            await holder.close()  # which lets go of every lock
            for task in world.tasks:
                task.cancel()
            await asyncio.gather(*world.tasks, return_exceptions=True)


@pytest_asyncio.fixture
async def world(cell: Cell) -> AsyncIterator[Walled]:
    async with walled(cell) as world:
        yield world


async def check_flood(world: Walled) -> None:
    """The next free seat is the victim's, though 15 requests of the aggressor have waited for longer."""
    aggressor, victim = await world.cell.tenant(), await world.cell.tenant()
    locks = await world.hold(aggressor, 18)
    await until(lambda: len(world.began) == 3)
    assert world.waiting() == 15
    (lock,) = await world.hold(victim, 1)
    assert world.began == [aggressor] * 3
    await world.release(*locks[:18])  # whoever sits now
    await until(lambda: len(world.began) >= 4)
    assert world.began[3] == victim
    await world.release(lock)


async def check_own_room(world: Walled) -> None:
    """The tenant that fills its own room hears 429, and others find theirs empty."""
    aggressor, victim = await world.cell.tenant(), await world.cell.tenant()
    await world.hold(aggressor, 13, key="cwk_one")
    await world.hold(aggressor, 10, key="cwk_two")
    refused = [await asyncio.wait_for(world.send("/v1/held?key=1", aggressor), world.limit_s) for _ in range(3)]
    for answer in refused:
        assert (answer.status_code, problem_of(answer)) == (429, "tenant-busy")
        assert answer.headers["cell-refused"] == Refusal.TENANT_BUSY
        assert int(answer.headers["retry-after"]) >= 1
    assert len(world.began) == 3
    await world.hold(victim, 1)
    assert world.waiting() == 21


async def check_levels(world: Walled) -> None:
    """Heavy requests wait for each other, and nobody else for them."""
    aggressor, victim = await world.cell.tenant(), await world.cell.tenant()
    await world.hold(aggressor, 8, path="/v1/heavy")
    assert (world.taken(Level.BATCH), world.waiting(Level.BATCH)) == (1, 7)
    (lock,) = await world.hold(victim, 1)
    await until(lambda: victim in world.began)
    await world.release(lock)


async def check_keys(world: Walled) -> None:
    """A key that takes all it can leaves room for the tenant's other keys."""
    tenant = await world.cell.tenant()
    most = int((3 + 20) * 0.8)
    await world.hold(tenant, most, key="cwk_one")
    refused = await asyncio.wait_for(world.send("/v1/held?key=1", tenant, "cwk_one"), world.limit_s)
    assert (refused.status_code, problem_of(refused)) == (429, "caller-limited")
    assert refused.headers["cell-refused"] == Refusal.CALLER
    await world.hold(tenant, 3, key="cwk_two")


async def check_leaver(world: Walled) -> None:
    """A client that leaves while it waits gives its place up."""
    aggressor, victim = await world.cell.tenant(), await world.cell.tenant()
    locks = await world.hold(aggressor, 3)
    await world.hold(victim, 2)
    world.tasks[-1].cancel()
    await until(lambda: world.cell.gate.in_flight == 4)
    assert world.waiting() == 1
    assert world.taken() == 3
    await world.release(*locks)
    await until(lambda: world.began.count(victim) == 1)
    await until(lambda: world.taken() == 1)


async def check_slow_sender(world: Walled) -> None:
    """Clients that send half a body take no seat."""
    aggressor, victim = await world.cell.tenant(), await world.cell.tenant()
    host, port = world.address.split(":")
    senders = []
    for _ in range(3):
        fields = enveloped("/v1/body", aggressor, method="POST", epoch=1, budget_ms=60_000)
        _, sender = await asyncio.open_connection(host, int(port))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        sender.write(f"POST /v1/body HTTP/1.1\r\nhost: t\r\ncontent-length: 8\r\n{head}\r\nhalf".encode())
        senders.append(sender)
    try:
        await until(lambda: world.cell.gate.in_flight == 3)
        assert world.taken() == 0
        await world.hold(victim, 3)
        assert world.waiting() == 0
        await until(lambda: world.began == [victim] * 3)
    finally:
        for sender in senders:
            sender.close()
    await until(lambda: world.cell.gate.in_flight == 3)


async def check_large_body(world: Walled) -> None:
    """A large body that would be refused is refused before it is read, and another tenant's is read."""
    aggressor, victim = await world.cell.tenant(), await world.cell.tenant()
    await world.hold(aggressor, 9, "/v1/heavy")  # one at work, and eight that wait
    host, port = world.address.split(":")

    async def announced(tenant: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        fields = enveloped("/v1/body", tenant, method="POST", epoch=1, budget_ms=60_000)
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"POST /v1/body HTTP/1.1\r\nhost: t\r\ncontent-length: {LARGE_BODY + 1}\r\n{head}\r\n".encode())
        return reader, writer

    reader, writer = await announced(aggressor)
    _, other = await announced(victim)
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), min(world.limit_s, SOON_S))
        assert head.startswith(b"HTTP/1.1 429 ")
        assert b"cell-refused: tenant-busy" in head
        await until(lambda: world.cell.gate.in_flight == 9 + 1)  # the other's body is waited for
    finally:
        writer.close()
        other.close()
    await until(lambda: world.cell.gate.in_flight == 9)


async def check_slow_reader(world: Walled) -> None:
    """Clients that do not read their answer keep no seat."""
    aggressor = await world.cell.tenant()
    host, port = world.address.split(":")
    readers = []
    for _ in range(3):
        fields = enveloped("/v1/long", aggressor, method="GET", epoch=1, budget_ms=60_000)
        _, reader = await asyncio.open_connection(host, int(port), limit=1024)
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        reader.write(f"GET /v1/long HTTP/1.1\r\nhost: t\r\n{head}\r\n".encode())
        readers.append(reader)
    try:
        await until(lambda: len(world.began) == 3)
        await until(lambda: world.taken() == 0, min(world.limit_s, SOON_S))
        assert world.cell.gate.in_flight == 3
    finally:
        for reader in readers:
            reader.transport.abort()
    await until(lambda: world.cell.gate.in_flight == 0)


async def check_statement_timeout(world: Walled) -> None:
    """The database ends a statement by itself, and the limit is gone with the transaction."""
    tenant = await world.cell.tenant()
    limited = replace(context(tenant), statement_by=time.monotonic() + 0.3)
    with pytest.raises(errors.CancelledByServerError):
        async with asyncio.timeout(min(world.limit_s, SOON_S)), world.cell.shards.enter(limited) as session:
            await session.fetch(SLEEP)
    async with world.cell.shards.enter(context(tenant)) as session:
        assert await session.fetchval(TIMEOUT) == "30s"


CHECKS: dict[str, tuple[Check, Callable[[pytest.MonkeyPatch], None]]] = {
    "a flood would be served first": (check_flood, walls.first_come_first_served),
    "a flood would have room without end": (check_own_room, walls.room_without_end),
    "heavy queries would take the seats of clicks": (check_levels, walls.one_level),
    "one key would take all of its tenant": (check_keys, walls.no_caller_limits),
    "a client that left would keep its place": (check_leaver, walls.ghosts),
    "a slow sender would hold a seat": (check_slow_sender, walls.seat_before_body),
    "a large body would be read to be refused": (check_large_body, walls.nothing_foreseen),
    "a slow reader would hold a seat": (check_slow_reader, walls.seat_until_the_end),
    "a statement would outlive its request": (check_statement_timeout, walls.no_statement_timeout),
}


@pytest.mark.parametrize("check", [check for check, _ in CHECKS.values()], ids=list(CHECKS))
async def test_without_a_wall(check: Check, world: Walled) -> None:
    await check(world)


@pytest.mark.parametrize(("check", "mutation"), list(CHECKS.values()), ids=list(CHECKS))
async def test_the_check_would_not_see_that_the_wall_is_gone(
    check: Check, mutation: Callable[[pytest.MonkeyPatch], None], cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation(monkeypatch)
    async with walled(cell, limit_s=WITHOUT_S) as world:
        with pytest.raises((AssertionError, TimeoutError)):
            await check(world)
        monkeypatch.undo()


async def test_observing_would_refuse_or_would_not_count(cell: Cell) -> None:
    async with walled(cell, replace(CONFIG, enforced=OBSERVING)) as world:
        tenant = await cell.tenant()
        await world.hold(tenant, 3 + 20 + 2, key="cwk_one")
        await until(lambda: len(world.began) == 25)  # everybody began: the handlers wait in the database, or for it
        assert world.observed("fairness", Refusal.TENANT_BUSY) == 2
        assert world.observed("limits", Refusal.CALLER) == 25 - int(23 * 0.8)


async def test_a_wall_that_is_off_would_still_stand(cell: Cell) -> None:
    async with walled(cell, replace(CONFIG, enforced=OFF)) as world:
        tenant = await cell.tenant()
        for _ in range(30):
            world.send("/v1/held?key=1", tenant, "cwk_one")
        answers = await asyncio.gather(*world.tasks)
        assert {answer.status_code for answer in answers} == {200}
        assert world.wall.seats(Level.INTERACTIVE) == (0, 0, 0)


async def test_a_tenant_that_freezes_would_have_its_waiting_requests_refused_for_good(world: Walled) -> None:
    tenant = await world.cell.tenant()
    locks = await world.hold(tenant, 4)
    with world.cell.gate.closed(tenant):
        await world.release(*locks)
        answers = await asyncio.gather(*world.tasks)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 503]
    (last,) = [answer for answer in answers if answer.status_code == 503]
    assert last.headers["cell-refused"] == "tenant-frozen"  # the router holds it: nothing of it ran


async def test_a_key_would_send_faster_than_its_rate(cell: Cell) -> None:
    config = replace(CONFIG, key=Limits(per_s=0.001, burst=5, under_way=50))
    async with walled(cell, config) as world:
        tenant = await cell.tenant()
        answers = [await world.send("/v1/held?key=1", tenant, "cwk_one") for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
        assert answers[-1].headers["retry-after"] == "60"
        assert (await world.send("/v1/held?key=1", tenant, "cwk_two")).status_code == 200


async def test_one_seat_would_take_several_processors_of_the_database(cell: Cell) -> None:
    tenant = await cell.tenant()
    async with cell.shards.enter(context(tenant)) as session:
        assert await session.fetchval(WORKERS) == "0"
