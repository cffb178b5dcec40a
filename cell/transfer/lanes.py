"""A large tenant's snapshot on several connections at once: out of one snapshot, into one import.

Each lane takes a table of its own, the largest first, in parts, and helps with another's once there is no table left;
frames of all lanes share one stream, and each names its lane. A lane of the receiver is a connection with a transaction
of its own, so an import that breaks may leave what some lanes had committed: nobody reads a tenant that is being
imported, only an import that ended whole can be activated, and the next attempt, `prepare` and `abort` all delete what
there is.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from cell.transfer import frames, rows
from cell.transfer.catalogue import TenantTable
from cell.transfer.frames import BrokenStreamError, Count, Kind, TableHeader
from contracts.transfer import Stream

LANES: Final = 2  # as many tables as PostgreSQL's own initial sync copies at once
PART_PAGES: Final = 2048  # of a table: 16 MiB
PIECE_BYTES: Final = 1 << 18  # gathered before it is sent: what a piece costs on its way, it costs once
QUEUED_PIECES: Final = 4  # of a lane

# Of a lane's transaction: one that is done waits for the others, however long they take.
PATIENT: Final = "SET LOCAL transaction_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
_PAGES: Final = "SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::bigint"

Lane = Callable[[int], AbstractAsyncContextManager[Any]]


# -- the sender -------------------------------------------------------------------------------------------------------


async def export(
    connections: Sequence[Any], tables: Sequence[TenantTable], tenant: int, before: Iterable[bytes]
) -> AsyncGenerator[bytes]:
    """The row stream of what the connections' transactions see, a lane each; all see the same snapshot.

    ``before`` are the frames that come first. Back-pressure: a few pieces wait for the reader.
    """
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_PIECES * len(connections))
    producing = asyncio.get_running_loop().create_task(_produce(connections, tables, tenant, queue))
    try:
        for piece in before:
            yield piece
        while (piece_or_end := await queue.get()) is not None:
            yield piece_or_end
        yield frames.frame(Kind.END, msgspec.json.encode(await producing))
    finally:
        producing.cancel()
        await asyncio.gather(producing, return_exceptions=True)


async def _produce(
    connections: Sequence[Any], tables: Sequence[TenantTable], tenant: int, queue: "asyncio.Queue[bytes | None]"
) -> Count:
    """Fill the queue, with None at the end, whatever the end is."""
    try:
        parts = [await _parts(connections[0], table, tenant) for table in tables]
        course = Course([each for _, each in sorted(parts, key=lambda found: -found[0])])
        sending = [_Sending(lane, connection, queue) for lane, connection in enumerate(connections)]
        await _together(each.run(course) for each in sending)
        return Count(sum(s.rows for s in sending), len(tables), sum(s.size for s in sending))
    finally:
        await queue.put(None)


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a table: those of ``query``."""

    table: TenantTable
    query: str


async def _parts(connection: Any, table: TenantTable, tenant: int) -> tuple[int, list[Part]]:
    """The table's pages, and its rows in parts: of several ranges of pages where it would be read from end to end.

    Where an index leads to the tenant's rows, each part would go through all of them: there is only one.
    """
    pages = int(await connection.fetchval(_PAGES, table.quoted))
    query = rows.all_of(table, tenant)
    if pages > PART_PAGES:
        plan = await connection.fetch(f"EXPLAIN {query}")
        if any("Seq Scan on" in line[0] for line in plan):
            return pages, [Part(table, f"{query} AND {each}") for each in _ranges(pages)]
    return pages, [Part(table, query)]


def _ranges(pages: int) -> list[str]:
    """Conditions that no two rows and every row meet: the last range has no end."""
    starts = range(0, pages, PART_PAGES)
    found = [f"ctid >= '({start},0)'" for start in starts]
    return [f"{each} AND ctid < '({start},0)'" for each, start in zip(found, starts[1:], strict=False)] + found[-1:]


class Course:
    """Which part which lane takes next: of its own table, of one that nobody has, or of the one with most left."""

    def __init__(self, tables: Iterable[Sequence[Part]]) -> None:
        self._left = [deque(parts) for parts in tables]
        self._at: dict[int, deque[Part]] = {}

    def next(self, lane: int) -> Part | None:
        """None where nothing is left."""
        own = self._at.pop(lane, None)
        if not own:
            left = [parts for parts in self._left if parts]
            if not left:
                return None
            taken = {id(parts) for parts in self._at.values()}
            own = next((parts for parts in left if id(parts) not in taken), max(left, key=len))
        self._at[lane] = own
        return own.popleft()


class _Sending:
    """One lane: takes the next part until none is left."""

    def __init__(self, lane: int, connection: Any, queue: "asyncio.Queue[bytes | None]") -> None:
        self.rows = self.size = 0
        self._lane = lane
        self._connection = connection
        self._queue = queue
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0

    async def run(self, course: Course) -> None:
        while (part := course.next(self._lane)) is not None:
            await self._send(part)

    async def _send(self, part: Part) -> None:
        table = part.table
        await self._put(Kind.TABLE, msgspec.json.encode(TableHeader(table.schema, table.name, table.columns)))
        status = await self._connection.copy_from_query(part.query, output=self._add, format="binary")
        await self._flush()
        copied = int(status.rpartition(" ")[2])
        self.rows += copied
        await self._put(Kind.TABLE_END, msgspec.json.encode(Count(copied)))

    async def _add(self, data: bytes) -> None:
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= PIECE_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        data, self._gathered, self._gathered_bytes = b"".join(self._gathered), [], 0
        self.size += len(data)
        for piece in frames.data_frames(data, self._lane):
            await self._queue.put(piece)

    async def _put(self, kind: Kind, payload: bytes) -> None:
        await self._queue.put(frames.frame(kind, payload, self._lane))


