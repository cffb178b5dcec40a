"""Which of the control-plane processes acts: a session advisory lock, and a term that rises with each acquisition.

The lock is held by a connection of its own: losing the connection is losing the lock, and the work is cancelled. The
server ends a connection that says nothing for a while, so that a leader that hangs, or whose machine is gone, does not
keep the lock. That is only the polite part. A leader that was paused does not know that it was replaced; what makes its
late commits and commands harmless is the term, in the compare-and-set of every move and in the fence of every command
(moves.md rule 1).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
import structlog

log = structlog.get_logger()

LOCK_KEY: Final = 0x43454C4C57414C4C  # "CELLWALL": the advisory lock of the fleet's one leader
RETRY_S: Final = 0.5
PING_S: Final = 1.0
TIMEOUT_S: Final = 5.0
# How long the server waits for the next word of a leader. Above PING_S + TIMEOUT_S: who is only slow stays.
SILENCE_S: Final = 10.0
# Where no packet comes any more, not even a refusal: the server asks every 2 s and gives up after the third silence.
_KEEPALIVE: Final = {"tcp_keepalives_idle": "2", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3"}

# At least the clock's seconds: a database that was restored from a backup does not hand out old terms again.
_NEXT_TERM: Final = """
INSERT INTO leader AS l (single, term, holder) VALUES (true, extract(epoch FROM clock_timestamp())::bigint, $1)
ON CONFLICT (single) DO UPDATE SET term = greatest(l.term + 1, excluded.term), holder = excluded.holder,
  acquired_at = clock_timestamp()
RETURNING term
"""


class Leader:
    """Runs one body of work while this process is the leader. `term` is None while it is not."""

    def __init__(
        self,
        dsn: str,
        holder: str,
        *,
        retry_s: float = RETRY_S,
        ping_s: float = PING_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        """``holder`` names this process in the table, for operators. One silent for ``silence_s`` loses the lead."""
        self._dsn = dsn
        self._holder = holder
        self._retry_s = retry_s
        self._ping_s = ping_s
        self._session = _KEEPALIVE | {
            "application_name": "cellwall-leader",
            "idle_session_timeout": f"{round(silence_s * 1000)}",
        }
        self._term: int | None = None

    @property
    def term(self) -> int | None:
        """The present term as far as this process knows."""
        return self._term

    async def run(self, body: Callable[[int], Awaitable[None]]) -> None:
        """Run ``body(term)`` whenever this process leads; cancel it when it does not. Until cancelled."""
        while True:
            try:
                await self._campaign(body)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as e:
                log.warning("leader_connection_lost", reason=str(e) or type(e).__name__)
            except Exception:
                log.exception("leader_work_failed")
            await asyncio.sleep(self._retry_s)

    async def _campaign(self, body: Callable[[int], Awaitable[None]]) -> None:
        conn: asyncpg.Connection[Any] = await asyncpg.connect(
            self._dsn, timeout=TIMEOUT_S, server_settings=self._session
        )
        try:
            while True:
                if await conn.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY, timeout=TIMEOUT_S):
                    break
                await asyncio.sleep(self._retry_s)
            self._term = await conn.fetchval(_NEXT_TERM, self._holder, timeout=TIMEOUT_S)
            log.info("leadership_acquired", term=self._term)
            await self._lead(conn, body, self._term)
        finally:
            if self._term is not None:
                log.info("leadership_ended", term=self._term)
            self._term = None
            with contextlib.suppress(Exception):
                await conn.close(timeout=1)

    async def _lead(self, conn: "asyncpg.Connection[Any]", body: Callable[[int], Awaitable[None]], term: int) -> None:
        lost = asyncio.Event()
        conn.add_termination_listener(lambda _conn: lost.set())
        work = asyncio.ensure_future(body(term))
        watch = asyncio.create_task(self._watch(conn, lost))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watch, work):
                task.cancel()
            outcome = await asyncio.gather(work, watch, return_exceptions=True)
        for result in outcome:
            if isinstance(result, Exception):
                raise result

    async def _watch(self, conn: "asyncpg.Connection[Any]", lost: asyncio.Event) -> None:
        """Return, or raise, when the connection that holds the lock is gone."""
        while not lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._ping_s):
                    await lost.wait()
            if not lost.is_set():
                await conn.execute("SELECT 1", timeout=TIMEOUT_S)
