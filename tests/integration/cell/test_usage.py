"""The cell's usage on real servers: exact where it counts, and right to two percent where it divides."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
import pytest_asyncio
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from cell import app
from cell.events.stream import connect
from cell.health import Health
from cell.metering import Meter
from cell.shards import pools
from cell.shards.sql import prepare
from cell.usage import Collector, Exchange, Publisher
from cell.usage_metrics import UsageMetrics
from contracts.usage import TenantUsage, Window, added
from tests.integration.cell.cell_world import CELL, Merchant, World

# Sleeping counts as active, and takes no processor from anybody; the server says how long it really was.
SLEPT = "SELECT extract(epoch FROM clock_timestamp() - statement_timestamp())::float8 * 1000 FROM pg_sleep"
SLEEP = prepare(sa.text(f"{SLEPT}(:seconds)").bindparams(sa.bindparam("seconds", type_=sa.Float)))
PATIENCE_S = 60.0
TOKEN = "u" * 43


class Measured:
    """A collector of the world's cell, and what it has told."""

    def __init__(self, world: World, redis: Redis, databases: Any, meter: Meter) -> None:
        self.windows: list[Window] = []
        self.exchange = Exchange(redis, CELL)
        self.collector = Collector(
            cell=CELL, publisher=Publisher(meter, self.exchange), meter=meter, exchange=self.exchange,
            databases=databases, metrics=UsageMetrics(CELL, CollectorRegistry()), sink=self.windows.append,
            clock=asyncio.get_running_loop().time, wall_clock=time.time,
        )  # fmt: skip
        self.world = world

    async def collect(self) -> Window:
        made = await self.collector.once(collect=True)
        assert made is not None
        return made

    async def begin(self) -> None:
        """Windows are about what comes after this."""
        await self.collect()
        self.windows.clear()

    @property
    def tenants(self) -> dict[str, TenantUsage]:
        names = {line.tenant for window in self.windows for line in window.tenants}
        lines = [line for window in self.windows for line in window.tenants]
        return {name: added(name, (line for line in lines if line.tenant == name)) for name in names}

    def shard_ms(self, part: str) -> float:
        return float(sum(getattr(shard, part) for window in self.windows for shard in window.shards))

    async def until_counted(self, counters: "Counters", at_least_ms: float) -> None:
        """Collect until the servers have counted all of it: idle backends take up to ten seconds."""
        async with asyncio.timeout(PATIENCE_S):
            while await counters.grown_ms() < at_least_ms:
                await self.collector.once(collect=False)
                await asyncio.sleep(0.5)  # to look costs the databases time, too
        for _ in range(2):  # what nobody claims is told one window later
            await self.collect()


class Counters:
    """``pg_stat_database`` of all shards, as somebody else reads it."""

    def __init__(self, connections: Sequence["asyncpg.Connection[asyncpg.Record]"]) -> None:
        self._connections = connections
        self._began = 0.0

    async def _read(self) -> float:
        query = "SELECT active_time FROM pg_stat_database WHERE datname = 'shard'"
        return float(sum([await each.fetchval(query) for each in self._connections]))

    async def begin(self) -> None:
        self._began = await self._read()

    async def grown_ms(self) -> float:
        return await self._read() - self._began


@contextlib.asynccontextmanager
async def measured_by(world: World, meter: Meter) -> AsyncIterator[Measured]:
    password, shards = world.cell.passwords.transfer, world.databases.shard_map.shards
    async with (
        connect(world.cell.redis_url) as redis,
        pools.transfer_pools(shards, password, 1, f"cellwall-meter-{CELL}") as databases,
    ):
        yield Measured(world, redis, databases, meter)


@pytest_asyncio.fixture
async def measured(world: World) -> AsyncIterator[Measured]:
    async with measured_by(world, world.meter) as made:
        yield made


@pytest_asyncio.fixture
async def counters(world: World) -> AsyncIterator[Counters]:
    """Read in the servers' own database, so that reading does not count."""
    connections = [await asyncpg.connect(dsn) for dsn in world.cell.admin_dsns.values()]
    yield Counters(connections)
    for connection in connections:
        await connection.close()


async def sleeps(merchant: Merchant, seconds: float, times: int = 1) -> float:
    """The tenant keeps its shard busy; for how many milliseconds, by the server's own clock."""
    busy_ms = 0.0
    for _ in range(times):
        async with merchant.world.databases.shards.enter(merchant.context(), read_only=True) as session:
            busy_ms += await session.fetchval(SLEEP, seconds=seconds)
    return busy_ms


async def test_requests_bytes_and_refusals_are_exact(world: World, measured: Measured) -> None:
    await measured.begin()
    sent: dict[str, list[int]] = {}
    for index in range(1, 4):
        last = merchant = await world.merchant()
        counts = sent[merchant.tenant_id] = [0, 0, 0]
        for number in range(index * 3):
            body = {"sku": f"sku-{number}", "name": "n" * (number + 1), "price_cents": 1, "currency": "EUR"}
            for answer in (
                await merchant.owner.post("/v1/products", json=body),
                await merchant.owner.get("/v1/orders"),
            ):
                assert answer.is_success, answer.text
                counts[0] += 1
                counts[1] += len(answer.request.content)
                counts[2] += len(answer.content)
    lost = last.tenant_id
    refused = await world.client(lost, last.key, epoch=9).get("/v1/orders")
    assert refused.status_code == 421
    sent[lost][0] += 1
    sent[lost][2] += len(refused.content)
    window = await measured.collect()
    found = {line.tenant: [line.requests, line.bytes_in, line.bytes_out] for line in window.tenants}
    assert found == sent
    assert window.requests == sum(counts[0] for counts in sent.values())
    assert {line.tenant: line.refused for line in window.tenants if line.refused} == {lost: {"misdirected": 1}}


