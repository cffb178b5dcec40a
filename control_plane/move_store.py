"""Moves as rows: the tables ``moves``, ``move_steps`` and ``leader``, and every statement about the first two.

Each change of a move's state is one compare-and-set on (state, term) inside a transaction of the caller, so that a
route, an epoch and a state are committed together or not at all. `StaleMoveError` means that somebody else changed
the move first; nothing was written and the move must be read again.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.models import metadata, one_of
from control_plane.move import (
    DECIDED,
    GOING_BACK,
    PAUSABLE,
    TERMINAL,
    UNDECIDED,
    UNFINISHED,
    Kind,
    Path,
    Snapshot,
    State,
    Tries,
    check,
)
from control_plane.move_progress import Progress


def _values(states: frozenset[State]) -> tuple[str, ...]:
    return tuple(sorted(state.value for state in states))


moves = sa.Table(
    "moves",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("tenant", sa.BigInteger, sa.ForeignKey("tenants.number"), nullable=False),
    sa.Column("slug", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("state_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("undoes", sa.Text, sa.ForeignKey("moves.id")),  # the move that a rollback undoes
    sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    # The leader that executes it (moves.md rule 1): a commit of an older one finds no row.
    sa.Column("term", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("source_epoch", sa.BigInteger, nullable=False),
    sa.Column("target_epoch", sa.BigInteger, nullable=False),
    sa.Column("restore_epoch", sa.BigInteger),  # given out when the move is given up
    sa.Column("rows", sa.BigInteger),
    sa.Column("bytes", sa.BigInteger),
    sa.Column("held_at", sa.DateTime(timezone=True)),
    sa.Column("hold_ms", sa.Float),  # from the publication of `held` to that of the next route
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),  # failed tries over the whole move
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
    sa.Column("finished_at", sa.DateTime(timezone=True)),
    sa.Column("path", sa.Text, nullable=False, server_default=Path.SMALL.value),
    sa.Column("stream", sa.Text),  # the name of its slots and publications: on the way back, of the undone move's
    sa.Column("schema_revision", sa.Text),  # of both cells while it runs
    sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("finalize_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("finalize_after_s", sa.Float),  # since `standby_at`; NULL: when somebody asks for it
    sa.Column("standby_at", sa.DateTime(timezone=True)),
    sa.Column("progress", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
    sa.CheckConstraint(one_of("kind", tuple(k.value for k in Kind)), name="kind"),
    sa.CheckConstraint(one_of("state", tuple(s.value for s in State)), name="state"),
    sa.CheckConstraint("source <> target", name="elsewhere"),
    sa.CheckConstraint("target_epoch > source_epoch", name="target_epoch"),
    sa.CheckConstraint("restore_epoch IS NULL OR restore_epoch > target_epoch", name="restore_epoch"),
    sa.CheckConstraint(f"({one_of('state', _values(TERMINAL))}) = (finished_at IS NOT NULL)", name="finished_at"),
    # A cancellation and the decision exclude each other, whatever the code does.
    sa.CheckConstraint(
        f"NOT (cancel_requested AND {one_of('state', _values(DECIDED | {State.DONE}))})", name="cancelled_or_decided"
    ),
    sa.CheckConstraint("(kind = 'rollback') = (undoes IS NOT NULL)", name="undoes"),
    sa.CheckConstraint(one_of("path", tuple(p.value for p in Path)), name="path"),
    sa.CheckConstraint("(path = 'small') = (stream IS NULL)", name="stream"),
    sa.CheckConstraint("state <> 'returning' OR path = 'large'", name="returning"),
    # A rollback of a standby, a cancellation and the request to finalize exclude each other, whatever the code does.
    sa.CheckConstraint(
        "NOT finalize_requested OR state IN ('standby', 'purging', 'done', 'rolled_back')", name="finalize"
    ),
)
sa.Index(
    "uq_moves_tenant_unfinished",
    moves.c.tenant,
    unique=True,
    postgresql_where=sa.text(one_of("state", _values(UNFINISHED))),
)
sa.Index("ix_moves_created_at", moves.c.created_at)

move_steps = sa.Table(
    "move_steps",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("move", sa.Text, sa.ForeignKey("moves.id"), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
)
sa.Index("ix_move_steps_move", move_steps.c.move)

leader = sa.Table(
    "leader",
    metadata,
    sa.Column("single", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("term", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("acquired_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
    sa.CheckConstraint("single", name="one_row"),
)

_NOW: Final = sa.func.clock_timestamp()


class StaleMoveError(Exception):
    """The move is not as it was read: another leader, or a cancellation, came first. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Move:
    """A row of ``moves``. ``in_state_s`` and ``held_s`` are ages by the database's clock when it was read."""

    id: str
    kind: Kind
    tenant: int
    slug: str
    source: str
    target: str
    state: State
    reason: str
    undoes: str | None
    cancel_requested: bool
    term: int
    source_epoch: int
    target_epoch: int
    restore_epoch: int | None
    rows: int | None
    bytes: int | None
    hold_ms: float | None
    attempts: int
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    held: bool
    in_state_s: float
    held_s: float
    path: Path
    stream: str
    schema: str | None
    paused: bool
    finalize: bool
    finalize_after_s: float | None
    progress: Progress

    @property
    def epoch(self) -> int:
        """The epoch that the tenant has, or gets, by this move."""
        return self.restore_epoch if self.restore_epoch is not None else self.target_epoch

    def snapshot(self, tries: Tries) -> Snapshot:
        """What the pure decision looks at; ``tries`` are counted by the executor."""
        return Snapshot(
            self.state, self.cancel_requested, self.held, tries.failures, tries.silent, self.in_state_s, self.held_s,
            self.path, self.progress.stream(), self.paused, self.finalize,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a move's history."""

    state: State
    detail: str
    at: datetime


def _age(column: sa.Column[datetime]) -> sa.ColumnElement[float]:
    seconds = sa.func.extract("epoch", _NOW - column)
    return sa.cast(sa.func.coalesce(seconds, 0), sa.Float)


# Asked for, or due: both by the database's clock, so that every leader sees the same.
_FINALIZE: Final = moves.c.finalize_requested | sa.func.coalesce(
    _age(moves.c.standby_at) >= moves.c.finalize_after_s, sa.false()
)
_SELECT: Final = sa.select(
    moves,
    _age(moves.c.state_at).label("in_state_s"),
    _age(moves.c.held_at).label("held_s"),
    _FINALIZE.label("finalize"),
)


def _move(row: sa.Row[Any]) -> Move:
    return Move(
        id=row.id,
        kind=Kind(row.kind),
        tenant=row.tenant,
        slug=row.slug,
        source=row.source,
        target=row.target,
        state=State(row.state),
        reason=row.reason,
        undoes=row.undoes,
        cancel_requested=row.cancel_requested,
        term=row.term,
        source_epoch=row.source_epoch,
        target_epoch=row.target_epoch,
        restore_epoch=row.restore_epoch,
        rows=row.rows,
        bytes=row.bytes,
        hold_ms=row.hold_ms,
        attempts=row.attempts,
        created_at=row.created_at,
        updated_at=row.updated_at,
        finished_at=row.finished_at,
        held=row.held_at is not None,
        in_state_s=row.in_state_s,
        held_s=row.held_s,
        path=Path(row.path),
        stream=row.stream or "",
        schema=row.schema_revision,
        paused=row.paused,
        finalize=row.finalize,
        finalize_after_s=row.finalize_after_s,
        progress=msgspec.convert(row.progress, Progress),
    )


async def insert(
    conn: AsyncConnection,
    *,
    move_id: str,
    kind: Kind,
    tenant: int,
    slug: str,
    source: str,
    target: str,
    source_epoch: int,
    target_epoch: int,
    actor: str,
    undoes: str | None = None,
    path: Path = Path.SMALL,
    stream: str | None = None,
    schema: str | None = None,
    finalize_after_s: float | None = None,
    progress: Progress | None = None,
) -> None:
    """A planned move. The caller has marked the tenant as moving and given out ``target_epoch``."""
    await conn.execute(
        moves.insert().values(
            id=move_id,
            kind=kind.value,
            tenant=tenant,
            slug=slug,
            source=source,
            target=target,
            state=State.PLANNED.value,
            source_epoch=source_epoch,
            target_epoch=target_epoch,
            actor=actor,
            undoes=undoes,
            path=path.value,
            stream=stream,
            schema_revision=schema,
            finalize_after_s=finalize_after_s,
            progress=msgspec.to_builtins(progress or Progress()),
        )
    )
    await add_step(conn, move_id, State.PLANNED, f"{kind} from {source} to {target}, asked for by {actor}")


async def get(conn: AsyncConnection, move_id: str) -> Move | None:
    """One move."""
    row = (await conn.execute(_SELECT.where(moves.c.id == move_id))).one_or_none()
    return None if row is None else _move(row)


async def find(
    conn: AsyncConnection, *, state: State | None = None, tenant: int | None = None, limit: int = 100
) -> list[Move]:
    """Moves, newest first."""
    query = _SELECT.order_by(moves.c.created_at.desc(), moves.c.id).limit(limit)
    if state is not None:
        query = query.where(moves.c.state == state.value)
    if tenant is not None:
        query = query.where(moves.c.tenant == tenant)
    return [_move(row) for row in await conn.execute(query)]


async def unfinished(conn: AsyncConnection) -> list[Move]:
    """Moves that somebody has to carry on with, oldest first."""
    query = _SELECT.where(moves.c.state.in_(_values(UNFINISHED))).order_by(moves.c.created_at)
    return [_move(row) for row in await conn.execute(query)]


async def steps(conn: AsyncConnection, move_id: str) -> list[Step]:
    """The history of a move, oldest first."""
    query = sa.select(move_steps).where(move_steps.c.move == move_id).order_by(move_steps.c.id)
    return [Step(State(row.state), row.detail, row.at) for row in await conn.execute(query)]


async def add_step(conn: AsyncConnection, move_id: str, state: State, detail: str) -> None:
    """A line of history."""
    await conn.execute(move_steps.insert().values(move=move_id, state=state.value, detail=detail))


async def adopt(conn: AsyncConnection, move_id: str, term: int) -> Move:
    """Take a move over for a leader's term: from here on no commit of an older leader finds it."""
    query = (
        moves.update()
        .where(moves.c.id == move_id, moves.c.term <= term, moves.c.state.in_(_values(UNFINISHED)))
        .values(term=term)
    )
    if (await conn.execute(query)).rowcount != 1:
        raise StaleMoveError(move_id)
    row = (await conn.execute(_SELECT.where(moves.c.id == move_id))).one()
    return _move(row)


async def advance(conn: AsyncConnection, move: Move, then: State, reason: str, **values: Any) -> str:
    """Compare-and-set of the state. A step forward before the decision, and the decision, lose to a cancellation.

    The reason that the move has now: of one that was given up why it was, and then what was done last.
    """
    check(move.state, then)
    where = [moves.c.id == move.id, moves.c.state == move.state.value, moves.c.term == move.term]
    if then in UNDECIDED | DECIDED:
        where.append(moves.c.cancel_requested.is_(False))
    finished = {"finished_at": _NOW} if then in TERMINAL else {}
    cause = await _cause(conn, move.id) if then in TERMINAL and move.state in GOING_BACK else ""
    said = f"{cause}; {reason}" if cause else reason
    query = (
        moves.update()
        .where(*where)
        .values(state=then.value, state_at=_NOW, updated_at=_NOW, reason=said, **finished, **values)
    )
    if (await conn.execute(query)).rowcount != 1:
        raise StaleMoveError(move.id)
    await add_step(conn, move.id, then, reason)
    return said


async def _cause(conn: AsyncConnection, move_id: str) -> str:
    """Why the move was given up; tries to go back that failed have written over it in the move itself."""
    query = sa.select(move_steps.c.detail).where(
        move_steps.c.move == move_id, move_steps.c.state == State.ABORTING.value
    )
    return (await conn.execute(query.order_by(move_steps.c.id.desc()).limit(1))).scalar_one_or_none() or ""


async def set_progress(conn: AsyncConnection, move: Move, progress: Progress) -> None:
    """Store how far the stream is; the state stays. A cancellation that was not seen yet is a change as well."""
    query = (
        moves.update()
        .where(
            moves.c.id == move.id, moves.c.state == move.state.value, moves.c.term == move.term,
            moves.c.cancel_requested == move.cancel_requested,
        )
        .values(progress=msgspec.to_builtins(progress), updated_at=_NOW)
    )  # fmt: skip
    if (await conn.execute(query)).rowcount != 1:
        raise StaleMoveError(move.id)


async def note_failure(conn: AsyncConnection, move: Move, reason: str) -> None:
    """Count a failed try; the state stays."""
    query = (
        moves.update()
        .where(moves.c.id == move.id, moves.c.state == move.state.value, moves.c.term == move.term)
        .values(attempts=moves.c.attempts + 1, reason=reason, updated_at=_NOW)
    )
    if (await conn.execute(query)).rowcount != 1:
        raise StaleMoveError(move.id)


async def request_cancel(conn: AsyncConnection, move_id: str) -> bool:
    """Ask for a cancellation; False where the move is past its decision or on its way back already."""
    query = (
        moves.update()
        .where(moves.c.id == move_id, moves.c.state.in_(_values(UNDECIDED)))
        .values(cancel_requested=True, updated_at=_NOW)
    )
    return (await conn.execute(query)).rowcount == 1


async def set_paused(conn: AsyncConnection, move_id: str, paused: bool) -> bool:
    """Pause a move before its hold, or let it go on; False where it is past that. Its budgets start anew."""
    query = (
        moves.update()
        .where(
            moves.c.id == move_id, moves.c.state.in_(_values(PAUSABLE)), moves.c.cancel_requested.is_(False),
            moves.c.paused != paused,
        )
        .values(paused=paused, state_at=_NOW, updated_at=_NOW)
    )  # fmt: skip
    changed = (await conn.execute(query.returning(moves.c.state))).scalar_one_or_none()
    if changed is None:
        return False
    await add_step(conn, move_id, State(changed), "paused" if paused else "resumed")
    return True


async def request_finalize(conn: AsyncConnection, move_id: str) -> bool:
    """Ask that the standby be given up; False where there is none."""
    query = (
        moves.update()
        .where(moves.c.id == move_id, moves.c.state == State.STANDBY.value, moves.c.path == Path.LARGE.value)
        .values(finalize_requested=True, updated_at=_NOW)
    )
    return (await conn.execute(query)).rowcount == 1


async def begin_return(conn: AsyncConnection, move_id: str, by: str) -> bool:
    """Let the standby wait for its rollback ``by``; False where it is none any more, or is being finalized."""
    reason = f"is being rolled back by {by}"
    query = (
        moves.update()
        .where(
            moves.c.id == move_id, moves.c.state == State.STANDBY.value, moves.c.path == Path.LARGE.value,
            moves.c.finalize_requested.is_(False),
        )
        .values(state=State.RETURNING.value, state_at=_NOW, updated_at=_NOW, reason=reason)
    )  # fmt: skip
    if (await conn.execute(query)).rowcount != 1:
        return False
    await add_step(conn, move_id, State.RETURNING, reason)
    return True


async def end_return(conn: AsyncConnection, move_id: str, by: str, reason: str) -> Move | None:
    """The rollback ``by`` came to nothing: the move it would have undone is a standby again, and driven on."""
    said = f"its rollback {by} came to nothing: {reason}"
    query = (
        moves.update()
        .where(moves.c.id == move_id, moves.c.state == State.RETURNING.value)
        .values(state=State.STANDBY.value, state_at=_NOW, updated_at=_NOW, reason=said)
    )
    if (await conn.execute(query)).rowcount != 1:
        return None
    await add_step(conn, move_id, State.STANDBY, said)
    return await get(conn, move_id)


async def mark_rolled_back(conn: AsyncConnection, move_id: str, by: str) -> None:
    """The rollback ``by`` of a finished move, or of a standby, is done."""
    reason = f"rolled back by {by}"
    query = (
        moves.update()
        .where(moves.c.id == move_id, moves.c.state.in_((State.DONE.value, State.RETURNING.value)))
        .values(
            state=State.ROLLED_BACK.value, updated_at=_NOW, reason=reason,
            finished_at=sa.func.coalesce(moves.c.finished_at, _NOW),
        )
    )  # fmt: skip
    if (await conn.execute(query)).rowcount == 1:
        await add_step(conn, move_id, State.ROLLED_BACK, reason)


# For `advance`: how long routers were asked to hold, and the present moment, by the database's clock.
HOLD_MS: Final = sa.cast(sa.func.extract("epoch", _NOW - moves.c.held_at) * 1000, sa.Float)
NOW: Final = _NOW
