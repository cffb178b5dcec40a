"""Composition: two Litestar apps (API and front door) on two listeners of one uvloop loop, and the work behind them.

The control plane is off the request path: when it stops, tenants work on. Stopping is graceful: listeners close, long
polls answer at once, requests in flight finish, a running move stops at its last committed state.
"""

import asyncio
import contextlib
import random
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Final

import httpx
import structlog
import uvicorn
from litestar import Litestar, Router
from litestar.di import Provide
from litestar.types import ControllerRouterHandler
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import routes
from contracts.keys import Purpose, derive
from control_plane import api, frontdoor, moves_api, plans_api, routes_api, shards_api, usage_api, zero_api
from control_plane.auth import api_guard, front_door_guard
from control_plane.batch_service import Batches
from control_plane.cell_client import CellClient
from control_plane.cells import Cells
from control_plane.frontdoor import WorkspaceFinder
from control_plane.headroom import Headroom
from control_plane.leader import Leader
from control_plane.mail import FileMailer, Mailer, NoMail
from control_plane.metrics import FleetMetrics, metrics_handler
from control_plane.move_metrics import MoveMetrics
from control_plane.move_runner import CONCURRENT_MOVES, MoveRunner
from control_plane.move_service import Moves
from control_plane.mover import Boundary, Mover, unobserved
from control_plane.noisy_service import Noisy
from control_plane.noisy_watcher import Watcher
from control_plane.reconciler import Reconciler
from control_plane.routes import RouteLog, forget_superseded
from control_plane.settings import MoverSettings, PlaneSettings, Settings, SettingsError
from control_plane.shards import CellShards
from control_plane.signals import Signals
from control_plane.tenants import Tenancy
from control_plane.usage import Usage
from control_plane.wave_runner import WaveRunner
from control_plane.web import EXCEPTION_HANDLERS, health_handlers, provide_actor
from control_plane.zero import Zero

SWEEP_S: Final = 5.0
AGAIN_S: Final = 1.0  # after work has ended or failed: a database that is away is asked once a second, not in a loop
KEEP_SUPERSEDED_S: Final = 7 * 86_400.0  # how long replaced route records stay, for people who ask what happened
GRACE_S: Final = 10
MAX_BODY: Final = 64 * 1024
BACKLOG: Final = 512

log = structlog.get_logger()

FLEET_HINT: Final = "fleet"  # the name under which the route-hint key is derived


@dataclass(frozen=True)
class Services:
    """Everything that handlers need and that runs behind them, composed once by `compose`."""

    engine: AsyncEngine
    signals: Signals
    route_log: RouteLog
    cells: Cells
    tenancy: Tenancy
    moves: Moves
    runner: MoveRunner
    reconciler: Reconciler
    finder: WorkspaceFinder
    metrics: FleetMetrics
    usage: Usage
    noisy: Noisy
    watcher: Watcher
    batches: Batches
    waves: WaveRunner
    headroom: Headroom
    zero: Zero
    cell_shards: CellShards


def compose(
    engine: AsyncEngine,
    http: httpx.AsyncClient,
    *,
    fleet_root: bytes,
    base_domain: str,
    mailer: Mailer,
    clock: Callable[[], float],
    rng: random.Random,
    on_boundary: Boundary = unobserved,
    concurrent_moves: int = CONCURRENT_MOVES,
) -> Services:
    """Wire the services. ``clock`` is monotonic seconds; ``on_boundary`` is told of every committed state of a move."""
    registry = CollectorRegistry()
    signals = Signals()
    route_log = RouteLog(engine, signals, clock)
    client = CellClient(http, fleet_root)
    hint_key = derive(fleet_root, Purpose.ROUTE_HINT, FLEET_HINT)
    email_key = derive(fleet_root, Purpose.EMAIL, "owners")
    tenancy = Tenancy(engine, client, route_log, base_domain=base_domain, email_key=email_key, rng=rng)
    mover = Mover(engine, route_log, client, hint_key, MoveMetrics(registry), on_boundary=on_boundary)
    moves = Moves(engine, client)
    batches = Batches(engine, client, rng)
    return Services(
        engine,
        signals,
        route_log,
        Cells(engine),
        tenancy,
        moves,
        MoveRunner(engine, signals, mover, concurrent=concurrent_moves),
        Reconciler(engine, client, hint_key),
        WorkspaceFinder(tenancy, mailer, base_domain, clock),
        FleetMetrics(engine, registry),
        Usage(engine),
        Noisy(engine),
        Watcher(engine, moves, rng, registry),
        batches,
        WaveRunner(engine, signals, moves, rng, registry),
        Headroom(engine),
        Zero(engine, client, batches, base_domain=base_domain, email_key=email_key, rng=rng),
        CellShards(engine, client),
    )


def create_app(services: Services, fleet_root: bytes) -> Litestar:
    """The API for operators, agents and routers."""
    handlers: list[ControllerRouterHandler] = [
        api.router,
        routes_api.router,
        moves_api.moves_router,
        plans_api.router,
        zero_api.router,
        shards_api.router,
        usage_api.router,
        metrics_handler(services.metrics),
        *health_handlers(services.engine),
    ]
    return _litestar(services, Router("/", route_handlers=handlers, guards=[api_guard(services.engine, fleet_root)]))


def create_mover_app(services: Services, fleet_root: bytes) -> Litestar:
    """What a process that only leads answers: health and, to operators, the figures of its moves."""
    handlers: list[ControllerRouterHandler] = [metrics_handler(services.metrics), *health_handlers(services.engine)]
    return _litestar(services, Router("/", route_handlers=handlers, guards=[api_guard(services.engine, fleet_root)]))


