"""Waits until a system has nothing left to do: what the run before it left would be measured with the baseline."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from loadtest.lab.job import Address
from loadtest.lab.plan import Tenant
from loadtest.wire import ExchangeError, Pool
from loadtest.workload import Account, request

ANSWER_S: Final = 0.1
IN_A_ROW: Final = 10
PAUSE_S: Final = 0.1
WITHIN_S: Final = 20.0


async def quiet(target: Address, tenants: Sequence[Tenant], within_s: float = WITHIN_S) -> str:
    """Wait until every cell answers at once, ten times in a row. In words which did not in time; empty if all did."""
    one_of = {tenant.cell: tenant.account for tenant in tenants}
    pool = Pool(target.host, target.port, size=len(one_of))
    try:
        rests = await asyncio.gather(*(_rests(pool, account, within_s) for account in one_of.values()))
    finally:
        pool.close()
    restless = sorted(cell for cell, rest in zip(one_of, rests, strict=True) if not rest)
    return f"{', '.join(restless)} did not come to rest within {within_s:g} s" if restless else ""


async def _rests(pool: Pool, account: Account, within_s: float) -> bool:
    payload = request(account, "GET", "/v1/orders?limit=1")
    until, row = time.monotonic() + within_s, 0
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
