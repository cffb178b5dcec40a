"""Batches as rows: ``batches``, ``batch_moves``, and every statement about them.

| Guarantee | How |
|---|---|
| A tenant's move and its place in the batch begin together | `claim` runs in the transaction that plans the move |
| A cancelled or paused batch starts nothing | `claim` takes a share lock on the batch's row and asks for its state |
| An old leader starts nothing | `claim` and `commit` compare the term |
| A tenant is in one open batch | a unique index over open items |
| A cell is emptied by one batch, and one rebalance runs | unique indexes over open batches |
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts import problems
from contracts.problems import ProblemError
from control_plane.models import Tenant, metadata, one_of
from control_plane.move import GOING_BACK, UNDECIDED, State
from control_plane.move_store import moves
from control_plane.plans import Blocked, Proposal
from control_plane.waves import OPEN, OVER, BatchState, Decision, Item, ItemState, Limits

RETRY_S: Final = 1.0  # after a try that failed, times the tries so far
LISTED_BLOCKED: Final = 100  # of what could not be planned, so many are kept with the batch


class Kind(StrEnum):
    """What a batch is for."""

    EVACUATE = "evacuate"
    REBALANCE = "rebalance"


class StaleBatchError(Exception):
    """The batch, or the tenant's place in it, is not as it was read. Nothing was written."""


class ElsewhereError(Exception):
    """The tenant lives in another cell than when it was planned for. Nothing was written."""


def _values(states: Iterable[StrEnum]) -> tuple[str, ...]:
    return tuple(sorted(state.value for state in states))


_OVER_SQL: Final = one_of("state", _values(OVER))
_OPEN_SQL: Final = one_of("state", _values(OPEN))


def _at(name: str) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()"))


