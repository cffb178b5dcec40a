"""Carries batches out, under the leader's lease: looks, asks `waves.decide`, starts ordinary moves, writes it down.

Nothing that matters is remembered between two passes, so a crash at any point loses nothing: an item is running if and
only if its move exists, because both are one transaction (`batch_store.claim`).
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import problems
from contracts.ids import tenant_of
from contracts.names import Field, Metric
from contracts.problems import ProblemError
from control_plane import audit, batch_store
from control_plane.auth import Actor
from control_plane.batch_store import SWITCHED, Batch, ElsewhereError, Kind, Member, StaleBatchError
from control_plane.cell_client import CellError
from control_plane.fleet_snapshot import cells_now, resident, residents_of
from control_plane.move import UNDECIDED, State
from control_plane.move_service import Moves
from control_plane.placement import Placement
from control_plane.plans import evacuate, where
from control_plane.signals import MOVES, Signals
from control_plane.waves import OPEN, OVER, BatchState, Decision, Item, ItemState, Snapshot, cut, decide

IDLE_S: Final = 1.0  # without any signal, look for batches this often
LOOK_S: Final = 0.2  # and at those that are open this often
ROOM_S: Final = 10.0  # until a server that took no more streams is asked again

# Refusals that another target may mend; all others are of the tenant or pass by themselves.
_OF_TARGET: Final = frozenset({p.slug for p in (problems.CELL_FULL, problems.CONFLICT, problems.SCHEMA_MISMATCH,
                                                problems.MOVE_UNDONE, problems.NOT_FOUND)})  # fmt: skip

log = structlog.get_logger()


class WaveRunner:
    """Runs every open batch. One pass over one batch is `step`; safe to repeat."""

    def __init__(
        self,
        engine: AsyncEngine,
        signals: Signals,
        moves: Moves,
        rng: random.Random,
        registry: CollectorRegistry,
        *,
        idle_s: float = IDLE_S,
        look_s: float = LOOK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._signals = signals
        self._moves = moves
        self._rng = rng
        self._idle_s = idle_s
        self._look_s = look_s
        self._clock = clock
        self._resting: dict[int, float] = {}  # tenants whose servers took no more streams, until when
        self._outcomes = Counter(
            Metric.CONTROL_BATCH_MOVES, "Tenants of batches by outcome", ("outcome",), registry=registry
        )
        self._ended = Counter(Metric.CONTROL_BATCHES, "Batches that came to a state", ("state",), registry=registry)

    async def run(self, term: int) -> None:
        """Work until cancelled; the next leader carries on."""
        while True:
            changed = self._signals.subscribe(MOVES)
            open_ = False
            try:
                async with self._engine.connect() as conn:
                    found = [batch.id for batch in await batch_store.unfinished(conn)]
                for batch_id in found:
                    open_ = await self._tried(batch_id, term) or open_
            except (SQLAlchemyError, OSError) as e:
                log.warning("batches_not_looked_at", **{Field.REASON: str(e)})
            if not open_:
                await changed.wait(self._idle_s)
            await asyncio.sleep(self._look_s)  # also while the process stops, when nothing is waited for

    async def _tried(self, batch_id: str, term: int) -> bool:
        """One pass; True while the batch has something under way or to start."""
        try:
            return await self.step(batch_id, term) in (BatchState.RUNNING, BatchState.CANCELLING)
        except StaleBatchError:
            return True  # an operator, or a newer leader, came first: look again
        except (SQLAlchemyError, OSError):
            raise
        except Exception:
            log.exception("batch_step_failed", batch=batch_id)  # the other batches go on
            return False

    async def step(self, batch_id: str, term: int) -> BatchState:
        """Settle what ended, decide, start what may start. The state that was committed."""
        async with self._engine.begin() as conn:
            batch = await batch_store.adopt(conn, batch_id, term)
            for member in await batch_store.members(conn, batch_id):
                await self._settle(conn, batch, member)
        decision, items = await self._decide(batch)
        if decision.state in OVER and decision.state is not BatchState.CANCELLED and batch.kind is Kind.EVACUATE:
            decision = await self._rest(batch, decision)
        if batch.state is BatchState.CANCELLING:
            await self._call_back(batch)
        if decision.bake or (decision.state, decision.wave, decision.reason) != (batch.state, batch.wave, batch.reason):
            await self._commit(batch, decision)
        if decision.start:
            await asyncio.gather(*(self._start(batch, items[item.tenant]) for item in decision.start))
        return decision.state

    # -- looking --------------------------------------------------------------------------------------------------

    async def _settle(self, conn: AsyncConnection, batch: Batch, member: Member) -> None:
        """Write down what became of an item whose move is over, or served at its target already."""
        if member.item.state is not ItemState.RUNNING or member.move_state is None:
            return
        if member.move_state in SWITCHED:
            await self._end(conn, batch, member, ItemState.DONE, f"moved by {member.move}")
        elif member.move_state is State.CANCELLED:
            then = ItemState.CANCELLED if batch.state is BatchState.CANCELLING else ItemState.SKIPPED
            await self._end(conn, batch, member, then, f"its move {member.move} was cancelled")
        elif member.move_state is State.FAILED:
            last = member.tries >= batch.limits.tries or batch.state is BatchState.CANCELLING
            then = ItemState.FAILED if last else ItemState.WAITING
            await self._end(conn, batch, member, then, member.move_reason or "its move failed")

    async def _end(self, conn: AsyncConnection, batch: Batch, member: Member, then: ItemState, reason: str) -> None:
        item = member.item
        if await batch_store.settle(conn, batch, item.tenant, item.state, state=then.value, reason=reason):
            level = log.warning if then is ItemState.FAILED else log.info
            level("batch_item_settled", **_fields(batch, item), state=then.value, reason=reason)
            if then is not ItemState.WAITING:
                self._outcomes.labels(then.value).inc()

    async def _decide(self, batch: Batch) -> tuple[Decision, dict[int, Member]]:
        async with self._engine.connect() as conn:
            found = {member.item.tenant: member for member in await batch_store.members(conn, batch.id)}
            elsewhere = await batch_store.under_way(conn, batch.id)
            unhealthy = frozenset(cell.name for cell in await cells_now(conn) if not cell.healthy)
        now = self._clock()
        self._resting = {tenant: until for tenant, until in self._resting.items() if until > now}
        items = [replace(m.item, ready=m.item.ready and m.item.tenant not in self._resting) for m in found.values()]
        snapshot = Snapshot(batch.state, items, batch.limits, batch.wave, batch.baked_s, elsewhere, unhealthy)
        return decide(snapshot), found

    async def _call_back(self, batch: Batch) -> None:
        """Of a cancelled batch: ask every move before its decision to go back, once."""
        async with self._engine.connect() as conn:
            found = await batch_store.members(conn, batch.id)
        for member in found:
            going = member.item.state is ItemState.RUNNING and member.move_state in UNDECIDED
            if going and member.move is not None and not member.cancel_asked:
                with contextlib.suppress(ProblemError):  # past its decision meanwhile: it finishes
                    await self._moves.cancel(member.move, _actor(batch))

    async def _rest(self, batch: Batch, decision: Decision) -> Decision:
        """An evacuation is over when its cell is empty: take up who came meanwhile, or say who stays and why."""
        assert batch.cell is not None
        async with self._engine.begin() as conn:
            await batch_store.still(conn, batch)
            had = {member.item.tenant for member in await batch_store.members(conn, batch.id)}
            residents = await residents_of(conn, batch.cell)
            fleet, emptied = await cells_now(conn), frozenset(await batch_store.emptying(conn))
            new = [resident for resident in residents if resident.number not in had]
            plan = evacuate(fleet, new, batch.cell, self._rng, emptying=emptied)
            wave = decision.wave + 1
            await batch_store.add(conn, batch.id, plan.moves, cut(len(plan.moves), batch.limits, wave), {})
        if plan.moves:
            return Decision(
                BatchState.RUNNING, decision.wave, f"{len(plan.moves)} more tenants are to leave {batch.cell}"
            )
        coming = [resident for resident in new if resident.busy]
        if coming:
            return Decision(BatchState.RUNNING, decision.wave, f"waits for {coming[0].slug}: {coming[0].busy}")
        if residents:
            stays = next((f" ({b.slug}: {b.reason})" for b in plan.blocked), "")
            who = "1 tenant stays" if len(residents) == 1 else f"{len(residents)} tenants stay"
            reason = f"{who} in {batch.cell}{stays}"
            return Decision(BatchState.INCOMPLETE, decision.wave, reason)
        return Decision(BatchState.DONE, decision.wave, f"no tenant lives in {batch.cell} any more")

    async def _commit(self, batch: Batch, decision: Decision) -> None:
        async with self._engine.begin() as conn:
            await batch_store.commit(conn, batch, decision)
            if decision.state is not batch.state:
                await audit.record(
                    conn, audit.CONTROL_PLANE, f"batch_{decision.state}", f"batch:{batch.id}", reason=decision.reason
                )
        if decision.state is not batch.state:
            self._ended.labels(decision.state.value).inc()
            good = decision.state in (BatchState.DONE, BatchState.CANCELLED)
            (log.info if good else log.warning)(
                "batch_state_changed", batch=batch.id, state=decision.state.value, reason=decision.reason
            )

    # -- starting -------------------------------------------------------------------------------------------------

    async def _start(self, batch: Batch, member: Member) -> None:
        item = member.item

        async def claim(conn: AsyncConnection, move_id: str) -> None:
            await batch_store.claim(conn, batch, item, move_id)

        try:
            # No standby stays behind: what empties a cell must not leave copies there, and its undoing is a batch too.
            await self._moves.start(tenant_of(item.tenant), item.target, _actor(batch), claim, finalize_after_s=0.0)
        except StaleBatchError:
            log.info("batch_start_outrun", **_fields(batch, item))
        except ElsewhereError as e:
            await self._write(batch, member, ItemState.SKIPPED, f"it lives in {e} by now")
        except ProblemError as e:
            await self._refused(batch, member, e)
        except CellError as e:
            await self._again(batch, member, str(e))

    async def _refused(self, batch: Batch, member: Member, error: ProblemError) -> None:
        """What a refusal means for the batch: nothing to do any more, another target, another try, or a failure."""
        item, problem, reason = member.item, error.problem, error.detail
        async with self._engine.connect() as conn:
            tenant = await resident(conn, item.tenant)
            fleet, emptied = await cells_now(conn), frozenset(await batch_store.emptying(conn))
        if tenant is None:
            await self._write(batch, member, ItemState.SKIPPED, "the tenant is gone")
        elif tenant.cell != item.source:
            await self._write(batch, member, ItemState.SKIPPED, f"it lives in {tenant.cell} by now")
        elif problem is problems.PINNED:
            await self._write(batch, member, ItemState.SKIPPED, reason)
        elif problem in (problems.MOVE_RUNNING, problems.NO_STREAM_ROOM):
            if problem is problems.NO_STREAM_ROOM:  # asking costs a large tenant's cell a count of its rows
                self._resting[item.tenant] = self._clock() + ROOM_S
            if reason != member.reason:
                await self._write(batch, member, ItemState.WAITING, reason)
        elif problem.slug in _OF_TARGET and batch.kind is Kind.REBALANCE:
            await self._write(batch, member, ItemState.SKIPPED, reason)  # its cell is well without it
        elif problem.slug in _OF_TARGET:
            home = next(cell for cell in fleet if cell.name == tenant.cell)
            placed, _ = where(fleet, home, tenant, emptied | {item.target}, self._rng)
            if isinstance(placed, Placement):
                await self._again(batch, member, f"{reason} Next: {placed.reason}", target=placed.cell)
            else:
                await self._again(batch, member, reason)
        else:
            await self._again(batch, member, reason)

    async def _again(self, batch: Batch, member: Member, reason: str, **values: str) -> None:
        """Count a try that made no move; the last one is a failure."""
        tries = member.tries + 1
        then = ItemState.FAILED if tries >= batch.limits.tries else ItemState.WAITING
        await self._write(batch, member, then, reason, tries=tries, **values)

    async def _write(self, batch: Batch, member: Member, then: ItemState, reason: str, **values: str | int) -> None:
        item = member.item
        async with self._engine.begin() as conn:
            await batch_store.settle(conn, batch, item.tenant, item.state, state=then.value, reason=reason, **values)
        log.warning("batch_start_refused", **_fields(batch, item), state=then.value, reason=reason)
        if then not in OPEN:
            self._outcomes.labels(then.value).inc()


def _actor(batch: Batch) -> Actor:
    return Actor(f"batch:{batch.id}", "operator")


def _fields(batch: Batch, item: Item) -> dict[str, str]:
    return {"batch": batch.id, Field.TENANT: tenant_of(item.tenant), "source": item.source, "target": item.target}
