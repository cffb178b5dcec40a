"""What operators may ask of moves, and the answers where the fleet's present state does not allow it."""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import problems
from contracts.ids import tenant_of
from contracts.problems import ProblemError
from control_plane import audit, move_store
from control_plane.auth import Actor
from control_plane.cell_client import CellClient, CellUnreachableError
from control_plane.cells import Cell, cell_of, reserve
from control_plane.models import Tenant, tenants
from control_plane.move import DECIDED, GOING_BACK, UNDECIDED, Kind, State
from control_plane.move_store import Move, Step
from control_plane.signals import MOVES
from control_plane.tenants import tenant_named

# What a hold costs, for estimates (loopback, two shards on two cores): a fixed part, and rows copied and compared.
HOLD_FIXED_MS: Final = 60.0
HOLD_ROWS_PER_MS: Final = 25.0

# Above this the copy would not fit into the hold (`move.Budgets.hold_s`) on a busy machine: ADR 0007.
SMALL_ROWS: Final = 50_000

_MOVABLE: Final = ("active", "suspended")

# Called with a new move's id in the transaction that plans it; what it raises undoes the move with it.
Claim = Callable[[AsyncConnection, str], Awaitable[None]]


def new_move_id() -> str:
    """A fresh move id. It travels in fences, so it has no semicolon."""
    return f"m{secrets.token_hex(6)}"


@dataclass(frozen=True, slots=True)
class History:
    """A move with its steps, oldest first."""

    move: Move
    steps: list[Step]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a move would be like: rows by the source's own estimate, and how long routers would hold."""

    tenant: str
    slug: str
    source: str
    target: str
    rows: int
    hold_ms: float


class Moves:
    """Start, cancel, roll back and look at moves. Executing them is the mover's part."""

    def __init__(self, engine: AsyncEngine, client: CellClient, new_id: Callable[[], str] = new_move_id) -> None:
        self._engine = engine
        self._client = client
        self._new_id = new_id

    async def start(self, ref: str, to: str, actor: Actor, claim: Claim | None = None) -> History:
        """Plan a move of the tenant (id or slug) to a cell; `ProblemError` 409 says why it cannot be and what to do."""
        _refuse_large(await self.estimate(ref, to))
        async with self._engine.begin() as conn:
            tenant = await tenant_named(conn, ref, lock=True)
            move_id = await self._plan(conn, tenant, to, Kind.MOVE, actor, None)
            if claim is not None:
                await claim(conn, move_id)
            return await _history(conn, move_id)

    async def estimate(self, ref: str, to: str) -> Estimate:
        """What `start` would do; raises the same problems. Nothing is changed."""
        async with self._engine.connect() as conn:
            tenant = await tenant_named(conn, ref)
            source, _target = await _checked(conn, tenant, to)
        try:
            status = await self._client.status(source.target, tenant_of(tenant.number), rows=True)
        except CellUnreachableError as e:
            raise ProblemError(problems.CELL_UNAVAILABLE, f"{source.name} does not answer: {e}") from e
        if status is None or status.rows is None:
            raise ProblemError(problems.CONFLICT, f"{source.name} does not know the tenant {tenant.slug}.")
        hold_ms = HOLD_FIXED_MS + status.rows / HOLD_ROWS_PER_MS
        return Estimate(tenant_of(tenant.number), tenant.slug, tenant.cell, to, status.rows, hold_ms)

    async def cancel(self, move_id: str, actor: Actor) -> History:
        """Ask for a cancellation. It wins if it comes before the decision; on the way back it changes nothing."""
        async with self._engine.begin() as conn:
            asked = await move_store.request_cancel(conn, move_id)
            history = await _history(conn, move_id)
            if not asked and history.move.state not in GOING_BACK:
                raise _not_cancellable(history.move)
            if asked:
                await audit.record(conn, actor.name, "move_cancel_requested", f"move:{move_id}")
                await _wake(conn, move_id)
        return history

    async def rollback(self, move_id: str, actor: Actor) -> History:
        """Plan the same path backwards, as a move of kind rollback. Only the newest finished move has a way back."""
        async with self._engine.begin() as conn:
            undone = (await _history(conn, move_id)).move
            if undone.state is not State.DONE:
                raise _not_rollbackable(undone)
            tenant = await tenant_named(conn, tenant_of(undone.tenant), lock=True)
            done = await move_store.find(conn, state=State.DONE, tenant=tenant.number, limit=1)
            newest = done[0].id if done else "none"
            # The home alone does not tell: there and back and there again ends in the same cell.
            if newest != undone.id or tenant.cell != undone.target:
                raise ProblemError(
                    problems.CONFLICT,
                    f"{tenant.slug} lives in {tenant.cell} by now; its newest finished move is {newest}.",
                    advice="Roll back the newest move of the tenant, or start a move.",
                )
            new_id = await self._plan(conn, tenant, undone.source, Kind.ROLLBACK, actor, undone.id)
            return await _history(conn, new_id)

    async def one(self, move_id: str) -> History:
        """A move with its steps, or 404."""
        async with self._engine.connect() as conn:
            return await _history(conn, move_id)

    async def all(self, state: State | None, ref: str | None, limit: int) -> list[Move]:
        """Moves, newest first; ``ref`` narrows to one tenant (id or slug)."""
        async with self._engine.connect() as conn:
            number = (await tenant_named(conn, ref)).number if ref is not None else None
            return await move_store.find(conn, state=state, tenant=number, limit=limit)

    async def _plan(
        self, conn: AsyncConnection, tenant: Tenant, to: str, kind: Kind, actor: Actor, undoes: str | None
    ) -> str:
        await _checked(conn, tenant, to)
        await reserve(conn, to)
        move_id = self._new_id()
        epoch = tenant.epoch_high + 1
        await conn.execute(
            tenants.update()
            .where(tenants.c.number == tenant.number)
            .values(epoch_high=epoch, move_id=move_id, move_target=to, updated_at=sa.func.now())
        )
        await move_store.insert(
            conn,
            move_id=move_id,
            kind=kind,
            tenant=tenant.number,
            slug=tenant.slug,
            source=tenant.cell,
            target=to,
            source_epoch=tenant.epoch,
            target_epoch=epoch,
            actor=actor.name,
            undoes=undoes,
        )
        await audit.record(
            conn, actor.name, "move_started", f"move:{move_id}",
            tenant=tenant_of(tenant.number), source=tenant.cell, target=to, kind=kind.value,
        )  # fmt: skip
        await _wake(conn, move_id)
        return move_id


