"""Health of a cell's process: live (the loop turns), ready (databases reachable, schema right), startup (was ready)."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from cell.shards.borrowing import borrowed
from cell.shards.errors import DATABASE_FAILED
from cell.shards.pools import Databases

CHECK_TIMEOUT_S: Final = 2.0
FRESH_S: Final = 0.5  # how long an answer is reused, so that probes cannot load the databases
_DIRECTORY_SCHEMA: Final = "SELECT version_num FROM alembic_version"
_SHARD_SCHEMA: Final = "SELECT version_num FROM cellwall.alembic_version"


@dataclass(frozen=True, slots=True)
class Report:
    """Whether the process should get traffic, and why not."""

    ready: bool
    reasons: tuple[str, ...] = ()


class Probes(ABC):
    """Answers the probes of a process that says in `_reasons` what it lacks."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = asyncio.Lock()
        self._report = Report(False, ("not checked yet",))
        self._checked = float("-inf")
        self.started = False
        self.draining = False

    def drain(self) -> None:
        """The process stops: not ready from now on, whatever the databases say."""
        self.draining = True

    async def report(self) -> Report:
        """Ready only while everything is reachable and the process is not stopping."""
        if self.draining:
            return Report(False, ("stopping",))
        async with self._lock:
            if self._clock() - self._checked >= FRESH_S:
                reasons = await self._reasons()
                self._report = Report(not reasons, reasons)
                self._checked = self._clock()
                self.started = self.started or self._report.ready
        return self._report

    @abstractmethod
    async def _reasons(self) -> tuple[str, ...]:
        """Why the process should get no traffic; empty where it should."""

    def handlers(self) -> Sequence[HTTPRouteHandler]:
        """``GET /health/{live,ready,startup}``, open to everybody: they say nothing of tenants."""

        @get("/health/live", opt={"access": "health"}, include_in_schema=False)
        async def live() -> dict[str, Any]:
            return {"live": True}

        @get("/health/ready", opt={"access": "health"}, include_in_schema=False)
        async def ready() -> Response[dict[str, Any]]:
            report = await self.report()
            body = {"ready": report.ready, "reasons": list(report.reasons)}
            return Response(body, status_code=200 if report.ready else 503)

        @get("/health/startup", opt={"access": "health"}, include_in_schema=False)
        async def startup() -> Response[dict[str, Any]]:
            started = self.started or (await self.report()).ready
            return Response({"started": started}, status_code=200 if started else 503)

        return live, ready, startup


class Health(Probes):
    """Of a process of a cell. ``schemas`` are the revisions that this version needs: (directory, shard)."""

    def __init__(self, databases: Databases, schemas: tuple[str, str], clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._databases = databases
        self._schemas = schemas

    async def _reasons(self) -> tuple[str, ...]:
        directory_schema, shard_schema = self._schemas
        shards = self._databases.shards
        checks = [_schema(self._databases.directory, _DIRECTORY_SCHEMA, "the directory", directory_schema)]
        checks += [_schema(shards.pool(n), _SHARD_SCHEMA, n, shard_schema) for n in shards.names]
        return tuple(reason for reason in await asyncio.gather(*checks) if reason)


async def _schema(pool: Any, query: str, name: str, expected: str) -> str:
    try:
        async with borrowed(pool, CHECK_TIMEOUT_S) as connection:
            found = await connection.fetchval(query)
    except DATABASE_FAILED as e:
        return f"{name} cannot be reached ({type(e).__name__})"
    return "" if found == expected else f"{name} has schema {found}, this version needs {expected}"
