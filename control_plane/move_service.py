"""What operators may ask of moves, and the answers where the fleet's present state does not allow it."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import problems
from contracts.ids import tenant_of
from contracts.problems import ProblemError
from contracts.transfer import stream_name
from control_plane import audit, batch_store, move_store
from control_plane.auth import Actor
from control_plane.cell_client import CellClient
from control_plane.cells import Cell, cell_of, reserve
from control_plane.models import Tenant, tenants
from control_plane.move import DECIDED, GOING_BACK, PAUSABLE, TERMINAL, UNDECIDED, WAITING, Kind, Path, State
from control_plane.move_estimate import Estimate, check_room, path_of, timing, weigh
from control_plane.move_progress import Progress
from control_plane.move_store import Move, Step
from control_plane.signals import MOVES
from control_plane.tenants import tenant_named

_MOVABLE: Final = ("active", "suspended")

FOLLOWING_WITHIN_S: Final = 5.0  # how long a rollback waits for a standby that has only just become one
FOLLOWING_EVERY_S: Final = 0.05

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


class Moves:
    """Start, cancel, roll back and look at moves. Executing them is the mover's part."""

    def __init__(
        self,
        engine: AsyncEngine,
        client: CellClient,
        new_id: Callable[[], str] = new_move_id,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._engine = engine
        self._client = client
        self._new_id = new_id
        self._clock = clock
        self._sleep = sleep

    async def start(
        self,
        ref: str,
        to: str,
        actor: Actor,
        claim: Claim | None = None,
        *,
        standby: bool = False,
        finalize_after_s: float | None = None,
        needs_standby: bool = False,
    ) -> History:
        """Plan a move of the tenant (id or slug) to a cell; `ProblemError` 409 says why it cannot be and what to do.

        A large move ends as a standby until it is finalized: on request, or ``finalize_after_s`` after its switch; at
        once where the tenant is small enough to need none. ``standby`` asks for one also there. ``needs_standby``:
        refuse where there will be none.
        """
        e = await self.estimate(ref, to, standby=standby, needs_standby=needs_standby)
        async with self._engine.begin() as conn:
            tenant = await tenant_named(conn, ref, lock=True)
            await _checked(conn, tenant, to)
            await reserve(conn, to)
            expected = Progress(rows_expected=e.weight.rows, bytes_expected=e.weight.bytes)
            move_id = await self._plan(
                conn, tenant, to, Kind.MOVE, actor, path=e.path, expected=expected,
                finalize_after_s=0.0 if e.passing else finalize_after_s,
            )  # fmt: skip
            if claim is not None:
                await claim(conn, move_id)
            return await _history(conn, move_id)

    async def estimate(
        self, ref: str, to: str, *, standby: bool = False, returning: bool = False, needs_standby: bool = False
    ) -> Estimate:
        """What `start` would do; raises the same problems. Nothing is changed."""
        async with self._engine.connect() as conn:
            tenant = await tenant_named(conn, ref)
            source, target = await _checked(conn, tenant, to, returning=returning)
        weight = await weigh(self._client, source.target, tenant_of(tenant.number), tenant.slug)
        path = path_of(weight, tenant.slug, standby=standby)
        passing = weight.gains_from_a_stream and not standby
        if needs_standby and (passing or path is Path.SMALL):
            raise _no_standby(tenant)
        if path is Path.LARGE:
            try:
                await check_room(self._client, source.target, target.target, tenant_of(tenant.number))
            except ProblemError:
                if not passing:
                    raise
                passing, path = False, Path.SMALL
        copy_s, hold_ms = timing(weight, path)
        return Estimate(tenant_of(tenant.number), tenant.slug, tenant.cell, to, path, weight, copy_s, hold_ms, passing)

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

    async def pause(self, move_id: str, actor: Actor) -> History:
        """Let a move go no further than to its hold; what is copied is kept up to date meanwhile."""
        return await self._set_paused(move_id, True, actor)

    async def resume(self, move_id: str, actor: Actor) -> History:
        """Let a paused move go on."""
        return await self._set_paused(move_id, False, actor)

    async def _set_paused(self, move_id: str, paused: bool, actor: Actor) -> History:
        async with self._engine.begin() as conn:
            changed = await move_store.set_paused(conn, move_id, paused)
            history = await _history(conn, move_id)
            if changed:
                done = "move_paused" if paused else "move_resumed"
                await audit.record(conn, actor.name, done, f"move:{move_id}")
                await _wake(conn, move_id)
            elif history.move.paused is not paused or history.move.state not in PAUSABLE:
                raise _not_pausable(history.move)
        return history

    async def finalize(self, move_id: str, actor: Actor) -> History:
        """Give the standby up: its copy is purged, and the lossless way back with it."""
        async with self._engine.begin() as conn:
            asked = await move_store.request_finalize(conn, move_id)
            history = await _history(conn, move_id)
            if not asked:
                raise _not_finalizable(history.move)
            await audit.record(conn, actor.name, "move_finalize_requested", f"move:{move_id}")
            await _wake(conn, move_id)
        return history

    async def rollback(self, move_id: str, actor: Actor) -> History:
        """Plan the way back, as a move of kind rollback: to a standby that follows, or the same path backwards.

        Only the newest move of a tenant has a way back. It is open also where the cell is draining or full: the tenant
        had its place there a moment ago, and whoever undoes a move has a reason.
        """
        async with self._engine.connect() as conn:
            undone = (await _history(conn, move_id)).move
        if _is_standby(undone):
            return await self._return_to_standby(await self._following(undone), actor)
        async with self._engine.connect() as conn:
            await _newest(conn, undone)
        e = await self.estimate(tenant_of(undone.tenant), undone.source, returning=True)
        async with self._engine.begin() as conn:
            tenant = await _newest(conn, undone)
            await _checked(conn, tenant, undone.source, returning=True)
            await reserve(conn, undone.source, returning=True)
            expected = Progress(rows_expected=e.weight.rows, bytes_expected=e.weight.bytes)
            new_id = await self._plan(
                conn, tenant, undone.source, Kind.ROLLBACK, actor, undoes=undone.id, path=e.path, expected=expected,
                finalize_after_s=0.0 if e.passing else None,
            )  # fmt: skip
            return await _history(conn, new_id)

    async def _following(self, undone: Move) -> Move:
        """The move once its old home follows. Until it was told to it is frozen, and a rollback that finds it so could
        neither go on nor be undone; it takes milliseconds, or as long as the old home is away.
        """
        until = self._clock() + FOLLOWING_WITHIN_S
        while _is_standby(undone) and not undone.progress.standing and not undone.progress.lost:
            if self._clock() > until:
                raise ProblemError(
                    problems.MOVE_RUNNING, f"{undone.source} has not been told to follow {undone.slug} yet.",
                    advice=f"When cellctl moves status {undone.id} says 'way back following', ask again.",
                )  # fmt: skip
            await self._sleep(FOLLOWING_EVERY_S)
            async with self._engine.connect() as conn:
                undone = (await _history(conn, undone.id)).move
        return undone

    async def _return_to_standby(self, undone: Move, actor: Actor) -> History:
        """The standby's cell has kept its room and its rows, so it is only asked to be there."""
        if undone.progress.lost:
            raise ProblemError(
                problems.STREAM_LOST,
                f"{undone.source} follows {undone.slug} no more ({undone.progress.lost}); going back to it would lose"
                " writes.",
                advice=f"cellctl moves finalize {undone.id}, then cellctl moves rollback {undone.id}",
            )
        async with self._engine.begin() as conn:
            tenant = await tenant_named(conn, tenant_of(undone.tenant), lock=True)
            target = await cell_of(conn, undone.source)
            new_id = self._new_id()
            if target.state == "closed" or not await move_store.begin_return(conn, undone.id, new_id):
                raise _not_rollbackable((await _history(conn, undone.id)).move)
            await self._plan(
                conn, tenant, undone.source, Kind.ROLLBACK, actor, move_id=new_id, undoes=undone.id, path=Path.BACK,
                stream=stream_name(tenant_of(tenant.number), undone.id, "back"), schema=undone.schema,
            )  # fmt: skip
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
        self,
        conn: AsyncConnection,
        tenant: Tenant,
        to: str,
        kind: Kind,
        actor: Actor,
        *,
        path: Path,
        move_id: str | None = None,
        undoes: str | None = None,
        stream: str | None = None,
        schema: str | None = None,
        expected: Progress | None = None,
        finalize_after_s: float | None = None,
    ) -> str:
        move_id = move_id or self._new_id()
        if path is Path.LARGE:
            stream = stream_name(tenant_of(tenant.number), move_id, "out")
        epoch = tenant.epoch_high + 1
        await conn.execute(
            tenants.update()
            .where(tenants.c.number == tenant.number)
            .values(epoch_high=epoch, move_id=move_id, move_target=to, updated_at=sa.func.now())
        )
        await move_store.insert(
            conn, move_id=move_id, kind=kind, tenant=tenant.number, slug=tenant.slug, source=tenant.cell, target=to,
            source_epoch=tenant.epoch, target_epoch=epoch, actor=actor.name, undoes=undoes, path=path, stream=stream,
            schema=schema, finalize_after_s=finalize_after_s, progress=expected,
        )  # fmt: skip
        await audit.record(
            conn, actor.name, "move_started", f"move:{move_id}",
            tenant=tenant_of(tenant.number), source=tenant.cell, target=to, kind=kind.value, path=path.value,
        )  # fmt: skip
        await _wake(conn, move_id)
        return move_id


