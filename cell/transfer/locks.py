"""The tenant's exclusive lock, taken without standing in line for it for longer than its users try again.

While an exclusive lock *waits*, shared try-locks fail too, and one slow report would make every request of the tenant
look frozen (moves.md rule 9). So it is tried in a loop. Where somebody always holds it, each for a moment only, a loop
finds no gap: then it stands in line too, for a shorter time than a session tries again before it says `tenant-frozen`
(`cell.shards.session.LOCK_PATIENCE_S`), and lets the others in for ten times that. When patience ends the holders that
the server names are ended: first their statements, then their connections.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

RETRY_S: Final = 0.003
TERMINATE_AFTER_S: Final = 0.05  # after the first cancellation: a holder that is idle in its transaction
ALWAYS_HELD_S: Final = 0.1  # without a gap: then it stands in line
IN_LINE_S: Final = 0.02
BETWEEN_S: Final = 0.2
_HOLDERS: Final = (
    "SELECT h AS pid, a.usename AS role FROM cellwall.lock_holders($1) h"
    " LEFT JOIN pg_stat_activity a ON a.pid = h ORDER BY h"
)


class LockBusyError(Exception):
    """The lock was not to be had within the budget; the message names the server processes that hold it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """``budget_s`` in all; holders are ended after ``polite_s``."""

    budget_s: float
    polite_s: float


async def exclusive(
    connection: Any,
    tenant: int,
    patience: Patience,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    before_ending: Callable[[], Awaitable[object]] | None = None,
) -> int:
    """Take the tenant's exclusive lock for this transaction; how many holders had to be ended for it.

    What ``before_ending`` raises leaves the holders alone.
    """
    began = clock()
    in_line = began + ALWAYS_HELD_S
    ended: set[int] = set()
    while not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", tenant):
        if clock() >= in_line:
            if await _stood_in_line(connection, tenant):
                break
            in_line = clock() + BETWEEN_S
        waited = clock() - began
        if waited >= patience.budget_s:
            raise await _busy(connection, tenant, patience.budget_s)
        if waited >= patience.polite_s:
            if before_ending is not None and not ended:
                await before_ending()
            terminate = waited >= patience.polite_s + TERMINATE_AFTER_S
            ended |= set(await connection.fetchval("SELECT cellwall.end_holders($1, $2)", tenant, terminate))
        await sleep(RETRY_S)
    return len(ended)


async def _stood_in_line(connection: Any, tenant: int) -> bool:
    """Whether the lock came while it was waited for, `IN_LINE_S` at most."""
    before = await connection.fetchval("SELECT current_setting('lock_timeout')")
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = {int(IN_LINE_S * 1000)}")
            await connection.execute("SELECT pg_advisory_xact_lock($1)", tenant)
            await connection.execute("SELECT set_config('lock_timeout', $1, true)", before)
    except asyncpg.LockNotAvailableError:
        return False
    return True


async def shared(
    connection: Any,
    tenant: int,
    budget_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Take the tenant's shared lock for this transaction, without ending anybody."""
    began = clock()
    while not await connection.fetchval("SELECT pg_try_advisory_xact_lock_shared($1)", tenant):
        if clock() - began >= budget_s:
            raise await _busy(connection, tenant, budget_s)
        await sleep(RETRY_S)


async def _busy(connection: Any, tenant: int, budget_s: float) -> LockBusyError:
    holders = [f"pid {h['pid']} ({h['role'] or 'ended'})" for h in await connection.fetch(_HOLDERS, tenant)]
    held = f"; held by {', '.join(holders)}" if holders else ""
    return LockBusyError(f"the tenant's lock was not to be had within {budget_s:.3f} s{held}")