batches: Final = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("cell", sa.Text, sa.ForeignKey("cells.name")),  # that an evacuation empties
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("limits", JSONB, nullable=False),  # a `waves.Limits`
    sa.Column("blocked", JSONB, nullable=False),  # the first of those that could not be planned
    sa.Column("wave", sa.Integer, nullable=False, server_default="0"),
    sa.Column("wave_over_at", sa.DateTime(timezone=True)),
    sa.Column("term", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("actor", sa.Text, nullable=False),
    _at("created_at"),
    _at("updated_at"),
    sa.Column("finished_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint(one_of("kind", _values(Kind)), name="kind"),
    sa.CheckConstraint(one_of("state", _values(BatchState)), name="state"),
    sa.CheckConstraint("(kind = 'evacuate') = (cell IS NOT NULL)", name="cell"),
    sa.CheckConstraint(f"({_OVER_SQL}) = (finished_at IS NOT NULL)", name="finished_at"),
)
sa.Index("uq_batches_open_cell", batches.c.cell, unique=True, postgresql_where=sa.text(f"NOT ({_OVER_SQL})"))
sa.Index(
    "uq_batches_open_rebalance",
    batches.c.kind,
    unique=True,
    postgresql_where=sa.text(f"kind = 'rebalance' AND NOT ({_OVER_SQL})"),
)
sa.Index("ix_batches_created_at", batches.c.created_at)

batch_moves: Final = sa.Table(
    "batch_moves",
    metadata,
    sa.Column("batch", sa.Text, sa.ForeignKey("batches.id"), primary_key=True),
    sa.Column("tenant", sa.BigInteger, sa.ForeignKey("tenants.number"), primary_key=True, autoincrement=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("slug", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("shard", sa.Text, nullable=False),  # of the source; empty where it was not known
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("move", sa.Text, sa.ForeignKey("moves.id")),  # the newest one
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("reason", sa.Text, nullable=False),  # of the choice, later of the outcome
    _at("updated_at"),
    sa.CheckConstraint(one_of("state", _values(ItemState)), name="state"),
    sa.CheckConstraint("source <> target OR state = 'skipped'", name="elsewhere"),
    sa.CheckConstraint("state <> 'running' OR move IS NOT NULL", name="running_has_a_move"),
)
sa.Index("uq_batch_moves_open_tenant", batch_moves.c.tenant, unique=True, postgresql_where=sa.text(_OPEN_SQL))

_NOW: Final = sa.func.clock_timestamp()
# Until the switch a move costs both cells; afterwards the tenant is served at its target, whatever is still cleared up.
_GOING: Final = _values(UNDECIDED | GOING_BACK | {State.SWITCHING})
SWITCHED: Final = frozenset(State) - UNDECIDED - GOING_BACK - {State.SWITCHING, State.CANCELLED, State.FAILED}


@dataclass(frozen=True, slots=True)
class Batch:
    """A row of ``batches``. ``baked_s`` is an age by the database's clock when it was read."""

    id: str
    kind: Kind
    cell: str | None
    state: BatchState
    reason: str
    limits: Limits
    blocked: tuple[Blocked, ...]
    wave: int
    term: int
    actor: str
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    baked_s: float | None


@dataclass(frozen=True, slots=True)
class Member:
    """A row of ``batch_moves``, with how its newest move stands."""

    item: Item
    slug: str
    move: str | None
    tries: int
    reason: str
    move_state: State | None
    move_reason: str | None
    cancel_asked: bool


_BAKED: Final = sa.cast(sa.func.extract("epoch", _NOW - batches.c.wave_over_at), sa.Float).label("baked_s")
_SELECT: Final = sa.select(batches, _BAKED)


def _batch(row: sa.Row[Any]) -> Batch:
    return Batch(
        row.id, Kind(row.kind), row.cell, BatchState(row.state), row.reason, msgspec.convert(row.limits, Limits),
        tuple(msgspec.convert(row.blocked, list[Blocked])), row.wave, row.term, row.actor,
        row.created_at, row.updated_at, row.finished_at, row.baked_s,
    )  # fmt: skip


async def insert(
    conn: AsyncConnection,
    batch_id: str,
    kind: Kind,
    cell: str | None,
    limits: Limits,
    blocked: Sequence[Blocked],
    reason: str,
    actor: str,
) -> None:
    """A batch without moves; `sqlalchemy.exc.IntegrityError` where one is open already."""
    await conn.execute(
        batches.insert().values(
            id=batch_id, kind=kind.value, cell=cell, state=BatchState.RUNNING.value, reason=reason, actor=actor,
            limits=asdict(limits), blocked=[asdict(b) for b in blocked[:LISTED_BLOCKED]],
        )
    )  # fmt: skip


async def add(
    conn: AsyncConnection, batch_id: str, chosen: Sequence[Proposal], waves: Sequence[int], shards: dict[int, str]
) -> None:
    """Moves of a batch, in their order, after those it has. ``shards`` of the source by tenant, where known."""
    had = sa.select(sa.func.count()).select_from(batch_moves).where(batch_moves.c.batch == batch_id)
    first = (await conn.execute(had)).scalar_one()
    rows = [
        {
            "batch": batch_id, "tenant": p.number, "position": first + n, "wave": waves[n], "slug": p.slug,
            "source": p.source, "target": p.target, "shard": shards.get(p.number, ""),
            "state": ItemState.WAITING.value, "reason": p.reason,
        }
        for n, p in enumerate(chosen)
    ]  # fmt: skip
    if rows:
        await conn.execute(batch_moves.insert(), rows)


async def set_apart(conn: AsyncConnection, batch_id: str, staying: Sequence[Blocked]) -> None:
    """Tenants whom the batch never takes up, though they live in the cell that it empties."""
    had = sa.select(sa.func.count()).select_from(batch_moves).where(batch_moves.c.batch == batch_id)
    first = (await conn.execute(had)).scalar_one()
    rows = [
        {
            "batch": batch_id, "tenant": b.number, "position": first + n, "wave": 1, "slug": b.slug, "source": b.cell,
            "target": b.cell, "shard": "", "state": ItemState.SKIPPED.value, "reason": b.reason,
        }
        for n, b in enumerate(staying)
    ]  # fmt: skip
    if rows:
        await conn.execute(batch_moves.insert(), rows)


async def get(conn: AsyncConnection, batch_id: str, *, lock: bool = False) -> Batch | None:
    """A batch; ``lock`` holds its row to the end."""
    query = _SELECT.where(batches.c.id == batch_id)
    row = (await conn.execute(query.with_for_update() if lock else query)).one_or_none()
    return None if row is None else _batch(row)


async def find(conn: AsyncConnection, limit: int) -> list[Batch]:
    """The newest first."""
    query = _SELECT.order_by(batches.c.created_at.desc()).limit(limit)
    return [_batch(row) for row in await conn.execute(query)]


async def unfinished(conn: AsyncConnection) -> list[Batch]:
    """All that are not over, oldest first."""
    query = _SELECT.where(batches.c.state.not_in(_values(OVER))).order_by(batches.c.created_at)
    return [_batch(row) for row in await conn.execute(query)]


async def members(conn: AsyncConnection, batch_id: str) -> list[Member]:
    """The tenants of a batch in their order."""
    backoff = sa.func.make_interval(0, 0, 0, 0, 0, 0, batch_moves.c.tries * RETRY_S)
    ready = sa.or_(batch_moves.c.tries == 0, batch_moves.c.updated_at < _NOW - backoff).label("ready")
    query = (
        sa.select(
            batch_moves,
            ready,
            moves.c.state.label("move_state"),
            moves.c.reason.label("move_reason"),
            sa.func.coalesce(moves.c.cancel_requested, sa.false()).label("cancel_asked"),
        )
        .select_from(batch_moves.outerjoin(moves, moves.c.id == batch_moves.c.move))
        .where(batch_moves.c.batch == batch_id)
        .order_by(batch_moves.c.position)
    )
    return [_member(row) for row in await conn.execute(query)]


def _member(r: sa.Row[Any]) -> Member:
    item = Item(r.tenant, r.wave, r.source, r.target, r.shard, ItemState(r.state), r.ready)
    state = State(r.move_state) if r.move_state else None
    return Member(item, r.slug, r.move, r.tries, r.reason, state, r.move_reason, r.cancel_asked)


async def claim(conn: AsyncConnection, batch: Batch, item: Item, move_id: str) -> None:
    """Tie a move to its item, in the transaction that plans the move; what is raised undoes both.

    The share lock makes a pause or cancellation wait for this transaction, or this one see it.
    """
    query = sa.select(batches.c.state, batches.c.term).where(batches.c.id == batch.id).with_for_update(read=True)
    now = (await conn.execute(query)).one()
    if now.state != BatchState.RUNNING.value or now.term != batch.term:
        raise StaleBatchError(batch.id)
    source = (await conn.execute(sa.select(moves.c.source).where(moves.c.id == move_id))).scalar_one()
    if source != item.source:
        raise ElsewhereError(source)
    taken = await conn.execute(
        batch_moves.update()
        .where(
            batch_moves.c.batch == batch.id,
            batch_moves.c.tenant == item.tenant,
            batch_moves.c.state == ItemState.WAITING.value,
        )
        .values(state=ItemState.RUNNING.value, move=move_id, tries=batch_moves.c.tries + 1, updated_at=_NOW)
    )
    if taken.rowcount != 1:
        raise StaleBatchError(batch.id)


async def settle(conn: AsyncConnection, batch: Batch, tenant: int, was: ItemState, **values: Any) -> bool:
    """Change an item if it still is as it was, under this leader; False: somebody else did."""
    current = sa.exists().where(batches.c.id == batch.id, batches.c.term == batch.term)
    where = (batch_moves.c.batch == batch.id, batch_moves.c.tenant == tenant, batch_moves.c.state == was.value)
    query = batch_moves.update().where(*where, current).values(updated_at=_NOW, **values)
    return (await conn.execute(query)).rowcount == 1


async def adopt(conn: AsyncConnection, batch_id: str, term: int) -> Batch:
    """Take a batch over for a leader's term; `StaleBatchError` under a newer one."""
    query = batches.update().where(batches.c.id == batch_id, batches.c.term <= term).values(term=term)
    if (await conn.execute(query)).rowcount != 1:
        raise StaleBatchError(batch_id)
    found = await get(conn, batch_id)
    assert found is not None
    return found


async def still(conn: AsyncConnection, batch: Batch) -> None:
    """Hold the batch's row to the end; `StaleBatchError` where an operator or a newer leader changed it."""
    now = await get(conn, batch.id, lock=True)
    if now is None or (now.state, now.term) != (batch.state, batch.term):
        raise StaleBatchError(batch.id)


async def commit(conn: AsyncConnection, batch: Batch, then: Decision) -> None:
    """Write a decision by compare-and-set on state and term; `StaleBatchError` where an operator came first."""
    values: dict[str, Any] = {"state": then.state.value, "wave": then.wave, "reason": then.reason}
    if then.bake:
        values["wave_over_at"] = _NOW
    elif then.wave != batch.wave:
        values["wave_over_at"] = None
    if then.state in OVER:
        values["finished_at"] = _NOW
    query = (
        batches.update()
        .where(batches.c.id == batch.id, batches.c.state == batch.state.value, batches.c.term == batch.term)
        .values(updated_at=_NOW, **values)
    )
    if (await conn.execute(query)).rowcount != 1:
        raise StaleBatchError(batch.id)


async def order(conn: AsyncConnection, batch_id: str, then: BatchState, reason: str) -> None:
    """An operator's word, on a row that the caller has locked."""
    values = {"state": then.value, "reason": reason, "updated_at": _NOW}
    await conn.execute(batches.update().where(batches.c.id == batch_id).values(values))


async def try_again(conn: AsyncConnection, batch_id: str) -> None:
    """What failed waits again, as if it had not been tried; IntegrityError where another batch has taken one up."""
    await conn.execute(
        batch_moves.update()
        .where(batch_moves.c.batch == batch_id, batch_moves.c.state == ItemState.FAILED.value)
        .values(state=ItemState.WAITING.value, tries=0, updated_at=_NOW)
    )


async def cancel_waiting(conn: AsyncConnection, batch_id: str) -> None:
    """No waiting item of the batch starts any more."""
    await conn.execute(
        batch_moves.update()
        .where(batch_moves.c.batch == batch_id, batch_moves.c.state == ItemState.WAITING.value)
        .values(state=ItemState.CANCELLED.value, reason="the batch was cancelled", updated_at=_NOW)
    )


async def under_way(conn: AsyncConnection, batch_id: str) -> dict[str, int]:
    """Moves before their switch that are not of this batch, by each cell that they touch."""
    ours = sa.exists().where(batch_moves.c.batch == batch_id, batch_moves.c.move == moves.c.id)
    each = [sa.select(column.label("cell")).where(moves.c.state.in_(_GOING), ~ours)
            for column in (moves.c.source, moves.c.target)]  # fmt: skip
    touched = sa.union_all(*each).subquery()
    rows = await conn.execute(sa.select(touched.c.cell, sa.func.count().label("n")).group_by(touched.c.cell))
    return {row.cell: row.n for row in rows}


async def emptying(conn: AsyncConnection) -> dict[str, str]:
    """Cells that open batches empty, each with the batch."""
    query = sa.select(batches.c.cell, batches.c.id).where(
        batches.c.cell.is_not(None), batches.c.state.not_in(_values(OVER))
    )
    return {row.cell: row.id for row in await conn.execute(query)}


async def open_like(conn: AsyncConnection, kind: Kind, cell: str | None) -> str | None:
    """The open batch that empties the cell, or of a rebalance the one under way."""
    query = sa.select(batches.c.id).where(
        batches.c.kind == kind.value, batches.c.cell.is_not_distinct_from(cell), batches.c.state.not_in(_values(OVER))
    )
    return (await conn.execute(query)).scalars().first()


async def open_items(conn: AsyncConnection) -> dict[int, tuple[str, str]]:
    """Tenants in open batches: the batch and the cell that it wants them in."""
    query = sa.select(batch_moves.c.tenant, batch_moves.c.batch, batch_moves.c.target).where(
        batch_moves.c.state.in_(_values(OPEN))
    )
    return {row.tenant: (row.batch, row.target) for row in await conn.execute(query)}


async def refuse_undone(conn: AsyncConnection, tenant: Tenant, to: str) -> None:
    """`ProblemError` where a pin or an open batch stands against a move of the tenant to a cell."""
    if tenant.pinned_to is not None and tenant.pinned_to != to:
        raise ProblemError(
            problems.PINNED,
            f"{tenant.slug} is pinned to {tenant.pinned_to}.",
            advice=f"Unpin it first: cellctl tenants unpin {tenant.slug}",
        )
    emptied_by = (await emptying(conn)).get(to)
    if emptied_by is not None:
        raise ProblemError(
            problems.MOVE_UNDONE, f"The batch {emptied_by} empties {to}: it would move {tenant.slug} away again."
        )
    query = sa.select(batch_moves.c.batch, batch_moves.c.target).where(
        batch_moves.c.tenant == tenant.number,
        batch_moves.c.state == ItemState.WAITING.value,
        batch_moves.c.target != to,
    )
    row = (await conn.execute(query)).one_or_none()
    if row is not None:
        raise ProblemError(
            problems.MOVE_UNDONE, f"The batch {row.batch} is about to move {tenant.slug} to {row.target}."
        )