async def _checked(conn: AsyncConnection, tenant: Tenant, to: str) -> tuple[Cell, Cell]:
    """Source and target, if the tenant may move there as things stand."""
    if tenant.state not in _MOVABLE:
        raise ProblemError(
            problems.CONFLICT, f"{tenant.slug} is {tenant.state}.", advice="Only an active or suspended tenant moves."
        )
    if tenant.move_id is not None:
        raise ProblemError(
            problems.MOVE_RUNNING,
            f"{tenant.slug} is on its way to {tenant.move_target} (move {tenant.move_id}).",
            advice=f"Wait for it (cellctl moves watch {tenant.move_id}), or cancel it.",
            move=tenant.move_id,
        )
    target = await cell_of(conn, to)
    if target.name == tenant.cell:
        raise ProblemError(problems.MOVE_NOOP, f"{tenant.slug} lives in {to}.")
    source = await cell_of(conn, tenant.cell)
    if target.state != "active":
        raise ProblemError(
            problems.CONFLICT,
            f"{to} is {target.state} and takes no tenant.",
            advice=f"Choose another cell, or open it: cellctl cells activate {to}",
        )
    if target.region != tenant.region:
        raise ProblemError(
            problems.CONFLICT,
            f"{to} is in the region {target.region}; the data of {tenant.slug} stays in {tenant.region}.",
            advice="Choose a cell of the tenant's region.",
        )
    if target.schema != source.schema:
        raise ProblemError(
            problems.SCHEMA_MISMATCH, f"{source.name} has schema {source.schema}, {to} has {target.schema}."
        )
    if target.tenants >= target.capacity:
        raise ProblemError(problems.CELL_FULL, f"{to} holds {target.tenants} of {target.capacity} tenants.")
    return source, target


def _refuse_large(e: Estimate) -> None:
    if e.rows > SMALL_ROWS:
        raise ProblemError(
            problems.TENANT_TOO_LARGE,
            f"{e.slug} has about {e.rows} rows; moving it would hold its requests for about {e.hold_ms / 1000:.0f} s.",
            limit_rows=SMALL_ROWS,
        )


async def _history(conn: AsyncConnection, move_id: str) -> History:
    move = await move_store.get(conn, move_id)
    if move is None:
        raise ProblemError(problems.NOT_FOUND, f"There is no move {move_id!r}.", advice="See: cellctl moves list")
    return History(move, await move_store.steps(conn, move_id))


async def _wake(conn: AsyncConnection, move_id: str) -> None:
    await conn.execute(sa.select(sa.func.pg_notify(MOVES, move_id)))


def _not_cancellable(move: Move) -> ProblemError:
    if move.state in DECIDED:
        return ProblemError(problems.MOVE_DECIDED, f"The move {move.id} is {move.state}.")
    return ProblemError(
        problems.CONFLICT,
        f"The move {move.id} is over: it is {move.state}.",
        advice=f"To undo a finished move: cellctl moves rollback {move.id}",
    )


def _not_rollbackable(move: Move) -> ProblemError:
    if move.state in UNDECIDED:
        return ProblemError(problems.MOVE_RUNNING, f"The move {move.id} is {move.state}.", advice="Cancel it instead.")
    if move.state in DECIDED | GOING_BACK:
        return ProblemError(
            problems.MOVE_RUNNING, f"The move {move.id} is {move.state}.", advice="Wait until it is over."
        )
    return ProblemError(
        problems.CONFLICT, f"The move {move.id} is {move.state}.", advice="Only a move that is done can be rolled back."
    )
