"""The sender's end of a stream: a replication connection, read by a thread, handed out as whole transactions.

The replication protocol, because polling a slot by SQL decodes again from the beginning each time and exports no
snapshot (moves.md rule 7). psycopg2 speaks it, and reading blocks, so each stream has a thread of its own; what it
reads ahead is bounded in bytes. Nothing is acknowledged to the server but what `Reading.acknowledge` was told.
"""

import asyncio
import contextlib
import os
import select
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg2
from psycopg2.extras import LogicalReplicationConnection

from cell.shards.directory import Shard
from cell.shards.pools import TRANSFER_ROLE
from cell.transfer import wal
from cell.transfer.wal import Tag

AHEAD_BYTES_MAX: Final = 32 << 20  # read but not handed out; a transaction that is being read may exceed it
TRANSACTION_BYTES_MAX: Final = 256 << 20
STATUS_S: Final = 5.0  # between acknowledgements; the server ends a reader that is silent for a minute
_CONNECT_S: Final = 5
# Values are printed with the settings of this session. An exported snapshot is an idle transaction for its whole life.
_SETTINGS: Final = {
    "datestyle": "ISO,YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "statement_timeout": "0",
}
_PLUGIN: Final = "proto_version '1', publication_names '{0}', messages 'true', origin 'none'"


class StreamError(Exception):
    """A stream that cannot be read on: the connection broke, or the slot is gone."""


@dataclass(frozen=True, slots=True)
class Login:
    """Where and as whom to connect."""

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    application: str = "cellwall-stream"

    @classmethod
    def to(cls, shard: Shard, password: str, application: str) -> "Login":
        """To a shard, as the transfer's role."""
        return cls(shard.host, shard.port, shard.database, TRANSFER_ROLE, password, application)

    def connect(self) -> Any:
        """A replication connection. Blocks."""
        options = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
        return psycopg2.connect(
            host=self.host,
            port=self.port,
            dbname=self.database,
            user=self.user,
            password=self.password,
            application_name=self.application,
            connect_timeout=_CONNECT_S,
            options=options,
            connection_factory=LogicalReplicationConnection,
        )


@dataclass(slots=True)
class Transaction:
    """One transaction of the stream, as the server sent it."""

    messages: list[bytes] = field(default_factory=list)
    size: int = 0  # bytes in a batch
    changes: int = 0
    end: int = 0
    marker: str = ""

    def add(self, stream: str, message: bytes) -> None:
        """One more message."""
        tag = message[0]
        if tag in wal.CHANGES:
            self.changes += 1
        elif tag == Tag.TRUNCATE:
            raise StreamError("a tenant table was truncated: it cannot be said what this tenant lost")
        elif tag == Tag.MESSAGE:
            self._mark(stream, message)
            return
        elif tag == Tag.COMMIT:
            self.end = wal.commit_end(message)
            return
        elif tag not in (Tag.RELATION, Tag.BEGIN):
            return
        if tag != Tag.BEGIN:
            self.messages.append(message)
            self.size += len(message) + 4
        if self.size > TRANSACTION_BYTES_MAX:
            raise StreamError(f"a transaction of more than {TRANSACTION_BYTES_MAX} bytes")

    def _mark(self, stream: str, message: bytes) -> None:
        named, _, name = (wal.marker(message) or "").partition(":")
        if named == stream:
            self.marker = name


class Slot:
    """A slot that was just made. Its snapshot lives until the slot is read or this is closed."""

    def __init__(self, connection: Any, position: int, snapshot: str) -> None:
        self.connection = connection
        self.position = position
        self.snapshot = snapshot

    def close(self) -> None:
        """Give the snapshot up. The slot stays."""
        with contextlib.suppress(psycopg2.Error):
            self.connection.close()


async def make_slot(login: Login, stream: str, budget_s: float) -> Slot:
    """A new slot with an exported snapshot. Waits for every older writer of the server, at most for the budget.

    Raises `TimeoutError`, or `StreamError` where the server refuses.
    """
    connections: list[Any] = []

    def make() -> Slot:
        connection = login.connect()
        connections.append(connection)
        cursor = connection.cursor()
        cursor.execute(f"CREATE_REPLICATION_SLOT {stream} LOGICAL pgoutput (SNAPSHOT 'export')")
        _, point, snapshot, _ = cursor.fetchone()
        return Slot(connection, parse_lsn(point), snapshot)

    making = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        async with asyncio.timeout(budget_s):
            return await asyncio.shield(making)
    except psycopg2.Error as e:
        raise StreamError(first_line(e)) from e
    except (TimeoutError, asyncio.CancelledError):
        # The server drops a slot that was still waiting; one that was made meanwhile is found by who opens it next.
        for connection in connections:
            with contextlib.suppress(psycopg2.Error):
                await asyncio.to_thread(connection.cancel)
        making.add_done_callback(_closed)
        raise


def _closed(making: "asyncio.Future[Slot]") -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().close()


