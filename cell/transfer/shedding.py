"""Deletes the rows of imports that were given up, in parts, after the answer: the source waits for the abort.

Whoever is aborted and has rows has rows to lose, so whatever process of the cell lives next goes on with it.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import structlog

from cell.shards.errors import DATABASE_FAILED
from cell.shards.session import Pool
from cell.transfer import catalogue, locks, rows
from cell.transfer import fence as fences
from cell.transfer.locks import LockBusyError, Patience
from contracts import ids
from contracts.names import Field

EVERY_S: Final = 60.0
_PATIENCE: Final = Patience(budget_s=2.0, polite_s=float("inf"))  # ends nobody
_FIND: Final = "SELECT tenant_id, term, seq FROM cellwall.tenants WHERE state = 'aborted' ORDER BY tenant_id"

_log = structlog.get_logger()


class Shedder:
    """One for a process. Nothing of it is needed for correctness: `prepare` and `purge` delete such rows as well."""

    def __init__(self, pools: Mapping[str, Pool], clock: Callable[[], float]) -> None:
        self._pools = pools
        self._clock = clock
        self._woken = asyncio.Event()
        self._clean: dict[int, tuple[int, int]] = {}  # tenants without rows, since which command

    def wake(self) -> None:
        """There is something to do now."""
        self._woken.set()

    async def run(self) -> None:
        """Until it is cancelled. A shard that is away is tried again later."""
        while True:
            self._woken.clear()
            try:
                await self.sweep()
            except (*DATABASE_FAILED, LockBusyError) as e:
                _log.warning("rows_not_shed", reason=str(e))
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._woken.wait()

    async def sweep(self) -> int:
        """Delete all that is left; of how many tenants."""
        shed = 0
        for pool in self._pools.values():
            for tenant, *fence in await pool.fetch(_FIND):
                if self._clean.get(tenant) == tuple(fence):
                    continue
                parts = 0
                while await self._part(pool, tenant):
                    parts += 1
                self._clean[tenant] = (fence[0], fence[1])
                if parts:
                    shed += 1
                    _log.info("rows_shed", **{Field.TENANT: str(ids.tenant_of(tenant))})
        return shed

    async def _part(self, pool: Pool, tenant: int) -> bool:
        """Some rows, under the tenant's lock and only while the import stays given up; whether more may be left."""
        async with pool.acquire() as connection, connection.transaction():
            await locks.exclusive(connection, tenant, _PATIENCE, self._clock)
            found = await fences.read(connection, tenant)
            if found is None or found.state != "aborted":
                return False
            tables = await catalogue.tenant_tables(connection)
            if await rows.drop_some(connection, tables, tenant):
                return True
            await rows.drop(connection, tables, tenant)
            return False
