"""The API process, composed: the product behind the ingress, and the transfer API on the internal listener."""

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from litestar import Litestar, Response, Router, get
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from cell import answers, blobs, servers, settings
from cell.agent import Agent, UsageReports, control_plane_at, package_version
from cell.blobs import Blobs
from cell.events import outbox
from cell.events.stream import connect
from cell.fairness.internal import InternalWall
from cell.fairness.levels import Level, Operations, Rule
from cell.fairness.wall import Config, Enforced, Wall
from cell.gate import Gate
from cell.health import Health
from cell.ingress import CONTEXT, Ingress
from cell.metering import Meter
from cell.metrics import CellMetrics
from cell.modules.accounts.api import router as accounts
from cell.modules.accounts.public import create_owner
from cell.modules.catalog.api import router as catalog
from cell.modules.inventory.api import router as inventory
from cell.modules.old_urls.api import OldUrls
from cell.modules.old_urls.api import router as old_urls
from cell.modules.orders.api import router as orders
from cell.modules.orders.public import SAGAS
from cell.modules.payments.api import router as payments
from cell.modules.reports.api import router as reports
from cell.modules.reports.public import QueueWall
from cell.modules.webhooks.api import router as webhooks
from cell.modules.webhooks.public import WORK_KIND as WEBHOOKS
from cell.rebucketing import api as shards_api
from cell.rebucketing.mover import Mover
from cell.rebucketing.service import Rebucketing
from cell.schema import migrate
from cell.servers import Listener
from cell.settings import ApiSettings
from cell.shards import pools
from cell.shards.context import TenantContext
from cell.shards.errors import DirectoryError, ShardUnavailableError
from cell.shards.pools import Databases
from cell.shards.session import Pool, Shards
from cell.transfer import api as transfer_api
from cell.transfer import streams_api
from cell.transfer.reader import Login
from cell.transfer.service import Transfer
from cell.transfer.streams import Streams
from cell.usage import Collector, Exchange, Publisher
from cell.usage_api import usage_page
from cell.usage_metrics import UsageMetrics
from cell.vault import Vault
from contracts import keys, problems
from contracts.fleet import Registration
from contracts.usage import Window

QUEUE_FULL: Final = problems.REPORTS_QUEUE_FULL.slug
REPORTS_WALL: Final = QueueWall()  # it stands
TRANSFER_CONNECTIONS: Final = 10  # per shard; the copy of a large tenant keeps one for its time
BODY_BYTES_MAX: Final = 4 << 20  # whatever a handler asks for
PRODUCT: Final[Sequence[Router]] = (accounts, catalog, inventory, orders, payments, reports, webhooks)
KINDS: Final = (outbox.WORK_KIND, SAGAS, WEBHOOKS)  # of work that goes on as soon as a tenant has moved in

# What is heavy by its nature waits for seats of its own.
LEVELS: Final[Sequence[Rule]] = (
    Rule("POST", "/v1/reports", Level.BATCH),
    Rule("GET", "/v1/reports/summary", Level.BATCH),
)


def routers_of(mode: OldUrls) -> Sequence[Router]:
    """The product's routers, with the old shop's URLs where the cell has them."""
    return PRODUCT if mode is OldUrls.OFF else (*PRODUCT, old_urls(mode))


def product(
    shards: Shards,
    health: Health,
    files: Blobs,
    routers: Sequence[Router] = PRODUCT,
    reports_wall: QueueWall = REPORTS_WALL,
    *,
    vault: Vault,
    takes_payments: bool = False,
    webhooks_private: bool = False,
) -> Litestar:
    """The product. Handlers get ``tenant``, ``shards``, ``blobs``, ``vault``; it must be served behind an `Ingress`."""

    async def provide_shards() -> Shards:
        return shards

    async def provide_blobs() -> Blobs:
        return files

    async def provide_reports_wall() -> QueueWall:
        return reports_wall

    async def provide_vault() -> Vault:
        return vault

    async def provide_takes_payments() -> bool:
        return takes_payments

    async def provide_webhooks_private() -> bool:
        return webhooks_private

    return Litestar(
        route_handlers=[*routers, *health.handlers()],
        dependencies={
            "tenant": Provide(_tenant),
            "shards": Provide(provide_shards),
            "blobs": Provide(provide_blobs),
            "reports_wall": Provide(provide_reports_wall),
            "vault": Provide(provide_vault),
            "takes_payments": Provide(provide_takes_payments),
            "webhooks_private": Provide(provide_webhooks_private),
        },
        exception_handlers=answers.HANDLERS,
        openapi_config=None,
        logging_config=None,
        request_max_body_size=BODY_BYTES_MAX,
    )


