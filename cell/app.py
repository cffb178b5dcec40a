"""The API process, composed: the product behind the ingress, and the transfer API on the internal listener."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import httpx
from litestar import Litestar, Response, Router, get
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from cell import answers, servers, settings
from cell.agent import TIMEOUT_S, Agent, package_version
from cell.gate import Gate
from cell.health import Health
from cell.ingress import CONTEXT, Ingress
from cell.metrics import CellMetrics
from cell.modules.accounts.api import router as accounts
from cell.modules.accounts.public import create_owner
from cell.modules.catalog.api import router as catalog
from cell.modules.orders.api import router as orders
from cell.modules.reports.api import router as reports
from cell.schema import migrate
from cell.servers import Listener
from cell.settings import ApiSettings
from cell.shards import pools
from cell.shards.context import TenantContext
from cell.shards.errors import DirectoryError, ShardUnavailableError
from cell.shards.pools import Databases
from cell.shards.session import Shards
from cell.transfer import api as transfer_api
from cell.transfer.service import Transfer
from contracts import keys
from contracts.fleet import Registration

TRANSFER_CONNECTIONS: Final = 6  # per shard
BODY_BYTES_MAX: Final = 4 << 20  # whatever a handler asks for
PRODUCT: Final[Sequence[Router]] = (accounts, catalog, orders, reports)


def product(shards: Shards, health: Health, routers: Sequence[Router] = PRODUCT) -> Litestar:
    """The product. Handlers get ``tenant`` and ``shards``; it must be served behind an `Ingress`."""

    async def provide_shards() -> Shards:
        return shards

    return Litestar(
        route_handlers=[*routers, *health.handlers()],
        dependencies={"tenant": Provide(_tenant), "shards": Provide(provide_shards)},
        exception_handlers=answers.HANDLERS,
        openapi_config=None,
        logging_config=None,
        request_max_body_size=BODY_BYTES_MAX,
    )


async def _tenant(scope: Scope) -> TenantContext:
    context: TenantContext = scope[CONTEXT]  # type: ignore[typeddict-item]
    return context


def internal(transfer: Transfer, health: Health, registry: CollectorRegistry, token: str) -> Litestar:
    """The transfer API and metrics for the bearer of ``token``; health for everybody."""
    return Litestar(
        route_handlers=[transfer_api.router(transfer), metrics_page(registry), *health.handlers()],
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
    async with contextlib.AsyncExitStack() as stack:
        databases = await stack.enter_async_context(
            pools.opened(directory, password, configured.pool_size, application)
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
        transfer = Transfer(
            cell=configured.name,
            schema=migrate.head(migrate.SHARD),
            pools=transfers,
            shard_of=databases.shard_map.shard_of,
            gate=gate,
            create_owner=create_owner,
            clock=clock,
        )
        ingress = Ingress(
            product(databases.shards, health),
            cell=configured.name,
            envelope_key=keys.parse_root(configured.envelope_key.get_secret_value()),
            gate=gate,
            metrics=metrics,
            clock=clock,
        )
        token = configured.transfer_token.get_secret_value()
        listeners = [
            Listener(ingress, data),
            Listener(internal(transfer, health, metrics.registry, token), inner),
        ]
        await stack.enter_async_context(_agent(configured, databases, health, gate))
        await servers.serve(listeners, health.drain)
    return 0


@contextlib.asynccontextmanager
async def _agent(configured: ApiSettings, databases: Databases, health: Health, gate: Gate) -> AsyncIterator[None]:
    """The agent beside the servers, where the settings name a control plane."""
    if configured.control_plane_url is None or configured.agent_token is None:
        yield
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
    headers = {"authorization": f"Bearer {configured.agent_token.get_secret_value()}"}
    url = configured.control_plane_url
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as http:
        agent = Agent(
            http, cell=configured.name, registration=registration, shards=databases.shards, health=health, gate=gate
        )
        running = asyncio.get_running_loop().create_task(agent.run())
        try:
            yield
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
