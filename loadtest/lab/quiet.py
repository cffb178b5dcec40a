"""Waits until a system has nothing left to do: what the run before it left would be measured with the baseline.

A cell that answers at once may still relay events, write checkpoints and vacuum; so the processors have to rest too.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from loadtest.lab import machine
from loadtest.lab.job import Address
from loadtest.lab.plan import Tenant
from loadtest.wire import ExchangeError, Pool
from loadtest.workload import Account, request

ANSWER_S: Final = 0.1
IN_A_ROW: Final = 10
PAUSE_S: Final = 0.1
WITHIN_S: Final = 20.0
BUSY: Final = 0.25  # of all processors: an idle fleet of two cells, and its control plane, use a tenth of two

_STRETCH_S: Final = 2 * IN_A_ROW * PAUSE_S


def _now() -> machine.Reading:
    return machine.Reading.now(time.monotonic())


async def quiet(
    target: Address,
    tenants: Sequence[Tenant],
    within_s: float = WITHIN_S,
    read: Callable[[], machine.Reading] = _now,
) -> str:
    """Wait until every cell answers at once, ten times in a row, and three quarters of the processors rest meanwhile.

    In words what did not come to rest in time; empty if all did. ``read`` reads what the machine did.
    """
    one_of = {tenant.cell: tenant.account for tenant in tenants}
    pool = Pool(target.host, target.port, size=len(one_of))
    try:
        until = time.monotonic() + within_s
        while True:
            before = read()
            rests = await asyncio.gather(*(_rests(pool, account, until) for account in one_of.values()))
            busy = machine.busy(before, read())
            restless = sorted(cell for cell, rest in zip(one_of, rests, strict=True) if not rest)
            if restless:
                return f"{', '.join(restless)} did not come to rest within {within_s:g} s"
            if busy <= BUSY:
                return ""
            if time.monotonic() + _STRETCH_S > until:
                return f"the processors did not come to rest within {within_s:g} s: {busy:.0%} busy"
    finally:
        pool.close()


async def _rests(pool: Pool, account: Account, until: float) -> bool:
    payload = request(account, "GET", "/v1/orders?limit=1")
    row = 0
    while row < IN_A_ROW and time.monotonic() < until:
        row = row + 1 if await _answers(pool, payload) else 0
        await asyncio.sleep(PAUSE_S)
    return row >= IN_A_ROW


async def _answers(pool: Pool, payload: bytes) -> bool:
    try:
        async with asyncio.timeout(ANSWER_S):
            return (await pool.exchange(payload)).status == 200
    except (TimeoutError, ExchangeError):
        return False
