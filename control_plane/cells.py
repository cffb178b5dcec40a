"""Cells: registration, state, capacity, heartbeat, and the fleet snapshot that placement decides on."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import fleet, ids, routes
from contracts.names import Field
from contracts.problems import CELL_FULL, CONFLICT, INVALID, MOVE_UNDONE, NOT_FOUND, ProblemError
from control_plane import audit, batch_store
from control_plane.auth import Actor
from control_plane.cell_client import CellAddress
from control_plane.models import cells, plans, tenants
from control_plane.placement import CellFacts
from control_plane.routes import publish

HEARTBEAT_S: Final = 2.0  # what a cell's agent is asked for
LEASE_S: Final = 8.0  # without a heartbeat for this long a cell is not healthy


log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell as the control plane knows it. ``tenants`` counts those on their way to it as well."""

    name: str
    region: str
    tier: str
    state: routes.CellState
    capacity: int
    tenants: int
    load: float
    address: str
    internal_address: str
    schema: str
    version: str
    shards: tuple[str, ...]
    last_seen: datetime
    healthy: bool

    @property
    def facts(self) -> CellFacts:
        """What placement looks at."""
        return CellFacts(
            self.name, self.region, self.tier, self.state, self.healthy, self.schema, self.capacity, self.tenants,
            self.load,
        )  # fmt: skip

    @property
    def target(self) -> CellAddress:
        """Where its transfer API listens."""
        return CellAddress(self.name, self.internal_address)


def _loads() -> sa.Subquery:
    """Tenants and their weight per cell; a moving tenant counts at its source and at its target."""
    placed = sa.select(tenants.c.cell.label("cell"), tenants.c.plan.label("plan")).where(tenants.c.state != "deleted")
    coming = sa.select(tenants.c.move_target, tenants.c.plan).where(
        tenants.c.move_target.is_not(None), tenants.c.move_target != tenants.c.cell
    )
    each = sa.union_all(placed, coming).subquery("each_tenant")
    return (
        sa.select(each.c.cell, sa.func.count().label("tenants"), sa.func.sum(plans.c.weight).label("load"))
        .join_from(each, plans, plans.c.name == each.c.plan)
        .group_by(each.c.cell)
        .subquery("loads")
    )


async def fleet_of(conn: AsyncConnection, name: str | None = None) -> list[Cell]:
    """Every cell by name, or the named one if it exists."""
    loads = _loads()
    fresh = cells.c.last_seen > sa.func.clock_timestamp() - sa.func.make_interval(0, 0, 0, 0, 0, 0, LEASE_S)
    query = (
        sa.select(
            cells,
            sa.func.coalesce(loads.c.tenants, 0).label("tenants"),
            sa.func.coalesce(loads.c.load, 0).label("load"),
            sa.and_(cells.c.ready, fresh).label("healthy"),
        )
        .select_from(cells.outerjoin(loads, loads.c.cell == cells.c.name))
        .where(cells.c.state != "removed")
        .order_by(cells.c.name)
    )
    if name is not None:
        query = query.where(cells.c.name == name)
    return [
        Cell(
            r.name, r.region, r.tier, r.state, r.capacity, r.tenants, float(r.load), r.address, r.internal_address,
            r.schema_revision, r.version, tuple(r.shards), r.last_seen, r.healthy,
        )
        for r in (await conn.execute(query)).all()
    ]  # fmt: skip


async def cell_of(conn: AsyncConnection, name: str) -> Cell:
    """The named cell; an unknown one is a 404 that names the valid choices."""
    found = await fleet_of(conn, name)
    if not found:
        known = ", ".join(cell.name for cell in await fleet_of(conn)) or "none yet"
        raise ProblemError(NOT_FOUND, f"There is no cell {name!r}; there are: {known}.")
    return found[0]


async def reserve(conn: AsyncConnection, name: str, *, returning: bool = False) -> None:
    """Lock the cell to the end of the transaction and make sure that it takes one tenant more.

    Whoever adds a tenant to a cell, or sets it as a move's target, calls this first: without the lock two of them
    could take the last place. ``returning``: a tenant that came from there, which it takes back unless it is closed.
    """
    row = (
        await conn.execute(sa.select(cells).where(cells.c.name == name).with_for_update(key_share=True))
    ).one_or_none()
    if row is not None and returning and row.state in ("active", "draining"):
        return
    if row is None or row.state != "active":
        raise ProblemError(CONFLICT, f"The cell {name} is {row.state if row else 'gone'} and takes no tenant.")
    here = sa.and_(tenants.c.cell == name, tenants.c.state != "deleted")
    coming = sa.and_(tenants.c.move_target == name, tenants.c.cell != name)
    held = (await conn.execute(sa.select(sa.func.count()).select_from(tenants).where(here | coming))).scalar_one()
    if held >= row.capacity:
        raise ProblemError(CELL_FULL, f"{name} holds {held} of {row.capacity} tenants.")


