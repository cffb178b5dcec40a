"""The admin listener: health, metrics and explanations, in a process of its own, off the request path.

``/live`` and ``/ready`` are open. Everything else needs the admin token and answers 401 while none is set.
"""

import asyncio
import contextlib
import hmac
import signal
import socket
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
from litestar import Litestar, Request, Response, get
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException
from litestar.handlers.base import BaseRouteHandler
from litestar.params import FromPath
from litestar.status_codes import HTTP_200_OK, HTTP_503_SERVICE_UNAVAILABLE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from contracts import problems
from contracts.names import Metric as Name
from contracts.problems import ProblemError
from router.board import DURATION_BUCKETS_S, Board, Phase
from router.locator import Explanation, Locator
from router.settings import ENV_PREFIX, FrontDoor
from router.table import RouteTable

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SHUTDOWN_S: Final = 2


@dataclass(frozen=True, slots=True)
class AdminConfig:
    """What the supervisor hands to the admin process. The locator's settings are those of the workers."""

    name: str
    listen_fd: int
    table_path: Path
    board: Board
    token: str | None
    trust_tenant_header: bool = False
    unknown_tenants_to: str | None = None
    front_door: FrontDoor | None = None


class WorkerView(msgspec.Struct, frozen=True):
    """One worker. ``revision`` is what every further decision of it obeys."""

    index: int
    pid: int
    phase: str
    revision: int


class ReadyView(msgspec.Struct, frozen=True):
    """Whether this router should get traffic, and if not, why."""

    ready: bool
    router: str
    revision: int
    log_id: str
    reasons: list[str]