def create_front_door(services: Services, key: bytes) -> Litestar:
    """The public API behind the router."""
    handlers: list[ControllerRouterHandler] = [frontdoor.router, *health_handlers(services.engine)]
    return _litestar(services, Router("/", route_handlers=handlers, guards=[front_door_guard(key)]))


def _litestar(services: Services, root: Router) -> Litestar:
    provided = {
        "engine": services.engine,
        "route_log": services.route_log,
        "fleet_cells": services.cells,
        "tenancy": services.tenancy,
        "moves": services.moves,
        "finder": services.finder,
        "usage": services.usage,
        "noisy": services.noisy,
        "batches": services.batches,
        "headroom": services.headroom,
        "zero": services.zero,
        "cell_shards": services.cell_shards,
    }
    return Litestar(
        [root],
        dependencies={name: Provide(_constant(value), sync_to_thread=False) for name, value in provided.items()}
        | {"actor": Provide(provide_actor, sync_to_thread=False)},
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_config=None,  # its pages would be open to everybody
        request_max_body_size=MAX_BODY,
        logging_config=None,
    )


def _constant(value: object) -> Callable[[], object]:
    def provide() -> object:
        return value

    return provide


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: `serve` stops both listeners together."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def bind(address: str) -> socket.socket:
    """A listening socket, or `SettingsError` where the address cannot be had."""
    host, port = routes.split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as e:
        listener.close()
        raise SettingsError(f"cannot listen on {address}: {e.strerror or e}") from None
    listener.setblocking(False)
    return listener


async def serve(settings: Settings, *, on_boundary: Boundary = unobserved) -> None:
    """Run until SIGTERM or SIGINT; lead when it is this process's turn. `SettingsError`: an address cannot be had."""
    mailer = FileMailer(settings.mail_dir) if settings.mail_dir else NoMail()
    with _bound(settings.listen, settings.front_door_listen) as sockets:
        async with _composed(settings, mailer, on_boundary) as services:
            apps = (
                create_app(services, settings.fleet_key()),
                create_front_door(services, settings.envelope_key()),
            )
            await _run(apps, sockets, services, settings, may_lead=settings.mover)


async def move(settings: MoverSettings, *, on_boundary: Boundary = unobserved) -> None:
    """The leader's work alone, beside processes of `serve` that may not lead. Ends and fails as `serve` does."""
    with _bound(settings.mover_listen) as sockets:
        async with _composed(settings, NoMail(), on_boundary) as services:
            await _run((create_mover_app(services, settings.fleet_key()),), sockets, services, settings, may_lead=True)


@contextlib.contextmanager
def _bound(*addresses: str) -> Iterator[list[socket.socket]]:
    """Listening sockets, closed in the end whoever served them."""
    with contextlib.ExitStack() as opened:
        yield [opened.enter_context(bind(address)) for address in addresses]


@contextlib.asynccontextmanager
async def _composed(settings: PlaneSettings, mailer: Mailer, on_boundary: Boundary) -> AsyncIterator[Services]:
    engine = settings.engine()
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
    try:
        async with httpx.AsyncClient(limits=limits, trust_env=False) as http:
            yield compose(
                engine,
                http,
                fleet_root=settings.fleet_key(),
                base_domain=settings.base_domain,
                mailer=mailer,
                clock=asyncio.get_running_loop().time,
                rng=random.SystemRandom(),
                on_boundary=on_boundary,
                concurrent_moves=settings.concurrent_moves,
            )
    finally:
        await engine.dispose()
    log.info("control_plane_stopped")


async def _run(
    apps: tuple[Litestar, ...],
    sockets: list[socket.socket],
    services: Services,
    settings: PlaneSettings,
    *,
    may_lead: bool,
) -> None:
    background = _background(services, settings.plain_dsn(), may_lead)
    try:
        await _listen(apps, sockets, services)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await services.tenancy.drain()
        await services.finder.drain()


async def _listen(apps: tuple[Litestar, ...], sockets: list[socket.socket], services: Services) -> None:
    servers = [_Server(_uvicorn(app)) for app in apps]

    def stop() -> None:
        services.signals.close()
        for server in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    log.info("control_plane_started", listeners=[":".join(map(str, s.getsockname()[:2])) for s in sockets])
    try:
        await asyncio.gather(*(server.serve([s]) for server, s in zip(servers, sockets, strict=True)))
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _uvicorn(app: Litestar) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
    )


def _background(services: Services, dsn: str, may_lead: bool) -> list[asyncio.Task[None]]:
    async def lead(term: int) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(services.runner.run(term))
            group.create_task(services.reconciler.run(term))
            group.create_task(_forever("batches_failed", lambda: services.waves.run(term)))
            group.create_task(_forever("watching_failed", services.watcher.run))
            group.create_task(_forever("housekeeping_failed", lambda: _keep_house(services)))

    tasks = [asyncio.create_task(_forever("notices_failed", lambda: services.signals.run(dsn)))]
    if may_lead:
        leader = Leader(dsn, socket.gethostname())
        tasks.append(asyncio.create_task(_forever("leadership_failed", lambda: leader.run(lead))))
    return tasks


async def _forever(event: str, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception:
            log.exception(event)
        await asyncio.sleep(AGAIN_S)


async def _keep_house(services: Services) -> None:
    while True:
        await services.tenancy.sweep()
        await services.headroom.sample()
        async with services.engine.begin() as conn:
            await forget_superseded(conn, KEEP_SUPERSEDED_S)
        await asyncio.sleep(SWEEP_S)