async def change_cell(
    conn: AsyncConnection, name: str, state: routes.CellState | None, capacity: int | None, actor: Actor
) -> Cell:
    """Set state or capacity in the caller's transaction; its row stays locked to the end."""
    values: dict[str, Any] = {}
    if state is not None:
        values["state"] = state
    if capacity is not None:
        values |= {"capacity": capacity, "capacity_pinned": True}
    await conn.execute(sa.select(cells.c.name).where(cells.c.name == name).with_for_update())
    before = await cell_of(conn, name)
    if not values:
        return before
    if state == "closed" and before.tenants:
        raise ProblemError(
            CONFLICT, f"{name} holds {before.tenants} tenants.",
            advice=f"Move them away first (cellctl cells evacuate {name}), then close it.",
        )  # fmt: skip
    await conn.execute(sa.update(cells).where(cells.c.name == name).values(values))
    changed = {k: v for k, v in values.items() if k != "capacity_pinned"}
    await audit.record(conn, actor.name, "cell_changed", f"cell:{name}", **changed)
    after = await cell_of(conn, name)
    if after.state != before.state:
        await publish(conn, [routes.Cell(name, after.address, after.state)])
    return after


class Cells:
    """What agents and operators do with cells."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def all(self) -> list[Cell]:
        """Every cell, by name."""
        async with self._engine.connect() as conn:
            return await fleet_of(conn)

    async def one(self, name: str) -> Cell:
        """One cell, or 404."""
        async with self._engine.connect() as conn:
            return await cell_of(conn, name)

    async def register(self, name: str, told: fleet.Registration, actor: Actor) -> fleet.Accepted:
        """Take a cell into the fleet, or note what changed. Routers hear of it when its address is new.

        Region and tier are what tenants were placed by, so a cell cannot change them.
        """
        _check(name, told)
        async with self._engine.begin() as conn:
            old = (await conn.execute(sa.select(cells).where(cells.c.name == name).with_for_update())).one_or_none()
            if old is not None and (old.region, old.tier) != (told.region, told.tier):
                raise ProblemError(
                    CONFLICT, f"{name} is registered as {old.region}/{old.tier}, not {told.region}/{told.tier}."
                )
            reported = {
                "address": told.address,
                "internal_address": told.internal_address,
                "schema_revision": told.schema,
                "version": told.version,
                "shards": list(told.shards),
                "last_seen": sa.func.clock_timestamp(),
            }
            fresh = insert(cells).values(
                name=name, region=told.region, tier=told.tier, capacity=told.capacity, **reported
            )
            capacity = sa.case((cells.c.capacity_pinned, cells.c.capacity), else_=fresh.excluded.capacity)
            known = reported | {
                "capacity": capacity,
                "state": sa.case((cells.c.state == "removed", "active"), else_=cells.c.state),
            }
            state = (
                await conn.execute(
                    fresh.on_conflict_do_update(index_elements=["name"], set_=known).returning(cells.c.state)
                )
            ).scalar_one()
            if old is None or old.address != told.address or old.state == "removed":
                await audit.record(conn, actor.name, "cell_registered", f"cell:{name}", address=told.address)
                await publish(conn, [routes.Cell(name, told.address, state)])
                log.info("cell_registered", **{Field.CELL: name}, address=told.address)
        return fleet.Accepted(state, HEARTBEAT_S)

    async def beat(self, name: str, told: fleet.Heartbeat) -> fleet.Accepted:
        """Renew the cell's lease. 404 for a cell that is not registered: its agent then registers again."""
        async with self._engine.begin() as conn:
            state = (
                await conn.execute(
                    sa.update(cells)
                    .where(cells.c.name == name, cells.c.state != "removed")
                    .values(
                        schema_revision=told.schema,
                        version=told.version,
                        ready=told.ready,
                        in_flight=told.in_flight,
                        last_seen=sa.func.clock_timestamp(),
                    )
                    .returning(cells.c.state)
                )
            ).scalar_one_or_none()
        if state is None:
            raise ProblemError(NOT_FOUND, f"The cell {name!r} is not registered.")
        return fleet.Accepted(state, HEARTBEAT_S)

    async def change(self, name: str, state: routes.CellState | None, capacity: int | None, actor: Actor) -> Cell:
        """Set state or capacity. An operator's capacity wins over what the cell reports from then on.

        Opening a cell that a batch empties is refused: whoever is placed there would be moved away again.
        """
        async with self._engine.begin() as conn:
            if state == "active" and (batch := (await batch_store.emptying(conn)).get(name)) is not None:
                raise ProblemError(
                    MOVE_UNDONE, f"The batch {batch} empties {name}.",
                    advice=f"Wait for it, or cancel it first: cellctl plans cancel {batch}",
                )  # fmt: skip
            return await change_cell(conn, name, state, capacity, actor)

    async def remove(self, name: str, actor: Actor) -> None:
        """Take an empty, stopped cell out of the fleet; routers get a tombstone. A cell that is started again returns.

        Its row stays, because tombstones of tenants name it.
        """
        async with self._engine.begin() as conn:
            await conn.execute(sa.select(cells.c.name).where(cells.c.name == name).with_for_update())
            cell = await cell_of(conn, name)
            if cell.tenants:
                raise ProblemError(
                    CONFLICT, f"{name} holds {cell.tenants} tenants.", advice="Move or delete them first."
                )
            if cell.healthy:
                raise ProblemError(
                    CONFLICT, f"{name} still reports.", advice="Stop its processes first, or it registers again."
                )
            await conn.execute(
                sa.update(cells).where(cells.c.name == name).values(state="removed", ready=False, capacity_pinned=False)
            )
            await audit.record(conn, actor.name, "cell_removed", f"cell:{name}")
            await publish(conn, [routes.CellGone(name)])


def _check(name: str, told: fleet.Registration) -> None:
    try:
        ids.cell_name(name)
        routes.split_address(told.address)
        routes.split_address(told.internal_address)
    except ValueError as e:
        raise ProblemError(INVALID, str(e)) from None