async def _checked(conn: AsyncConnection, tenant: Tenant, to: str, *, returning: bool = False) -> tuple[Cell, Cell]:
    """Source and target, if the tenant may move there as things stand; ``returning`` to where it came from."""
    if tenant.state not in _MOVABLE:
        raise ProblemError(
            problems.CONFLICT, f"{tenant.slug} is {tenant.state}.", advice="Only an active or suspended tenant moves."
        )
    if tenant.move_id is not None:
        raise await _moving(conn, tenant, tenant.move_id)
    target = await cell_of(conn, to)
    if target.name == tenant.cell:
        raise ProblemError(problems.MOVE_NOOP, f"{tenant.slug} lives in {to}.")
    await batch_store.refuse_undone(conn, tenant, to)
    source = await cell_of(conn, tenant.cell)
    if target.state != "active" and not (returning and target.state == "draining"):
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
    if target.tenants >= target.capacity and not returning:
        raise ProblemError(problems.CELL_FULL, f"{to} holds {target.tenants} of {target.capacity} tenants.")
    return source, target


def _no_standby(tenant: Tenant) -> ProblemError:
    return ProblemError(
        problems.CONFLICT,
        f"{tenant.slug} is small: its move leaves no standby, so there is nothing to finalize after a time.",
        advice="Ask for a standby too (--standby), or leave --finalize-after away.",
    )


