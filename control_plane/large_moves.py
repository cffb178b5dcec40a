"""What the mover does for a large tenant: snapshot, changes, comparisons, the way back (moves.md rules 7 to 10).

| Guarantee | How |
|---|---|
| No change is lost or doubled | a sender forgets only what its receiver has applied; positions come from the receiver |
| What is compared stands still | the sender's checksum is of its marker; the receiver stops exactly there |
| The hold compares what is left | after the freeze only rows touched since the last comparison are looked at again |
| Nothing waits for a slot in the hold | both directions' slots are made before it |
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog

from contracts import problems, transfer
from contracts.ids import TenantId
from contracts.names import Field
from contracts.routes import RouteHint
from control_plane.cell_client import CellAddress, CellClient, CellError, CellRefusedError
from control_plane.move import Budgets, Path
from control_plane.move_progress import Progress
from control_plane.move_run import Run, StreamLostError, VerificationError, confirm_active, differences
from control_plane.move_store import Move

log = structlog.get_logger()

BATCH_BYTES: Final = 16 << 20
WAIT_MS: Final = 1000  # how long a sender may wait for the next change outside of a hold
HOLD_WAIT_MS: Final = 200
ROUND_S: Final = 2.0  # of carrying changes before progress is stored and the next decision is made
SAVE_S: Final = 1.0  # between two stored lines of progress of a copy
BATCH_S: Final = 120.0  # to read or to apply one: it has at least one transaction, however large
STALL_S: Final = 60.0  # without a byte of a snapshot
OPEN_MS: Final = 120_000  # a slot waits for the oldest writer of its server
MARK_MS: Final = 15_000  # for the tenant to come to rest for a moment
BLOB_S: Final = 60.0
# What is said of a batch that does not follow the receiver's position, and of a position that the sender has let go.
_OVERTAKEN: Final = frozenset({problems.WRONG_STATE.slug, problems.STREAM_LOST.slug})

Save = Callable[[Progress], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Feed:
    """A stream and who is at its ends."""

    stream: str
    sender: CellAddress
    receiver: CellAddress


def feed_of(move: Move, run: Run) -> Feed:
    """The stream by which the move's target follows its source."""
    return Feed(move.stream, run.at.source, run.at.target)


def way_back(move: Move, run: Run) -> Feed:
    """The stream by which the source of a large move follows its target after the switch."""
    return Feed(transfer.stream_name(run.at.tenant, move.id, "back"), run.at.target, run.at.source)


def freeze_marker(move: Move) -> str:
    """The marker that ends the stream. The same for every leader, so that each knows where to stop.

    Of each hold another: one that a hold too long left in the stream must not end the next one's drain.
    """
    return f"{move.id}-freeze-{move.source_epoch}"


