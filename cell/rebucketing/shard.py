"""What a move between shards does at one of them: the fence, the wait for who is inside, and the end of old rows.

Every statement that changes something asks for the move and the attempt it belongs to: a process that was paused and
comes back finds a newer attempt and changes nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from cell.rebucketing.store import Move, SupersededError
from cell.shards.session import Pool
from cell.transfer import catalogue, rows
from contracts import ids

DRAIN_S: Final = 1.0  # how long a transaction that is open is waited for; it is never ended
PASS_EVERY_S: Final = 0.003
_UNSETTLED: Final = ("importing", "frozen", "standby")
COLUMNS: Final = (
    "tenant_id", "bucket", "epoch", "state", "min_epoch", "move", "term", "seq", "command", "result", "hint",
)  # fmt: skip
_LISTED: Final = ", ".join(COLUMNS)
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
OF: Final = "bucket = $1 AND CASE WHEN $2::bigint = 0 THEN NOT tenant_id = ANY ($3::bigint[]) ELSE tenant_id = $2 END"
_STREAMS: Final = (
    "SELECT tenant_id FROM cellwall.stream_senders WHERE tenant_id = ANY ($1)"
    " UNION SELECT tenant_id FROM cellwall.stream_progress WHERE tenant_id = ANY ($1) LIMIT 1"
)
# Taken and given back within the statement: nobody meets it for longer than that.
_HELD: Final = "SELECT k FROM unnest($1::bigint[]) k WHERE NOT pg_try_advisory_xact_lock(k) ORDER BY k"
_HOLDERS: Final = "SELECT h FROM cellwall.lock_holders($1) h ORDER BY h"


class BusyError(Exception):
    """Not now; the message says what stands in the way."""


async def fence(connection: Any, move: Move, state: str) -> None:
    """Set the fence of the move's bucket or tenant; `SupersededError` where a newer one stands."""
    done = await connection.execute(_FENCE, move.bucket, move.tenant, state, move.id, move.attempt)
    if done != "INSERT 0 1":
        raise SupersededError


async def owned(connection: Any, move: Move, state: str) -> None:
    """`SupersededError` unless the fence is in that state of this attempt; it stays so to the transaction's end."""
    if not await connection.fetchval(_MINE, move.bucket, move.tenant, state, move.id, move.attempt):
        raise SupersededError


async def keep(pool: Pool, move: Move, pins: Sequence[int]) -> None:
    """Fences of their own for tenants that are pinned here: what the bucket's fence says is not said of them."""
    if not move.tenant:
        await pool.execute(_KEEP, move.bucket, list(pins))


async def tenants(connection: Any, move: Move, pins: Sequence[int]) -> list[Any]:
    """The rows of ``cellwall.tenants`` that the move is about, in any state."""
    query = f"SELECT {_LISTED} FROM cellwall.tenants WHERE {OF} ORDER BY tenant_id"  # noqa: S608
    return list(await connection.fetch(query, move.bucket, move.tenant, list(pins)))


async def check(connection: Any, found: Sequence[Any]) -> None:
    """`BusyError` while one of the tenants moves between cells."""
    for row in found:
        if row["state"] in _UNSETTLED:
            raise BusyError(f"{ids.tenant_of(row['tenant_id'])} is {row['state']}: it moves between cells")
    moving = await connection.fetchval(_STREAMS, [row["tenant_id"] for row in found])
    if moving is not None:
        raise BusyError(f"{ids.tenant_of(moving)} has a stream: it moves between cells")


async def settle(pool: Pool, move: Move, pins: Sequence[int], clock: Callable[[], float]) -> None:
    """Wait until nobody is inside who came before the fence. Who does not leave is not ended: `BusyError`.

    First the commands of the transfer API, under the bucket's lock, so that no tenant joins any more; then the
    transactions of all tenants.
    """
    async with pool.acquire() as connection:
        await _pass(connection, [-1 - move.bucket], clock)
        await _pass(connection, [row["tenant_id"] for row in await tenants(connection, move, pins)], clock)


async def _pass(connection: Any, keys: list[int], clock: Callable[[], float]) -> None:
    """Have held the lock of each key once, all within `DRAIN_S`."""
    until = clock() + DRAIN_S
    while keys := [row["k"] for row in await connection.fetch(_HELD, keys)]:
        if clock() >= until:
            holders = ", ".join(str(row["h"]) for row in await connection.fetch(_HOLDERS, keys[0]))
            whose = str(ids.tenant_of(keys[0])) if keys[0] > 0 else "a command of the transfer API"
            raise BusyError(f"the lock of {whose} is held for more than {DRAIN_S:g} s, by pid {holders or 'unknown'}")
        await asyncio.sleep(PASS_EVERY_S)


@asynccontextmanager
async def snapshot(pool: Pool) -> AsyncIterator[Any]:
    """A connection on which everything is read as of one moment."""
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        yield connection


async def clear(pool: Pool, move: Move, pins: Sequence[int], state: str) -> None:
    """Delete the rows at a shard whose fence is in that state of this attempt, so that nobody is served from them."""
    async with pool.acquire() as connection:
        tables = await catalogue.tenant_tables(connection)
        for row in await tenants(connection, move, pins):
            while await _some(connection, tables, move, row["tenant_id"], state):
                pass
        async with connection.transaction():
            await owned(connection, move, state)
            for row in await tenants(connection, move, pins):
                await rows.drop(connection, tables, row["tenant_id"])
            gone = f"DELETE FROM cellwall.tenants WHERE {OF}"  # noqa: S608
            await connection.execute(gone, move.bucket, move.tenant, list(pins))


async def _some(connection: Any, tables: Sequence[catalogue.TenantTable], move: Move, tenant: int, state: str) -> bool:
    """A part of a large tenant's rows, in a transaction of its own; false where few are left."""
    async with connection.transaction():
        await owned(connection, move, state)
        return await rows.are_many(connection, tables, tenant) and await rows.drop_some(connection, tables, tenant)