# -- the receiver -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Receiving:
    """One lane: its frames, and what has arrived of it."""

    queue: "asyncio.Queue[tuple[Kind, bytes] | None]"
    rows: int = 0
    size: int = 0
    tables: set[tuple[str, str]] = field(default_factory=set)


@dataclass(slots=True)
class Received:
    """How much came, and what came beside the rows."""

    start: Stream | None = None
    key: frames.Key | None = None
    rows: int = 0
    size: int = 0


async def is_snapshot(pieces: AsyncIterator[bytes]) -> tuple[bool, AsyncIterator[bytes]]:
    """Whether a row stream begins with where its changes begin; and the same pieces once more."""
    head = b""
    while len(head) <= len(frames.MAGIC) and (piece := await anext(pieces, b"")):
        head += piece
    return head[len(frames.MAGIC) :][:1] == bytes((Kind.STREAM,)), rows.continued(head, pieces)


async def import_(lane: Lane, tables: Sequence[TenantTable], tenant: int, pieces: AsyncIterator[bytes]) -> Received:
    """Write all of a row stream, or raise `BrokenStreamError`.

    ``lane`` opens the transaction of a lane; all commit after the stream has proved whole, each by itself.
    """
    reader = frames.Reader(pieces)
    await reader.start()
    lanes = [_Receiving(asyncio.Queue(QUEUED_PIECES)) for _ in range(LANES)]
    known = {(table.schema, table.name): table for table in tables}
    whole, received = asyncio.Event(), Received()
    work = [_receive(number, each, lane, known, tenant, whole) for number, each in enumerate(lanes)]
    await _together([_distribute(reader, tenant, lanes, received, set(known), whole), *work])
    return received


async def _distribute(
    reader: frames.Reader,
    tenant: int,
    lanes: Sequence[_Receiving],
    received: Received,
    expected: set[tuple[str, str]],
    whole: asyncio.Event,
) -> None:
    """Give every frame to its lane; at the end of the stream see that it is whole."""
    begun = False
    while True:
        number, kind, payload = await reader.laned()
        if kind is Kind.END:
            break
        if kind is Kind.STREAM:
            frames.once(received.start, begun)
            received.start = frames.decoded(payload, Stream)
            frames.check_start(received.start, tenant)
            continue
        if kind is Kind.KEY:
            frames.once(received.key, begun)
            received.key = frames.key_of(payload)
            continue
        begun = True
        if number >= len(lanes):
            raise BrokenStreamError(f"there is no lane {number}")
        await lanes[number].queue.put((kind, payload))
    for each in lanes:
        await each.queue.put(None)
    for each in lanes:
        await each.queue.join()
    received.rows, received.size = sum(each.rows for each in lanes), sum(each.size for each in lanes)
    seen = {table for each in lanes for table in each.tables}
    if seen != expected or frames.decoded(payload, Count) != Count(received.rows, len(seen), received.size):
        raise BrokenStreamError("the totals of the stream are not what arrived")
    whole.set()


async def _receive(
    number: int,
    lane: _Receiving,
    opened: Lane,
    known: dict[tuple[str, str], TenantTable],
    tenant: int,
    whole: asyncio.Event,
) -> None:
    first = await lane.queue.get()
    if first is None:  # the sender has fewer lanes
        lane.queue.task_done()
        return
    async with opened(number) as connection:
        await connection.execute(PATIENT)
        await connection.execute(rows.AS_REPLICA)
        entry: tuple[Kind, bytes] | None = first
        while entry is not None:
            await _table(connection, lane, entry, known, tenant)
            entry = await lane.queue.get()
        lane.queue.task_done()
        await whole.wait()


async def _table(
    connection: Any,
    lane: _Receiving,
    entry: tuple[Kind, bytes],
    known: dict[tuple[str, str], TenantTable],
    tenant: int,
) -> None:
    """Rows of one table, whose header is ``entry``."""
    kind, payload = entry
    if kind is not Kind.TABLE:
        raise BrokenStreamError(f"a {kind.name} frame where a table should begin")
    header = frames.decoded(payload, TableHeader)
    table = known.get((header.schema, header.name))
    if table is None or table.columns != header.columns:
        raise BrokenStreamError(f"the table {header.schema}.{header.name} is not the same here")
    lane.tables.add((header.schema, header.name))
    lane.queue.task_done()
    ended: list[Count] = []
    copied = await rows.copy_in(connection, table, tenant, _data(lane, ended))
    if not ended or copied != ended[0].rows:
        raise BrokenStreamError(f"{table.label}: {copied} rows of this tenant arrived, not what was sent")
    lane.rows += copied
    lane.queue.task_done()


async def _data(lane: _Receiving, ended: list[Count]) -> AsyncIterator[bytes]:
    """The data of a table up to its end, whose count goes to ``ended``; its entry is done once the rows are counted."""
    while (entry := await lane.queue.get()) is not None:
        kind, payload = entry
        if kind is Kind.TABLE_END:
            ended.append(frames.decoded(payload, Count))
            return
        if kind is not Kind.DATA:
            raise BrokenStreamError(f"a {kind.name} frame inside of a table")
        lane.size += len(payload)
        yield payload
        lane.queue.task_done()
    raise BrokenStreamError("the stream ended inside of a table")


async def _together(work: Iterable[Any]) -> None:
    """All of it; the first failure ends the rest and is raised as itself."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def acquired(pool: Any, turn: asyncio.Lock, count: int = LANES) -> AsyncIterator[list[Any]]:
    """Connections for all lanes. ``turn`` is held while only some are there, so that no two wait for each other."""
    async with contextlib.AsyncExitStack() as stack:
        async with turn:
            found = [await stack.enter_async_context(pool.acquire()) for _ in range(count)]
        yield found
