"""The streams that go out of this cell: slots, publications, their readers and snapshots (moves.md rules 7 to 10).

Slot, publication and the row of `cellwall.stream_senders` outlive this process; readers and exported snapshots do not.
A stream whose snapshot is gone is opened again; one whose reader is gone is read on from where the receiver stands.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import asyncpg
import structlog

from cell.shards.session import Pool
from cell.transfer import batches, catalogue, lanes, locks, rows, rules
from cell.transfer import fence as fences
from cell.transfer.locks import LockBusyError, Patience
from cell.transfer.reader import Login, Reading, Slot, StreamError, Transaction, make_slot
from cell.transfer.wal import MARKER_PREFIX, Tag, relation_id
from cell.vault import Vault, VaultError
from contracts import ids, problems, transfer
from contracts.names import Field
from contracts.problems import ProblemError
from contracts.transfer import (
    Batch,
    ChangesQuery,
    Checksum,
    Fence,
    Mark,
    Marked,
    OpenStream,
    SnapshotQuery,
    Stream,
    StreamStatus,
)

MARKERS_AT_ONCE: Final = 2  # of a shard: each takes two connections
END_READER_MS: Final = 5000
# However much is asked for: a receiver takes a batch apart in the process that serves its other tenants, 10 ms at most.
BATCH_BYTES: Final = 256 << 10
_SLOT: Final = """
SELECT s.active_pid, s.wal_status, s.invalidation_reason, n.start
FROM pg_replication_slots s LEFT JOIN cellwall.stream_senders n ON n.stream = s.slot_name WHERE s.slot_name = $1
"""
_END_READER: Final = """
SELECT pg_terminate_backend(active_pid, $2) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL
"""
_DROP_SLOT: Final = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1"
_LAG: Final = "SELECT (pg_current_wal_lsn() - '0/0')::bigint"
_EMIT: Final = "SELECT pg_logical_emit_message(true, $1, $2)"
_LIST: Final = """
SELECT coalesce(s.slot_name, p.pubname, n.stream) AS stream, s.active, s.wal_status = 'lost' AS lost,
  s.slot_name IS NOT NULL AND p.pubname IS NOT NULL AND n.stream IS NOT NULL AS whole,
  coalesce((s.confirmed_flush_lsn - '0/0')::bigint, 0) AS position,
  coalesce((pg_current_wal_lsn() - s.restart_lsn)::bigint, 0) AS kept
FROM (SELECT * FROM pg_replication_slots WHERE database = current_database() AND slot_name LIKE 'cellwall\\_t%') s
FULL JOIN (SELECT * FROM pg_publication WHERE pubname LIKE 'cellwall\\_t%') p ON p.pubname = s.slot_name
FULL JOIN cellwall.stream_senders n ON n.stream = coalesce(s.slot_name, p.pubname)
ORDER BY 1
"""

_log = structlog.get_logger()


def emit_arguments(stream: str, marker: str) -> tuple[str, str]:
    """Prefix and content of a marker's logical message."""
    return MARKER_PREFIX, f"{stream}:{marker}"


async def emit(connection: Any, stream: str, marker: str) -> None:
    """A marker of the stream, committed with the connection's transaction."""
    await connection.execute(_EMIT, *emit_arguments(stream, marker))


def check_stream(stream: str, tenant: int) -> None:
    """The problem ``invalid-input`` where the name is not one of a stream of this tenant."""
    try:
        named = transfer.parse_stream_name(stream)
    except ValueError as e:
        raise ProblemError(problems.INVALID, str(e)) from e
    if named.tenant != ids.tenant_of(tenant):
        raise ProblemError(problems.INVALID, f"{stream} is a stream of another tenant")


