"""Requests to the control plane that outlast its restart, and say what to do where it stays away."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx

from infra.local.errors import LocalFleetError
from infra.local.fleet import Fleet
from infra.local.processes import POLL_S

PATIENCE_S: Final = 15.0  # longer than a restart of the control plane takes
_AWAY: Final = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)


class Operator:
    """Asks in the operator's name. A request may be sent more than once: use it for what can be repeated."""

    def __init__(self, client: httpx.AsyncClient, *, patience_s: float = PATIENCE_S) -> None:
        self._client = client
        self._patience_s = patience_s

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, fleet: Fleet) -> AsyncIterator["Operator"]:
        """The operator of that fleet."""
        async with fleet.operator() as client:
            yield cls(client, patience_s=PATIENCE_S)

    async def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer, also an error; `LocalFleetError` where there is none for `PATIENCE_S`."""
        until = time.monotonic() + self._patience_s
        while True:
            try:
                answer = await self._client.request(method, path, **request)
                if answer.status_code not in _AWAY:
                    return answer
                reason = f"status {answer.status_code}"
            except httpx.TransportError as e:
                reason = str(e) or type(e).__name__
            if time.monotonic() > until:
                raise LocalFleetError(
                    f"the control plane does not answer on {self._client.base_url} ({reason}); "
                    "`make up` starts what of the fleet does not run, then repeat the command"
                )
            await asyncio.sleep(POLL_S)

    async def get(self, path: str, **request: Any) -> httpx.Response:
        """`ask`, to read."""
        return await self.ask("GET", path, **request)
