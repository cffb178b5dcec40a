"""``python -m cell worker``: relays and consumes events, makes reports, sweeps and prunes. Composed here, once.

It has no role across tenants: every access to a tenant's rows goes through the fence, at whatever epoch the tenant has
while it is active here. Killing it at any point loses time and no event.
"""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from socket import socket
from typing import Final

import structlog
from litestar import Litestar, Response, get
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from cell import answers, blobs, idempotency, servers, settings
from cell.blobs import BlobError, Blobs
from cell.bulkhead import RUNNING_MAX, Bulkhead, Job, Slots
from cell.events.inbox import Consumer, Inbox, subscriptions
from cell.events.metrics import EventMetrics
from cell.events.pump import DEFAULT_PACE, Pace, Pump
from cell.events.relay import Relay
from cell.events.stream import Stream, connect
from cell.fairness.levels import Enforcement
from cell.health import Health
from cell.metering import Meter
from cell.modules.accounts import public as accounts
from cell.modules.catalog import public as catalog
from cell.modules.orders import conductor as sagas
from cell.modules.payments import public as payments
from cell.modules.reports import public as reports
from cell.modules.webhooks import public as webhooks
from cell.schema import migrate
from cell.settings import WorkerSettings
from cell.shards import pools
from cell.shards.errors import DATABASE_FAILED, DirectoryError, ShardError, ShardUnavailableError
from cell.shards.pools import Databases
from cell.shards.session import Shards, Spent
from cell.transfer.api import ACCESS, token_guard
from cell.usage import Exchange, Publisher
from cell.vault import Vault
from contracts import keys
from contracts.names import Field

CONSUMERS: Final[Sequence[Consumer]] = (*catalog.CONSUMERS, *webhooks.CONSUMERS)
CHORES: Final = (idempotency.prune, accounts.prune_sessions)
HEAVY_CONNECTIONS: Final = 2  # of the bulkhead, to each shard
TIDY_S: Final = 3600.0

_log = structlog.get_logger(__name__)


def run(configured: WorkerSettings) -> int:
    """Work until SIGTERM or SIGINT; the exit status."""
    try:
        listener = servers.listen(configured.worker_listen)
    except servers.ListenError as e:
        settings.misconfigured(str(e))
    with listener:
        try:
            return servers.run(_serve(configured, listener))
        except (ShardUnavailableError, DirectoryError) as e:
            sys.stderr.write(f"cell: {e}\n")
            return 1


async def _serve(configured: WorkerSettings, listener: socket) -> int:
    async with composed(configured) as worker, asyncio.TaskGroup() as group:
        group.create_task(worker.pump.run())
        for each in worker.rooms:
            group.create_task(each.run())
        async with servers.running(worker.publisher.run, partial(_tidy, worker)):
            _log.info("worker_started", consumers=[consumer.name for consumer in CONSUMERS])
            await servers.serve([servers.Listener(worker.application, listener)], worker.stop)
    _log.info("worker_stopped")
    return 0


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker, connected. ``application`` has its health and metrics."""

    pump: Pump
    application: Litestar
    health: Health
    publisher: Publisher
    bulkhead: Bulkhead  # of heavy work
    outside: Sequence[Bulkhead]  # of work that calls what is outside of the cell
    files: Blobs
    shards: Shards
    registry: CollectorRegistry

    @property
    def rooms(self) -> Sequence[Bulkhead]:
        """Everything that runs jobs of tenants."""
        return (self.bulkhead, *self.outside)

    def stop(self) -> None:
        """Say that it stops, and begin nothing new."""
        self.health.drain()
        self.pump.stop()
        for each in self.rooms:
            each.stop()


@asynccontextmanager
async def composed(
    configured: WorkerSettings, consumers: Sequence[Consumer] = CONSUMERS, pace: Pace = DEFAULT_PACE
) -> AsyncIterator[Worker]:
    """The worker's parts. ``consumers`` are those of the product; their names go into inbox rows."""
    directory_dsn, password = configured.directory_dsn.get_secret_value(), configured.app_password.get_secret_value()
    meter, application = Meter(f"worker-{secrets.token_hex(4)}"), f"cellwall-worker-{configured.name}"
    async with (
        pools.opened(directory_dsn, password, configured.pool_size, application, meter.spent) as databases,
        pools.following(databases, f"worker-{secrets.token_hex(4)}"),
        connect(configured.redis_url.get_secret_value()) as redis,
        _heavy(configured, databases, meter.spent) as heavy,
        _gateway(configured) as gateway,
        webhooks.opened(private=configured.webhooks_private) as sender,
    ):
        registry, files = CollectorRegistry(), blobs.opened(configured.blobs)
        metrics, stream = EventMetrics(registry), Stream(redis, configured.name)
        vault = Vault(keys.cell_key(configured.secrets_key.get_secret_value()))
        saga_metrics, shards, home = sagas.SagaMetrics(registry), databases.shards, configured.name
        chores = (*CHORES, reports.chore(files, home), sagas.chore(home, saga_metrics), webhooks.chore(home, vault))
        relay = Relay(databases.shards, stream, subscriptions(consumers), metrics, chores)
        inbox = Inbox(databases.shards, consumers, metrics)
        pump = Pump(relay, inbox, stream, databases.shards.names, consumers, pace)
        schemas = (migrate.head(migrate.DIRECTORY), migrate.head(migrate.SHARD))
        health = Health(databases, schemas, asyncio.get_running_loop().time)
        served = _application(health, registry, configured.transfer_token.get_secret_value())
        bulkhead = _bulkhead(configured, databases, heavy, files, reports.ReportMetrics(registry))
        jobs = (sagas.job(shards, gateway, home, saga_metrics), webhooks.job(shards, sender, vault, home, registry))
        outside = [_room(shards, job) for job in jobs]
        publisher = Publisher(meter, Exchange(redis, configured.name))
        yield Worker(pump, served, health, publisher, bulkhead, outside, files, databases.shards, registry)


