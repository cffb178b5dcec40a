"""Finds what no move accounts for any more, and cleans it: at the start of a leader's term, then periodically.

Moves themselves need no reconciler: `MoveRunner` carries on every unfinished one. This is for what should not exist
(a row edited by hand, a database restored from a backup, a defect), so every finding is logged with its reason.
Whatever belongs to a running move is left alone. Two owners, or none, are never "repaired": a person has to look.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import ids, routes, transfer
from contracts.names import Field
from contracts.routes import RouteHint
from contracts.transfer import Fence
from control_plane import audit
from control_plane.cell_client import CellAddress, CellClient, CellError
from control_plane.models import Tenant, route_log, tenants
from control_plane.models import cells as cells_table
from control_plane.move import UNFINISHED
from control_plane.move_store import moves
from control_plane.routes import next_fence, publish, route_of
from control_plane.stream_sweeper import StreamSweeper

log = structlog.get_logger()

PERIOD_S: Final = 30.0
LIST_S: Final = 5.0  # a cell that does not answer within this is looked at next time
_SETTLED: Final = ("active", "suspended")


class Repair(StrEnum):
    """What to do about a leftover."""

    ABORT = "abort"
    RESTORE = "restore"
    RELEASE = "release"
    PURGE = "purge"
    ALARM = "alarm"


@dataclass(frozen=True, slots=True)
class Finding:
    """A leftover and what to do about it."""

    repair: Repair
    reason: str


Sightings = Mapping[str, transfer.TenantState]  # cell -> the tenant's state there


def judge(cell: str, seen: Sightings, tenant: Tenant | None, *, complete: bool) -> Finding | None:
    """What is wrong with a tenant's fence row in ``cell``, given the tenant as the control plane has it. Pure.

    None where nothing is, and where a move, a sign-up or a deletion still accounts for it. ``complete``: every cell
    was asked; without that, what could make a second owner is left for the next pass.
    """
    state = seen[cell]
    if tenant is None or tenant.state == "deleted":
        if state in ("active", "frozen", "importing"):
            return Finding(Repair.ALARM, f"the cell has it {state}, the control plane knows no such tenant")
        return None
    if tenant.state not in _SETTLED or tenant.move_id is not None:
        return None
    if tenant.cell == cell:
        return _judge_home(state, [c for c in seen if c != cell and seen[c] == "active"], complete=complete)
    at_home = seen.get(tenant.cell)
    match state:
        case "active":
            return Finding(Repair.ALARM, f"it is active here, but lives in {tenant.cell}")
        case "importing":
            return Finding(Repair.ABORT, "it is being imported, but no move is running")
        case "frozen" if at_home == "active":
            return Finding(Repair.RELEASE, f"it is frozen here, but lives in {tenant.cell}")
        case "moved" | "standby" if at_home == "active":
            return Finding(Repair.PURGE, f"rows were left behind by a move to {tenant.cell}")
    return None


def _judge_home(state: transfer.TenantState, active_elsewhere: list[str], *, complete: bool) -> Finding | None:
    if state == "active":
        return None
    if active_elsewhere:
        return Finding(Repair.ALARM, f"its home has it {state}, but it is active in {', '.join(active_elsewhere)}")
    if state == "frozen":
        return Finding(Repair.RESTORE, "its home has it frozen, but no move is running") if complete else None
    return Finding(Repair.ALARM, f"its home has it {state}")


class Reconciler:
    """One pass is `once`; safe to repeat and beside running moves."""

    def __init__(self, engine: AsyncEngine, client: CellClient, hint_key: bytes, *, period_s: float = PERIOD_S) -> None:
        self._engine = engine
        self._client = client
        self._hint_key = hint_key
        self._period_s = period_s
        self._streams = StreamSweeper(engine, client)

    async def run(self, term: int) -> None:
        """A pass now and then one every period, until cancelled."""
        while True:
            try:
                await self.once(term)
            except (SQLAlchemyError, OSError) as e:
                log.warning("reconcile_failed", reason=str(e))
            await asyncio.sleep(self._period_s)

    async def once(self, term: int) -> int:
        """One pass over marks, holds and cells; how many findings there were."""
        found = await self._marks() + await self._holds()
        fleet = await self._cells()
        seen: dict[str, dict[str, transfer.TenantState]] = {}
        complete = True
        for cell in fleet:
            try:
                for status in await self._client.tenants(cell, budget_s=LIST_S):
                    seen.setdefault(status.tenant, {})[cell.name] = status.state
            except CellError as e:
                complete = False
                log.info("cell_not_reconciled", **{Field.CELL: cell.name, Field.REASON: e.reason})
        for name, sightings in seen.items():
            for cell in fleet:
                if cell.name in sightings:
                    found += await self._look(cell, ids.TenantId(name), sightings, term, complete=complete)
        return found + await self._streams.sweep(fleet, term)

    # -- in our own database --------------------------------------------------------------------------------------

    async def _marks(self) -> int:
        """Tenants marked as moving whose move is over, or does not exist."""
        running = sa.select(moves.c.id).where(moves.c.state.in_([s.value for s in UNFINISHED]))
        query = (
            tenants.update()
            .where(tenants.c.move_id.is_not(None), tenants.c.move_id.not_in(running))
            .values(move_id=None, move_target=None)
            .returning(tenants)
        )
        async with self._engine.begin() as conn:
            found = [Tenant.of(row) for row in await conn.execute(query)]
            for tenant in found:
                await _note(conn, tenant.number, "mark_cleared", "it was marked as moving, but no such move is running")
        return len(found)

    async def _holds(self) -> int:
        """Routes that ask routers to hold although no move is running."""
        async with self._engine.begin() as conn:
            query = (
                sa.select(tenants)
                .join_from(tenants, route_log, route_log.c.subject == sa.func.concat("tenant:t", tenants.c.number))
                .where(
                    route_log.c.latest,
                    sa.cast(route_log.c.record, sa.JSON)["state"].as_string() == "held",
                    tenants.c.move_id.is_(None),
                    tenants.c.state.in_(_SETTLED),
                )
                .with_for_update(of=tenants)
            )
            found = [Tenant.of(row) for row in await conn.execute(query)]
            for tenant in found:
                await _note(conn, tenant.number, "hold_ended", "routers were asked to hold it, but no move is running")
            if found:
                await publish(conn, [route_of(tenant, _route_state(tenant)) for tenant in found])
        return len(found)

    async def _cells(self) -> list[CellAddress]:
        query = sa.select(cells_table.c.name, cells_table.c.internal_address).where(cells_table.c.state != "removed")
        async with self._engine.connect() as conn:
            return [CellAddress(row.name, row.internal_address) for row in await conn.execute(query)]

    # -- in the cells -----------------------------------------------------------------------------------------------

    async def _look(self, cell: CellAddress, name: ids.TenantId, seen: Sightings, term: int, *, complete: bool) -> bool:
        number = ids.tenant_number(name)
        if judge(cell.name, seen, await self._tenant(number), complete=complete) is None:
            return False
        try:
            finding = await self._repair(cell, name, seen, term, complete=complete)
        except CellError as e:
            log.warning("leftover_stayed", **{Field.CELL: cell.name, Field.TENANT: name, Field.REASON: str(e)})
            return True
        return finding is not None

    async def _tenant(self, number: int) -> Tenant | None:
        async with self._engine.connect() as conn:
            row = (await conn.execute(sa.select(tenants).where(tenants.c.number == number))).one_or_none()
        return None if row is None else Tenant.of(row)

    async def _repair(
        self, cell: CellAddress, name: ids.TenantId, seen: Sightings, term: int, *, complete: bool
    ) -> Finding | None:
        """Judge again under a fence: a move that begins from here on has higher ones, and wins."""
        number = ids.tenant_number(name)
        tenant, epoch, fence = await self._reserved(number, term)
        status = await self._client.status(cell, name)
        if status is None or await self._tenant(number) != tenant:
            return None
        finding = judge(cell.name, {**seen, cell.name: status.state}, tenant, complete=complete)
        fields: dict[str, Any] = {Field.CELL: cell.name, Field.TENANT: name}
        if finding is None:
            return None
        if finding.repair is Repair.ALARM or tenant is None:
            log.error("ownership_doubted", **fields, reason=finding.reason)
            return finding
        await self._command(finding.repair, cell, name, fence, epoch, tenant)
        async with self._engine.begin() as conn:
            await _note(conn, number, f"leftover_{finding.repair.value}", f"{cell.name}: {finding.reason}")
        return finding

    async def _reserved(self, number: int, term: int) -> tuple[Tenant | None, int, Fence]:
        """The tenant with an epoch and a fence given out for a repair; None and useless ones where there is none."""
        name = f"reconcile-{number}"
        async with self._engine.begin() as conn:
            query = sa.select(tenants).where(tenants.c.number == number).with_for_update()
            row = (await conn.execute(query)).one_or_none()
            if row is None:
                return None, 0, Fence(0, 0, name)
            epoch = row.epoch_high + 1
            raised = tenants.update().where(tenants.c.number == number).values(epoch_high=epoch).returning(tenants)
            tenant = Tenant.of((await conn.execute(raised)).one())
            return tenant, epoch, await next_fence(conn, number, term, name)

    async def _command(
        self, repair: Repair, cell: CellAddress, name: ids.TenantId, fence: Fence, epoch: int, tenant: Tenant
    ) -> None:
        match repair:
            case Repair.ABORT:
                await self._client.abort(cell, name, fence, epoch)
            case Repair.RELEASE:
                hint = RouteHint(name, tenant.cell, tenant.epoch).signed(self._hint_key)
                await self._client.release(cell, name, fence, hint)
            case Repair.PURGE:
                await self._client.purge(cell, name, fence)
            case Repair.RESTORE:
                await self._client.restore(cell, name, fence, epoch)
                await self._adopt_epoch(tenant.number, epoch)
            case Repair.ALARM:
                raise ValueError("an alarm is not a command")

    async def _adopt_epoch(self, number: int, epoch: int) -> None:
        """The home was restored at ``epoch``: routers learn it, unless a move began in the meantime."""
        query = (
            tenants.update()
            .where(tenants.c.number == number, tenants.c.move_id.is_(None), tenants.c.epoch < epoch)
            .values(epoch=epoch)
            .returning(tenants)
        )
        async with self._engine.begin() as conn:
            row = (await conn.execute(query)).one_or_none()
            if row is not None:
                tenant = Tenant.of(row)
                await publish(conn, [route_of(tenant, _route_state(tenant))])


async def _note(conn: AsyncConnection, number: int, action: str, reason: str) -> None:
    name = ids.tenant_of(number)
    log.warning(action, **{Field.TENANT: name, Field.REASON: reason})
    await audit.record(conn, audit.CONTROL_PLANE, action, f"tenant:{name}", reason=reason)


def _route_state(tenant: Tenant) -> routes.State:
    return "suspended" if tenant.state == "suspended" else "active"