async def test_database_time_is_right_to_two_percent_of_the_databases_own_counter(
    world: World, measured: Measured, counters: Counters
) -> None:
    merchants = [await world.merchant() for _ in range(4)]
    await measured.begin()
    await counters.begin()
    busy_ms = await asyncio.gather(*(sleeps(m, 0.3, times=3 * (n + 1)) for n, m in enumerate(merchants)))
    wanted = {merchant.tenant_id: ms for merchant, ms in zip(merchants, busy_ms, strict=True)}
    await measured.until_counted(counters, sum(busy_ms))
    grown_ms = await counters.grown_ms()
    told = measured.tenants
    assert measured.shard_ms("active_ms") == pytest.approx(grown_ms, rel=0.02)
    assert sum(told[name].database_ms for name in wanted) == pytest.approx(grown_ms, rel=0.02)
    for name, ms in wanted.items():  # how it is divided is as good as what the clients measured
        assert told[name].database_ms == pytest.approx(ms, rel=0.2)
    lines_ms = [measured.shard_ms(part) for part in ("tenants_ms", "platform_ms", "other_ms")]
    assert sum(lines_ms) == pytest.approx(measured.shard_ms("active_ms"))


async def test_a_person_with_psql_is_a_line_of_its_own_and_no_tenant_pays(
    world: World, merchant: Merchant, measured: Measured, counters: Counters
) -> None:
    person = await world.cell.as_superuser(world.databases.shards.shard_of(merchant.number))
    await measured.begin()
    await counters.begin()

    async def looks_around() -> float:
        slept_ms: float = await person.fetchval(f"{SLEPT}(4)")
        await person.close()
        return slept_ms

    async def looking() -> None:
        while not done.is_set():
            await measured.collector.once(collect=False)
            await asyncio.sleep(0.1)

    done = asyncio.Event()
    watch = asyncio.create_task(looking())
    slept_ms, busy_ms = await asyncio.gather(looks_around(), sleeps(merchant, 0.8, times=5))
    done.set()
    await watch
    await measured.until_counted(counters, slept_ms + busy_ms)
    assert measured.tenants[merchant.tenant_id].database_ms == pytest.approx(busy_ms, rel=0.3)
    assert measured.shard_ms("other_ms") == pytest.approx(slept_ms, rel=0.15)


async def test_the_work_of_the_worker_is_its_tenants(world: World, merchant: Merchant, measured: Measured) -> None:
    product = await merchant.product()
    await measured.begin()
    async with world.worker() as running:
        await merchant.order((product, 1))
        async with asyncio.timeout(PATIENCE_S):
            while (await merchant.owner.get(f"/v1/products/{product}")).json()["units_sold"] != 1:
                await asyncio.sleep(0.05)
        assert await running.publisher.publish()
        published = {each.process: each for each in await measured.exchange.take()}
    (worker,) = (each for process, each in published.items() if process.startswith("worker-"))
    assert sum(worker.tenants[merchant.number].database_s.values()) > 0
    assert worker.tenants[merchant.number].requests == 0


async def test_one_process_collects_and_another_takes_over_without_a_gap(
    world: World, merchant: Merchant, measured: Measured, counters: Counters
) -> None:
    async with measured_by(world, Meter("second")) as second:
        await measured.begin()
        await counters.begin()
        assert await second.collector.once(collect=True) is None
        busy_ms = await sleeps(merchant, 0.5)
        async with connect(world.cell.redis_url) as redis:
            await redis.delete(f"cellwall:{CELL}:usage:lease")  # as if its holder had died for long enough
        assert await second.collector.once(collect=True) is not None
        assert await measured.collector.once(collect=True) is None, "which publishes what it measured"
        await second.until_counted(counters, busy_ms)
        assert second.tenants[merchant.tenant_id].database_ms == pytest.approx(busy_ms, rel=0.2)


async def test_usage_is_told_to_the_bearer_of_the_token_and_never_made_up(
    world: World, merchant: Merchant, measured: Measured
) -> None:
    clock = asyncio.get_running_loop().time
    inner = app.internal(
        world.transfer, Health(world.databases, ("", ""), clock), CollectorRegistry(), TOKEN, measured.exchange
    )
    transport = httpx.ASGITransport(inner)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://cell.test") as http:
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert (await http.get("/usage")).status_code == 401
        unknown = await http.get("/usage", headers=bearer)
        assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "5")
        assert unknown.json()["type"].endswith("usage-unavailable")
        await merchant.owner.get("/v1/orders")
        window = await measured.collect()
        told = await http.get("/usage", headers=bearer)
        assert msgspec.json.decode(told.content, type=Window) == window
        top = msgspec.json.decode((await http.get("/usage?top=0", headers=bearer)).content, type=Window)
        assert (top.tenants, top.rest.requests) == ((), 1)


async def test_everybody_can_read_the_newest_window(world: World, merchant: Merchant, measured: Measured) -> None:
    assert await measured.exchange.latest() is None
    await merchant.owner.get("/v1/orders")
    window = await measured.collect()
    assert await measured.exchange.latest() == window
