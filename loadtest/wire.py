"""A small HTTP/1.1 client for the driver: keep-alive connections on httptools, a pool for each address.

Made for measuring: it costs well under a tenth of a general client, knows the age and the local port of every
connection, and tells *how* an exchange failed instead of trying again by itself.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

BODY_LIMIT_BYTES = 4 * 1024 * 1024
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. ``cell`` and ``epoch`` are what Cell-Served said; empty and 0 where it was absent."""

    status: int
    body: bytes
    cell: str
    epoch: int
    retry_after: str = ""

    @property
    def refused(self) -> bool:
        """Told to go away for now: 429, or 503 that says when to come back."""
        return self.status == 429 or (self.status == 503 and bool(self.retry_after))


class ExchangeError(Exception):
    """An exchange without a complete answer. ``cause`` is one of `REFUSED`, `LOST`, `UNREADABLE`."""

    REFUSED = "connection refused"
    LOST = "connection lost"
    UNREADABLE = "unreadable answer"

    def __init__(self, cause: str, detail: str, *, local_port: int = 0, connected_at: float = 0.0) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.local_port = local_port
        self.connected_at = connected_at


class Target(Protocol):
    """Something that answers requests; ``name`` says which in reports."""

    @property
    def name(self) -> str: ...

    async def exchange(self, payload: bytes) -> Answer:
        """One request, one answer, or `ExchangeError`. Never a second try."""
        ...


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._size = 0
        self._served = self._retry_after = b""
        self.local_port = 0
        self.connected_at = 0.0

    # -- asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.local_port = int(transport.get_extra_info("sockname")[1])
        self.connected_at = self._loop.time()

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:  # bytes that answer nothing: this connection cannot be trusted again
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            self._fail(ExchangeError.UNREADABLE, str(e))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pool.forget(self)
        self._fail(ExchangeError.LOST, repr(exc) if exc else "closed by the other side before the answer was complete")

    # -- httptools
    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"cell-served":
                self._served = value
            case b"retry-after":
                self._retry_after = value

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > BODY_LIMIT_BYTES:
            raise ValueError("the answer is larger than the driver reads")
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 1xx is not final (RFC 9110, section 15.2)
            return
        cell, _, epoch = self._served.decode("latin-1").partition(";epoch=")
        again = self._retry_after.decode("latin-1")
        answer = Answer(status, b"".join(self._body), cell, int(epoch) if epoch.isdigit() else 0, again)
        reusable = self._parser.should_keep_alive()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)
        if reusable and waiter is not None:  # a second answer to one request ends the connection
            self._pool.give_back(self)
        else:
            self.close()

    # -- for the pool
    async def exchange(self, payload: bytes) -> Answer:
        """Send and wait. Cancelling it closes the connection: the answer may still come."""
        if self._transport is None:
            raise self._error(ExchangeError.LOST, "closed before the request was written")
        self._parser = httptools.HttpResponseParser(self)
        self._body, self._size, self._served, self._retry_after = [], 0, b"", b""
        self._waiter = self._loop.create_future()
        self._transport.write(payload)
        try:
            return await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        """Open, and not on its way to be closed."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Close at once; a waiting exchange fails."""
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, cause: str, detail: str) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(self._error(cause, detail))

    def _error(self, cause: str, detail: str) -> ExchangeError:
        return ExchangeError(cause, detail, local_port=self.local_port, connected_at=self.connected_at)


class Pool:
    """Connections to one address, used in turn (first in, first out), so that all of them carry traffic.

    Up to ``size`` connections are opened before one is used again: every worker behind the address gets its share.
    Beyond that a new one is opened only where all are busy: an open-loop client never waits for its own pool.
    ``source`` is the local address to connect from; empty leaves it to the machine.
    """

    def __init__(self, host: str, port: int, *, name: str = "", size: int = 8, source: str = "") -> None:
        self._host = host
        self._port = port
        self._name = name or f"{host}:{port}"
        self._size = size
        self._source = (source, 0) if source else None
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._connecting = 0

    @property
    def name(self) -> str:
        """What reports call the address."""
        return self._name

    @property
    def local_ports(self) -> frozenset[int]:
        """The ports of our side of all open connections."""
        return frozenset(c.local_port for c in self._open)

    async def warm(self) -> None:
        """Open all ``size`` connections."""
        for connection in await asyncio.gather(*(self._connect() for _ in range(self._size - len(self._open)))):
            self._idle.append(connection)

    async def exchange(self, payload: bytes) -> Answer:
        """One request on an idle connection or a new one."""
        connection = self._take()
        if connection is None:
            connection = await self._connect()
        return await connection.exchange(payload)

    def close(self) -> None:
        """Close every connection."""
        for connection in tuple(self._open):
            connection.close()

    def give_back(self, connection: Connection) -> None:
        """The connection finished its exchange and may carry another."""
        if connection.usable:
            self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self._open.discard(connection)

    def _take(self) -> Connection | None:
        if len(self._open) + self._connecting < self._size:
            return None
        while self._idle:
            connection = self._idle.popleft()
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        self._connecting += 1
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: Connection(self), self._host, self._port, local_addr=self._source
                )
        except OSError as e:  # TimeoutError is one
            raise ExchangeError(ExchangeError.REFUSED, str(e) or type(e).__name__) from e
        finally:
            self._connecting -= 1
        self._open.add(connection)
        return connection
