"""Cell zero's process: the ambassador behind the cells' own ingress, the internal listener, the agent."""

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
from litestar import Litestar, Router
from prometheus_client import CollectorRegistry

from cell import answers, servers
from cell.agent import Agent, control_plane_at, package_version
from cell.app import metrics_page
from cell.fairness.levels import Operations
from cell.fairness.wall import Config, Wall
from cell.health import Probes
from cell.ingress import Ingress
from cell.metering import Meter
from cell.metrics import CellMetrics
from cell.modules.catalog.public import CONSUMERS
from cell.schema import migrate
from cell.servers import Listener
from cell.shards.directory import Shard, ShardMap
from cell.shards.errors import DATABASE_FAILED
from cell.shards.session import Pool, Shards
from cell.transfer import api as transfer_api
from cell.transfer import streams_api
from cell.transfer.api import token_guard
from cell.vault import Vault
from cell.zero import database, door, settings
from cell.zero.ambassador import Ambassador
from cell.zero.api import router as zero_router
from cell.zero.door import Door, DoorError
from cell.zero.exchange import Upstream
from cell.zero.health import ZeroHealth
from cell.zero.identity import Sessions
from cell.zero.metrics import ZeroMetrics
from cell.zero.modern import CONNECTIONS, ModernCell, Paths
from cell.zero.quarantine import Watch
from cell.zero.rehearsal import router as rehearsal_router
from cell.zero.settings import AmbassadorSettings
from cell.zero.shadow import Shadows
from cell.zero.shadow_api import router as shadow_router
from cell.zero.streams import ZeroStreams, login_of
from cell.zero.transfer import ZeroTransfer
from contracts import ids, keys
from contracts.fleet import Registration

SHARD: Final = "monolith"
POOL: Final = 12
# An answer that nobody waits for any more still has its connection to the monolith.
CONNECTIONS_PER_SEAT: Final = 2
# What tells requests of the monolith apart for their estimates: its pages.
OPERATIONS: Final = ("/{page}.php",)


@dataclass(frozen=True, slots=True)
class Zero:
    """Cell zero, composed. ``tasks`` run beside the listeners."""

    ingress: Ingress
    inside: Litestar
    door: Door
    health: ZeroHealth
    shadows: Shadows
    transfer: ZeroTransfer
    tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]]


def internal(health: Probes, registry: CollectorRegistry, token: str, *routers: Router) -> Litestar:
    """Metrics and ``routers`` for the bearer of ``token``; health for everybody."""
    return Litestar(
        route_handlers=[*routers, metrics_page(registry), *health.handlers()],
        guards=[token_guard(token)],
        exception_handlers=answers.HANDLERS,
        openapi_config=None,
        logging_config=None,
    )


@contextlib.asynccontextmanager
async def composed(configured: AmbassadorSettings) -> AsyncIterator[Zero]:
    """All parts, connected, without listeners."""
    clock = asyncio.get_running_loop().time
    dsn, most = configured.dsn.get_secret_value(), configured.body_bytes
    async with contextlib.AsyncExitStack() as stack:
        pool = await stack.enter_async_context(database.opened(dsn, POOL, door.APPLICATION))
        monolith = Upstream(
            configured.monolith,
            connections=configured.at_once * CONNECTIONS_PER_SEAT,
            longest_s=configured.longest_request_s,
            most=most,
        )
        stack.push_async_callback(monolith.aclose)
        cells = await _cells(stack, configured)
        gate = Door(pool, longest_s=configured.longest_request_s, clock=clock)
        metrics = CellMetrics(configured.name, lambda: gate.in_flight)
        counted = ZeroMetrics(configured.name, metrics.registry)
        health = ZeroHealth(pool, gate, configured.monolith, clock)
        shadows = Shadows(pool, monolith, cells, counted.shadowed)
        token = configured.transfer_token.get_secret_value()
        vault = Vault(keys.cell_key(configured.secrets_key.get_secret_value()))
        transfer = ZeroTransfer(
            cell=configured.name,
            schema=migrate.head(migrate.SHARD),
            pool=pool,
            door=gate,
            counting=CONSUMERS,
            vault=vault,
            clock=clock,
        )
        streams = ZeroStreams(pool, login_of(dsn, f"{door.APPLICATION}-stream"), vault, clock)
        stack.push_async_callback(streams.shut)
        routers = (
            transfer_api.router(transfer, [streams_api.router(streams)]),
            zero_router(pool),
            shadow_router(shadows),
            rehearsal_router(pool),
        )
        inside = internal(health, metrics.registry, token, *routers)
        ambassador = Ambassador(
            gate,
            monolith,
            Sessions(pool),
            Paths({path: cells[name] for path, name in configured.paths.items()}),
            shadows,
            inside,
            counted,
            clock,
        )
        ingress = Ingress(
            ambassador,
            cell=configured.name,
            envelope_key=keys.parse_root(configured.envelope_key.get_secret_value()),
            gate=gate,
            metrics=metrics,
            meter=Meter(f"zero-{secrets.token_hex(4)}"),
            wall=_wall(configured, metrics),
            clock=time.monotonic,
        )

        async def keep() -> None:
            await gate.keep(lambda: _connect(dsn), asyncio.sleep)

        watch = Watch(pool, metrics.registry)
        tasks = [keep, shadows.run, watch.run, transfer.shedder.run]
        agent = await _agent(stack, configured, pool, health, gate)
        if agent is not None:
            tasks.append(agent.run)
        yield Zero(ingress, inside, gate, health, shadows, transfer, tasks)


