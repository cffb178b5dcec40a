"""The agent: tells the control plane that this cell exists, how it fares, and what its tenants used.

Serving does not depend on it. While the control plane is away it tries again with backoff and full jitter, for ever.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Final

import httpx
import msgspec
import structlog

from cell.gate import Gate
from cell.health import Probes
from cell.shards.borrowing import borrowed
from cell.shards.session import Shards
from contracts.fleet import Accepted, Heartbeat, Registration
from contracts.names import Field
from contracts.usage import PUSHED_TENANTS, Window

TIMEOUT_S: Final = 5.0
BACKOFF_FIRST_S: Final = 0.2
BACKOFF_MAX_S: Final = 2.0  # well below the lease of a cell, so that a control plane that returns sees it at once
WINDOWS_KEPT: Final = 60  # five minutes of usage that the control plane did not take
_ACTIVE_TENANTS: Final = "SELECT count(*) FROM cellwall.tenants WHERE state = 'active'"

_log = structlog.get_logger()


def package_version() -> str:
    """The version of this software."""
    return version("cellwall")


def control_plane_at(url: str, token: str) -> httpx.AsyncClient:
    """A client of the control plane for the bearer of ``token``, the cell's own; whoever makes it closes it."""
    headers = {"authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False)


class ReportFailedError(Exception):
    """The control plane did not take a report."""


class UsageReports:
    """Tells the windows of usage, oldest first, each until it was taken; the oldest go where too many wait."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        cell: str,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._http = http
        self._url = f"/v1/agent/cells/{cell}/usage"
        self._sleep = sleep
        self._jitter = jitter
        self._waiting: deque[Window] = deque(maxlen=WINDOWS_KEPT)
        self._some = asyncio.Event()

    def offer(self, window: Window) -> None:
        """Have it told; returns at once."""
        self._waiting.append(window.top(PUSHED_TENANTS))
        self._some.set()

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                window = self._waiting[0]
                if await self._told(window):
                    failures = 0
                    if self._waiting and self._waiting[0] is window:  # it may have been pushed out meanwhile
                        self._waiting.popleft()
                    continue
                failures += 1
                await self._sleep(self._jitter() * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures, 10)))

    async def _told(self, window: Window) -> bool:
        """Whether the control plane has it. One that it refuses is dropped: it will not like it better later."""
        headers = {"content-type": "application/json"}
        try:
            answer = await self._http.post(self._url, content=msgspec.json.encode(window), headers=headers)
        except httpx.HTTPError as e:
            _log.debug("usage_report_failed", **{Field.REASON: f"{type(e).__name__}: {e}"})
            return False
        if answer.status_code in (400, 413):
            _log.warning("usage_report_refused", status=answer.status_code)
            return True
        return answer.is_success


class Agent:
    """Registers once, then reports whenever the control plane asked for it; registers again where it was forgotten."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        cell: str,
        registration: Registration,
        shards: Shards,
        health: Probes,
        gate: Gate,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._http = http
        self._cell = cell
        self._registration = registration
        self._shards = shards
        self._health = health
        self._gate = gate
        self._sleep = sleep
        self._jitter = jitter

    async def run(self) -> None:
        """Until cancelled."""
        registered, failures = False, 0
        while True:
            try:
                if registered:
                    accepted = await self._heartbeat()
                else:
                    accepted = await self._send("PUT", "", self._registration)
                    _log.info("cell_registered", **{Field.CELL: self._cell}, state=accepted.state)
                registered, failures = True, 0
                pause = accepted.next_s
            except ReportFailedError as e:
                registered, failures = False, failures + 1
                if failures == 1:
                    _log.warning("report_failed", **{Field.REASON: str(e)})
                pause = self._jitter() * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures, 10))
            await self._sleep(pause)

    async def _heartbeat(self) -> Accepted:
        registration = self._registration
        report = await self._health.report()
        tenants = await self._tenants() if report.ready else 0
        beat = Heartbeat(registration.schema, registration.version, tenants, self._gate.in_flight, report.ready)
        return await self._send("POST", "/heartbeat", beat)

    async def _tenants(self) -> int:
        total = 0
        for name in self._shards.names:
            try:
                async with borrowed(self._shards.pool(name), TIMEOUT_S) as connection:
                    total += await connection.fetchval(_ACTIVE_TENANTS)
            except Exception as e:  # readiness says why; here any cause means that there is no number to report
                raise ReportFailedError(f"{name}: {type(e).__name__}") from e
        return total

    async def _send(self, method: str, path: str, body: msgspec.Struct) -> Accepted:
        url = f"/v1/agent/cells/{self._cell}{path}"
        headers = {"content-type": "application/json"}
        try:
            answer = await self._http.request(method, url, content=msgspec.json.encode(body), headers=headers)
            if not answer.is_success:
                raise ReportFailedError(f"the control plane answered {answer.status_code} to {method} {url}")
            return msgspec.json.decode(answer.content, type=Accepted)
        except (httpx.HTTPError, msgspec.DecodeError) as e:
            raise ReportFailedError(f"{type(e).__name__}: {e}") from e
