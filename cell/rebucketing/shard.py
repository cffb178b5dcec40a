"""What a move between shards does at one of them: the fence, the wait for who is inside, and the rows.

Every statement that changes something asks for the move and the attempt it belongs to: a process that was paused and
comes back finds a newer attempt and changes nothing.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from cell.rebucketing.store import Move, SupersededError
from cell.shards.session import Pool
from cell.transfer import catalogue, locks, rows
from cell.transfer.catalogue import TenantTable
from cell.transfer.locks import LockBusyError, Patience
from contracts import ids

ROWS_MAX: Final = 20_000  # copied and compared within some tenths of a second, which is how long requests wait
DRAIN: Final = Patience(1.0, float("inf"))  # ends nobody
_UNSETTLED: Final = ("importing", "frozen", "standby")
_COLUMNS: Final = (
    "tenant_id", "bucket", "epoch", "state", "min_epoch", "move", "term", "seq", "command", "result", "hint",
)  # fmt: skip
_LISTED: Final = ", ".join(_COLUMNS)
_FENCE: Final = (
    "INSERT INTO cellwall.shard_fences (bucket, tenant_id, state, move, attempt) VALUES ($1, $2, $3, $4, $5)"
    " ON CONFLICT (bucket, tenant_id) DO UPDATE SET state = excluded.state, move = excluded.move,"
    " attempt = excluded.attempt"
    " WHERE (shard_fences.move, shard_fences.attempt) <= (excluded.move, excluded.attempt)"
)
_MINE: Final = (
    "SELECT true FROM cellwall.shard_fences"
    " WHERE bucket = $1 AND tenant_id = $2 AND state = $3 AND move = $4 AND attempt = $5 FOR UPDATE"
)
_KEEP: Final = (
    "INSERT INTO cellwall.shard_fences (bucket, tenant_id, state, move, attempt)"
    " SELECT bucket, tenant_id, 'here', 0, 0 FROM cellwall.tenants WHERE bucket = $1 AND tenant_id = ANY ($2)"
    " ON CONFLICT DO NOTHING"
)
# A tenant with a shard of its own is no part of its bucket.
_OF: Final = "bucket = $1 AND CASE WHEN $2::bigint = 0 THEN NOT tenant_id = ANY ($3::bigint[]) ELSE tenant_id = $2 END"
_STREAMS: Final = (
    "SELECT tenant_id FROM cellwall.stream_senders WHERE tenant_id = ANY ($1)"
    " UNION SELECT tenant_id FROM cellwall.stream_progress WHERE tenant_id = ANY ($1) LIMIT 1"
)


class BusyError(Exception):
    """Not now; the message says what stands in the way."""


class TooLargeError(Exception):
    """Never in this way; the message says why."""


async def fence(connection: Any, move: Move, state: str) -> None:
    """Set the fence of the move's bucket or tenant; `SupersededError` where a newer one stands."""
    done = await connection.execute(_FENCE, move.bucket, move.tenant, state, move.id, move.attempt)
    if done != "INSERT 0 1":
        raise SupersededError


async def keep(pool: Pool, move: Move, pins: Sequence[int]) -> None:
    """Fences of their own for tenants that are pinned here: what the bucket's fence says is not said of them."""
    if not move.tenant:
        await pool.execute(_KEEP, move.bucket, list(pins))


async def tenants(connection: Any, move: Move, pins: Sequence[int]) -> list[Any]:
    """The rows of ``cellwall.tenants`` that the move is about, in any state."""
    query = f"SELECT {_LISTED} FROM cellwall.tenants WHERE {_OF} ORDER BY tenant_id"  # noqa: S608
    return list(await connection.fetch(query, move.bucket, move.tenant, list(pins)))