class _Sender:
    """What this process holds of one stream. ``turn``: one command at a time."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.slot: Slot | None = None
        self.reading: Reading | None = None
        self.relations: dict[int, bytes] = {}
        self.acknowledged = 0

    async def stop(self) -> None:
        """Give up snapshot and reader. The slot stays."""
        if self.slot is not None:
            await asyncio.to_thread(self.slot.close)
        if self.reading is not None:
            await self.reading.close()
        self.slot = self.reading = None
        self.relations = {}


class Senders:
    """``login`` says how to reach a shard with the replication protocol; ``clock`` is the loop's."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        shard_of: Callable[[int], str],
        login: Callable[[str], Login],
        vault: Vault,
        clock: Callable[[], float],
    ) -> None:
        self._pools = pools
        self._shard_of = shard_of
        self._login = login
        self._vault = vault
        self._clock = clock
        self._senders: defaultdict[str, _Sender] = defaultdict(_Sender)
        self._turns = {shard: asyncio.Lock() for shard in pools}  # to take the connections of all lanes
        self._marking = {shard: asyncio.Semaphore(MARKERS_AT_ONCE) for shard in pools}

    async def close(self) -> None:
        """End readers and snapshots of this process; slots stay for the next one."""
        for sender in self._senders.values():
            await sender.stop()

    # -- opening and closing ------------------------------------------------------------------------------------

    async def open(self, tenant: int, fence: Fence, body: OpenStream) -> Stream:
        """Publication, then slot with its snapshot (rule 8). Whatever was there under that name is gone.

        A repeat answers as the first did while the snapshot still lives.
        """
        check_stream(body.stream, tenant)
        pool = self._pool(tenant)
        sender = self._senders[body.stream]
        row = await fences.arrive(pool, tenant, fence, "stream-open")
        async with sender.turn:
            if row.result is not None and sender.slot is not None:
                return Stream(body.stream, sender.slot.position)
            rules.check_state(row, "stream-open")
            await self._drop(pool, sender, body.stream)
            async with pool.acquire() as connection:
                await self._publish(connection, tenant, body.stream)
            slot = await self._make(tenant, body)
            try:
                await self._remember(pool, tenant, fence, body.stream, slot)
            except BaseException:
                await asyncio.to_thread(slot.close)
                raise
            sender.slot = slot
        _log.info("stream_opened", **{Field.TENANT: str(ids.tenant_of(tenant)), Field.MOVE: fence.move})
        return Stream(body.stream, slot.position)

    async def _publish(self, connection: Any, tenant: int, stream: str) -> None:
        found = catalogue.obstacles(await catalogue.tenant_tables(connection))
        if found:
            raise ProblemError(problems.NOT_REPLICABLE, "; ".join(found))
        await connection.execute("SELECT cellwall.open_publication($1, $2)", stream, tenant)

    async def _make(self, tenant: int, body: OpenStream) -> Slot:
        try:
            return await make_slot(self._login(self._shard_of(tenant)), body.stream, body.budget_ms / 1000)
        except TimeoutError:
            raise ProblemError(
                problems.FREEZE_BUSY, "a slot waits for the oldest writer of the database server, and that is at work"
            ) from None
        except StreamError as e:
            raise ProblemError(problems.SHARD_UNAVAILABLE, str(e)) from e

    async def _remember(self, pool: Pool, tenant: int, fence: Fence, stream: str, slot: Slot) -> None:
        async with fences.effect(pool, tenant, fence, "stream-open", None, self._clock) as effect:
            await effect.connection.execute(
                "INSERT INTO cellwall.stream_senders (stream, tenant_id, start) VALUES ($1, $2, $3)",
                stream, tenant, slot.position,
            )  # fmt: skip
            await effect.settle(effect.row.state, {"position": slot.position})

    async def drop(self, tenant: int, stream: str) -> None:
        """Slot, publication and row; a zombie that reads is ended first. Nothing happens where there is nothing."""
        sender = self._senders[stream]
        async with sender.turn:
            await self._drop(self._pool(tenant), sender, stream)
        self._senders.pop(stream, None)

    async def _drop(self, pool: Pool, sender: _Sender, stream: str) -> None:
        await sender.stop()
        sender.acknowledged = 0
        async with pool.acquire() as connection:
            await connection.execute("DELETE FROM cellwall.stream_senders WHERE stream = $1", stream)
            await connection.execute(_END_READER, stream, END_READER_MS)
            await connection.execute(_DROP_SLOT, stream)
            await connection.execute("SELECT cellwall.close_publication($1)", stream)

    # -- the snapshot -------------------------------------------------------------------------------------------

    async def snapshot(self, tenant: int, fence: Fence, query: SnapshotQuery) -> AsyncIterator[bytes]:
        """The row stream of the exported snapshot, with the stream's start for the receiver's progress row."""
        check_stream(query.stream, tenant)
        slot = self._senders[query.stream].slot
        if slot is None:
            raise ProblemError(problems.STREAM_LOST, "this process holds no snapshot of the stream")
        pool = self._pool(tenant)
        async with pool.acquire() as connection:
            await fences.beside(connection, tenant, fence, "snapshot")
            try:
                # One that is made from here on would be missing at the target, and so would be what it seals.
                await self._vault.ensure(connection, tenant)
                key = await self._vault.unwrapped(connection, tenant)
            except VaultError as e:
                raise ProblemError(problems.CONFLICT, str(e)) from e
        pieces = self._snapshot(pool, tenant, query, slot, key)
        first = await anext(pieces)
        return rows.continued(first, pieces)

    async def _snapshot(
        self, pool: Pool, tenant: int, query: SnapshotQuery, slot: Slot, key: bytes | None
    ) -> AsyncIterator[bytes]:
        wide = min(max(query.lanes, 1), lanes.LANES)
        async with (
            lanes.acquired(pool, self._turns[self._shard_of(tenant)], wide) as connections,
            contextlib.AsyncExitStack() as stack,
        ):
            for connection in connections:
                await stack.enter_async_context(connection.transaction(isolation="repeatable_read", readonly=True))
                try:
                    # The name is the server's own: digits and hyphens.
                    await connection.execute(f"SET TRANSACTION SNAPSHOT '{slot.snapshot}'")
                except asyncpg.PostgresError as e:
                    raise ProblemError(problems.STREAM_LOST, str(e)) from e
                await connection.execute(lanes.PATIENT)
            tables = await catalogue.tenant_tables(connections[0])
            start = Stream(query.stream, slot.position)
            if wide > 1:
                exported = lanes.export(connections, tables, tenant, rows.before(start, key))
            else:
                exported = rows.export(connections[0], tables, tenant, start, key)
            async with contextlib.aclosing(exported) as pieces:
                async for piece in pieces:
                    yield piece

    # -- changes ------------------------------------------------------------------------------------------------

    async def changes(self, tenant: int, fence: Fence, query: ChangesQuery) -> tuple[Batch, bytes]:
        """The next batch after what the receiver has; that much is acknowledged to the server."""
        check_stream(query.stream, tenant)
        pool = self._pool(tenant)
        async with pool.acquire() as connection:
            await fences.beside(connection, tenant, fence, "changes")
        sender = self._senders[query.stream]
        async with sender.turn:
            try:
                taken, position = await self._taken(pool, tenant, sender, query)
            except StreamError as e:
                await sender.stop()
                raise await self._lost_or_away(pool, query.stream, e) from e
            async with pool.acquire() as connection:
                written = await connection.fetchval(_LAG)
            return self._batch(sender, query, taken, position, written)

    async def _taken(
        self, pool: Pool, tenant: int, sender: _Sender, query: ChangesQuery
    ) -> tuple[list[Transaction], int]:
        if query.after < sender.acknowledged:
            raise ProblemError(problems.STREAM_LOST, f"what follows {query.after} was acknowledged and forgotten")
        reading = sender.reading
        if reading is None or not reading.alive or query.after < reading.position:
            reading = await self._begin(pool, tenant, sender, query)
        reading.acknowledge(query.after)
        sender.acknowledged = query.after
        return await reading.take(min(query.max_bytes, BATCH_BYTES), query.wait_ms / 1000)

    async def _begin(self, pool: Pool, tenant: int, sender: _Sender, query: ChangesQuery) -> Reading:
        """Read from ``after`` on, in place of whoever reads now."""
        slot, sender.slot = sender.slot, None
        await sender.stop()
        async with pool.acquire() as connection:
            found = await connection.fetchrow(_SLOT, query.stream)
            if found is None or found["start"] is None or query.after < found["start"]:
                if slot is not None:
                    slot.close()
                raise ProblemError(problems.STREAM_LOST, "there is no such stream, or it was opened anew since")
            await connection.execute(_END_READER, query.stream, END_READER_MS)
        sender.reading = await Reading.begin(self._login(self._shard_of(tenant)), query.stream, query.after, slot)
        return sender.reading

    async def _lost_or_away(self, pool: Pool, stream: str, error: StreamError) -> ProblemError:
        async with pool.acquire() as connection:
            found = await connection.fetchrow(_SLOT, stream)
        if found is None or found["wal_status"] == "lost":
            return ProblemError(problems.STREAM_LOST, str(error))
        return ProblemError(problems.SHARD_UNAVAILABLE, str(error))

    def _batch(
        self, sender: _Sender, query: ChangesQuery, taken: list[Transaction], position: int, written: int
    ) -> tuple[Batch, bytes]:
        messages = list(sender.relations.values()) if taken else []
        for transaction in taken:
            messages += transaction.messages
            for message in transaction.messages:
                if message[0] == Tag.RELATION:
                    sender.relations[relation_id(message)] = message
        head = Batch(
            stream=query.stream,
            after=query.after,
            position=position,
            transactions=len(taken),
            changes=sum(t.changes for t in taken),
            bytes=batches.size(messages),
            lag_bytes=max(0, written - position),
            marker=taken[-1].marker if taken else "",
        )
        return head, batches.encode(head, messages)

    # -- markers ------------------------------------------------------------------------------------------------

    async def marker(self, tenant: int, fence: Fence, body: Mark) -> Marked:
        """A marker, and the checksum at exactly that point (rule 9).

        The tenant's exclusive lock is tried for, never waited for, and nobody is ended for it. Under it nothing of the
        tenant is open: the marker is committed and a snapshot taken on another connection, then the lock is given up.
        """
        check_stream(body.stream, tenant)
        shard = self._shard_of(tenant)
        pool = self._pools[shard]
        async with self._marking[shard], pool.acquire() as viewing:
            locked_ms = await self._locked(pool, viewing, tenant, fence, body)
            try:
                checksum = await self._checksum(viewing, tenant) if body.checksum else None
            finally:
                await viewing.execute("ROLLBACK")
        return Marked(body.name, locked_ms, checksum)

    async def _locked(self, pool: Pool, viewing: Any, tenant: int, fence: Fence, body: Mark) -> float:
        budget_s = body.budget_ms / 1000
        patience = Patience(budget_s, polite_s=float("inf"))
        async with pool.acquire() as connection, connection.transaction():
            try:
                await locks.exclusive(connection, tenant, patience, self._clock)
            except LockBusyError as e:
                raise ProblemError(problems.FREEZE_BUSY, str(e)) from e
            began = self._clock()
            await fences.beside(connection, tenant, fence, "marker")
            await emit(viewing, body.stream, body.name)
            await viewing.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            await viewing.execute("SET LOCAL transaction_timeout = 0")
            await viewing.fetchval("SELECT 1 FROM cellwall.tenants LIMIT 1")  # takes the snapshot
        return round((self._clock() - began) * 1000, 3)

    async def _checksum(self, viewing: Any, tenant: int) -> Checksum:
        return await rows.checksum(viewing, await catalogue.tenant_tables(viewing), tenant)

    # -- listing ------------------------------------------------------------------------------------------------

    async def list(self) -> list[StreamStatus]:
        """Every stream that this cell sends, and every leftover of one."""
        found: list[StreamStatus] = []
        for shard, pool in sorted(self._pools.items()):
            async with pool.acquire() as connection:
                records = await connection.fetch(_LIST)
            for record in records:
                with contextlib.suppress(ValueError):  # a name of somebody else
                    found.append(self._status(shard, record))
        return found

    def _status(self, shard: str, record: Any) -> StreamStatus:
        stream = record["stream"]
        sender = self._senders.get(stream)
        state: transfer.StreamState = "reading" if record["active"] else "idle"
        if sender is not None and sender.slot is not None:
            state = "snapshot"
        if not record["whole"]:
            state = "unpublished"
        elif record["lost"]:
            state = "lost"
        tenant = transfer.parse_stream_name(stream).tenant
        return StreamStatus(stream, tenant, shard, "sender", state, record["position"], max(0, record["kept"]))

    def _pool(self, tenant: int) -> Pool:
        return self._pools[self._shard_of(tenant)]
