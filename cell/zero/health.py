"""Readiness of the ambassador: it is the only one, its database answers, and the monolith does."""

import asyncio
from collections.abc import Callable
from typing import Final

import asyncpg

from cell.health import CHECK_TIMEOUT_S, Probes
from cell.schema import migrate
from cell.shards.borrowing import borrowed
from cell.shards.errors import DATABASE_FAILED
from cell.shards.session import Pool
from cell.zero.door import Door

_SCHEMA: Final = "SELECT version_num FROM cellwall.alembic_version"
_NONE: Final = "none"


class ZeroHealth(Probes):
    """Of the ambassador's process. ``monolith`` is its URL."""

    def __init__(self, pool: Pool, door: Door, monolith: str, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._pool = pool
        self._door = door
        self._monolith = monolith

    async def _reasons(self) -> tuple[str, ...]:
        reasons = await asyncio.gather(self._database(), self._listening())
        sole = "" if self._door.is_sole else "another ambassador is at work, or was until just now"
        return tuple(reason for reason in (*reasons, sole) if reason)

    async def _database(self) -> str:
        try:
            async with borrowed(self._pool, CHECK_TIMEOUT_S) as connection:
                found = await connection.fetchval(_SCHEMA)
        except asyncpg.UndefinedTableError:
            found = _NONE
        except DATABASE_FAILED as e:
            return f"the monolith's database cannot be reached ({type(e).__name__})"
        expected = migrate.head(migrate.SHARD)
        return "" if found == expected else f"our schema is {found} and this version needs {expected}: run install"

    async def _listening(self) -> str:
        host, _, port = self._monolith.removeprefix("http://").rpartition(":")
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except (OSError, TimeoutError) as e:
            return f"the monolith cannot be reached ({type(e).__name__})"
        writer.close()
        return ""