@asynccontextmanager
async def _gateway(configured: WorkerSettings) -> AsyncIterator[payments.Gateway]:
    """The fleet's gateway, where the settings name one."""
    if configured.payments_url is None or configured.payments_token is None:
        yield payments.NoGateway()
        return
    token, timeout_s = configured.payments_token.get_secret_value(), configured.payments_timeout_s
    async with payments.opened(configured.payments_url, token, timeout_s) as gateway:
        yield gateway


def _room(shards: Shards, job: Job) -> Bulkhead:
    """For work that waits for others most of its time: no wall, and the worker's own connections, held for moments."""
    return Bulkhead(shards, job, None, at_once=RUNNING_MAX, of_shard=RUNNING_MAX, observed=None)


@asynccontextmanager
async def _heavy(configured: WorkerSettings, databases: Databases, spent: Spent) -> AsyncIterator[Databases]:
    """The bulkhead's own connections, which their name tells apart in ``pg_stat_activity``; or, where that wall does
    not stand, those that the worker has."""
    if configured.walls.reports is not Enforcement.ON:
        yield databases
        return
    dsn, password = configured.directory_dsn.get_secret_value(), configured.app_password.get_secret_value()
    application = f"cellwall-reports-{configured.name}"
    async with pools.apart(databases, dsn, password, HEAVY_CONNECTIONS, application, spent) as heavy:
        yield heavy


def _bulkhead(
    configured: WorkerSettings, databases: Databases, heavy: Databases, files: Blobs, metrics: reports.ReportMetrics
) -> Bulkhead:
    wall, at_once = configured.walls.reports, configured.reports_at_once
    maker = reports.Maker(
        heavy=heavy.shards,
        shards=databases.shards,
        blobs=files,
        home=configured.name,
        metrics=metrics,
        clock=asyncio.get_running_loop().time,
        share=configured.batch_share if wall is Enforcement.ON else None,
    )
    bulkhead = Bulkhead(
        databases.shards,
        maker,
        Slots(heavy.directory, at_once) if wall is Enforcement.ON else None,
        at_once=at_once,
        of_shard=HEAVY_CONNECTIONS,
        observed=metrics.observed.inc if wall is Enforcement.OBSERVE else None,
    )
    metrics.watch(lambda: bulkhead.running)
    return bulkhead


async def _tidy(worker: Worker) -> None:
    """Look for files that nobody needs, once in a while; a store or a shard that is away is for the next time."""
    while True:
        try:
            deleted = await reports.tidy(worker.files, worker.shards, datetime.now(UTC))
            _log.info("files_tidied", deleted=deleted)
        except (BlobError, ShardError, *DATABASE_FAILED) as e:
            _log.warning("files_not_tidied", **{Field.REASON: f"{type(e).__name__}: {e}"})
        await asyncio.sleep(TIDY_S)


def _application(health: Health, registry: CollectorRegistry, token: str) -> Litestar:
    @get("/metrics", opt={"access": ACCESS})
    async def metrics() -> Response[bytes]:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Litestar(
        [metrics, *health.handlers()],
        guards=[token_guard(token)],
        exception_handlers=answers.HANDLERS,
        openapi_config=None,
    )
