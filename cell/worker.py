"""``python -m cell worker``: relays events, consumes them, sweeps and prunes. Composed here, once.

It has no role across tenants: every access to a tenant's rows goes through the fence, at whatever epoch the tenant has
while it is active here. Killing it at any point loses time and no event.
"""

import asyncio
import hmac
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
import uvloop
from litestar import Litestar, Request, Response, get
from litestar.handlers import HTTPRouteHandler
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from cell import idempotency, serving
from cell.events.inbox import Consumer, Inbox, subscriptions
from cell.events.metrics import EventMetrics
from cell.events.pump import Pace, Pump
from cell.events.relay import Relay
from cell.events.stream import Stream, connect
from cell.health import Health
from cell.modules.accounts import public as accounts
from cell.modules.catalog import public as catalog
from cell.schema import migrate
from cell.settings import EXIT_MISCONFIGURED, WorkerSettings
from cell.shards import pools
from cell.shards.errors import ShardError
from contracts import problems

CONSUMERS: Final[Sequence[Consumer]] = (*catalog.CONSUMERS,)
CHORES: Final = (idempotency.prune, accounts.prune_sessions)

_log = structlog.get_logger(__name__)


def run(settings: WorkerSettings) -> int:
    """Work until SIGTERM or SIGINT. 0 after a clean stop, 2 where it cannot listen, 1 where the directory is away."""
    try:
        listener = serving.bind(settings.worker_listen)
    except serving.ListenError as e:
        sys.stderr.write(f"cell: {e}\n")
        return EXIT_MISCONFIGURED
    with listener:
        try:
            uvloop.run(_serve(settings, listener))
        except ShardError as e:
            sys.stderr.write(f"cell: {e}\n")
            return 1
    return 0


async def _serve(settings: WorkerSettings, listener: Any) -> None:
    async with composed(settings) as (pump, application, health):
        server = serving.Server(application, listener)

        def stop() -> None:
            health.draining = True
            pump.stop()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        serves = asyncio.ensure_future(server.run_until_stopped())
        _log.info("worker_started", consumers=[consumer.name for consumer in CONSUMERS])
        try:
            await pump.run()
        finally:
            server.should_exit = True
            await serves
        _log.info("worker_stopped")


@asynccontextmanager
async def composed(
    settings: WorkerSettings, consumers: Sequence[Consumer] = CONSUMERS, pace: Pace | None = None
) -> AsyncIterator[tuple[Pump, Litestar, Health]]:
    """The worker's parts, connected; ``consumers`` are those of the product, and their names go into inbox rows."""
    directory_dsn, password = settings.directory_dsn.get_secret_value(), settings.app_password.get_secret_value()
    async with (
        pools.opened(directory_dsn, password, settings.pool_size, f"{settings.name} worker") as databases,
        connect(settings.redis_url.get_secret_value()) as redis,
    ):
        registry = CollectorRegistry()
        metrics, stream = EventMetrics(registry), Stream(redis, settings.name)
        relay = Relay(databases.shards, stream, subscriptions(consumers), metrics, CHORES)
        inbox = Inbox(databases.shards, consumers, metrics)
        pump = Pump(relay, inbox, stream, databases.shards.names, consumers, pace or Pace())
        schemas = (migrate.head(migrate.DIRECTORY), migrate.head(migrate.SHARD))
        health = Health(databases, schemas, time.monotonic)
        token = settings.transfer_token.get_secret_value()
        handlers = [*health.handlers(), metrics_page(registry, token)]
        yield (
            pump,
            Litestar(handlers, openapi_config=None, exception_handlers={problems.ProblemError: _problem}),
            health,
        )


def metrics_page(registry: CollectorRegistry, token: str) -> HTTPRouteHandler:
    """``GET /metrics`` for whoever has the token."""
    expected = f"Bearer {token}".encode()

    @get("/metrics", opt={"access": "operator"}, include_in_schema=False)
    async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        sent = request.headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(sent, expected):
            headers = {"WWW-Authenticate": "Bearer"}
            raise problems.ProblemError(problems.UNAUTHENTICATED, headers=headers)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return metrics
