"""After a restore from a backup: believe the cells, then begin a new route log (moves.md rule 5).

The backup may be older than the fleet. What a cell serves now is the truth about where a tenant lives; every epoch
counter goes above the highest that any cell reports, so none is given out twice; so does every fence, so that no cell
refuses a command as late; the new ``log_id`` makes every router take a snapshot. Run it before ``serve``, with every
cell up.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import httpx
import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import ids, routes, transfer
from contracts.names import Field
from control_plane import audit
from control_plane.cell_client import CellClient, CellError
from control_plane.cells import fleet_of
from control_plane.models import Tenant, route_cursor, route_log, routers, tenants
from control_plane.move import UNFINISHED, WAITING, State
from control_plane.move_store import leader, moves
from control_plane.routes import next_fence, publish, route_of
from control_plane.seed import new_log_id, plan_records
from control_plane.settings import FleetSettings

log = structlog.get_logger()

_ROUTED: Final = ("active", "suspended")
_UNSERVED: Final = "no cell serves it"


class RestoreError(Exception):
    """The restore cannot be trusted to be complete; nothing was published."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one cell says of one tenant."""

    cell: str
    state: transfer.TenantState
    epoch: int
    min_epoch: int = 0  # no activation below it
    term: int = 0
    seq: int = 0  # with the term: the highest fence it has seen

    @property
    def high(self) -> int:
        """The highest epoch that the cell knows to be given out."""
        return max(self.epoch, self.min_epoch)


@dataclass(frozen=True, slots=True)
class Adopted:
    """What the control plane should believe of a tenant. ``thaw``: it is frozen where it lives, and nobody moves it."""

    cell: str
    epoch: int
    epoch_high: int
    state: str
    ends_move: bool
    thaw: bool
    reason: str

    def changes(self, tenant: Tenant) -> bool:
        """True where the backup was wrong about the tenant."""
        believed = (tenant.cell, tenant.epoch, tenant.state)
        return self.thaw or (self.cell, self.epoch, self.state) != believed


def adopt(tenant: Tenant, seen: Sequence[Seen]) -> Adopted:
    """Decide from the backup's row and the cells' reports. Pure.

    Epochs are given out before cells hear of them, so one that the backup has not given out means that its move, if it
    has one, was overtaken: driven on, it could decide for a target that must refuse to activate.
    """
    high = max([tenant.epoch_high, *(s.high for s in seen)]) + 1
    moving, overtaken = tenant.move_id is not None, high > tenant.epoch_high + 1
    owner = max((s for s in seen if s.state == "active"), key=lambda s: s.epoch, default=None)
    if owner is not None:
        moved = (owner.cell, owner.epoch) != (tenant.cell, tenant.epoch)
        state = "active" if tenant.state == "provisioning" else tenant.state
        reason = f"{owner.cell} serves it at epoch {owner.epoch}"
        if moved:
            reason += f"; the backup had {tenant.cell} at epoch {tenant.epoch}"
        return Adopted(owner.cell, owner.epoch, high, state, moving and (moved or overtaken), False, reason)
    frozen = max((s for s in seen if s.state == "frozen"), key=lambda s: s.epoch, default=None)
    if frozen is not None and (overtaken or not moving) and tenant.state in _ROUTED:
        reason = f"{frozen.cell} holds it frozen for a move that the backup does not know; it is put back"
        return Adopted(frozen.cell, high, high, tenant.state, moving, True, reason)
    # Also where every known cell purged it: it was deleted since, or moved to a cell that the backup does not know.
    reason = "a move of it goes on" if moving else _UNSERVED if tenant.state in _ROUTED else ""
    return Adopted(tenant.cell, tenant.epoch, high, tenant.state, False, False, reason)


async def run(settings: FleetSettings) -> list[str]:
    """Reconcile with every cell and begin a new log; what was found, in words, a line each."""
    engine = settings.engine()
    try:
        async with httpx.AsyncClient(trust_env=False) as http:
            return await new_log(engine, CellClient(http, settings.fleet_key()), int(time.time()))
    finally:
        await engine.dispose()


async def new_log(engine: AsyncEngine, client: CellClient, term: int) -> list[str]:
    """The same with given parts. ``term`` must be above every leader's term so far: seconds since 1970."""
    reports = await _ask(engine, client)
    async with engine.connect() as conn:
        known = [Tenant.of(row) for row in await conn.execute(sa.select(tenants).order_by(tenants.c.number))]
    await _raise_fences(engine, reports, term)
    lines: list[str] = []
    decided: list[tuple[Tenant, Adopted]] = []
    for tenant in known:
        seen = reports.pop(tenant.number, [])
        adopted = adopt(tenant, seen)
        if adopted.thaw:
            await _thaw(engine, client, tenant, adopted, seen, term)
        decided.append((tenant, adopted))
        if adopted.changes(tenant) or adopted.reason == _UNSERVED:
            lines.append(f"{ids.tenant_of(tenant.number)} ({tenant.slug}): {adopted.reason}")
    for number, seen in sorted(reports.items()):
        alive = [s for s in seen if s.state != "gone"]
        if alive:
            where = ", ".join(f"{s.cell} ({s.state}, epoch {s.epoch})" for s in alive)
            lines.append(f"{ids.tenant_of(number)}: not in the backup, yet in {where}; it has no route")
    async with engine.begin() as conn:
        for tenant, adopted in decided:
            await _write(conn, tenant, adopted)
        log_id, revision = await _begin(conn)
        await audit.record(conn, "command-line", "route_log_renewed", f"log:{log_id}", revision=revision)
    log.info("route_log_renewed", **{Field.LOG_ID: log_id, Field.REVISION: revision})
    return [*lines, f"log {log_id} begins, at revision {revision}, with {len(decided)} tenants known"]


