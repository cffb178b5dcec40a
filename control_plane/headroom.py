"""The load of the fleet over weeks, a sample an hour and pool, and the forecast made of it."""

from statistics import fmean
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts.usage import Window
from control_plane.cells import Cell, fleet_of
from control_plane.forecast import FULL_AT, Pool, Sample, due
from control_plane.models import metadata
from control_plane.plan_views import ForecastView, PoolView
from control_plane.usage import windows_of

KEEP_DAYS: Final = 60
LOOK_BACK_S: Final = 60.0  # of usage, for one sample
_DAY_S: Final = 86_400.0

load_samples: Final = sa.Table(
    "load_samples",
    metadata,
    sa.Column("region", sa.Text, primary_key=True),
    sa.Column("tier", sa.Text, primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), primary_key=True),  # the hour that it was taken in
    sa.Column("tenants", sa.Integer, nullable=False),
    sa.Column("busy", sa.Float),  # database seconds a second and shard, over the cells that told their usage
)

_HOUR: Final = sa.func.date_trunc("hour", sa.func.clock_timestamp())


class Headroom:
    """Takes samples, and forecasts. Safe to run in several processes: the first sample of an hour counts."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def sample(self) -> bool:
        """Note how full each pool is, once an hour; whether that was now."""
        async with self._engine.begin() as conn:
            taken = sa.select(sa.exists().where(load_samples.c.at == _HOUR))
            if (await conn.execute(taken)).scalar_one():
                return False
            pools = _pools(await fleet_of(conn))
            busy = await _busy(conn)
            rows = [
                {"region": p.region, "tier": p.tier, "tenants": p.tenants, "busy": _mean(busy, names)}
                for p, names in pools
            ]
            if rows:
                await conn.execute(insert(load_samples).values(at=_HOUR).on_conflict_do_nothing(), rows)
            old = sa.func.clock_timestamp() - sa.func.make_interval(0, 0, 0, KEEP_DAYS)
            await conn.execute(sa.delete(load_samples).where(load_samples.c.at < old))
        return bool(rows)

    async def forecast(self, full_at: float = FULL_AT) -> ForecastView:
        """For each pool when the next cell is due; the most urgent first."""
        async with self._engine.connect() as conn:
            pools = _pools(await fleet_of(conn))
            rows = await conn.execute(sa.select(load_samples).order_by(load_samples.c.at))
            history: dict[tuple[str, str], list[Sample]] = {}
            for row in rows:
                day = row.at.timestamp() / _DAY_S
                history.setdefault((row.region, row.tier), []).append(Sample(day, row.tenants, row.busy))
        views = [_view(pool, history.get((pool.region, pool.tier), []), full_at) for pool, _ in pools]
        views.sort(key=lambda v: (v.due_days is None, v.due_days or 0.0, v.region, v.tier))
        return ForecastView(full_at, views)


def _pools(fleet: list[Cell]) -> list[tuple[Pool, list[str]]]:
    """Every pool with the names of its cells. Places are those of open cells; tenants are everybody's."""
    keys = sorted({(cell.region, cell.tier) for cell in fleet})
    found = []
    for region, tier in keys:
        cells = [cell for cell in fleet if (cell.region, cell.tier) == (region, tier)]
        open_ = [cell for cell in cells if cell.state == "active"]
        pool = Pool(region, tier, len(open_), sum(c.tenants for c in cells), sum(c.capacity for c in open_))
        found.append((pool, [cell.name for cell in cells]))
    return found


async def _busy(conn: AsyncConnection) -> dict[str, float]:
    told = await windows_of(conn, LOOK_BACK_S)
    return {cell: fmean(map(_database, windows)) for cell, windows in told.items()}


def _database(window: Window) -> float:
    return sum(shard.active_ms for shard in window.shards) / max(1, len(window.shards)) / 1000 / window.seconds


def _mean(busy: dict[str, float], names: list[str]) -> float | None:
    known = [busy[name] for name in names if name in busy]
    return fmean(known) if known else None


def _view(pool: Pool, samples: list[Sample], full_at: float) -> PoolView:
    d = due(pool, samples, full_at)
    return PoolView(
        pool.region, pool.tier, pool.cells, pool.tenants, pool.places, d.growth_per_day, d.busy, d.history_days, d.days,
        d.reason,
    )  # fmt: skip
