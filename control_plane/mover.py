"""Executes moves: asks `move.decide` what is next, does it, commits the result. One action at a time, none skipped.

| Guarantee | How |
|---|---|
| A crash loses nothing | the state is committed before the next action is begun; every action can be repeated |
| Two executors cannot both act | each commit is compare-and-set on (state, term); each command carries a rising fence |
| A route never runs ahead of its move | the move's state, the tenant's epoch and the route are one transaction |
| A hold is bounded | `move.Budgets`; what is overdue before the decision goes back by itself |
| The tenant's rows never pile up here | export is streamed into import, piece by piece |
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import problems, routes, transfer
from contracts.ids import TenantId, tenant_of
from contracts.names import Field
from contracts.routes import RouteHint
from control_plane import audit, large_moves, move_store
from control_plane.cell_client import CellAddress, CellClient, CellError, CellRefusedError, CellUnreachableError
from control_plane.large_moves import LargeMoves
from control_plane.models import Tenant, cells, route_log, tenants
from control_plane.move import TERMINAL, UNFINISHED, Action, Budgets, Do, Failure, Path, State, Tries, decide, settle
from control_plane.move_metrics import MoveMetrics
from control_plane.move_progress import Progress
from control_plane.move_run import Fences, Parties, Run, StreamLostError, VerificationError, confirm_active, differences
from control_plane.move_store import Move, StaleMoveError
from control_plane.routes import RouteLog, publish, route_of

log = structlog.get_logger()

Boundary = Callable[[str], Awaitable[None]]

# The log event of each state once it is committed.
_PAST: Final = {
    State.PREPARING: "began",
    State.COPYING: "copying_began",
    State.CATCHING_UP: "catching_up_began",
    State.HOLDING: "held",
    State.FROZEN: "frozen",
    State.THAWING: "hold_ended",
    State.SWITCHING: "decided",
    State.STANDBY: "switched",
    State.PURGING: "confirmed",
    State.DONE: "finished",
    State.ABORTING: "given_up",
    State.RESTORING: "abort_confirmed",
    State.CANCELLED: "cancelled",
    State.FAILED: "failed",
}


async def unobserved(_name: str) -> None:
    """The observer of a mover that nobody watches."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the hold is spent."""

    routers_s: float = 0.1  # how long to wait for routers to acknowledge `held`; never needed for safety
    soft_ms: int = 150  # admitted requests may finish
    hard_ms: int = 500  # then the lock; transactions that hold it longer are cancelled


