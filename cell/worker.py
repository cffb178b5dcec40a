"""``python -m cell worker``: relays events, consumes them, sweeps and prunes. Composed here, once.

It has no role across tenants: every access to a tenant's rows goes through the fence, at whatever epoch the tenant has
while it is active here. Killing it at any point loses time and no event.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from socket import socket
from typing import Final

import structlog
from litestar import Litestar, Response, get
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from cell import answers, idempotency, servers, settings
from cell.events.inbox import Consumer, Inbox, subscriptions
from cell.events.metrics import EventMetrics
from cell.events.pump import DEFAULT_PACE, Pace, Pump
from cell.events.relay import Relay
from cell.events.stream import Stream, connect
from cell.health import Health
from cell.modules.accounts import public as accounts
from cell.modules.catalog import public as catalog
from cell.schema import migrate
from cell.settings import WorkerSettings
from cell.shards import pools
from cell.shards.errors import DirectoryError, ShardUnavailableError
from cell.transfer.api import ACCESS, token_guard

CONSUMERS: Final[Sequence[Consumer]] = (*catalog.CONSUMERS,)
CHORES: Final = (idempotency.prune, accounts.prune_sessions)

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

    def stop(self) -> None:
        """Say that it stops, and begin nothing new."""
        self.health.drain()
        self.pump.stop()


@asynccontextmanager
async def composed(
    configured: WorkerSettings, consumers: Sequence[Consumer] = CONSUMERS, pace: Pace = DEFAULT_PACE
) -> AsyncIterator[Worker]:
    """The worker's parts. ``consumers`` are those of the product; their names go into inbox rows."""
    directory_dsn, password = configured.directory_dsn.get_secret_value(), configured.app_password.get_secret_value()
    async with (
        pools.opened(directory_dsn, password, configured.pool_size, f"cellwall-worker-{configured.name}") as databases,
        connect(configured.redis_url.get_secret_value()) as redis,
    ):
        registry = CollectorRegistry()
        metrics, stream = EventMetrics(registry), Stream(redis, configured.name)
        relay = Relay(databases.shards, stream, subscriptions(consumers), metrics, CHORES)
        inbox = Inbox(databases.shards, consumers, metrics)
        pump = Pump(relay, inbox, stream, databases.shards.names, consumers, pace)
        schemas = (migrate.head(migrate.DIRECTORY), migrate.head(migrate.SHARD))
        health = Health(databases, schemas, asyncio.get_running_loop().time)
        yield Worker(pump, _application(health, registry, configured.transfer_token.get_secret_value()), health)


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
