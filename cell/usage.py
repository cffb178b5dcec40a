"""Usage of the whole cell: its processes publish what they measured, one of them adds it up (docs/adr/0015).

Every process puts its `Measures` on a Redis list each second. One API process at a time, the holder of a lease, takes
the list each window, shares the databases' counters out (`cell.apportion`) and keeps the newest `Window` in Redis for
whoever asks. While Redis is away, nothing is lost that the processes hold: it is told in a longer window afterwards.
"""

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from cell.apportion import PLATFORM, Backend, Foreigners, Ledger, Parts
from cell.metering import Line, Measures, Meter, merged, percentile_ms
from cell.shards import pools
from cell.shards.errors import DATABASE_FAILED
from cell.shards.session import Pool
from cell.usage_metrics import UsageMetrics
from contracts import ids
from contracts.names import Field
from contracts.usage import WINDOW_S, ShardUsage, TenantUsage, Window, added

PUBLISH_S: Final = 1.0  # also how often the databases' other users are looked at
LEASE_MS: Final = 12_000
KEPT_S: Final = 60  # how long Redis keeps what nobody takes, and the newest window
WAITING_MAX: Final = 600  # publications that wait for a collector
NEIGHBOURS: Final = 10  # of the costliest and of the busiest tenants it is told how their neighbours fare
QUERY_TIMEOUT_S: Final = 2.0
REST: Final = "rest"

_BACKENDS: Final = """
SELECT pid, extract(epoch FROM query_start)::float8 AS statement, state = 'active' AS running,
  greatest(0, extract(epoch FROM CASE WHEN state = 'active' THEN clock_timestamp() ELSE state_change END - query_start)
  )::float8 AS elapsed, application_name LIKE 'cellwall-%' AS ours, pid = pg_backend_pid() AS own
FROM pg_stat_activity -- what the application's role runs is measured where it is sent
WHERE datname = current_database() AND backend_type = 'client backend'
  AND usename <> $1 AND query_start IS NOT NULL AND state IS NOT NULL
"""
_ACTIVE_MS: Final = "SELECT active_time FROM pg_stat_database WHERE datname = current_database()"

Sink = Callable[[Window], None]
_log = structlog.get_logger()


class Exchange:
    """The cell's keys in Redis. Methods raise `redis.exceptions.RedisError`."""

    def __init__(self, redis: Redis, cell: str) -> None:
        self._redis = redis
        self._raw, self._lease, self._read, self._latest = (
            f"cellwall:{cell}:usage:{name}" for name in ("raw", "lease", "read", "latest")
        )

    async def publish(self, measures: Measures) -> None:
        """Hand over what a process measured."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.rpush(self._raw, msgspec.msgpack.encode(measures))
        pipeline.ltrim(self._raw, -WAITING_MAX, -1)
        pipeline.expire(self._raw, KEPT_S)
        await pipeline.execute()

    async def take(self) -> list[Measures]:
        """All that was published and not taken yet; nobody else gets it."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.lrange(self._raw, 0, -1)
        pipeline.delete(self._raw)
        return [msgspec.msgpack.decode(raw, type=Measures) for raw in (await pipeline.execute())[0]]

    async def lead(self, process: str) -> bool:
        """Take or renew the collector's lease."""
        if await self._redis.set(self._lease, process, nx=True, px=LEASE_MS):
            return True
        if await self._redis.get(self._lease) != process.encode():
            return False
        return bool(await self._redis.pexpire(self._lease, LEASE_MS))

    async def readings(self) -> dict[str, float]:
        """The shards' counters as they were last read, milliseconds; empty where nobody has."""
        raw = await self._redis.get(self._read)
        return msgspec.json.decode(raw, type=dict[str, float]) if raw else {}

    async def keep(self, readings: Mapping[str, float], window: Window) -> None:
        """Remember the counters and the newest window."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.set(self._read, msgspec.json.encode(dict(readings)))
        pipeline.set(self._latest, msgspec.json.encode(window), ex=KEPT_S)
        await pipeline.execute()

    async def latest(self) -> Window | None:
        """The newest window, or None where there is none of the last minute."""
        raw = await self._redis.get(self._latest)
        return msgspec.json.decode(raw, type=Window) if raw else None


class Publisher:
    """Publishes what a process measures, each second. What Redis does not take is kept and told later."""

    def __init__(self, meter: Meter, exchange: Exchange) -> None:
        self._meter = meter
        self._exchange = exchange
        self._kept: list[Measures] = []
        self._failing = False

    async def publish(self) -> bool:
        """Hand over everything since the last time; false where Redis did not take it."""
        self._kept.append(self._meter.take())
        lines, platform = merged(self._kept)
        self._kept = [Measures(self._meter.process, lines, platform)]
        try:
            await self._exchange.publish(self._kept[0])
        except (RedisError, OSError) as e:
            if not self._failing:
                _log.warning("usage_publication_failed", **{Field.REASON: f"{type(e).__name__}: {e}"})
            self._failing = True
            return False
        self._kept.clear()
        self._failing = False
        return True

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Until cancelled, and once more then."""
        try:
            while True:
                await sleep(PUBLISH_S)
                await self.publish()
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(PUBLISH_S):
                    await self.publish()


