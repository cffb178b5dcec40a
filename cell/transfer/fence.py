"""The fence row in the database: commands arrive at it, act under its lock, and leave their result in it.

Arrival is a transaction of its own, so that a newer command fences out an older one that is still at work: the older
one's last statement is a compare-and-set on the fence, finds it raised, and rolls back.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import asyncpg

from cell.shards.session import Pool
from cell.transfer import locks, rules
from cell.transfer.locks import Patience
from cell.transfer.rules import Command, FenceRow
from contracts import ids, problems
from contracts.problems import ProblemError
from contracts.transfer import Fence

_ROW: Final = "tenant_id, epoch, state, min_epoch, move, term, seq, command, result, hint"
_READ: Final = f"SELECT {_ROW} FROM cellwall.tenants WHERE tenant_id = $1"  # noqa: S608
# What is given up on the way to being deleted cannot be served again, whatever comes of the command.
_GIVE_UP: Final = "UPDATE cellwall.tenants SET state = $2, updated_at = now() WHERE tenant_id = $1 AND state = $3"
# Copies that are not served (yet, or any more) because their bucket moves between shards are nobody's tenants.
_LIST: Final = (
    f"SELECT {_ROW} FROM cellwall.tenants t WHERE coalesce((SELECT f.state FROM cellwall.shard_fences f"  # noqa: S608
    " WHERE f.bucket = t.bucket AND f.tenant_id IN (0, t.tenant_id) ORDER BY f.tenant_id DESC LIMIT 1), 'here')"
    " NOT IN ('arriving', 'away') ORDER BY tenant_id"
)
_FIRST: Final = (
    "INSERT INTO cellwall.tenants (tenant_id, bucket, epoch, state) VALUES ($1, $2, 0, 'gone') ON CONFLICT DO NOTHING"
)
_RAISE: Final = (
    "UPDATE cellwall.tenants SET move = $2, term = $3, seq = $4, command = $5, result = NULL, updated_at = now()"
    " WHERE tenant_id = $1"
)
# Compare-and-set: only while this very command is the newest and the state is the one it decided on.
_SETTLE: Final = (
    "UPDATE cellwall.tenants SET state = $6, epoch = $7, min_epoch = $8, hint = $9, result = $10, updated_at = now()"
    " WHERE tenant_id = $1 AND term = $2 AND seq = $3 AND command = $4 AND state = $5"
)

_STILL: Final = (
    "SELECT true FROM cellwall.tenants WHERE tenant_id = $1 AND term = $2 AND seq = $3 AND command = $4 AND state = $5"
    " FOR SHARE"
)


def _row(record: Any) -> FenceRow:
    return FenceRow(**record)


async def read(connection: Any, tenant: int) -> FenceRow | None:
    """The tenant's row, or None where this cell never heard of it."""
    record = await connection.fetchrow(_READ, tenant)
    return None if record is None else _row(record)


async def read_all(connection: Any) -> list[FenceRow]:
    """Every row of a shard, in any state."""
    return [_row(record) for record in await connection.fetch(_LIST)]


async def arrive(pool: Pool, tenant: int, fence: Fence, command: Command) -> FenceRow:
    """Raise the fence to this command and commit that; the row as it is now.

    A repeat finds the row unchanged, with the ``result`` that the command left if it took effect. Raises the problem
    ``fenced`` for a command that is older than the newest seen.
    """
    async with pool.acquire() as connection, connection.transaction():
        await hold_bucket(connection, tenant)
        if command in rules.FIRST:
            await connection.execute(_FIRST, tenant, ids.bucket_of(ids.tenant_of(tenant)))
        record = await connection.fetchrow(f"{_READ} FOR UPDATE", tenant)
        if record is None:
            raise ProblemError(problems.NOT_FOUND, "this cell has no such tenant")
        row = _row(record)
        if rules.is_newer(row, fence, command):
            await connection.execute(_RAISE, tenant, fence.move, fence.term, fence.seq, command)
            row = replace(row, move=fence.move, term=fence.term, seq=fence.seq, command=command, result=None)
        return row


class ElsewhereError(ProblemError):
    """The tenant's bucket is moving between shards, or this process has not heard yet that it moved; nothing ran."""

    def __init__(self) -> None:
        super().__init__(problems.FREEZE_BUSY, "the tenant's bucket is moving between shards of the cell")


async def hold_bucket(connection: Any, tenant: int) -> None:
    """Keep the tenant's bucket on this shard for this transaction; `ElsewhereError` where it is not to be kept."""
    try:
        await connection.execute("SELECT cellwall.hold_bucket($1, $2)", tenant, ids.bucket_of(ids.tenant_of(tenant)))
    except asyncpg.PostgresError as e:
        if e.sqlstate in ("CW308", "CW503"):
            raise ElsewhereError from e
        raise