class Reading:
    """A slot that is being read, from ``after`` on. Make it with `begin`; `close` it."""

    def __init__(self, stream: str, connection: Any, cursor: Any, after: int, loop: asyncio.AbstractEventLoop) -> None:
        self._stream = stream
        self._connection = connection
        self._cursor = cursor
        self._loop = loop
        self._lock = threading.Lock()
        self._ready: deque[Transaction] = deque()
        self._ready_bytes = 0
        self._idle = after  # everything before it was read, while `_ready` is empty
        self._acknowledged = after
        self._failure: Exception | None = None
        self._stopping = False
        self._closed = False
        self._news = asyncio.Event()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        self._thread = threading.Thread(target=self._run, name=stream, daemon=True)
        self.position = after  # the end of the last transaction that was handed out

    @classmethod
    async def begin(cls, login: Login, stream: str, after: int, slot: Slot | None = None) -> "Reading":
        """Read on after ``after``, on the connection of a fresh ``slot`` (whose snapshot ends now) or on a new one."""
        loop = asyncio.get_running_loop()

        def start() -> tuple[Any, Any]:
            connection = login.connect() if slot is None else slot.connection
            cursor = connection.cursor()
            try:
                lsn = f"{after >> 32:X}/{after & 0xFFFFFFFF:08X}"
                command = f"START_REPLICATION SLOT {stream} LOGICAL {lsn} ({_PLUGIN.format(stream)})"
                cursor.start_replication_expert(command, decode=False, status_interval=STATUS_S)
            except BaseException:
                connection.close()
                raise
            return connection, cursor

        try:
            connection, cursor = await asyncio.to_thread(start)
        except psycopg2.Error as e:
            raise StreamError(first_line(e)) from e
        reading = cls(stream, connection, cursor, after, loop)
        reading._thread.start()
        return reading

    @property
    def alive(self) -> bool:
        """Whether it can go on. What it read before it failed is still handed out."""
        with self._lock:
            return not self._stopping and (self._failure is None or bool(self._ready))

    def acknowledge(self, position: int) -> None:
        """The receiver has all before ``position`` durably: the server may forget it."""
        with self._lock:
            risen = position > self._acknowledged
            self._acknowledged = max(self._acknowledged, position)
        if risen:
            self._wake()

    async def take(self, bytes_max: int, wait_s: float) -> tuple[list[Transaction], int]:
        """The next transactions, at least one if any, up to a marker; and the position after them.

        After ``wait_s`` without any: none, and a position that may have risen. Raises `StreamError`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not self._has_news():
                    await self._news.wait()
        taken = self._take(bytes_max)
        self._wake()  # there is room to read on
        return taken

    def _has_news(self) -> bool:
        with self._lock:
            self._news.clear()
            return bool(self._ready) or self._failure is not None

    def _take(self, bytes_max: int) -> tuple[list[Transaction], int]:
        taken: list[Transaction] = []
        size = 0
        with self._lock:
            while self._ready and (not taken or size + self._ready[0].size <= bytes_max):
                taken.append(self._ready.popleft())
                size += taken[-1].size
                if taken[-1].marker:
                    break
            self._ready_bytes -= size
            if not taken and self._failure is not None:
                raise StreamError(first_line(self._failure)) from self._failure
            if taken:
                self.position = taken[-1].end
            return taken, self.position if taken else max(self.position, self._idle)

    async def close(self) -> None:
        """End the connection and the thread."""
        with self._lock:
            self._stopping = True
        self._wake()
        await asyncio.to_thread(self._thread.join)
        if not self._closed:
            self._closed = True
            os.close(self._wake_read)
            os.close(self._wake_write)

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._read()
        except Exception as e:
            with self._lock:
                self._failure = e
        finally:
            with contextlib.suppress(psycopg2.Error):
                self._connection.close()
            self._tell()

    def _read(self) -> None:
        current: Transaction | None = None
        sent = 0
        while not self._stopping:
            if self._acknowledged > sent:
                sent = self._acknowledge_to_server()
            if self._ready_bytes > AHEAD_BYTES_MAX:
                self._wait(None)
                self._acknowledge_to_server()  # as a sign of life: nothing else is said while nothing is read
                continue
            message = self._cursor.read_message()
            if message is None:
                if current is None:
                    self._note_idle()
                self._wait(self._cursor)
                continue
            payload = bytes(message.payload)
            if payload[0] == Tag.BEGIN:
                current = Transaction()
            if current is None:
                raise StreamError("a message outside of a transaction")
            current.add(self._stream, payload)
            if payload[0] == Tag.COMMIT:
                self._put(current)
                current = None

    def _acknowledge_to_server(self) -> int:
        position = self._acknowledged
        self._cursor.send_feedback(write_lsn=position, flush_lsn=position, apply_lsn=position, force=True)
        return position

    def _note_idle(self) -> None:
        with self._lock:
            self._idle = max(self._idle, self._cursor.wal_end)

    def _put(self, transaction: Transaction) -> None:
        with self._lock:
            self._ready.append(transaction)
            self._ready_bytes += transaction.size
            self._idle = max(self._idle, transaction.end)
        self._tell()

    def _wait(self, cursor: Any) -> None:
        sources = [self._wake_read] if cursor is None else [self._wake_read, cursor]
        readable, _, _ = select.select(sources, [], [], STATUS_S)
        if self._wake_read in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if not self._closed:
                os.write(self._wake_write, b"\0")

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone
            self._loop.call_soon_threadsafe(self._news.set)


def parse_lsn(text: str) -> int:
    """``16/B374D848`` as a number."""
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def first_line(error: Exception) -> str:
    """The server's message without its hints."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
