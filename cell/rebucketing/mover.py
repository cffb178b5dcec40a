"""Carries out the moves between shards that the directory holds: one process of the cell at a time, one move at a time.

The rows are copied while they are served, then what changed, in rounds; only the last round is under the bucket's
fence, and it is bounded: what is not decided within `HOLD_S` is served at the source again. That is less than a
request waits, so a request that meets the fence comes through.

Killed anywhere it leaves a row that says what was decided. Before the decision the next attempt serves the bucket at
the source and begins anew; after it the next attempt goes forward. A process that lost its turn without knowing
changes nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import structlog

from cell.rebucketing import copying, shard, store
from cell.rebucketing.shard import BusyError
from cell.rebucketing.store import Move, SupersededError
from cell.shards.errors import DATABASE_FAILED, DirectoryError
from cell.shards.session import Pool
from cell.transfer.catalogue import CatalogueError
from cell.transfer.frames import BrokenStreamError
from contracts import ids
from contracts.names import Field

EVERY_S: Final = 1.0
AGAIN_S: Final = 5.0  # after a first attempt that failed; twice as long after each further one
AGAIN_MAX_S: Final = 300.0
HOLD_S: Final = 2.0  # from the bucket's fence to the decision; `cell.shards.session.MOVING_PATIENCE_S` is more
ROUND_PART: Final = 0.25  # of the hold: a round without it that takes longer is followed by another
ROUNDS: Final = 8
HOLDS: Final = 3  # tries to get the bucket for a moment before the copy is thrown away
HOLD_AGAIN_S: Final = 1.0
_TURN: Final = 0x73686172  # the advisory lock of whoever carries out moves

_FAILED: Final = (
    *DATABASE_FAILED,
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
        hold_s: float = HOLD_S,
        holds: int = HOLDS,
    ) -> None:
        """``hold_s`` bounds how long a bucket is not served, ``holds`` how often that is tried with one copy."""
        self._directory = directory
        self._pools = pools
        self._clock = clock
        self._at = at
        self._hold_s = hold_s
        self._holds = holds

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
                    _log.warning("shard_move_failed", **_named(move), reason=_said(e))
        return ended

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[bool]:
        async with self._directory.acquire() as connection:
            mine = await connection.fetchval("SELECT pg_try_advisory_lock($1)", _TURN)
            try:
                yield mine
            finally:
                if mine and not connection.is_closed():
                    await connection.fetchval("SELECT pg_advisory_unlock($1)", _TURN)

    async def _carried_out(self, number: int) -> bool:
        move = await store.begin(self._directory, number)
        if move is None:
            return False
        pins = [p for p in await store.pins(self._directory) if p != move.tenant]
        if move.state == "copying":
            try:
                await self._copied(move, pins)
            except (BusyError, *_FAILED) as e:
                await self._undo(move, pins, _said(e))
                return False
            except asyncio.CancelledError:  # the process ends: nobody should wait for the next one
                await self._undo(move, pins, "the process that did it ended")
                raise
            if not await self._decided(move, pins):
                return False
        await self._finish(move, pins)
        return True

    async def _copied(self, move: Move, pins: list[int]) -> None:
        """Everything up to the decision: the bucket is frozen at the source, and the target is equal to it."""
        source, target = self._pool(move.source), self._pool(move.target)
        for pool in (source, target):
            await shard.keep(pool, move, pins)
        if (name := await store.ignorant(self._directory, move.target)) is not None:
            raise BusyError(f"{name} has no connections to {move.target}: restart it")
        await shard.fence(source, move, "here")  # whoever was at it before may have left it frozen
        await self._at("begun")
        async with source.acquire() as connection:
            await shard.check(connection, await shard.tenants(connection, move, pins))
        await shard.fence(target, move, "arriving")
        await self._at("arriving")
        await shard.clear(target, move, pins, "arriving")
        await store.step(self._directory, move, "copies its rows")
        async with shard.snapshot(source) as connection:
            since = await copying.since(connection)
            count = await copying.whole(connection, target, move, pins)
        await self._at("copied")
        await store.step(self._directory, move, f"{count} rows copied; follows what changes")
        for left in reversed(range(self._holds)):
            since = await self._followed(move, pins, since)
            await self._at("followed")
            try:
                await self._held(move, pins, since)
                break
            except (BusyError, TimeoutError):
                if not left:
                    raise
            await shard.fence(source, move, "here")
            await asyncio.sleep(HOLD_AGAIN_S)

    async def _followed(self, move: Move, pins: list[int], since: str) -> str:
        """Bring what changed, until that is quick enough to be done while requests wait."""
        source, target = self._pool(move.source), self._pool(move.target)
        quick = self._hold_s * ROUND_PART
        for _ in range(ROUNDS):
            began = self._clock()
            async with shard.snapshot(source) as connection:
                newer = await copying.since(connection)
                await copying.changes(connection, target, move, pins, since)
            since, took = newer, self._clock() - began
            if took <= quick:
                return since
        raise BusyError(f"to find what changed takes {took:.1f} s; requests should wait {quick:.1f} s at most")

    async def _held(self, move: Move, pins: list[int], since: str) -> None:
        """The last round, under the fence: `BusyError` or `TimeoutError` where it does not come to its end in time."""
        source, target = self._pool(move.source), self._pool(move.target)
        try:
            async with asyncio.timeout(self._hold_s):
                began = self._clock()
                await shard.fence(source, move, "frozen")
                await self._at("frozen")
                await shard.settle(source, move, pins, self._clock)
                await self._at("settled")
                async with shard.snapshot(source) as connection:
                    found = await shard.tenants(connection, move, pins)
                    await shard.check(connection, found)
                    written = await copying.changes(connection, target, move, pins, since)
        except TimeoutError as e:
            raise TimeoutError(f"not ready within the {self._hold_s:g} s that requests may be kept waiting") from e
        held_ms = round((self._clock() - began) * 1000, 3)
        _log.info("shard_move_ready", **_named(move), tenants=len(found), rows=written, held_ms=held_ms)
        await self._at("equal")

    async def _decided(self, move: Move, pins: list[int]) -> bool:
        """Switch the map. Where it is not known whether that took effect the directory is asked, and decides."""
        try:
            async with self._directory.acquire() as connection:
                await store.switch(connection, move)
        except _FAILED as e:
            if await store.undo(self._directory, move, _said(e)):
                await self._undone(move, pins)
                return False
        await self._at("switched")
        return True

    async def _undo(self, move: Move, pins: list[int], reason: str) -> None:
        """Give up before the decision: serve at the source again, first of all and whatever else is away."""
        await shard.fence(self._pool(move.source), move, "here")
        await self._at("unfrozen")
        if await store.undo(self._directory, move, reason):
            await self._undone(move, pins)
            _log.info("shard_move_undone", **_named(move), reason=reason)

    async def _undone(self, move: Move, pins: list[int]) -> None:
        """What is left of an attempt that will not be decided. It stays due until that is done."""
        await shard.fence(self._pool(move.source), move, "here")
        await self._at("undone")
        target = self._pool(move.target)
        await shard.fence(target, move, "arriving")  # it may have been refused before that
        await shard.clear(target, move, pins, "arriving")
        await store.rest(self._directory, move, min(AGAIN_S * 2.0 ** min(move.attempt - 1, 10), AGAIN_MAX_S))

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
        _log.info("shard_move_ended", **_named(move))

    def _pool(self, name: str) -> Pool:
        if name not in self._pools:
            raise BusyError(f"this process has no connections to {name}: restart it")
        return self._pools[name]


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _named(move: Move) -> dict[str, str | int]:
    named: dict[str, str | int] = {"bucket": move.bucket, "source": move.source, "target": move.target}
    if move.tenant:
        named[Field.TENANT] = str(ids.tenant_of(move.tenant))
    return named