async def _tenant(scope: Scope) -> TenantContext:
    context: TenantContext = scope[CONTEXT]  # type: ignore[typeddict-item]
    return context


def operations(application: Litestar, levels: Sequence[Rule] = LEVELS) -> Operations:
    """What the wall calls the requests of the product."""
    return Operations((route.path for route in application.routes), levels)


def internal(
    transfer: Transfer,
    health: Health,
    registry: CollectorRegistry,
    token: str,
    usage: Exchange,
    more: Sequence[Router] = (),
) -> Litestar:
    """The transfer API with ``more`` of its commands, metrics and usage for the bearer of ``token``; health for all."""
    return Litestar(
        route_handlers=[
            transfer_api.router(transfer, more),
            metrics_page(registry),
            usage_page(usage),
            *health.handlers(),
        ],
        guards=[transfer_api.token_guard(token)],
        exception_handlers=answers.HANDLERS,
        openapi_config=None,
        logging_config=None,
    )


def metrics_page(registry: CollectorRegistry) -> HTTPRouteHandler:
    """``GET /metrics`` in Prometheus' text format."""

    @get("/metrics", opt={"access": transfer_api.ACCESS})
    async def metrics() -> Response[bytes]:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return metrics


def run(configured: ApiSettings) -> int:
    """The API process until SIGTERM; the exit status."""
    try:
        data, inner = servers.listen(configured.listen), servers.listen(configured.internal_listen)
    except servers.ListenError as e:
        settings.misconfigured(str(e))
    with data, inner:
        try:
            return servers.run(_serve(configured, data, inner))
        except (ShardUnavailableError, DirectoryError) as e:
            sys.stderr.write(f"cell: {e}\n")
            return 1


async def _serve(configured: ApiSettings, data: Any, inner: Any) -> int:
    clock = asyncio.get_running_loop().time
    application = f"cellwall-api-{configured.name}"
    directory, password = configured.directory_dsn.get_secret_value(), configured.app_password.get_secret_value()
    gate = Gate(clock)
    meter = Meter(f"api-{secrets.token_hex(4)}")
    async with contextlib.AsyncExitStack() as stack:
        databases = await stack.enter_async_context(
            pools.opened(directory, password, configured.pool_size, application, meter.spent)
        )
        transfers = await stack.enter_async_context(
            pools.transfer_pools(
                databases.shard_map.shards,
                configured.transfer_password.get_secret_value(),
                TRANSFER_CONNECTIONS,
                f"cellwall-transfer-{configured.name}",
            )
        )
        health = Health(databases, (migrate.head(migrate.DIRECTORY), migrate.head(migrate.SHARD)), clock)
        metrics = CellMetrics(configured.name, lambda: gate.in_flight)
        vault = Vault(keys.cell_key(configured.secrets_key.get_secret_value()))
        transfer = Transfer(
            cell=configured.name,
            schema=migrate.head(migrate.SHARD),
            pools=transfers,
            shard_of=databases.shard_map.shard_of,
            gate=gate,
            create_owner=create_owner,
            clock=clock,
            vault=vault,
            kinds=KINDS,
            refresh=databases.shard_map.refresh,
        )
        queue = QueueWall(configured.walls.reports, partial(metrics.observed, "reports", QUEUE_FULL))
        files = blobs.opened(configured.blobs)
        served = product(
            databases.shards,
            health,
            files,
            routers_of(OldUrls(configured.old_urls)),
            reports_wall=queue,
            vault=vault,
            takes_payments=configured.payments_url is not None,
            webhooks_private=configured.webhooks_private,
        )
        wall = _wall(configured, served, databases, metrics)
        ingress = Ingress(
            served,
            cell=configured.name,
            envelope_key=keys.parse_root(configured.envelope_key.get_secret_value()),
            gate=gate,
            metrics=metrics,
            meter=meter,
            wall=wall,
            clock=time.monotonic,  # the loop's own, but not rounded to milliseconds
        )
        redis = await stack.enter_async_context(connect(configured.redis_url.get_secret_value()))
        exchange = Exchange(redis, configured.name)
        token = configured.transfer_token.get_secret_value()
        streams = await stack.enter_async_context(_streams(configured, databases, transfers, files, vault))
        rebucketing = await stack.enter_async_context(_rebucketing(configured, databases, transfers))
        more = [streams_api.router(streams), shards_api.router(rebucketing)]
        inside = internal(transfer, health, metrics.registry, token, exchange, more)
        listeners = [
            Listener(ingress, data),
            Listener(InternalWall(inside, wall, token, time.monotonic), inner),
        ]
        await stack.enter_async_context(servers.running(transfer.shedder.run))
        reports = await stack.enter_async_context(_agent(configured, databases, health, gate))
        await stack.enter_async_context(_metering(configured, databases, meter, exchange, metrics, reports))
        await servers.serve(listeners, health.drain)
    return 0