async def check(connection: Any, found: Sequence[Any]) -> None:
    """`BusyError` while one of the tenants moves between cells, `TooLargeError` where the copy would take long."""
    for row in found:
        if row["state"] in _UNSETTLED:
            raise BusyError(f"{ids.tenant_of(row['tenant_id'])} is {row['state']}: it moves between cells")
    numbers = [row["tenant_id"] for row in found]
    moving = await connection.fetchval(_STREAMS, numbers)
    if moving is not None:
        raise BusyError(f"{ids.tenant_of(moving)} has a stream: it moves between cells")
    tables = await catalogue.tenant_tables(connection)
    count = 0
    for number in numbers:
        count += await rows.estimate(connection, tables, number)
        if count > ROWS_MAX:
            raise TooLargeError(f"its tenants have {count} rows or more; at most {ROWS_MAX} are moved")


async def settle(pool: Pool, move: Move, pins: Sequence[int], clock: Callable[[], float]) -> None:
    """Wait until nobody is inside who came before the fence. Who does not leave is not ended: `BusyError`.

    First the commands of the transfer API, under the bucket's lock, so that no tenant joins any more; then each
    tenant's transactions.
    """
    try:
        await _pass(pool, -1 - move.bucket, clock)
        async with pool.acquire() as connection:
            numbers = [row["tenant_id"] for row in await tenants(connection, move, pins)]
        for number in numbers:
            await _pass(pool, number, clock)
    except LockBusyError as e:
        raise BusyError(str(e)) from e


async def _pass(pool: Pool, key: int, clock: Callable[[], float]) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await locks.exclusive(connection, key, DRAIN, clock)


@asynccontextmanager
async def snapshot(pool: Pool) -> AsyncIterator[Any]:
    """A connection on which everything is read as of one moment."""
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        yield connection


async def copy(source: Any, pool: Pool, move: Move, pins: Sequence[int], found: Sequence[Any]) -> None:
    """All rows of the tenants into the target and compared there, in one transaction. ``source`` is a `snapshot`."""
    tables = await catalogue.tenant_tables(source)
    async with pool.acquire() as target, target.transaction():
        if not await target.fetchval(_MINE, move.bucket, move.tenant, "arriving", move.id, move.attempt):
            raise SupersededError
        there = await catalogue.tenant_tables(target)
        if there != tables:
            raise BusyError("the tables of the two shards differ: run `cell migrate`")
        await _clear(target, there, move, pins)
        values = ", ".join(f"${n}" for n in range(1, len(_COLUMNS) + 1))
        await target.executemany(
            f"INSERT INTO cellwall.tenants ({_LISTED}) VALUES ({values})",  # noqa: S608
            [tuple(row) for row in found],
        )
        for row in found:
            await _one(source, target, tables, row["tenant_id"])


async def _one(source: Any, target: Any, tables: Sequence[TenantTable], tenant: int) -> None:
    await rows.import_(target, tables, tenant, rows.export(source, tables, tenant))
    if await rows.checksum(source, tables, tenant) != await rows.checksum(target, tables, tenant):
        raise BusyError(f"{ids.tenant_of(tenant)}: what arrived is not what was sent")
    work = await source.fetch("SELECT tenant_id, kind, due FROM cellwall.work WHERE tenant_id = $1", tenant)
    await target.executemany(
        "INSERT INTO cellwall.work (tenant_id, kind, due) VALUES ($1, $2, $3)", [tuple(row) for row in work]
    )


async def clear(pool: Pool, move: Move, pins: Sequence[int], state: str) -> None:
    """Delete the rows at a shard whose fence is in that state of this move, so that nobody is served from them."""
    async with pool.acquire() as connection, connection.transaction():
        if not await connection.fetchval(_MINE, move.bucket, move.tenant, state, move.id, move.attempt):
            raise SupersededError
        await _clear(connection, await catalogue.tenant_tables(connection), move, pins)


async def _clear(connection: Any, tables: Sequence[TenantTable], move: Move, pins: Sequence[int]) -> None:
    for row in await tenants(connection, move, pins):
        await rows.drop(connection, tables, row["tenant_id"])
    await connection.execute(f"DELETE FROM cellwall.tenants WHERE {_OF}", move.bucket, move.tenant, list(pins))  # noqa: S608
