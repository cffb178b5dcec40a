"""Seats for the platform's own heavy work: copies wait for each other here, and cannot take the cell from its users."""

import hmac
from collections.abc import Callable
from typing import Any, Final

from cell.fairness.levels import Level
from cell.fairness.station import RefusedError
from cell.fairness.timeouts import Budget
from cell.fairness.wall import Plan, Wall
from cell.shards.context import TenantContext
from contracts import ids, problems

HEAVY: Final = frozenset({"export", "import", "checksum"})  # commands that read or write all rows of a tenant
PATIENCE_S: Final = 10.0  # to wait for a seat; the mover then tries again, or gives the move up
_PREFIX: Final = ["", "transfer", "v1", "tenants"]

Application = Callable[[Any, Any, Any], Any]


class InternalWall:
    """Stands before the transfer API. Only the bearer of the transfer token can take seats, or wait for any."""

    def __init__(self, application: Application, wall: Wall, token: str, clock: Callable[[], float]) -> None:
        self._application = application
        self._wall = wall
        self._bearer = f"Bearer {token}".encode()
        self._clock = clock

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request of the control plane."""
        tenant = self._heavy(scope)
        if tenant is None:
            await self._application(scope, receive, send)
            return
        by = self._clock() + PATIENCE_S
        plan = Plan(scope["path"].rpartition("/")[2], Level.INTERNAL, Budget(by, by))
        try:
            async with self._wall.inside(TenantContext.for_worker(tenant, by, "transfer"), plan, 0):
                await self._application(scope, receive, send)
        except RefusedError as e:
            await _refuse(e, send)

    def _heavy(self, scope: Any) -> int | None:
        """The tenant, where this is a heavy command of who may give it; the application refuses all others."""
        if scope["type"] != "http":
            return None
        parts = scope["path"].split("/")
        if len(parts) != 6 or parts[:4] != _PREFIX or parts[5] not in HEAVY:
            return None
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or not hmac.compare_digest(given[0], self._bearer):
            return None
        try:
            return ids.tenant_number(parts[4])
        except ids.InvalidIdError:
            return None


async def _refuse(error: RefusedError, send: Any) -> None:
    body = error.problem.body()
    headers = [
        (b"content-type", problems.CONTENT_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(error.retry_after_s).encode()),
    ]
    await send({"type": "http.response.start", "status": error.problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