class Collector:
    """Makes the cell's windows in the one process that holds the lease. ``databases`` may read all ``pg_stat_*``."""

    def __init__(
        self,
        *,
        cell: str,
        publisher: Publisher,
        meter: Meter,
        exchange: Exchange,
        databases: Mapping[str, Pool],
        metrics: UsageMetrics,
        sink: Sink,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        """``clock`` is the loop's, ``wall_clock`` Unix seconds; ``sink`` is given every window."""
        self._cell = cell
        self._publisher = publisher
        self._meter = meter
        self._exchange = exchange
        self._databases = databases
        self._metrics = metrics
        self._sink = sink
        self._clock = clock
        self._wall_clock = wall_clock
        self._began: float | None = None  # of the window that is being measured; None while another process collects
        self._accounts: dict[str, _Account] = {}

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Publish and collect until cancelled."""
        try:
            for tick in itertools.count(1):
                await sleep(PUBLISH_S)
                await self.once(collect=tick % round(WINDOW_S / PUBLISH_S) == 0)
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(PUBLISH_S):
                    await self._publisher.publish()

    async def once(self, *, collect: bool) -> Window | None:
        """One second's work: publish, look at the databases and, where it is time, make a window."""
        if not await self._publisher.publish():
            return None
        try:
            if not await self._exchange.lead(self._meter.process):
                self._began = None
                return None
            if self._began is None:
                await self._take_over()
            await asyncio.gather(*(account.look() for account in self._accounts.values()))
            return await self._collect() if collect else None
        except Exception as e:  # whatever it is: metering never ends the process, and goes on by itself
            known = isinstance(e, RedisError | OSError)
            _log.warning(
                "usage_collection_failed", **{Field.REASON: f"{type(e).__name__}: {e}"}, exc_info=None if known else e
            )
            return None

    async def _take_over(self) -> None:
        readings = await self._exchange.readings()
        self._began = self._clock()
        self._accounts = {
            shard: _Account(shard, pool, self._meter, readings.get(shard)) for shard, pool in self._databases.items()
        }

    async def _collect(self) -> Window:
        now, began = self._clock(), self._began
        assert began is not None
        measures = await self._exchange.take()
        lines, platform = merged(measures)
        parts = {
            shard: await account.divide(_claims(shard, lines, platform)) for shard, account in self._accounts.items()
        }
        seconds = max(now - began, 0.001)
        self._began = now
        processes = tuple(sorted({each.process for each in measures}))
        window = window_of(
            self._cell, lines, parts, processes=processes, began=self._wall_clock() - seconds, seconds=seconds
        )
        readings = {s: a.reading_ms for s, a in self._accounts.items() if a.reading_ms is not None}
        self._metrics.show(window)
        self._sink(window)
        await self._exchange.keep(readings, window)
        return window


class _Account:
    """One shard's counter and what is known of it. A shard that does not answer is accounted for when it does."""

    def __init__(self, shard: str, pool: Pool, meter: Meter, reading_ms: float | None) -> None:
        self._shard = shard
        self._pool = pool
        self._meter = meter
        self._ledger, self._foreigners = Ledger(), Foreigners()
        self._waiting: dict[int, float] = {}
        self.reading_ms = reading_ms

    async def look(self) -> None:
        """See who else uses the database."""
        with suppress(*DATABASE_FAILED):
            rows = await self._pool.fetch(_BACKENDS, pools.APP_ROLE, timeout=QUERY_TIMEOUT_S)
            self._foreigners.look(
                Backend(row["pid"], row["statement"], row["elapsed"], row["running"], row["ours"])
                for row in rows
                if not row["own"]
            )
            self._meter.platform(self._shard, sum(row["elapsed"] for row in rows if row["own"]))

    async def divide(self, claims: Mapping[int, float]) -> Parts:
        """The window's parts of this shard's counter."""
        for tenant, seconds in claims.items():
            self._waiting[tenant] = self._waiting.get(tenant, 0.0) + seconds
        try:
            now_ms = float(await self._pool.fetchval(_ACTIVE_MS, timeout=QUERY_TIMEOUT_S))
        except DATABASE_FAILED as e:
            fields = {Field.SHARD: self._shard, Field.REASON: f"{type(e).__name__}: {e}"}
            _log.warning("usage_counter_unread", **fields)
            return Parts(0.0, {}, 0.0, 0.0)
        before, self.reading_ms = self.reading_ms, now_ms
        if before is None:  # nobody knows which part of the counter is of this window
            self._waiting = {}
            return Parts(0.0, {}, 0.0, 0.0)
        # After a crash of the server its counters begin anew.
        active_s = (now_ms - before if now_ms >= before else now_ms) / 1000
        waiting, self._waiting = self._waiting, {}
        return self._ledger.divide(active_s, waiting, *self._foreigners.take())


def _claims(shard: str, lines: Mapping[int, Line], platform: Mapping[str, float]) -> dict[int, float]:
    claims = {tenant: line.database_s[shard] for tenant, line in lines.items() if shard in line.database_s}
    return claims | {PLATFORM: platform.get(shard, 0.0)}


def window_of(
    cell: str,
    lines: Mapping[int, Line],
    parts: Mapping[str, Parts],
    *,
    processes: tuple[str, ...],
    began: float,
    seconds: float,
) -> Window:
    """The window that these measures make. A tenant may have a part of a counter and no line: it is late work."""
    spent: dict[int, float] = {}
    for part in parts.values():
        for tenant, share in part.tenants.items():
            spent[tenant] = spent.get(tenant, 0.0) + share
    everybody: dict[int, int] = {}
    for line in lines.values():
        for bucket, count in line.latencies.items():
            everybody[bucket] = everybody.get(bucket, 0) + count
    ranked = sorted({*lines, *spent}, key=lambda tenant: (-spent.get(tenant, 0.0), tenant))
    busiest = sorted(lines, key=lambda tenant: (-lines[tenant].requests, tenant))
    watched = {*ranked[:NEIGHBOURS], *busiest[:NEIGHBOURS]}
    return Window(
        id=secrets.token_hex(8),
        cell=cell,
        began=began,
        seconds=seconds,
        processes=processes,
        requests=sum(line.requests for line in lines.values()),
        p50_ms=percentile_ms(everybody, 0.5),
        p99_ms=percentile_ms(everybody, 0.99),
        shards=tuple(_shard(name, part) for name, part in sorted(parts.items())),
        tenants=tuple(
            _tenant(tenant, lines.get(tenant, Line()), spent.get(tenant, 0.0), everybody if tenant in watched else {})
            for tenant in ranked
        ),
        rest=added(REST, ()),
    )


def _shard(name: str, part: Parts) -> ShardUsage:
    tenants_s = sum(part.tenants.values())
    return ShardUsage(name, *(s * 1000 for s in (part.active_s, tenants_s, part.platform_s, part.other_s)))


def _tenant(tenant: int, line: Line, database_s: float, everybody: Mapping[int, int]) -> TenantUsage:
    others = sum(everybody.values()) - sum(line.latencies.values()) if everybody else 0
    return TenantUsage(
        tenant=str(ids.tenant_of(tenant)),
        requests=line.requests,
        refused=line.refused,
        database_ms=database_s * 1000,
        seat_ms=line.seat_s * 1000,
        queued_ms=line.queued_s * 1000,
        bytes_in=line.bytes_in,
        bytes_out=line.bytes_out,
        p99_ms=percentile_ms(line.latencies, 0.99),
        others_requests=others,
        others_p99_ms=percentile_ms(everybody, 0.99, line.latencies) if others else 0.0,
    )
