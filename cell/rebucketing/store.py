"""The durable state of moves between shards: rows of the directory, changed under compare-and-set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cell.rebucketing.plan import Layout, Step
from cell.shards import directory
from cell.shards.directory import ALIVE_S

_OPEN: Final = "state IN ('planned', 'copying', 'switched')"
_ROW: Final = "id, bucket, tenant_id AS tenant, source, target, state, attempt, reason, step"
_BEGIN: Final = (
    "UPDATE shard_moves SET attempt = attempt + 1, updated_at = now(),"  # noqa: S608
    " state = CASE state WHEN 'planned' THEN 'copying' ELSE state END"
    f" WHERE id = $1 AND {_OPEN} RETURNING {_ROW}"
)
# Rows are deleted where they do not belong, so a move that begins elsewhere than where the map says must not begin.
_ASTRAY: Final = (
    "UPDATE shard_moves m SET state = 'cancelled', reason = 'it is not on ' || source, updated_at = now()"
    " WHERE id = $1 AND state IN ('planned', 'copying') AND source <> coalesce("
    "(SELECT t.shard FROM tenant_shards t WHERE t.tenant_id = m.tenant_id),"
    " (SELECT b.shard FROM buckets b WHERE b.bucket = m.bucket))"
)
# Exactly one of these two takes effect: the row is locked, and both ask for the same state and attempt.
_SWITCH: Final = (
    "UPDATE shard_moves SET state = 'switched', reason = '', updated_at = now()"
    " WHERE id = $1 AND attempt = $2 AND state = 'copying'"
)
_UNDO: Final = (
    "UPDATE shard_moves SET state = 'planned', reason = $3, updated_at = now()"
    " WHERE id = $1 AND attempt = $2 AND state = 'copying'"
)
_REST: Final = (
    "UPDATE shard_moves SET due = now() + $3 * interval '1 second', step = '', updated_at = now()"
    " WHERE id = $1 AND attempt = $2 AND state = 'planned'"
)
_PLAN: Final = (
    "INSERT INTO shard_moves (plan, wish, bucket, tenant_id, source, target) VALUES ($1, $2, $3, $4, $5, $6)"
    " ON CONFLICT DO NOTHING"
)
_NEXT_PLAN: Final = "SELECT coalesce(max(plan), 0) + 1 FROM shard_moves"
# What is being copied goes on: it ends by itself, here or there.
_CANCEL: Final = (
    "UPDATE shard_moves SET state = 'cancelled', reason = 'cancelled by an operator', updated_at = now()"
    " WHERE state = 'planned'"
)
_PROGRESS: Final = (
    "SELECT plan, wish, count(*) AS total, count(*) FILTER (WHERE state = 'done') AS done,"  # noqa: S608
    f" count(*) FILTER (WHERE {_OPEN}) AS open, count(*) FILTER (WHERE state = 'cancelled') AS cancelled"
    " FROM shard_moves WHERE plan = (SELECT max(plan) FROM shard_moves) GROUP BY plan, wish"
)
_FINISH: Final = (
    "UPDATE shard_moves SET state = 'done', step = '', updated_at = now() WHERE id = $1 AND state = 'switched'"
)
_STEP: Final = "UPDATE shard_moves SET step = $3, updated_at = now() WHERE id = $1 AND attempt = $2"
_IGNORANT: Final = (
    "SELECT name FROM processes WHERE seen_at > now() - $1 * interval '1 second' AND NOT $2 = ANY (shards)"
    " ORDER BY name LIMIT 1"
)


class SupersededError(Exception):
    """A newer attempt is at work, or the move is over: this one must change nothing more."""


@dataclass(frozen=True, slots=True)
class Move:
    """A row of ``shard_moves``."""

    id: int
    bucket: int
    tenant: int  # 0: the whole bucket
    source: str
    target: str
    state: str
    attempt: int
    reason: str
    step: str  # what it is doing, for those who look


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the newest plan is, in moves."""

    plan: int
    wish: str
    total: int
    done: int
    open: int
    cancelled: int


async def layout(connection: Any) -> Layout:
    """What the directory says now."""
    found = await directory.load(connection)
    return Layout(sorted(found.shards), found.buckets, found.overrides)


async def plan(connection: Any, wish: str, steps: Sequence[Step]) -> None:
    """Write the steps of a wish down. One whose bucket has an open move already is left out: that one goes first."""
    number = await connection.fetchval(_NEXT_PLAN)
    await connection.executemany(_PLAN, [(number, wish, s.bucket, s.tenant, s.source, s.target) for s in steps])


async def cancel(connection: Any) -> int:
    """Give up what is planned and not under way; how many moves."""
    return int((await connection.execute(_CANCEL)).rpartition(" ")[2])


async def progress(connection: Any) -> Progress | None:
    """Of the newest plan; None where there never was one."""
    row = await connection.fetchrow(_PROGRESS)
    return None if row is None else Progress(**row)


async def step(connection: Any, move: Move, doing: str) -> None:
    """Say what is being done."""
    await connection.execute(_STEP, move.id, move.attempt, doing)


async def moves(connection: Any, *, due: bool = False) -> list[Move]:
    """The open moves, oldest first; with ``due`` only those whose time has come."""
    when = " AND (state <> 'planned' OR due <= now())" if due else ""
    query = f"SELECT {_ROW} FROM shard_moves WHERE {_OPEN}{when} ORDER BY id"  # noqa: S608
    return [Move(**r) for r in await connection.fetch(query)]


async def begin(connection: Any, move: int) -> Move | None:
    """The next attempt: whoever is still at work on an older one changes nothing any more. None where it is over."""
    await connection.execute(_ASTRAY, move)
    row = await connection.fetchrow(_BEGIN, move)
    return None if row is None else Move(**row)


async def pins(connection: Any) -> list[int]:
    """The tenants that have a shard of their own."""
    return [r["tenant_id"] for r in await connection.fetch("SELECT tenant_id FROM tenant_shards")]


async def switch(connection: Any, move: Move) -> None:
    """The decision, and the map with it."""
    async with connection.transaction():
        if await connection.execute(_SWITCH, move.id, move.attempt) != "UPDATE 1":
            raise SupersededError
        if move.tenant:
            await connection.execute(
                "INSERT INTO tenant_shards (tenant_id, shard) VALUES ($1, $2)"
                " ON CONFLICT (tenant_id) DO UPDATE SET shard = excluded.shard",
                move.tenant, move.target,
            )  # fmt: skip
        else:
            moved = "UPDATE buckets SET shard = $2 WHERE bucket = $1 AND shard = $3"
            if await connection.execute(moved, move.bucket, move.target, move.source) != "UPDATE 1":
                raise SupersededError


async def undo(connection: Any, move: Move, reason: str) -> bool:
    """Back to ``planned``; false where this attempt was decided or a newer one is at work."""
    return bool(await connection.execute(_UNDO, move.id, move.attempt, reason) == "UPDATE 1")


async def rest(connection: Any, move: Move, delay_s: float) -> None:
    """Tried again after so many seconds."""
    await connection.execute(_REST, move.id, move.attempt, delay_s)


async def finish(connection: Any, move: Move) -> None:
    """Nothing is left to do."""
    await connection.execute(_FINISH, move.id)


async def ignorant(connection: Any, shard: str) -> str | None:
    """A living process of the cell that has no connections to the shard."""
    name: str | None = await connection.fetchval(_IGNORANT, ALIVE_S, shard)
    return name
