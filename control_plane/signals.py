"""Wake-ups between transactions: PostgreSQL's NOTIFY, arriving with the commit, in every control-plane process.

A signal says only "look again". Losing the connection loses none: after a reconnect every waiter is woken.
"""

import asyncio
import contextlib
from typing import Any, Final

import asyncpg
import structlog

ROUTES: Final = "cellwall_routes"
ROUTERS: Final = "cellwall_routers"
MOVES: Final = "cellwall_moves"
CHANNELS: Final = (ROUTES, ROUTERS, MOVES)

RECONNECT_S: Final = 0.5
KEEPALIVE_S: Final = 5.0

log = structlog.get_logger()


class Changed:
    """One subscription: fires once, for the first notice after it was made."""

    def __init__(self, event: asyncio.Event, closing: asyncio.Event) -> None:
        self._event = event
        self._closing = closing

    async def wait(self, timeout_s: float) -> bool:
        """True if something changed, False at time-out or when the process is stopping."""
        if self._closing.is_set() or timeout_s <= 0:
            return False
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return not self._closing.is_set()


class Signals:
    """Subscriptions per channel. `run` keeps the listening connection; without it waiters time out, nothing breaks."""

    def __init__(self) -> None:
        self._events = {channel: asyncio.Event() for channel in CHANNELS}
        self._closing = asyncio.Event()

    def subscribe(self, channel: str) -> Changed:
        """A subscription that sees every notice from now on; take it before reading what it guards."""
        return Changed(self._events[channel], self._closing)

    def fire(self, channel: str) -> None:
        """Wake every present waiter of a channel."""
        event, self._events[channel] = self._events[channel], asyncio.Event()
        event.set()

    def close(self) -> None:
        """Let every waiter return at once, now and from now on: the process is stopping."""
        self._closing.set()
        for channel in CHANNELS:
            self.fire(channel)

    async def run(self, dsn: str) -> None:
        """Listen until cancelled, on a connection of its own; reconnects for ever."""
        while True:
            try:
                await self._listen(dsn)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as e:
                log.warning("notice_connection_lost", reason=str(e) or type(e).__name__)
            await asyncio.sleep(RECONNECT_S)

    async def _listen(self, dsn: str) -> None:
        conn: asyncpg.Connection[Any] = await asyncpg.connect(dsn, timeout=5)
        try:
            for channel in CHANNELS:
                await conn.add_listener(channel, self._noticed)
            for channel in CHANNELS:
                self.fire(channel)  # whatever was committed while nobody listened
            while True:
                await asyncio.sleep(KEEPALIVE_S)
                await conn.execute("SELECT 1", timeout=5)
        finally:
            with contextlib.suppress(Exception):
                await conn.close(timeout=1)

    def _noticed(self, _conn: object, _pid: int, channel: str, _payload: object) -> None:
        self.fire(channel)