class Mover:
    """Drives one move to its end. Safe to use for several moves at once."""

    def __init__(
        self,
        engine: AsyncEngine,
        route_log: RouteLog,
        client: CellClient,
        hint_key: bytes,
        metrics: MoveMetrics,
        *,
        budgets: Budgets | None = None,
        tuning: Tuning | None = None,
        on_boundary: Boundary = unobserved,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``on_boundary`` is told the name of every state once it is committed; what it raises ends the drive."""
        self._engine = engine
        self._routes = route_log
        self._client = client
        self._hint_key = hint_key
        self._metrics = metrics
        self._budgets = budgets or Budgets()
        self._large = LargeMoves(client, hint_key, self._budgets)
        self._tuning = tuning or Tuning()
        self._on_boundary = on_boundary
        self._sleep = sleep

    async def drive(self, move_id: str, term: int) -> Move:
        """Carry a move on, from wherever it stands, until it is over or waits for its rollback.

        `StaleMoveError` when a newer leader has it; database errors pass through. After either, driving again
        continues where this stopped.
        """
        async with self._engine.begin() as conn:
            move = await move_store.adopt(conn, move_id, term)
        run = Run(await self._parties(move), Fences(self._engine, move), term)
        await run.fences.take()  # the first block, before any hold begins
        tries = Tries()
        while move.state in UNFINISHED:
            before = move
            tries = await self._step_or_reread(move, run, tries)
            move = await self._read(move.id)
            if move.state is not before.state:
                self._observe(move)
                await self._on_boundary(move.state.value)
            elif tries.failures:
                run.at = await self._parties(move)  # a cell that came back may listen elsewhere
        if move.state in (State.FAILED, State.CANCELLED) and move.path is Path.LARGE:
            await self._large.close_if_possible(move, run, self._budgets.command_s)
        return move

    async def _step_or_reread(self, move: Move, run: Run, tries: Tries) -> Tries:
        try:
            return await self._step(move, run, tries)
        except StaleMoveError:
            run.flow.broken()
            again = await self._read(move.id)
            if again.term != move.term or (again.state, again.cancel_requested) == (move.state, move.cancel_requested):
                raise
            return tries  # a cancellation, or a rollback, came first: decide anew

    async def _step(self, move: Move, run: Run, tries: Tries) -> Tries:
        snapshot = move.snapshot(tries)
        action = decide(snapshot, self._budgets)
        if action.do is Do.WAIT:
            await self._sleep(action.wait_s)
            return Tries()
        try:
            facts = await self._perform(action, move, run)
        except (CellError, VerificationError, StreamLostError, TimeoutError) as e:
            run.flow.broken()
            failure = _failure(e, move)
            verdict = settle(snapshot, action, failure, self._budgets)
            return await self._after_failure(move, verdict, tries.after(failure))
        await self._commit(move, action.then, action.reason, facts)
        return Tries()

    async def _after_failure(self, move: Move, verdict: Action, tries: Tries) -> Tries:
        if verdict.do is Do.DEGRADE:
            await self._degrade(move, verdict.reason)
            return Tries()
        if verdict.then is not move.state:
            await self._commit(move, verdict.then, verdict.reason, {})
            return Tries()
        async with self._engine.begin() as conn:
            await move_store.note_failure(conn, move, verdict.reason)
        # A tenant may be standing still until this succeeds: that is for a person to know.
        (log.error if verdict.alarm else log.warning)(
            "move_step_stuck" if verdict.alarm else "move_step_failed",
            **_fields(move),
            state=move.state.value,
            step=verdict.do.value,
            failures=tries.failures,
            reason=verdict.reason,
        )
        await self._sleep(verdict.wait_s)
        return tries

    async def _degrade(self, move: Move, reason: str) -> None:
        """The way back is lost: said once, loudly; the healthy cell keeps nothing for it (rule 10)."""
        log.error("move_way_back_lost", **_fields(move), reason=reason)
        async with self._engine.begin() as conn:
            await move_store.set_progress(conn, move, msgspec.structs.replace(move.progress, lost=reason))
            await move_store.add_step(conn, move.id, move.state, reason)
            await audit.record(conn, audit.CONTROL_PLANE, "move_way_back_lost", f"move:{move.id}", reason=reason)

    # -- actions ------------------------------------------------------------------------------------------------

    async def _perform(self, action: Action, move: Move, run: Run) -> dict[str, Any]:
        """Do what was decided, within its budget; what is learnt is stored with the commit."""
        async with asyncio.timeout(action.budget_s or None):
            match action.do:
                case Do.SNAPSHOT:
                    return await self._large.snapshot(move, run, action.budget_s, functools.partial(self._save, move))
                case Do.FOLLOW:
                    return await self._large.follow(move, run, action.budget_s)
                case Do.VERIFY:
                    return await self._large.verify(move, run, action.budget_s)
                case Do.OPEN_BACK:
                    return await self._large.open_back(move, run)
                case Do.REHEARSE:
                    return await self._large.rehearse(move, run, action.budget_s)
                case Do.DRAIN:
                    return await self._large.drain(move, run, action.budget_s)
                case Do.STAND_BY:
                    return await self._large.stand_by(move, run, action.budget_s)
                case Do.FLOW_BACK:
                    return await self._large.flow_back(move, run)
                case _:
                    return await self._perform_small(action, move, run)

    async def _perform_small(self, action: Action, move: Move, run: Run) -> dict[str, Any]:
        """The steps that every move has, and the copy of a small one."""
        work = {
            Do.PREPARE: self._prepare,
            Do.FREEZE: self._freeze,
            Do.COPY: self._copy,
            Do.ACTIVATE: self._activate,
            Do.RETIRE: self._retire,
            Do.PURGE: self._purge,
            Do.ABORT: self._abort,
            Do.RESTORE: self._restore,
            Do.THAW: self._thaw,
        }.get(action.do)
        return {} if work is None else await work(move, run, action.budget_s)

    async def _prepare(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        source, target = await asyncio.gather(self._client.info(run.at.source), self._client.info(run.at.target))
        if source.schema != target.schema:
            raise VerificationError(
                f"schema revisions differ: {source.cell} has {source.schema}, {target.cell} {target.schema}"
            )
        command = transfer.Prepare(source.schema, move.target_epoch)
        await self._client.prepare(run.at.target, run.at.tenant, await run.fences.take(), command, budget_s=budget_s)
        return {"schema_revision": source.schema}

    async def _freeze(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        revision = await self._revision_of(run.at.tenant)
        lagging = await self._routes.wait_applied(revision, min(self._tuning.routers_s, budget_s))
        if lagging:
            log.info("routers_lagged", **_fields(move), revision=revision, routers=lagging)
        ends = (move.stream, large_moves.freeze_marker(move)) if move.path is not Path.SMALL else ("", "")
        command = transfer.Freeze(self._tuning.soft_ms, self._tuning.hard_ms, *ends)
        frozen = await self._client.freeze(
            run.at.source, run.at.tenant, await run.fences.take(), command, budget_s=budget_s
        )
        if frozen.epoch != move.source_epoch:
            raise VerificationError(f"{run.at.source.name} has epoch {frozen.epoch}, expected {move.source_epoch}")
        run.flow.unbroken = True
        log.info("move_source_froze", **_fields(move), drained_ms=frozen.drained_ms, cancelled=frozen.cancelled)
        return {}

    async def _copy(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        outgoing, incoming, compared = [await run.fences.take() for _ in range(3)]
        async with self._client.export(run.at.source, run.at.tenant, outgoing, budget_s=budget_s) as rows:
            # The export has begun, so a later fence does not stop it: the source reads twice at the same time.
            comparing = asyncio.create_task(
                self._client.checksum(run.at.source, run.at.tenant, compared, budget_s=budget_s)
            )
            files = asyncio.create_task(self._large.carry_blobs(run.at.source, run.at.target, run))
            try:
                done = await self._client.import_rows(run.at.target, run.at.tenant, incoming, rows, budget_s=budget_s)
                theirs = await self._client.checksum(
                    run.at.target, run.at.tenant, await run.fences.take(), budget_s=budget_s
                )
                ours = await comparing
                await files
            finally:
                comparing.cancel()
                files.cancel()
                await asyncio.gather(comparing, files, return_exceptions=True)
        if ours != theirs:
            raise VerificationError(f"the copy differs in {differences(ours, theirs)}")
        return {"rows": done.rows, "bytes": done.bytes}

    async def _activate(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        fence = await run.fences.take()
        await self._client.activate(run.at.target, run.at.tenant, fence, move.target_epoch, budget_s=budget_s)
        return {}

    async def _retire(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        hint = RouteHint(run.at.tenant, run.at.target.name, move.target_epoch).signed(self._hint_key)
        await self._client.release(run.at.source, run.at.tenant, await run.fences.take(), hint, budget_s=budget_s)
        await confirm_active(self._client, move, run, budget_s)
        return {}

    async def _purge(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        if move.path is not Path.SMALL:
            await self._large.close(move, run, budget_s)
        await self._client.purge(run.at.source, run.at.tenant, await run.fences.take(), budget_s=budget_s)
        return {}

    async def _abort(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        await self._client.abort(run.at.target, run.at.tenant, await run.fences.take(), move.epoch, budget_s=budget_s)
        return {}

    async def _restore(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        """Also where no freeze ever took it: arriving, this command overtakes a freeze that is still under way."""
        fence = await run.fences.take()
        await self._client.restore(run.at.source, run.at.tenant, fence, move.epoch, budget_s=budget_s)
        return {}

    async def _thaw(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        """The same at the epoch that the move goes on from; the target keeps what it has."""
        fence = await run.fences.take()
        await self._client.restore(run.at.source, run.at.tenant, fence, move.source_epoch, budget_s=budget_s)
        run.flow.broken()
        return {}

    # -- commits ------------------------------------------------------------------------------------------------

    async def _commit(self, move: Move, then: State, reason: str, facts: dict[str, Any]) -> None:
        """Make ``then`` true: the move's state and, where it changes, the tenant's home, epoch and route."""
        progress: Progress | None = facts.pop("progress", None)
        if then is move.state:
            if progress is not None:
                await self._save(move, progress)
            return
        if progress is not None:
            facts["progress"] = msgspec.to_builtins(progress)
        async with self._engine.begin() as conn:
            query = sa.select(tenants).where(tenants.c.number == move.tenant).with_for_update()
            tenant = Tenant.of((await conn.execute(query)).one())
            thawed = move.state is State.THAWING and then is State.CATCHING_UP
            given_back = move.state is State.RESTORING or thawed
            if then is State.HOLDING:
                facts["held_at"] = move_store.NOW
            elif then is State.THAWING:
                facts |= await _fresh_epochs(conn, tenant, move)
            elif then is State.STANDBY or given_back:
                facts["hold_ms"] = move_store.HOLD_MS
                if thawed:
                    facts["held_at"] = None
                if then is State.STANDBY:
                    facts["standby_at"] = move_store.NOW
            elif then is State.ABORTING:
                facts["restore_epoch"] = tenant.epoch_high + 1
                await _update_tenant(conn, tenant, epoch_high=tenant.epoch_high + 1)
            reason = await move_store.advance(conn, move, then, reason, **facts)
            marks: dict[str, Any] = {"move_id": None, "move_target": None}
            if move.undoes is not None and then in TERMINAL:
                marks = await _settle_undone(conn, move, then, reason) or marks
            if then is State.STANDBY:
                tenant = await _update_tenant(conn, tenant, cell=move.target, epoch=move.target_epoch)
            elif given_back:
                tenant = await _update_tenant(conn, tenant, epoch=move.source_epoch if thawed else move.epoch)
            if then in TERMINAL:
                await audit.record(conn, audit.CONTROL_PLANE, f"move_{_PAST[then]}", f"move:{move.id}", reason=reason)
                tenant = await _update_tenant(conn, tenant, **marks)
            if then in (State.HOLDING, State.STANDBY) or given_back:
                await publish(conn, [route_of(tenant, _route_state(tenant, then))])
        level = log.warning if then in (State.THAWING, State.ABORTING, State.FAILED) else log.info
        level(f"move_{_PAST[then]}", **_fields(move), reason=reason)

    async def _save(self, move: Move, progress: Progress) -> None:
        async with self._engine.begin() as conn:
            await move_store.set_progress(conn, move, progress)

    def _observe(self, move: Move) -> None:
        if move.state is State.STANDBY and move.hold_ms is not None:
            self._metrics.held(move.hold_ms / 1000)
        if move.state in TERMINAL:
            self._metrics.finished(move.kind.value, move.state.value)

    async def _read(self, move_id: str) -> Move:
        async with self._engine.connect() as conn:
            move = await move_store.get(conn, move_id)
        if move is None:
            raise StaleMoveError(move_id)
        return move

    async def _parties(self, move: Move) -> Parties:
        query = sa.select(cells.c.name, cells.c.internal_address).where(cells.c.name.in_((move.source, move.target)))
        async with self._engine.connect() as conn:
            found = {row.name: CellAddress(row.name, row.internal_address) for row in await conn.execute(query)}
        return Parties(tenant_of(move.tenant), found[move.source], found[move.target])

    async def _revision_of(self, tenant: TenantId) -> int:
        """The revision of the tenant's newest route."""
        query = sa.select(route_log.c.revision).where(route_log.c.subject == f"tenant:{tenant}", route_log.c.latest)
        async with self._engine.connect() as conn:
            return int((await conn.execute(query)).scalar_one())


async def _settle_undone(conn: AsyncConnection, move: Move, then: State, reason: str) -> dict[str, Any] | None:
    """The move that this one undoes is rolled back, or, where it was a standby and stays one, has its tenant again."""
    assert move.undoes is not None
    if then is State.DONE:
        await move_store.mark_rolled_back(conn, move.undoes, move.id)
        return None
    standby = await move_store.end_return(conn, move.undoes, move.id, reason)
    return None if standby is None else {"move_id": standby.id, "move_target": standby.target}


async def _update_tenant(conn: AsyncConnection, tenant: Tenant, **values: Any) -> Tenant:
    query = tenants.update().where(tenants.c.number == tenant.number).values(updated_at=sa.func.now(), **values)
    return Tenant.of((await conn.execute(query.returning(tenants))).one())


async def _fresh_epochs(conn: AsyncConnection, tenant: Tenant, move: Move) -> dict[str, Any]:
    """For a move that goes back to following: the source's next epoch, the target's above it, and a measure to take."""
    await _update_tenant(conn, tenant, epoch_high=tenant.epoch_high + 2)
    progress = msgspec.structs.replace(
        move.progress, holds=move.progress.holds + 1, rehearsals=0, lag_bytes=None, drain_s=None
    )
    return {
        "source_epoch": tenant.epoch_high + 1, "target_epoch": tenant.epoch_high + 2,
        "progress": msgspec.to_builtins(progress),
    }  # fmt: skip


def _route_state(tenant: Tenant, then: State) -> routes.State:
    if tenant.state == "suspended":
        return "suspended"
    return "held" if then is State.HOLDING else "active"


def _failure(error: Exception, move: Move) -> Failure:
    if isinstance(error, CellRefusedError):
        if error.slug == problems.FENCED.slug:
            raise StaleMoveError(move.id) from error
        # Before the hold a tenant that does not come to rest may do so later, and a copy can be begun anew.
        waits = error.slug == problems.FREEZE_BUSY.slug and move.state in (State.COPYING, State.CATCHING_UP)
        lost = large_moves.lost(error)
        return Failure(str(error), retry=waits or (lost and move.state is State.COPYING), lost=lost)
    if isinstance(error, TimeoutError):
        return Failure("not done within its budget", retry=True, silent=True)
    silent = isinstance(error, CellUnreachableError)
    return Failure(str(error), retry=silent, silent=silent, lost=large_moves.lost(error))


def _fields(move: Move) -> dict[str, Any]:
    return {Field.MOVE: move.id, Field.TENANT: tenant_of(move.tenant), "source": move.source, "target": move.target}
