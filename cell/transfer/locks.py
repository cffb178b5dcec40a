"""The tenant's exclusive lock, taken without ever standing in line for it.

While an exclusive lock *waits*, shared try-locks fail too, and one slow report would make every request of the tenant
look frozen (moves.md rule 9). So it is tried in a loop, and when patience ends the holders that the server names are
ended: first their statements, then their connections.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

RETRY_S: Final = 0.003
TERMINATE_AFTER_S: Final = 0.05  # after the first cancellation: a holder that is idle in its transaction
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
) -> int:
    """Take the tenant's exclusive lock for this transaction; how many holders had to be ended for it."""
    began = clock()
    ended: set[int] = set()
    while not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", tenant):
        waited = clock() - began
        if waited >= patience.budget_s:
            raise await _busy(connection, tenant, patience.budget_s)
        if waited >= patience.polite_s:
            terminate = waited >= patience.polite_s + TERMINATE_AFTER_S
            ended |= set(await connection.fetchval("SELECT cellwall.end_holders($1, $2)", tenant, terminate))
        await sleep(RETRY_S)
    return len(ended)


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
