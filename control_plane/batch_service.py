"""What operators may ask of plans and batches. Carrying a batch out is `wave_runner`'s part, under the leader."""

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import ids, problems
from contracts.names import Field
from contracts.problems import ProblemError
from control_plane import audit, batch_store
from control_plane.auth import Actor
from control_plane.batch_store import Batch, Kind, Member
from control_plane.cell_client import CellAddress, CellClient, CellError
from control_plane.cells import cell_of, change_cell, fleet_of
from control_plane.fleet_snapshot import cells_now, everybody, residents_of, unsettled
from control_plane.plans import TOLERANCE, Blocked, Change, Plan, evacuate, rebalance, what_if
from control_plane.signals import MOVES
from control_plane.waves import RESUMABLE, BatchState, ItemState, Limits, cut

NAMED: Final = 3  # tenants in a refusal
# One plan is made at a time: two of them, each blind to the other, could undo one another's moves.
_PLANNING: Final = sa.text("SELECT pg_advisory_xact_lock(hashtext('cellwall plans'))")

log = structlog.get_logger()


def new_batch_id() -> str:
    """A fresh id of a batch."""
    return f"b{secrets.token_hex(6)}"


@dataclass(frozen=True, slots=True)
class Course:
    """A batch with its tenants in their order."""

    batch: Batch
    members: list[Member]

    @property
    def counts(self) -> Counter[ItemState]:
        """How many items are in each state."""
        return Counter(member.item.state for member in self.members)

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the pace so far; None where nothing is done yet or nothing runs."""
        done, left = self.counts[ItemState.DONE], self.counts[ItemState.WAITING] + self.counts[ItemState.RUNNING]
        if self.batch.state is not BatchState.RUNNING or not done:
            return None
        return left * (self.batch.updated_at - self.batch.created_at).total_seconds() / done


class Batches:
    """Plan, start, pause, resume, cancel and look at batches. Safe for concurrent use."""

    def __init__(
        self,
        engine: AsyncEngine,
        client: CellClient,
        rng: random.Random,
        new_id: Callable[[], str] = new_batch_id,
    ) -> None:
        self._engine = engine
        self._client = client
        self._rng = rng
        self._new_id = new_id

    async def preview(self, kind: Kind, cell: str | None, tolerance: float = TOLERANCE) -> Plan:
        """What `start` would do as things stand; nothing is changed."""
        async with self._engine.connect() as conn:
            return await self._plan(conn, kind, cell, tolerance)

    async def start(
        self,
        kind: Kind,
        cell: str | None,
        limits: Limits,
        actor: Actor,
        *,
        partial: bool = False,
        tolerance: float = TOLERANCE,
        apart: Mapping[int, str] = MappingProxyType({}),
    ) -> Course:
        """Plan, and write the batch down; the leader carries it out. An evacuated cell is draining from then on.

        ``apart``: tenants of an evacuated cell that are left where they are, with the reason.
        `ProblemError` 409: nothing to move; tenants that cannot be moved (not with ``partial``); a batch in the way.
        """
        shards = await self._shards(await self.preview(kind, cell, tolerance))
        try:
            async with self._engine.begin() as conn:
                await conn.execute(_PLANNING)
                batch_id = await self._written(conn, kind, cell, limits, actor, partial, tolerance, shards, apart)
                return await _course(conn, batch_id)
        except IntegrityError as e:
            raise _in_the_way(e) from None

    async def what_if(self, change: Change) -> tuple[Plan, tuple[str, ...]]:
        """The plan for a fleet that would be so, and warnings; nothing is changed."""
        async with self._engine.connect() as conn:
            for name in sorted(change.without):
                await cell_of(conn, name)
            fleet, residents = await cells_now(conn), await everybody(conn)
        taken = {cell.name for cell in fleet} & {cell.name for cell in change.add}
        if taken:
            raise ProblemError(problems.INVALID, f"add: there is a cell {min(taken)!r} already.")
        regions = {cell.region for cell in fleet}
        schema = Counter(cell.schema for cell in fleet).most_common(1)
        add = tuple(replace(cell, schema=cell.schema or (schema[0][0] if schema else "")) for cell in change.add)
        unknown = {cell.region for cell in add} - regions
        settled = [replace(r, busy="") for r in residents]  # the question is about a quieter day
        plan, warnings = await asyncio.to_thread(what_if, fleet, settled, replace(change, add=add), self._rng)
        new = tuple(f"{region} is a new region: no tenant may move there" for region in sorted(unknown))
        return plan, (*warnings, *new)

    async def one(self, batch_id: str) -> Course:
        """A batch, or 404."""
        async with self._engine.connect() as conn:
            return await _course(conn, batch_id)

    async def all(self, limit: int) -> list[Course]:
        """The newest first."""
        async with self._engine.connect() as conn:
            return [
                Course(batch, await batch_store.members(conn, batch.id))
                for batch in await batch_store.find(conn, limit)
            ]

    async def pause(self, batch_id: str, actor: Actor) -> Course:
        """Nothing more starts; what runs finishes."""
        return await self._order(batch_id, actor, "batch_paused", {BatchState.RUNNING}, BatchState.PAUSED, "paused")

    async def resume(self, batch_id: str, actor: Actor) -> Course:
        """Go on; what failed is tried again."""
        try:
            return await self._order(batch_id, actor, "batch_resumed", set(RESUMABLE), BatchState.RUNNING, "resumed")
        except IntegrityError:
            raise ProblemError(
                problems.BATCH_RUNNING, "Another batch has taken up a tenant that failed in this one."
            ) from None

    async def cancel(self, batch_id: str, actor: Actor) -> Course:
        """Nothing more starts; moves before their decision are asked to go back. What moved stays where it is."""
        open_ = {BatchState.RUNNING, *RESUMABLE}
        return await self._order(batch_id, actor, "batch_cancelled", open_, BatchState.CANCELLING, "cancelled")

    # -- planning -------------------------------------------------------------------------------------------------

    async def _plan(
        self,
        conn: AsyncConnection,
        kind: Kind,
        cell: str | None,
        tolerance: float,
        apart: Mapping[int, str] = MappingProxyType({}),
    ) -> Plan:
        fleet, emptied = await cells_now(conn), frozenset(await batch_store.emptying(conn))
        if kind is Kind.REBALANCE:
            found = await unsettled(conn, fleet, tolerance)
            return await asyncio.to_thread(rebalance, fleet, found, tolerance=tolerance, emptying=emptied)
        source = (await cell_of(conn, cell or "")).name
        residents = [replace(r, busy=r.busy or apart.get(r.number, "")) for r in await residents_of(conn, source)]
        return await asyncio.to_thread(evacuate, fleet, residents, source, self._rng, emptying=emptied)

    async def _written(
        self,
        conn: AsyncConnection,
        kind: Kind,
        cell: str | None,
        limits: Limits,
        actor: Actor,
        partial: bool,
        tolerance: float,
        shards: dict[int, str],
        apart: Mapping[int, str],
    ) -> str:
        await _refuse_second(conn, kind, cell)
        if cell is not None:
            await _refuse_arrivals(conn, cell)
        plan = await self._plan(conn, kind, cell, tolerance, apart)
        _refuse(plan, kind, cell, partial)
        if cell is not None and (await cell_of(conn, cell)).state == "active":
            await change_cell(conn, cell, "draining", None, actor)
        batch_id = self._new_id()
        await batch_store.insert(conn, batch_id, kind, cell, limits, plan.blocked, plan.reason, actor.name)
        await batch_store.add(conn, batch_id, plan.moves, cut(len(plan.moves), limits), shards)
        await batch_store.set_apart(conn, batch_id, [b for b in plan.blocked if b.number in apart])
        await audit.record(
            conn, actor.name, "batch_started", f"batch:{batch_id}", kind=kind.value, cell=cell, moves=len(plan.moves)
        )
        await conn.execute(sa.select(sa.func.pg_notify(MOVES, batch_id)))
        return batch_id

    async def _shards(self, plan: Plan) -> dict[int, str]:
        """The shard of each tenant in its source, as the cells tell it. A cell that does not answer tells none."""
        sources = {move.source for move in plan.moves}
        async with self._engine.connect() as conn:
            addresses = [cell.target for cell in await fleet_of(conn) if cell.name in sources]
        told = await asyncio.gather(*(self._shards_of(address) for address in addresses))
        return {number: shard for each in told for number, shard in each.items()}

    async def _shards_of(self, cell: CellAddress) -> dict[int, str]:
        try:
            return {ids.tenant_number(t.tenant): t.shard for t in await self._client.tenants(cell)}
        except CellError as e:
            log.warning("shards_not_told", **{Field.CELL: cell.name, Field.REASON: str(e)})
            return {}

    async def _order(
        self, batch_id: str, actor: Actor, action: str, allowed: set[BatchState], then: BatchState, word: str
    ) -> Course:
        async with self._engine.begin() as conn:
            batch = await batch_store.get(conn, batch_id, lock=True)
            if batch is None:
                raise _unknown(batch_id)
            if batch.state not in allowed:
                choices = " or ".join(sorted(allowed))
                raise ProblemError(
                    problems.CONFLICT,
                    f"The batch {batch_id} is {batch.state}: {batch.reason}.",
                    advice=f"Only a batch that is {choices} can be {word}.",
                )
            if then is BatchState.RUNNING:
                await batch_store.try_again(conn, batch_id)
            if then is BatchState.CANCELLING:
                await batch_store.cancel_waiting(conn, batch_id)
            await batch_store.order(conn, batch_id, then, f"{word} by {actor.name}")
            await audit.record(conn, actor.name, action, f"batch:{batch_id}")
            await conn.execute(sa.select(sa.func.pg_notify(MOVES, batch_id)))
            return await _course(conn, batch_id)


async def _course(conn: AsyncConnection, batch_id: str) -> Course:
    batch = await batch_store.get(conn, batch_id)
    if batch is None:
        raise _unknown(batch_id)
    return Course(batch, await batch_store.members(conn, batch_id))


async def _refuse_second(conn: AsyncConnection, kind: Kind, cell: str | None) -> None:
    """An open batch does this already. Its tenants would look like ones that cannot be moved, which is no help."""
    running = await batch_store.open_like(conn, kind, cell)
    if running is not None:
        doing = f"The batch {running} empties {cell}" if cell is not None else f"The rebalance {running} is under way"
        raise ProblemError(
            problems.BATCH_RUNNING, f"{doing} already.",
            advice=f"See: cellctl plans status {running}. To end it: cellctl plans cancel {running}",
        )  # fmt: skip


async def _refuse_arrivals(conn: AsyncConnection, cell: str) -> None:
    """An open batch brings tenants to the cell: emptying it would undo that."""
    arriving = Counter(batch for batch, target in (await batch_store.open_items(conn)).values() if target == cell)
    for batch, count in arriving.items():
        raise ProblemError(
            problems.MOVE_UNDONE,
            f"The batch {batch} brings {count} tenants to {cell}: emptying it would move them away again.",
            advice=f"Wait for that batch, or cancel it: cellctl plans cancel {batch}",
        )


def _refuse(plan: Plan, kind: Kind, cell: str | None, partial: bool) -> None:
    if plan.blocked and not (partial and plan.moves):
        raise ProblemError(
            problems.PLAN_INCOMPLETE,
            f"{len(plan.blocked)} of {len(plan.moves) + len(plan.blocked)} tenants cannot be moved: "
            + "; ".join(f"{b.slug}: {b.reason}" for b in plan.blocked[:NAMED])
            + (f"; and {len(plan.blocked) - NAMED} more" if len(plan.blocked) > NAMED else ""),
            advice=_advice(plan.blocked) + (" Or move the others with --partial." if plan.moves else ""),
            blocked=len(plan.blocked),
        )
    if not plan.moves:
        detail = f"No tenant lives in {cell}." if kind is Kind.EVACUATE else f"The fleet is balanced: {plan.reason}."
        raise ProblemError(problems.NOTHING_TO_MOVE, detail)


def _advice(blocked: tuple[Blocked, ...]) -> str:
    """What would help most of them, first."""
    common = [advice for advice, _ in Counter(b.advice for b in blocked).most_common(2)]
    return " ".join(advice if advice.endswith(".") else f"{advice}." for advice in common)


def _unknown(batch_id: str) -> ProblemError:
    return ProblemError(problems.NOT_FOUND, f"There is no batch {batch_id!r}.", advice="See: cellctl plans list")


def _in_the_way(error: IntegrityError) -> ProblemError:
    text = str(error.orig)
    if "uq_batches_open_cell" in text:
        return ProblemError(problems.BATCH_RUNNING, "A batch empties this cell already.")
    if "uq_batches_open_rebalance" in text:
        return ProblemError(problems.BATCH_RUNNING, "A rebalance is under way already.")
    if "uq_batch_moves_open_tenant" in text:
        return ProblemError(problems.BATCH_RUNNING, "Another batch has taken up a tenant of this one. Plan again.")
    raise error