class Effect:
    """A command at work: fence and state are right, and the tenant's exclusive lock is held if it was asked for."""

    def __init__(self, connection: Any, row: FenceRow, ended: int) -> None:
        self.connection = connection
        self.row = row
        self.ended = ended  # holders of the lock that had to be ended

    async def give_up(self) -> None:
        """Leave a state from which the tenant could be activated, before the first of its rows is deleted."""
        dead = {"standby": "moved", "importing": "aborted"}.get(self.row.state)
        if dead is not None:
            await self.connection.execute(_GIVE_UP, self.row.tenant_id, dead, self.row.state)

    async def settle(self, state: str, result: Mapping[str, Any], **changes: Any) -> None:
        """The last statement of the transaction: state, epoch, min_epoch, hint and the stored result."""
        row = self.row
        new = {"epoch": row.epoch, "min_epoch": row.min_epoch, "hint": row.hint} | changes
        key = (row.tenant_id, row.term, row.seq, row.command, row.state)
        values = (state, new["epoch"], new["min_epoch"], new["hint"], dict(result))
        if await self.connection.execute(_SETTLE, *key, *values) != "UPDATE 1":
            raise ProblemError(problems.FENCED, "a newer command came while this one was at work")


@asynccontextmanager
async def effect(
    pool: Pool, tenant: int, fence: Fence, command: Command, patience: Patience | None, clock: Callable[[], float]
) -> AsyncIterator[Effect]:
    """One transaction: lock, fence, state, then the block, which ends with `Effect.settle`; all of it or nothing.

    ``patience`` None: without the lock, for a change of the fence row alone that ends nobody's transaction.
    """
    async with pool.acquire() as connection, effect_on(connection, tenant, fence, command, patience, clock) as found:
        yield found


@asynccontextmanager
async def effect_on(
    connection: Any,
    tenant: int,
    fence: Fence,
    command: Command,
    patience: Patience | None,
    clock: Callable[[], float],
) -> AsyncIterator[Effect]:
    """`effect`, on a connection that the caller has."""
    async with connection.transaction():
        ended = 0
        if patience is not None:
            # Who is fenced by now must not end the transaction of the newer command that it stands in line behind.
            own = partial(_own, connection, tenant, fence, command)
            ended = await locks.exclusive(connection, tenant, patience, clock, before_ending=own)
        yield Effect(connection, await _own(connection, tenant, fence, command), ended)


async def beside(connection: Any, tenant: int, fence: Fence, command: Command) -> FenceRow:
    """The row, for a command that changes nothing of the tenant and may run beside others of its move.

    It raises no fence. Refused below the fence's term, for another move that is not newer, and in a wrong state.
    """
    await hold_bucket(connection, tenant)
    row = await read(connection, tenant)
    if row is None:
        raise ProblemError(problems.NOT_FOUND, "this cell has no such tenant")
    if not rules.may_run_beside(row, fence):
        raise ProblemError(problems.FENCED, f"{command} at term {fence.term} came after term {row.term}")
    rules.check_state(row, command)
    return row


@asynccontextmanager
async def part(
    connection: Any, tenant: int, fence: Fence, command: Command, budget_s: float, clock: Callable[[], float]
) -> AsyncIterator[Any]:
    """One of several transactions of a command that write beside each other, under the shared lock.

    At its end the fence must still be the command's own: a newer command waits for this commit, or undoes it.
    """
    async with connection.transaction():
        await locks.shared(connection, tenant, budget_s, clock)
        row = await _own(connection, tenant, fence, command)
        yield connection
        if not await connection.fetchval(_STILL, tenant, fence.term, fence.seq, command, row.state):
            raise ProblemError(problems.FENCED, "a newer command came while this one was at work")


@asynccontextmanager
async def view(
    pool: Pool, tenant: int, fence: Fence, command: Command, budget_s: float, clock: Callable[[], float]
) -> AsyncIterator[Any]:
    """One transaction that only reads, under the shared lock: nobody can write or move the tenant meanwhile."""
    async with pool.acquire() as connection, connection.transaction():
        await locks.shared(connection, tenant, budget_s, clock)
        await _own(connection, tenant, fence, command)
        yield connection


async def _own(connection: Any, tenant: int, fence: Fence, command: Command) -> FenceRow:
    await hold_bucket(connection, tenant)
    # A statement of its own after the lock, so that its snapshot is newer than whatever the lock's last holder did.
    row = await read(connection, tenant)
    if row is None or row.fence != fence or row.command != command:
        raise ProblemError(problems.FENCED, "a newer command came first")
    rules.check_state(row, command)
    return row