async def _cells(stack: contextlib.AsyncExitStack, configured: AmbassadorSettings) -> dict[str, ModernCell]:
    cells = {}
    for name, cell in configured.cells.items():
        upstream = Upstream(
            f"http://{cell.address}",
            connections=CONNECTIONS,
            longest_s=configured.longest_request_s,
            most=configured.body_bytes,
        )
        cells[name] = ModernCell(name, upstream, keys.parse_root(cell.envelope_key.get_secret_value()))
        stack.push_async_callback(cells[name].aclose)
    return cells


async def _connect(dsn: str) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(
        dsn, timeout=database.CONNECT_TIMEOUT_S, server_settings={"application_name": f"{door.APPLICATION}-sole"}
    )


def _wall(configured: AmbassadorSettings, metrics: CellMetrics) -> Wall:
    """The seats of the monolith are what it gets at a time: it has no wall of its own."""
    config = Config.fit(configured.at_once + 2, interactive_s=configured.longest_request_s)
    wall = Wall(
        config,
        Operations(OPERATIONS, ()),
        lambda _: SHARD,
        metrics,
        clock=time.monotonic,
        seed=secrets.randbits(64),
    )
    metrics.show_seats(wall.seats)
    return wall


async def _agent(
    stack: contextlib.AsyncExitStack, configured: AmbassadorSettings, pool: Pool, health: Probes, gate: Door
) -> Agent | None:
    if configured.control_plane_url is None or configured.agent_token is None:
        return None
    shard = Shard(SHARD, "", 0, "")
    shards = Shards(ShardMap({SHARD: shard}, (SHARD,) * ids.BUCKETS, {}), {SHARD: pool})
    registration = Registration(
        address=configured.advertise or configured.listen,
        internal_address=configured.internal_advertise or configured.internal_listen,
        region=configured.region,
        tier="shared",
        capacity=0,  # nobody is placed here: tenants only leave
        shards=shards.names,
        schema=migrate.head(migrate.SHARD),
        version=package_version(),
    )
    token = configured.agent_token.get_secret_value()
    http = await stack.enter_async_context(control_plane_at(configured.control_plane_url, token))
    return Agent(http, cell=configured.name, registration=registration, shards=shards, health=health, gate=gate)


def run(configured: AmbassadorSettings) -> int:
    """The process until SIGTERM; the exit status."""
    try:
        data, inner = servers.listen(configured.listen), servers.listen(configured.internal_listen)
    except servers.ListenError as e:
        settings.stop(str(e))
    with data, inner:
        try:
            return servers.run(_serve(configured, data, inner))
        except (DoorError, *DATABASE_FAILED) as e:
            sys.stderr.write(f"cell zero: {e or type(e).__name__}\n")
            return 1


async def _serve(configured: AmbassadorSettings, data: Any, inner: Any) -> int:
    connection = await _connect(configured.dsn.get_secret_value())
    try:
        await door.check_rights(connection)
    finally:
        await connection.close()
    async with composed(configured) as zero, servers.running(*zero.tasks):
        await servers.serve([Listener(zero.ingress, data), Listener(zero.inside, inner)], zero.health.drain)
    return 0