async def _newest(conn: AsyncConnection, undone: Move) -> Tenant:
    """The tenant of a move, its row held to the end, if nothing moved it since."""
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
    return tenant


async def _moving(conn: AsyncConnection, tenant: Tenant, move_id: str) -> ProblemError:
    move = await move_store.get(conn, move_id)
    if move is not None and move.state is State.STANDBY and move.path is Path.LARGE:
        return ProblemError(
            problems.MOVE_RUNNING,
            f"{move.source} is still the standby of {tenant.slug} (move {move_id}).",
            advice=f"Give it up (cellctl moves finalize {move_id}), or go back (cellctl moves rollback {move_id}).",
            move=move_id,
        )
    return ProblemError(
        problems.MOVE_RUNNING,
        f"{tenant.slug} is on its way to {tenant.move_target} (move {move_id}).",
        advice=f"Wait for it (cellctl moves watch {move_id}), or cancel it.",
        move=move_id,
    )


async def _history(conn: AsyncConnection, move_id: str) -> History:
    move = await move_store.get(conn, move_id)
    if move is None:
        raise ProblemError(problems.NOT_FOUND, f"There is no move {move_id!r}.", advice="See: cellctl moves list")
    return History(move, await move_store.steps(conn, move_id))


async def _wake(conn: AsyncConnection, move_id: str) -> None:
    await conn.execute(sa.select(sa.func.pg_notify(MOVES, move_id)))


def _not_cancellable(move: Move) -> ProblemError:
    if move.state in DECIDED | WAITING:
        undo: dict[str, Any] = {"advice": f"To undo it: cellctl moves rollback {move.id}"} if _is_standby(move) else {}
        return ProblemError(problems.MOVE_DECIDED, f"The move {move.id} is {move.state}.", **undo)
    return ProblemError(
        problems.CONFLICT,
        f"The move {move.id} is over: it is {move.state}.",
        advice=f"To undo a finished move: cellctl moves rollback {move.id}",
    )


def _not_rollbackable(move: Move) -> ProblemError:
    if move.state in UNDECIDED:
        return ProblemError(problems.MOVE_RUNNING, f"The move {move.id} is {move.state}.", advice="Cancel it instead.")
    if _is_standby(move):
        why = "is being finalized" if move.finalize else f"has its standby in {move.source}, which is closed"
        return ProblemError(
            problems.CONFLICT, f"The move {move.id} {why}.",
            advice=f"Once it is done: cellctl moves rollback {move.id}",
        )  # fmt: skip
    if move.state in DECIDED | GOING_BACK | WAITING:
        return ProblemError(
            problems.MOVE_RUNNING, f"The move {move.id} is {move.state}.", advice="Wait until it is over."
        )
    return ProblemError(
        problems.CONFLICT, f"The move {move.id} is {move.state}.", advice="Only a move that is done can be rolled back."
    )


def _not_pausable(move: Move) -> ProblemError:
    if move.state in PAUSABLE:
        return ProblemError(problems.CONFLICT, f"The move {move.id} is being cancelled.")
    if move.state in TERMINAL:
        return ProblemError(
            problems.CONFLICT, f"The move {move.id} is {move.state}: it is over.",
            advice=f"There is nothing to pause or to resume. To see it: cellctl moves status {move.id}",
        )  # fmt: skip
    return ProblemError(
        problems.CONFLICT,
        f"The move {move.id} is {move.state}: its tenant has been held already.",
        advice=f"A move pauses only before its hold. To see it: cellctl moves status {move.id}",
    )


def _not_finalizable(move: Move) -> ProblemError:
    if move.path is Path.SMALL:
        advice = "A small move has no standby: it finishes by itself."
    elif move.state in TERMINAL | {State.PURGING}:
        advice = "There is no standby any more."
    else:
        advice = f"Wait until it is a standby: cellctl moves watch {move.id}"
    return ProblemError(problems.CONFLICT, f"The move {move.id} is {move.state}.", advice=advice)


def _is_standby(move: Move) -> bool:
    return move.state is State.STANDBY and move.path is Path.LARGE
