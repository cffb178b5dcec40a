"""The snapshot that plans are made of: cells as placement sees them, and the tenants that a plan may be about."""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane import batch_store
from control_plane.cells import fleet_of
from control_plane.models import plans, tenants
from control_plane.move import State
from control_plane.move_store import moves
from control_plane.placement import CellFacts
from control_plane.plans import Resident, givers

SETTLE_S: Final = 3600.0  # a tenant that moved within this is left where it is by a rebalance


async def cells_now(conn: AsyncConnection) -> list[CellFacts]:
    """Every cell as placement sees it."""
    return [cell.facts for cell in await fleet_of(conn)]


async def residents_of(conn: AsyncConnection, cell: str) -> list[Resident]:
    """The living tenants of a cell."""
    return await _residents(conn, tenants.c.cell == cell)


async def resident(conn: AsyncConnection, number: int) -> Resident | None:
    """One living tenant; None where it is gone."""
    found = await _residents(conn, tenants.c.number == number)
    return found[0] if found else None


async def unsettled(conn: AsyncConnection, fleet: Sequence[CellFacts], tolerance: float) -> list[Resident]:
    """Those whom a rebalance could move: tenants of the fuller cells, and tenants outside of the cell of their pin."""
    outside = sa.and_(tenants.c.pinned_to.is_not(None), tenants.c.pinned_to != tenants.c.cell)
    found = await _residents(conn, sa.or_(tenants.c.cell.in_(givers(fleet, tolerance)), outside))
    recent = await _moved_lately(conn)
    return [
        Resident(r.number, r.slug, r.cell, r.weight, r.region, r.tier, r.pin, r.busy or recent.get(r.number, ""))
        for r in found
    ]


async def everybody(conn: AsyncConnection) -> list[Resident]:
    """All living tenants, for what-if questions."""
    return await _residents(conn, sa.true())


async def _residents(conn: AsyncConnection, which: sa.ColumnElement[bool]) -> list[Resident]:
    query = (
        sa.select(tenants, plans.c.weight, plans.c.tier)
        .join_from(tenants, plans, plans.c.name == tenants.c.plan)
        .where(which, tenants.c.state.in_(("provisioning", "active", "suspended")))
        .order_by(tenants.c.number)
    )
    taken = {number: batch for number, (batch, _) in (await batch_store.open_items(conn)).items()}
    return [_resident(row, taken.get(row.number)) for row in await conn.execute(query)]


def _resident(row: sa.Row[Any], batch: str | None) -> Resident:
    busy = ""
    if row.state == "provisioning":
        busy = "it is being signed up"
    elif row.move_id is not None:
        busy = f"its move {row.move_id} to {row.move_target} is not over"
    elif batch is not None:
        busy = f"the batch {batch} moves it"
    return Resident(row.number, row.slug, row.cell, float(row.weight), row.region, row.tier, row.pinned_to, busy)


async def _moved_lately(conn: AsyncConnection) -> dict[int, str]:
    age = sa.func.make_interval(0, 0, 0, 0, 0, 0, SETTLE_S)
    query = sa.select(moves.c.tenant, moves.c.id).where(
        moves.c.finished_at > sa.func.clock_timestamp() - age, moves.c.state == State.DONE.value
    )
    return {row.tenant: f"it came by the move {row.id} just now" for row in await conn.execute(query)}