@contextlib.asynccontextmanager
async def _streams(
    configured: ApiSettings, databases: Databases, transfers: Mapping[str, Pool], files: Blobs, vault: Vault
) -> AsyncIterator[Streams]:
    """What large moves need; readers and snapshots end with the process."""
    shards, password = databases.shard_map.shards, configured.transfer_password.get_secret_value()
    streams = Streams(
        pools=transfers,
        shard_of=databases.shard_map.shard_of,
        login=lambda name: Login.to(shards[name], password, f"cellwall-stream-{configured.name}"),
        blobs=files,
        vault=vault,
        clock=asyncio.get_running_loop().time,
    )
    try:
        yield streams
    finally:
        await streams.shut()


@contextlib.asynccontextmanager
async def _rebucketing(
    configured: ApiSettings, databases: Databases, transfers: Mapping[str, Pool]
) -> AsyncIterator[Rebucketing]:
    """What plans and carries out moves between shards, and what keeps this process's map of them new."""
    clock = asyncio.get_running_loop().time
    dsn, password = configured.directory_dsn.get_secret_value(), configured.transfer_password.get_secret_value()
    async with (
        pools.following(databases, f"api-{secrets.token_hex(4)}"),
        pools.directory_for_transfer(dsn, password, f"cellwall-shards-{configured.name}") as directory,
        servers.running(Mover(directory=directory, pools=transfers, clock=clock).run),
    ):
        yield Rebucketing(directory, transfers)


def _wall(configured: ApiSettings, application: Litestar, databases: Databases, metrics: CellMetrics) -> Wall:
    walls = configured.walls
    config = Config.fit(
        configured.pool_size,
        Enforced(walls.fairness, walls.limits, walls.timeouts),
        interactive=configured.seats_interactive,
        batch=configured.seats_batch,
        tenant_room=configured.waiting_per_tenant,
        room=configured.waiting,
        per_s=configured.key_requests_per_s,
        burst=configured.key_burst,
        interactive_s=configured.interactive_s,
        batch_share=configured.batch_share,
    )
    wall = Wall(
        config,
        operations(application),
        databases.shard_map.shard_of,
        metrics,
        clock=time.monotonic,
        seed=secrets.randbits(64),
    )
    metrics.show_seats(wall.seats)
    return wall


@contextlib.asynccontextmanager
async def _metering(
    configured: ApiSettings,
    databases: Databases,
    meter: Meter,
    exchange: Exchange,
    metrics: CellMetrics,
    reports: UsageReports | None,
) -> AsyncIterator[None]:
    """The collector beside the servers, on connections of its own: a busy cell is measured too."""

    def tell(window: Window) -> None:
        if reports is not None:
            reports.offer(window)

    password, application = configured.transfer_password.get_secret_value(), f"cellwall-meter-{configured.name}"
    async with pools.transfer_pools(databases.shard_map.shards, password, 1, application) as connections:
        collector = Collector(
            cell=configured.name,
            publisher=Publisher(meter, exchange),
            meter=meter,
            exchange=exchange,
            databases=connections,
            metrics=UsageMetrics(configured.name, metrics.registry),
            sink=tell,
            clock=asyncio.get_running_loop().time,
            wall_clock=time.time,
        )
        async with servers.running(collector.run):
            yield


@contextlib.asynccontextmanager
async def _agent(
    configured: ApiSettings, databases: Databases, health: Health, gate: Gate
) -> AsyncIterator[UsageReports | None]:
    """The agent beside the servers, where the settings name a control plane; what usage is told to, or None."""
    if configured.control_plane_url is None or configured.agent_token is None:
        yield None
        return
    registration = Registration(
        address=configured.advertise or configured.listen,
        internal_address=configured.internal_advertise or configured.internal_listen,
        region=configured.region,
        tier=configured.tier,
        capacity=configured.capacity,
        shards=databases.shards.names,
        schema=migrate.head(migrate.SHARD),
        version=configured.version or package_version(),
    )
    async with control_plane_at(configured.control_plane_url, configured.agent_token.get_secret_value()) as http:
        agent = Agent(
            http, cell=configured.name, registration=registration, shards=databases.shards, health=health, gate=gate
        )
        reports = UsageReports(http, cell=configured.name)
        async with servers.running(agent.run, reports.run):
            yield reports
