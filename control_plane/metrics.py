"""``/metrics``: the log's revision, cells and routers as the database has them at the moment of the scrape."""

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.names import METRICS_PREFIX, Metric
from control_plane.cells import fleet_of
from control_plane.routes import cursor


class FleetMetrics:
    """Gauges that are read from the database when asked for; labels are cells only."""

    def __init__(self, engine: AsyncEngine, registry: CollectorRegistry) -> None:
        self._engine = engine
        self._registry = registry
        self._revision = Gauge(Metric.CONTROL_REVISION, "The newest revision of the route log", registry=registry)
        per_cell = {
            "tenants": "Tenants placed in the cell, those on their way to it included",
            "capacity": "Tenants that the cell takes",
            "healthy": "1 if the cell is ready and its lease runs",
        }
        self._per_cell = {
            name: Gauge(f"{METRICS_PREFIX}control_cell_{name}", text, ("cell",), registry=registry)
            for name, text in per_cell.items()
        }

    async def scrape(self) -> bytes:
        """The text exposition format."""
        async with self._engine.connect() as conn:
            self._revision.set((await cursor(conn)).revision)
            fleet = await fleet_of(conn)
        for gauge in self._per_cell.values():
            gauge.clear()
        for cell in fleet:
            self._per_cell["tenants"].labels(cell.name).set(cell.tenants)
            self._per_cell["capacity"].labels(cell.name).set(cell.capacity)
            self._per_cell["healthy"].labels(cell.name).set(cell.healthy)
        return generate_latest(self._registry)


def metrics_handler(metrics: FleetMetrics) -> HTTPRouteHandler:
    """The handler of ``GET /metrics``."""

    @get("/metrics", opt={"access": "viewer"})
    async def scrape() -> Response[bytes]:
        return Response(await metrics.scrape(), media_type=CONTENT_TYPE_LATEST)

    return scrape