class LargeMoves:
    """The steps. Each may be repeated by the next leader, from whatever the last one left."""

    def __init__(
        self, client: CellClient, hint_key: bytes, budgets: Budgets, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._hint_key = hint_key
        self._budgets = budgets
        self._clock = clock

    # -- before the hold ------------------------------------------------------------------------------------------

    async def snapshot(self, move: Move, run: Run, budget_s: float, save: Save) -> dict[str, Any]:
        """Open the stream, carry its snapshot and the blobs over. Whatever an earlier try carried is dropped."""
        client, at = self._client, run.at
        old = move.progress
        progress = Progress(
            rows_expected=old.rows_expected, bytes_expected=old.bytes_expected, copies=old.copies + 1,
            markers=old.markers,
        )  # fmt: skip
        await save(progress)
        if old.copies:
            prepare = transfer.Prepare(move.schema or "", move.target_epoch)
            await client.close_stream(at.target, at.tenant, await run.fences.take(), move.stream)
            await client.prepare(at.target, at.tenant, await run.fences.take(), prepare)
        command = transfer.OpenStream(move.stream, OPEN_MS)
        opened = await client.open_stream(
            at.source, at.tenant, await run.fences.take(), command, budget_s=OPEN_MS / 1000 + 5
        )
        infos = await asyncio.gather(client.info(at.source), client.info(at.target))
        query = transfer.SnapshotQuery(move.stream, min(info.lanes for info in infos))
        copied = _Copied(progress, self._clock, save)
        reading = client.snapshot(at.source, at.tenant, await run.fences.take(), query, budget_s=STALL_S)
        async with reading as rows:
            fence = await run.fences.take()
            done = await client.import_rows(at.target, at.tenant, fence, copied.counted(rows), budget_s=budget_s)
        progress = copied.progress(rows=done.rows, size=done.bytes)
        run.flow.position = opened.position
        blobs, size = await self.carry_blobs(at.source, at.target, run)
        progress = msgspec.structs.replace(progress, blobs=blobs, blob_bytes=size)
        log.info("move_copied", **_fields(move), rows=done.rows, bytes=done.bytes, seconds=round(progress.copy_s, 3))
        return {"rows": done.rows, "bytes": done.bytes, "progress": progress}

    async def follow(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        """Carry changes over for a while, or until hardly anything is outstanding."""
        feed, progress = feed_of(move, run), move.progress
        ends = self._clock() + min(ROUND_S, budget_s)
        while True:
            batch, applied = await self._carry(feed, run, WAIT_MS)
            progress = msgspec.structs.replace(
                progress,
                changes=progress.changes + batch.changes,
                lag_bytes=batch.lag_bytes,
                touched=applied.touched if applied is not None else progress.touched,
                drain_s=None,
            )
            if batch.lag_bytes <= self._budgets.lag_bytes or self._clock() >= ends:
                return {"progress": progress}

    async def verify(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        """Compare everything at a marker. The tenant stands still for the milliseconds that the marker takes."""
        client, at, feed = self._client, run.at, feed_of(move, run)
        await self._check_pin(move, run)
        number = move.progress.markers + 1
        mark = transfer.Mark(feed.stream, f"{move.id}-{run.term}-{number}", MARK_MS)
        marking = asyncio.create_task(
            client.marker(feed.sender, at.tenant, await run.fences.take(), mark, budget_s=budget_s)
        )
        try:
            drained = await self._drain(feed, run, mark.name, marking)
            theirs = await client.checksum(feed.receiver, at.tenant, await run.fences.take(), budget_s=budget_s)
            ours = await marking
        finally:
            marking.cancel()
            await asyncio.gather(marking, return_exceptions=True)
        if ours.checksum is None or ours.checksum != theirs:
            raise VerificationError(f"the copy differs in {differences(ours.checksum, theirs)}")
        said = transfer.Verified(feed.stream, mark.name)
        await client.verified(feed.receiver, at.tenant, await run.fences.take(), said)
        await self.carry_blobs(feed.sender, feed.receiver, run)
        log.info("move_verified", **_fields(move), rows=theirs.rows, marker=mark.name, locked_ms=ours.locked_ms)
        progress = msgspec.structs.replace(
            move.progress, markers=number, verified=move.progress.verified + 1, touched=0, lag_bytes=None,
            changes=move.progress.changes + drained.changes,
        )  # fmt: skip
        return {"progress": progress}

    async def rehearse(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        """Do what the hold will wait for, while the tenant is served: the hold begins only if this was quick.

        After one that was not, changes are carried over for a while first.
        """
        feed, progress = feed_of(move, run), move.progress
        if progress.drain_s is not None:
            ends = self._clock() + min(ROUND_S, budget_s)
            while self._clock() < ends:
                batch, _applied = await self._carry(feed, run, WAIT_MS)
                progress = msgspec.structs.replace(progress, changes=progress.changes + batch.changes)
        number = progress.markers + 1
        mark = transfer.Mark(feed.stream, f"{move.id}-{run.term}-{number}", MARK_MS, checksum=False)
        marked = await self._client.marker(feed.sender, run.at.tenant, await run.fences.take(), mark, budget_s=budget_s)
        began = self._clock()
        drained = await self._drain(feed, run, mark.name, None)
        drain_s = round(marked.locked_ms / 1000 + self._clock() - began, 4)
        log.info("move_rehearsed", **_fields(move), drained_ms=round(drain_s * 1000, 1), changes=drained.changes)
        progress = msgspec.structs.replace(
            progress, markers=number, changes=progress.changes + drained.changes, lag_bytes=drained.lag_bytes,
            touched=drained.touched, drain_s=drain_s, rehearsals=progress.rehearsals + 1,
        )  # fmt: skip
        return {"progress": progress}

    async def open_back(self, move: Move, run: Run) -> dict[str, Any]:
        """The stream of the way back, from the target. Nobody writes there yet but the stream forward."""
        at, feed = run.at, way_back(move, run)
        command = transfer.OpenStream(feed.stream, OPEN_MS)
        opened = await self._client.open_stream(
            at.target, at.tenant, await run.fences.take(), command, budget_s=OPEN_MS / 1000 + 5
        )
        progress = msgspec.structs.replace(move.progress, back_position=opened.position, lag_bytes=None)
        return {"progress": progress}

    async def _check_pin(self, move: Move, run: Run) -> None:
        """Both cells must keep the schema that the move began with (rule 13)."""
        if move.schema is None:
            return
        for info in await asyncio.gather(*(self._client.info(cell) for cell in (run.at.source, run.at.target))):
            if info.schema != move.schema:
                raise VerificationError(f"{info.cell} went from schema {move.schema} to {info.schema} during the move")

    # -- inside of it ---------------------------------------------------------------------------------------------

    async def drain(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        """Carry the last changes over and compare what was touched since the comparison at a marker."""
        feed, end = feed_of(move, run), freeze_marker(move)
        if not run.flow.unbroken:
            # Another leader, or a failed try, may have carried the freeze's marker over: a second one is as good,
            # because nothing is written under a freeze.
            end = f"{move.id}-{run.term}-end-{run.flow.ends}"
            mark = transfer.Mark(feed.stream, end, MARK_MS, checksum=False)
            run.flow.ends += 1
            await self._client.marker(feed.sender, run.at.tenant, await run.fences.take(), mark, budget_s=budget_s)
        began = self._clock()
        # Files need no fence that an apply would raise, and nobody writes one any more: both go on side by side.
        files = asyncio.create_task(self.carry_blobs(feed.sender, feed.receiver, run))
        try:
            carried = await self._drain(feed, run, end, None)
            await files
        finally:
            files.cancel()
            await asyncio.gather(files, return_exceptions=True)
        drained = self._clock()
        await self._compare_remainder(feed, run, budget_s)
        log.info(
            "move_drained", **_fields(move), changes=carried.changes, drained_ms=round((drained - began) * 1000, 1),
            compared_ms=round((self._clock() - drained) * 1000, 1),
        )  # fmt: skip
        return {"progress": msgspec.structs.replace(move.progress, changes=move.progress.changes + carried.changes)}

    async def _compare_remainder(self, feed: Feed, run: Run, budget_s: float) -> None:
        client, tenant = self._client, run.at.tenant

        async def ask(cell: CellAddress, keys: transfer.Keys | None) -> transfer.Remainder:
            query = transfer.RemainderQuery(feed.stream, keys)
            return await client.remainder(cell, tenant, await run.fences.take(), query, budget_s=budget_s)

        theirs = await ask(feed.receiver, None)
        if theirs.complete:
            ours = (await ask(feed.sender, theirs.tables)).checksum
            compared = theirs.checksum
        else:
            ours, compared = [
                await client.checksum(cell, tenant, await run.fences.take(), budget_s=budget_s)
                for cell in (feed.sender, feed.receiver)
            ]
        if ours != compared:
            raise VerificationError(f"what changed last differs in {differences(ours, compared)}")

    # -- after it -------------------------------------------------------------------------------------------------

    async def stand_by(self, move: Move, run: Run, budget_s: float) -> dict[str, Any]:
        """The source points to its tenant's new home and follows it; the stream forward has done its part."""
        client, at, progress = self._client, run.at, move.progress
        hint = RouteHint(at.tenant, at.target.name, move.target_epoch).signed(self._hint_key)
        back = way_back(move, run)
        command = transfer.Standby(hint, back.stream, progress.back_position or 0)
        await client.standby(at.source, at.tenant, await run.fences.take(), command, budget_s=budget_s)
        await confirm_active(client, move, run, budget_s)
        for cell in (at.source, at.target):
            await client.close_stream(cell, at.tenant, await run.fences.take(), move.stream, budget_s=budget_s)
        run.flow.broken()
        return {"progress": msgspec.structs.replace(progress, standing=True, lag_bytes=0)}

    async def flow_back(self, move: Move, run: Run) -> dict[str, Any]:
        """Carry changes of the new home to the old one, once."""
        feed, progress = way_back(move, run), move.progress
        batch, _applied = await self._carry(feed, run, WAIT_MS)
        if batch.changes:
            await self.carry_blobs(feed.sender, feed.receiver, run)
        elif batch.lag_bytes == progress.lag_back_bytes:
            return {}
        return {
            "progress": msgspec.structs.replace(
                progress, changes_back=progress.changes_back + batch.changes, lag_back_bytes=batch.lag_bytes
            )
        }

    async def close(self, move: Move, run: Run, budget_s: float) -> None:
        """Nothing of the move's streams is left at either cell."""
        streams = {move.stream}
        if move.path is Path.LARGE:
            streams.add(way_back(move, run).stream)
        for cell in (run.at.source, run.at.target):
            for stream in sorted(streams):
                await self._client.close_stream(cell, run.at.tenant, await run.fences.take(), stream, budget_s=budget_s)

    async def close_if_possible(self, move: Move, run: Run, budget_s: float) -> None:
        """The same for a move that came to nothing: a cell that is away keeps its part until the sweeper comes."""
        try:
            await self.close(move, run, budget_s)
        except CellError as e:
            log.warning("stream_left_to_the_sweeper", **_fields(move), reason=str(e))

    async def carry_blobs(self, sender: CellAddress, receiver: CellAddress, run: Run) -> tuple[int, int]:
        """Copy the files that the receiver does not have; how many, and their bytes. A file never changes."""
        ours = await self._files(sender, run)
        if not ours:
            return 0, 0
        held = await self._files(receiver, run)
        if held is None:  # cell zero: what can be made again is made again after the next leaving
            log.warning("files_left_behind", **{Field.TENANT: run.at.tenant}, target=receiver.name, files=len(ours))
            return 0, 0
        there = {(blob.name, blob.size) for blob in held}
        missing = [blob for blob in ours if (blob.name, blob.size) not in there]
        for blob in missing:
            fence = await run.fences.take()
            await self._client.copy_blob(sender, receiver, run.at.tenant, fence, blob.name, budget_s=BLOB_S)
        return len(missing), sum(blob.size for blob in missing)

    # -- how ------------------------------------------------------------------------------------------------------

    async def _files(self, cell: CellAddress, run: Run) -> list[transfer.BlobInfo] | None:
        """The tenant's files there; None of a cell without a store of files."""
        try:
            return await self._client.blobs(cell, run.at.tenant, budget_s=BLOB_S)
        except CellRefusedError as e:
            if e.status == 404:
                return None
            raise

    async def _carry(self, feed: Feed, run: Run, wait_ms: int) -> tuple[transfer.Batch, transfer.Applied | None]:
        """One batch. The sender is told only of what the receiver has applied for good.

        A driver before this one may have had a batch under way. Where the receiver turns out to be ahead of what it
        said, that batch has arrived: this one goes on from behind it.
        """
        while True:
            if run.flow.position is None:
                run.flow.position = await self._position(feed, run.at.tenant)
            stood = run.flow.position
            try:
                return await self._carry_from(stood, feed, run, wait_ms)
            except CellRefusedError as e:
                if e.slug not in _OVERTAKEN:
                    raise
                run.flow.broken()
                run.flow.position = await self._position(feed, run.at.tenant)
                if run.flow.position <= stood:
                    raise
                log.info("stream_overtaken", stream=feed.stream, reason=e.detail)

    async def _carry_from(
        self, position: int, feed: Feed, run: Run, wait_ms: int
    ) -> tuple[transfer.Batch, transfer.Applied | None]:
        tenant = run.at.tenant
        query = transfer.ChangesQuery(feed.stream, position, BATCH_BYTES, wait_ms)
        batch, body = await self._client.changes(feed.sender, tenant, await run.fences.take(), query, budget_s=BATCH_S)
        if batch.position == position and not batch.transactions and not batch.marker:
            return batch, None
        applied = await self._client.apply(feed.receiver, tenant, await run.fences.take(), body, budget_s=BATCH_S)
        run.flow.position = applied.position
        return batch, applied

    async def _drain(
        self, feed: Feed, run: Run, marker: str, marking: "asyncio.Task[transfer.Marked] | None"
    ) -> "_Drained":
        """Carry changes over until the receiver stands at ``marker``."""
        changes = 0
        while True:
            if marking is not None and marking.done() and marking.exception() is not None:
                marking.result()
            batch, applied = await self._carry(feed, run, HOLD_WAIT_MS)
            changes += batch.changes
            if applied is not None and applied.marker == marker:
                return _Drained(changes, batch.lag_bytes, applied.touched)

    async def _position(self, feed: Feed, tenant: TenantId) -> int:
        """Where the receiver stands, by its own word."""
        for status in await self._client.streams(feed.receiver):
            if (status.stream, status.tenant, status.role) == (feed.stream, tenant, "receiver"):
                return status.position
        raise StreamLostError(f"{feed.receiver.name} does not receive {feed.stream}")


@dataclass(frozen=True, slots=True)
class _Drained:
    """What was carried over to a marker: rows that changed, the lag behind it, rows touched since the comparison."""

    changes: int
    lag_bytes: int
    touched: int


class _Copied:
    """Counts what passes of a snapshot, and stores it now and then."""

    def __init__(self, progress: Progress, clock: Callable[[], float], save: Save) -> None:
        self._progress = progress
        self._clock = clock
        self._save = save
        self._began = self._saved = clock()
        self._bytes = 0

    def progress(self, *, rows: int | None = None, size: int | None = None) -> Progress:
        """So far, or at the end."""
        return msgspec.structs.replace(
            self._progress,
            copied_bytes=self._bytes if size is None else size,
            copied_rows=rows,
            copy_s=self._clock() - self._began,
        )

    async def counted(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The pieces as they come; `TimeoutError` where none comes for `STALL_S`."""
        while True:
            async with asyncio.timeout(STALL_S):
                piece = await anext(pieces, None)
            if piece is None:
                return
            self._bytes += len(piece)
            if self._clock() - self._saved >= SAVE_S:
                self._saved = self._clock()
                await self._save(self.progress())
            yield piece


def lost(error: Exception) -> bool:
    """Whether the failure means that a stream is gone."""
    if isinstance(error, CellRefusedError):
        return error.slug == problems.STREAM_LOST.slug
    return isinstance(error, StreamLostError)


def _fields(move: Move) -> dict[str, Any]:
    return {Field.MOVE: move.id, Field.TENANT: f"t{move.tenant}", "source": move.source, "target": move.target}
