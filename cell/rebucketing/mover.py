"""Carries out the moves between shards that the directory holds: one process of the cell at a time, one move at a time.

Killed anywhere it leaves a row that says what was decided. Before the decision the next attempt begins anew, or puts
the bucket back; after it the next attempt goes forward. A process that lost its turn without knowing changes nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import structlog

from cell.rebucketing import shard, store
from cell.rebucketing.shard import BusyError, TooLargeError
from cell.rebucketing.store import Move, SupersededError
from cell.shards.errors import DirectoryError
from cell.shards.session import Pool
from cell.transfer.catalogue import CatalogueError
from cell.transfer.frames import BrokenStreamError
from contracts import ids
from contracts.names import Field

EVERY_S: Final = 1.0
AGAIN_S: Final = 5.0  # a bucket that was busy
_TURN: Final = 0x73686172  # the advisory lock of whoever carries out moves

_FAILED: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    BrokenStreamError,
    CatalogueError,
    DirectoryError,
)

_log = structlog.get_logger()


async def onwards(_step: str) -> None:
    """What happens between two steps: nothing."""


class Mover:
    """``directory`` and ``pools`` are reached with the transfer role; ``at`` is called at each step with its name."""

    def __init__(
        self,
        *,
        directory: Pool,
        pools: Mapping[str, Pool],
        clock: Callable[[], float],
        at: Callable[[str], Awaitable[None]] = onwards,
    ) -> None:
        self._directory = directory
        self._pools = pools
        self._clock = clock
        self._at = at

    async def run(self) -> None:
        """Until cancelled. What fails is tried again."""
        while True:
            try:
                await self.sweep()
            except _FAILED as e:
                _log.warning("shard_moves_not_looked_at", **{Field.REASON: f"{type(e).__name__}: {e}"})
            await asyncio.sleep(EVERY_S)

    async def sweep(self) -> int:
        """Try every move that is due once; how many ended. None where another process has the turn."""
        ended = 0
        async with self._turn() as mine:
            for move in await store.moves(self._directory, due=True) if mine else ():
                try:
                    ended += await self._carried_out(move.id)
                except SupersededError:
                    continue
                except (BusyError, *_FAILED) as e:
                    _log.warning("shard_move_failed", **_named(move), reason=f"{type(e).__name__}: {e}")
        return ended

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[bool]:
        async with self._directory.acquire() as connection:
            mine = await connection.fetchval("SELECT pg_try_advisory_lock($1)", _TURN)
            try:
                yield mine
            finally:
                if mine:
                    await connection.fetchval("SELECT pg_advisory_unlock($1)", _TURN)

    async def _carried_out(self, number: int) -> bool:
        move = await store.begin(self._directory, number)
        if move is None:
            return False
        pins = [p for p in await store.pins(self._directory) if p != move.tenant]
        if move.state == "copying":
            try:
                await self._copy(move, pins)
            except TooLargeError as e:
                await self._undo(move, pins, str(e), final=True)
                return True
            except (BusyError, *_FAILED) as e:
                await self._undo(move, pins, str(e) or type(e).__name__)
                return False
            except asyncio.CancelledError:  # the process ends: nobody should wait for the next one
                await self._undo(move, pins, "the process that did it ended")
                raise
        await self._finish(move, pins)
        return True

    async def _copy(self, move: Move, pins: list[int]) -> None:
        """Everything up to the decision."""
        if (name := await store.ignorant(self._directory, move.target)) is not None:
            raise BusyError(f"{name} has no connections to {move.target}: restart it")
        source, target = self._pool(move.source), self._pool(move.target)
        async with source.acquire() as connection:  # before anybody has to wait
            await shard.check(connection, await shard.tenants(connection, move, pins))
        for pool in (source, target):
            await shard.keep(pool, move, pins)
        await shard.fence(target, move, "arriving")
        await self._at("arriving")
        began = self._clock()
        await shard.fence(source, move, "frozen")
        await self._at("frozen")
        await shard.settle(source, move, pins, self._clock)
        await self._at("settled")
        async with shard.snapshot(source) as connection:
            found = await shard.tenants(connection, move, pins)
            await shard.check(connection, found)
            await shard.copy(connection, target, move, pins, found)
        await self._at("copied")
        async with self._directory.acquire() as connection:
            await store.switch(connection, move)
        held_ms = round((self._clock() - began) * 1000, 3)
        _log.info("shard_move_decided", **_named(move), tenants=len(found), held_ms=held_ms)
        await self._at("switched")

    async def _undo(self, move: Move, pins: list[int], reason: str, *, final: bool = False) -> None:
        """Serve at the source again, unless the directory says that it was decided; then the next attempt goes on.

        It stays due until that is done, so that who finds it half done does it again at once.
        """
        if not await store.undo(self._directory, move, reason):
            return
        await self._at("undone")
        await shard.fence(self._pool(move.source), move, "here")
        await self._at("unfrozen")
        target = self._pool(move.target)
        await shard.fence(target, move, "arriving")  # it may have been refused before that
        await shard.clear(target, move, pins, "arriving")
        await store.rest(self._directory, move, "refused" if final else "planned", AGAIN_S)
        _log.info("shard_move_undone", **_named(move), reason=reason)

    async def _finish(self, move: Move, pins: list[int]) -> None:
        """Everything after the decision."""
        source, target = self._pool(move.source), self._pool(move.target)
        await shard.fence(target, move, "here")
        await self._at("here")
        await shard.fence(source, move, "away")
        await self._at("away")
        await shard.clear(source, move, pins, "away")
        await self._at("cleared")
        await store.finish(self._directory, move)

    def _pool(self, name: str) -> Pool:
        if name not in self._pools:
            raise BusyError(f"this process has no connections to {name}: restart it")
        return self._pools[name]


def _named(move: Move) -> dict[str, str | int]:
    named: dict[str, str | int] = {"bucket": move.bucket, "source": move.source, "target": move.target}
    if move.tenant:
        named[Field.TENANT] = str(ids.tenant_of(move.tenant))
    return named