async def _ask(engine: AsyncEngine, client: CellClient) -> dict[int, list[Seen]]:
    async with engine.connect() as conn:
        fleet = await fleet_of(conn)
    reports: dict[int, list[Seen]] = {}
    for cell in fleet:
        try:
            statuses = await client.tenants(cell.target, budget_s=60.0)
        except CellError as e:
            raise RestoreError(f"{e}; every cell must answer, or epochs could be given out twice") from e
        for status in statuses:
            number = ids.tenant_number(status.tenant)
            seen = Seen(cell.name, status.state, status.epoch, status.min_epoch, status.term, status.seq)
            reports.setdefault(number, []).append(seen)
    return reports


async def _raise_fences(engine: AsyncEngine, reports: Mapping[int, Sequence[Seen]], term: int) -> None:
    """Of tenants, and the leader's term, from which the fences of moves are made."""
    highest = [(n, max(s.term for s in seen), max(s.seq for s in seen)) for n, seen in reports.items()]
    raised = (
        sa.update(tenants)
        .where(tenants.c.number == sa.bindparam("of"))
        .values(
            fence_term=sa.func.greatest(tenants.c.fence_term, sa.bindparam("term")),
            fence_seq=sa.func.greatest(tenants.c.fence_seq, sa.bindparam("seq")),
        )
    )
    async with engine.begin() as conn:
        if highest:
            await conn.execute(raised, [{"of": n, "term": t, "seq": s} for n, t, s in highest])
        first = insert(leader).values(term=max([term, *(t for _, t, _ in highest)]), holder="new-log")
        higher = sa.func.greatest(leader.c.term, first.excluded.term)
        await conn.execute(first.on_conflict_do_update(index_elements=["single"], set_={"term": higher}))


async def _thaw(
    engine: AsyncEngine, client: CellClient, tenant: Tenant, adopted: Adopted, seen: Sequence[Seen], term: int
) -> None:
    """Give a frozen tenant back to its cell: only after every importing target confirmed the abort (rule 2)."""
    async with engine.connect() as conn:
        targets = {cell.name: cell.target for cell in await fleet_of(conn)}
    name = ids.tenant_of(tenant.number)

    async def fence() -> transfer.Fence:
        async with engine.begin() as conn:
            return await next_fence(conn, tenant.number, term, "restore")

    try:
        for other in seen:
            if other.state == "importing":
                await client.abort(targets[other.cell], name, await fence(), adopted.epoch)
                await client.purge(targets[other.cell], name, await fence())
        await client.restore(targets[adopted.cell], name, await fence(), adopted.epoch)
    except CellError as e:
        raise RestoreError(f"{name} stays frozen: {e}") from e


async def _write(conn: AsyncConnection, tenant: Tenant, adopted: Adopted) -> None:
    changed = {
        "cell": adopted.cell,
        "epoch": adopted.epoch,
        "epoch_high": adopted.epoch_high,
        "state": adopted.state,
        "updated_at": sa.func.clock_timestamp(),
    }
    if adopted.ends_move:
        changed |= {"move_id": None, "move_target": None}
        await conn.execute(  # with a rollback also the standby that waits for it
            sa.update(moves)
            .where(moves.c.tenant == tenant.number, moves.c.state.in_([s.value for s in UNFINISHED | WAITING]))
            .values(
                state=State.FAILED.value,
                reason=f"the control plane was restored: {adopted.reason}",
                finalize_requested=False,
                finished_at=sa.func.clock_timestamp(),
            )
        )
    await conn.execute(sa.update(tenants).where(tenants.c.number == tenant.number).values(changed))


async def _begin(conn: AsyncConnection) -> tuple[str, int]:
    """Empty the log and publish everything anew; the old leases say nothing about it."""
    log_id = new_log_id()
    await conn.execute(sa.update(route_cursor).values(log_id=log_id, revision=0))
    await conn.execute(sa.delete(route_log))
    await conn.execute(sa.delete(routers))
    routed = await conn.execute(sa.select(tenants).where(tenants.c.state.in_(_ROUTED)).order_by(tenants.c.number))
    records: list[routes.Record] = [*await plan_records(conn)]
    records += [routes.Cell(cell.name, cell.address, cell.state) for cell in await fleet_of(conn)]
    records += [route_of(Tenant.of(row), row.state) for row in routed]
    return log_id, await publish(conn, records)
