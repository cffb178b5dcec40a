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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import problems, routes, transfer
from contracts.ids import TenantId, tenant_of
from contracts.names import Field
from contracts.routes import RouteHint
from contracts.transfer import Fence
from control_plane import audit, move_store
from control_plane.cell_client import CellAddress, CellClient, CellRefusedError, CellUnreachableError
from control_plane.models import Tenant, cells, route_log, tenants
from control_plane.move import TERMINAL, Action, Budgets, Do, Failure, State, Tries, decide, settle
from control_plane.move_metrics import MoveMetrics
from control_plane.move_store import Move, StaleMoveError
from control_plane.routes import RouteLog, publish, route_of

log = structlog.get_logger()

FENCE_BLOCK: Final = 1000  # fences reserved at once, so that a command inside the hold needs no commit of its own

Boundary = Callable[[str], Awaitable[None]]

# The log event of each state once it is committed.
_PAST: Final = {
    State.PREPARING: "began",
    State.HOLDING: "held",
    State.FROZEN: "frozen",
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


@dataclass(frozen=True, slots=True)
class Parties:
    """Who a move is about, as commands name them."""

    tenant: TenantId
    source: CellAddress
    target: CellAddress


class VerificationError(Exception):
    """Both sides answered, and what they hold or say is not what the move needs. Trying again does not help."""


class Fences:
    """Fences of one move under one term, reserved in blocks; see `routes.next_fence` for the single ones."""

    def __init__(self, engine: AsyncEngine, move: Move) -> None:
        self._engine = engine
        self._move = move
        self._next = self._end = 0

    async def take(self) -> Fence:
        """A fence above every one given out before for this tenant; `StaleMoveError` under a newer term."""
        if self._next == self._end:
            await self._reserve()
        self._next += 1
        return Fence(self._move.term, self._next - 1, self._move.id)

    async def _reserve(self) -> None:
        query = (
            tenants.update()
            .where(tenants.c.number == self._move.tenant, tenants.c.fence_term <= self._move.term)
            .values(fence_term=self._move.term, fence_seq=tenants.c.fence_seq + FENCE_BLOCK)
            .returning(tenants.c.fence_seq)
        )
        async with self._engine.begin() as conn:
            high = (await conn.execute(query)).scalar_one_or_none()
        if high is None:
            raise StaleMoveError(self._move.id)
        self._next, self._end = high - FENCE_BLOCK + 1, high + 1


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
        self._tuning = tuning or Tuning()
        self._on_boundary = on_boundary
        self._sleep = sleep

    async def drive(self, move_id: str, term: int) -> Move:
        """Carry a move on, from wherever it stands, to a terminal state.

        `StaleMoveError` when a newer leader has it; database errors pass through. After either, driving again
        continues where this stopped.
        """
        async with self._engine.begin() as conn:
            move = await move_store.adopt(conn, move_id, term)
        fences = Fences(self._engine, move)
        await fences.take()  # the first block, before any hold begins
        parties = await self._parties(move)
        tries = Tries()
        while move.state not in TERMINAL:
            before = move
            tries = await self._step_or_reread(move, parties, fences, tries)
            move = await self._read(move.id)
            if move.state is not before.state:
                self._observe(move)
                await self._on_boundary(move.state.value)
            elif tries.failures:
                parties = await self._parties(move)  # a cell that came back may listen elsewhere
        return move

    async def _step_or_reread(self, move: Move, parties: Parties, fences: Fences, tries: Tries) -> Tries:
        try:
            return await self._step(move, parties, fences, tries)
        except StaleMoveError:
            again = await self._read(move.id)
            if again.term != move.term or (again.state, again.cancel_requested) == (move.state, move.cancel_requested):
                raise
            return tries  # a cancellation came first: decide anew

    async def _step(self, move: Move, parties: Parties, fences: Fences, tries: Tries) -> Tries:
        snapshot = move.snapshot(tries)
        action = decide(snapshot, self._budgets)
        try:
            facts = await self._perform(action, move, parties, fences)
        except (CellRefusedError, CellUnreachableError, VerificationError, TimeoutError) as e:
            failure = _failure(e, move)
            verdict = settle(snapshot, action, failure, self._budgets)
            return await self._after_failure(move, verdict, tries.after(failure))
        await self._commit(move, action.then, action.reason, facts)
        return Tries()

    async def _after_failure(self, move: Move, verdict: Action, tries: Tries) -> Tries:
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

    # -- actions ------------------------------------------------------------------------------------------------

    async def _perform(self, action: Action, move: Move, parties: Parties, fences: Fences) -> dict[str, Any]:
        """Do what was decided, within its budget; what is learnt is stored with the commit."""
        work = {
            Do.PREPARE: self._prepare,
            Do.FREEZE: self._freeze,
            Do.COPY: self._copy,
            Do.ACTIVATE: self._activate,
            Do.RETIRE: self._retire,
            Do.PURGE: self._purge,
            Do.ABORT: self._abort,
            Do.RESTORE: self._restore,
        }.get(action.do)
        if work is None:
            return {}
        async with asyncio.timeout(action.budget_s):
            return await work(move, parties, fences, action.budget_s)

    async def _prepare(self, move: Move, at: Parties, fences: Fences, budget_s: float) -> dict[str, Any]:
        source, target = await asyncio.gather(self._client.info(at.source), self._client.info(at.target))
        if source.schema != target.schema:
            raise VerificationError(
                f"schema revisions differ: {at.source.name} has {source.schema}, {at.target.name} {target.schema}"
            )
        command = transfer.Prepare(source.schema, move.target_epoch)
        await self._client.prepare(at.target, at.tenant, await fences.take(), command, budget_s=budget_s)
        return {}

    async def _freeze(self, move: Move, at: Parties, fences: Fences, budget_s: float) -> dict[str, Any]:
        revision = await self._revision_of(at.tenant)
        lagging = await self._routes.wait_applied(revision, min(self._tuning.routers_s, budget_s))
        if lagging:
            log.info("routers_lagged", **_fields(move), revision=revision, routers=lagging)
        command = transfer.Freeze(self._tuning.soft_ms, self._tuning.hard_ms)
        frozen = await self._client.freeze(at.source, at.tenant, await fences.take(), command, budget_s=budget_s)
        if frozen.epoch != move.source_epoch:
            raise VerificationError(f"{at.source.name} has epoch {frozen.epoch}, expected {move.source_epoch}")
        log.info("move_source_froze", **_fields(move), drained_ms=frozen.drained_ms, cancelled=frozen.cancelled)
        return {}

    async def _copy(self, move: Move, at: Parties, fences: Fences, budget_s: float) -> dict[str, Any]:
        outgoing, incoming, compared = [await fences.take() for _ in range(3)]
        async with self._client.export(at.source, at.tenant, outgoing, budget_s=budget_s) as rows:
            # The export has begun, so a later fence does not stop it: the source reads twice at the same time.
            comparing = asyncio.create_task(self._client.checksum(at.source, at.tenant, compared, budget_s=budget_s))
            try:
                done = await self._client.import_rows(at.target, at.tenant, incoming, rows, budget_s=budget_s)
                theirs = await self._client.checksum(at.target, at.tenant, await fences.take(), budget_s=budget_s)
                ours = await comparing
            finally:
                comparing.cancel()
                await asyncio.gather(comparing, return_exceptions=True)
        if ours != theirs:
            raise VerificationError(f"the copy differs in {_differences(ours, theirs)}")
        return {"rows": done.rows, "bytes": done.bytes}

    async def _activate(self, move: Move, at: Parties, fences: Fences, budget_s: float) -> dict[str, Any]:
        fence = await fences.take()
        await self._client.activate(at.target, at.tenant, fence, move.target_epoch, budget_s=budget_s)
        return {}

    async def _retire(self, move: Move, at: Parties, fences: Fences, budget_s: float) -> dict[str, Any]:
        hint = RouteHint(at.tenant, at.target.name, move.target_epoch).signed(self._hint_key)
        await self._client.release(at.source, at.tenant, await fences.take(), hint, budget_s=budget_s)
        status = await self._client.status(at.target, at.tenant, budget_s=budget_s)
        if status is None or status.state != "active" or status.epoch < move.target_epoch:
            raise VerificationError(f"{at.target.name} does not confirm the tenant as active: {_said(status)}")
        return {}

    async def _purge(self, _move: Move, at: Parties, fences: Fences, budget_s: float) -> dict[str, Any]:
        await self._client.purge(at.source, at.tenant, await fences.take(), budget_s=budget_s)
        return {}

    async def _abort(self, move: Move, at: Parties, fences: Fences, budget_s: float) -> dict[str, Any]:
        await self._client.abort(at.target, at.tenant, await fences.take(), move.epoch, budget_s=budget_s)
        return {}

    async def _restore(self, move: Move, at: Parties, fences: Fences, budget_s: float) -> dict[str, Any]:
        try:
            await self._client.restore(at.source, at.tenant, await fences.take(), move.epoch, budget_s=budget_s)
        except CellRefusedError as e:
            if e.slug != problems.WRONG_STATE.slug:
                raise
            # The freeze never reached it. It may still be under way, so it is overtaken by one of our own.
            command = transfer.Freeze(0, self._tuning.hard_ms)
            await self._client.freeze(at.source, at.tenant, await fences.take(), command, budget_s=budget_s)
            await self._client.restore(at.source, at.tenant, await fences.take(), move.epoch, budget_s=budget_s)
        return {}

    # -- commits ------------------------------------------------------------------------------------------------

    async def _commit(self, move: Move, then: State, reason: str, facts: dict[str, Any]) -> None:
        """Make ``then`` true: the move's state and, where it changes, the tenant's home, epoch and route."""
        async with self._engine.begin() as conn:
            query = sa.select(tenants).where(tenants.c.number == move.tenant).with_for_update()
            tenant = Tenant.of((await conn.execute(query)).one())
            given_back = move.state is State.RESTORING
            if then is State.HOLDING:
                facts["held_at"] = move_store.NOW
            elif then is State.STANDBY or given_back:
                facts["hold_ms"] = move_store.HOLD_MS
            elif then is State.ABORTING:
                facts["restore_epoch"] = tenant.epoch_high + 1
                await _update_tenant(conn, tenant, epoch_high=tenant.epoch_high + 1)
            await move_store.advance(conn, move, then, reason, **facts)
            if then is State.DONE and move.undoes is not None:
                await move_store.mark_rolled_back(conn, move.undoes, move.id)
            if then is State.STANDBY:
                tenant = await _update_tenant(conn, tenant, cell=move.target, epoch=move.target_epoch)
            elif given_back:
                tenant = await _update_tenant(conn, tenant, epoch=move.epoch)
            if then in TERMINAL:
                await audit.record(conn, audit.CONTROL_PLANE, f"move_{_PAST[then]}", f"move:{move.id}", reason=reason)
                tenant = await _update_tenant(conn, tenant, move_id=None, move_target=None)
            if then in (State.HOLDING, State.STANDBY) or given_back:
                await publish(conn, [route_of(tenant, _route_state(tenant, then))])
        level = log.warning if then in (State.ABORTING, State.FAILED) else log.info
        level(f"move_{_PAST[then]}", **_fields(move), reason=reason)

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


async def _update_tenant(conn: AsyncConnection, tenant: Tenant, **values: Any) -> Tenant:
    query = tenants.update().where(tenants.c.number == tenant.number).values(updated_at=sa.func.now(), **values)
    return Tenant.of((await conn.execute(query.returning(tenants))).one())


def _route_state(tenant: Tenant, then: State) -> routes.State:
    if tenant.state == "suspended":
        return "suspended"
    return "held" if then is State.HOLDING else "active"


def _failure(error: Exception, move: Move) -> Failure:
    if isinstance(error, CellRefusedError):
        if error.slug == problems.FENCED.slug:
            raise StaleMoveError(move.id) from error
        return Failure(str(error), retry=False)
    if isinstance(error, TimeoutError):
        return Failure("not done within its budget", retry=True, silent=True)
    silent = isinstance(error, CellUnreachableError)
    return Failure(str(error), retry=silent, silent=silent)


def _differences(ours: transfer.Checksum, theirs: transfer.Checksum) -> str:
    names = sorted(ours.tables.keys() | theirs.tables.keys())
    return ", ".join(name for name in names if ours.tables.get(name) != theirs.tables.get(name))


def _said(status: transfer.TenantStatus | None) -> str:
    return "it does not know the tenant" if status is None else f"{status.state} at epoch {status.epoch}"


def _fields(move: Move) -> dict[str, Any]:
    return {Field.MOVE: move.id, Field.TENANT: tenant_of(move.tenant), "source": move.source, "target": move.target}