class BoardCollector(Collector):
    """The sum of all workers' series. A worker that died keeps its counters, so sums never fall."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterable[Metric]:
        sums: dict[tuple[str, str], dict[tuple[tuple[str, str], ...], list[float]]] = {}
        for slot in self._board:
            for series in slot.series():
                labels = sums.setdefault((series.kind, series.name), {})
                key, values = tuple(sorted(series.labels.items())), slot.read(series)
                labels[key] = [a + b for a, b in zip(labels[key], values, strict=True)] if key in labels else values
        for (kind, name), labelled in sums.items():
            yield _family(kind, name, labelled)
        live = [s for slot in self._board if (s := slot.status()).phase is not Phase.ABSENT]
        revision = GaugeMetricFamily(Name.ROUTER_REVISION, "The route revision that every live worker obeys.")
        revision.add_metric([], min((status.revision for status in live), default=0))
        yield revision


def _family(kind: str, name: str, labelled: dict[tuple[tuple[str, str], ...], list[float]]) -> Metric:
    names = [label for label, _ in next(iter(labelled))]
    if kind == "h":
        histogram = HistogramMetricFamily(name, _HELP.get(name, name), labels=names)
        for key, values in labelled.items():
            histogram.add_metric([value for _, value in key], _buckets(values), values[-1])
        return histogram
    family = (CounterMetricFamily if kind == "c" else GaugeMetricFamily)(name, _HELP.get(name, name), labels=names)
    for key, values in labelled.items():
        family.add_metric([value for _, value in key], values[0])
    return family


def _buckets(values: list[float]) -> list[tuple[str, float]]:
    bounds = [*(str(bound) for bound in DURATION_BUCKETS_S), "+Inf"]
    total, buckets = 0.0, []
    for bound, count in zip(bounds, values[:-1], strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


_HELP: Final[dict[str, str]] = {
    Name.ROUTER_REQUESTS: "Requests answered, by cell and status code.",
    Name.ROUTER_DURATION: "Time from the end of the request head to the end of the answer.",
    Name.ROUTER_REFUSED: "Requests that the router answered by itself, by problem.",
    Name.ROUTER_RETRIES: "Requests that were sent again, by reason.",
    Name.ROUTER_HOLDS: "Requests that wait for a tenant's move.",
    Name.ROUTER_UPSTREAMS: "Open connections to cells.",
    Name.ROUTER_CLIENTS: "Open connections of clients.",
    Name.ROUTER_WALLS: "What went beyond a wall, by wall, and whether it was refused or only observed.",
}


def create_app(config: AdminConfig, table: RouteTable) -> Litestar:
    """The application, over one table of its own."""
    locator = Locator(
        table,
        trust_tenant_header=config.trust_tenant_header,
        unknown_tenants_to=config.unknown_tenants_to,
        front_door=config.front_door,
    )
    registry = CollectorRegistry()
    registry.register(BoardCollector(config.board))

    def operator(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        if config.token is None:
            raise ProblemError(problems.UNAUTHENTICATED, f"no admin token is configured: set {ENV_PREFIX}ADMIN_TOKEN")
        given = connection.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {config.token}".encode()):
            raise ProblemError(problems.UNAUTHENTICATED, headers={"WWW-Authenticate": "Bearer"})

    @get("/live", opt={"access": "health"}, sync_to_thread=False)
    def live() -> dict[str, bool]:
        """This process runs."""
        return {"live": True}

    @get("/ready", opt={"access": "health"}, sync_to_thread=False)
    def ready() -> Response[ReadyView]:
        """A whole table is shown and every worker serves."""
        table.refresh()
        view = ReadyView(not (reasons := _reasons(config, table)), config.name, table.revision, table.log_id, reasons)
        return Response(view, status_code=HTTP_200_OK if view.ready else HTTP_503_SERVICE_UNAVAILABLE)

    @get("/metrics", opt={"access": "operator"}, guards=[operator], sync_to_thread=False)
    def metrics() -> Response[bytes]:
        """The sums over all workers, for Prometheus."""
        return Response(generate_latest(registry), media_type=METRICS_TYPE)

    @get("/workers", opt={"access": "operator"}, guards=[operator], sync_to_thread=False)
    def workers() -> list[WorkerView]:
        """Which processes serve, and what they obey."""
        statuses = [(index, slot.status()) for index, slot in enumerate(config.board)]
        return [WorkerView(i, status.pid, status.phase.name.lower(), status.revision) for i, status in statuses]

    @get("/routes/{name:str}", opt={"access": "operator"}, guards=[operator], sync_to_thread=False)
    def explain(name: FromPath[str]) -> Explanation:
        """What a request for this host or tenant would meet. What a cell told one worker alone is not seen here."""
        table.refresh()
        return locator.explain(name)

    return Litestar(
        [live, ready, metrics, workers, explain],
        exception_handlers={ProblemError: _on_problem, HTTPException: _on_http_error, Exception: _on_error},
        openapi_config=None,
        logging_config=None,
    )


def _reasons(config: AdminConfig, table: RouteTable) -> list[str]:
    reasons = [] if table.complete else ["no whole route table has been loaded yet"]
    for index, slot in enumerate(config.board):
        phase = slot.status().phase
        if phase is not Phase.SERVING:
            reasons.append(f"worker {index} is {phase.name.lower()}")
    return reasons


def _problem(error: ProblemError) -> Response[bytes]:
    return Response(
        error.body(), status_code=error.problem.status, media_type=problems.CONTENT_TYPE, headers=error.headers
    )


def _on_problem(_: Request[Any, Any, Any], error: ProblemError) -> Response[bytes]:
    return _problem(error)


def _on_http_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    known = {404: problems.NOT_FOUND, 405: problems.METHOD_NOT_ALLOWED}.get(error.status_code)
    return _problem(ProblemError(known or problems.INVALID, error.detail if known is None else ""))


def _on_error(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    return _problem(ProblemError(problems.INTERNAL, type(error).__name__))


class _Server(uvicorn.Server):
    """uvicorn raises the signal that ended it once more, which would make a clean end look like a death."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def run(config: AdminConfig) -> int:
    """The process: serve until SIGTERM."""
    table = RouteTable.open(config.table_path)
    server = _Server(
        uvicorn.Config(
            create_app(config, table),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
    )
    asyncio.run(_serve(server, config.listen_fd))
    return 0


async def _serve(server: uvicorn.Server, listen_fd: int) -> None:
    def stop() -> None:
        server.should_exit = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    with socket.socket(fileno=listen_fd) as listener:
        await server.serve(sockets=[listener])
