"""Keeps every unfinished move going while this process leads: those just planned and those found after a crash."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, Protocol

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.names import Field
from control_plane import move_store
from control_plane.move import State
from control_plane.move_store import Move, StaleMoveError
from control_plane.signals import MOVES, Signals

log = structlog.get_logger()

CONCURRENT_MOVES: Final = 8  # above what a batch starts at once, so that an operator's move need not wait for it
LOOK_S: Final = 1.0  # without any signal, look for work this often
RETRY_S: Final = 1.0  # before a move that ended with an error is driven again


class Drives(Protocol):
    """What carries one move to its end (`mover.Mover`)."""

    async def drive(self, move_id: str, term: int) -> Move:
        """Until a terminal state; errors leave the move to be driven again."""


class MoveRunner:
    """Runs moves side by side, each at most once at a time.

    ``concurrent`` counts those that copy or cut over. A standby and a paused move only carry changes, for as long as
    people like, so they take nobody's place.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        signals: Signals,
        mover: Drives,
        *,
        concurrent: int = CONCURRENT_MOVES,
        look_s: float = LOOK_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self._engine = engine
        self._signals = signals
        self._mover = mover
        self._look_s = look_s
        self._retry_s = retry_s
        self._concurrent = concurrent

    async def run(self, term: int) -> None:
        """Work until cancelled. Cancelling leaves every move where it stands: the next leader carries on."""
        running: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                changed = self._signals.subscribe(MOVES)
                waiting = await self._waiting()
                busy = sum(1 for move in waiting if move.id in running and not _idles(move))
                for move in waiting:
                    if move.id not in running and (_idles(move) or busy < self._concurrent):
                        running[move.id] = asyncio.create_task(self._drive(move.id, term))
                        busy += not _idles(move)
                await self._until_something_happens(changed.wait(self._look_s), running)
                running = {move_id: task for move_id, task in running.items() if not task.done()}
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    async def _waiting(self) -> list[Move]:
        async with self._engine.connect() as conn:
            return await move_store.unfinished(conn)

    async def _until_something_happens(
        self, signal: Coroutine[Any, Any, bool], running: dict[str, asyncio.Task[None]]
    ) -> None:
        waiter = asyncio.create_task(signal)
        try:
            await asyncio.wait({waiter, *running.values()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()

    async def _drive(self, move_id: str, term: int) -> None:
        try:
            await self._mover.drive(move_id, term)
        except StaleMoveError:
            log.warning("move_left_to_a_newer_leader", **{Field.MOVE: move_id}, term=term)
        except Exception:
            log.exception("move_drive_failed", **{Field.MOVE: move_id})
        else:
            return
        await asyncio.sleep(self._retry_s)


def _idles(move: Move) -> bool:
    return move.paused or move.state is State.STANDBY
