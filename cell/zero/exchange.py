"""One request to an upstream and its answer, streamed both ways, and seen through to its end.

A client that leaves does not end the monolith's work on its request. So the exchange goes on without it, and the tenant
does not count as drained before the monolith's answer is complete; where that cannot be seen, before the longest time
that the monolith takes has passed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import httpx

from cell.shards.context import TenantContext
from cell.shards.errors import ShardUnavailableError
from cell.zero.door import Door
from contracts import envelope

PIECES: Final = 8  # of an answer that wait for the client
CONNECT_TIMEOUT_S: Final = 2.0
KEEP_ALIVE_S: Final = 30.0  # of idle connections; the monolith must keep them longer
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding"
    b" upgrade expect".split()
)
NOT_CONNECTED: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

Receive = Callable[[], Awaitable[Any]]
Headers = list[tuple[bytes, bytes]]


class BodyTooLargeError(Exception):
    """The request's body is larger than the ambassador lets through."""


class ClientLeftError(Exception):
    """The body ended before it was whole."""


def end_to_end(headers: Headers) -> Headers:
    """The fields that are not of one connection, without the envelope (RFC 9110, section 7.6.1)."""
    named = {
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    }
    return [
        (name, value)
        for name, value in headers
        if name.lower() not in _HOP_BY_HOP
        and name.lower() not in named
        and not name.lower().startswith(envelope.PREFIX)
    ]


def target_of(scope: Any) -> bytes:
    """The request target as it came."""
    query: bytes = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


class Body:
    """The request's body on its way: at most ``most`` bytes, and whether all of it has gone."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self.sent = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """What the upstream is sent."""
        total = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            piece = message.get("body", b"")
            total += len(piece)
            if total > self._most:
                raise BodyTooLargeError
            if not message.get("more_body", False):
                self.sent = True
            if piece:
                yield piece
            if self.sent:
                return


async def pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """The answer's body as it came over the wire."""
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream), "the transport is an asynchronous one"
    async for piece in stream:
        yield piece


class Upstream:
    """Where requests go. ``longest_s`` bounds an answer; ``most`` a request's body, in bytes."""

    def __init__(self, url: str, *, connections: int, longest_s: float, most: int) -> None:
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEP_ALIVE_S
        )
        self._transport = httpx.AsyncHTTPTransport(limits=limits, retries=0)
        self._url = httpx.URL(url)
        self._under_way: set[asyncio.Task[None]] = set()
        self.longest_s = longest_s
        self.most = most

    async def ask(self, method: str, target: bytes, headers: Headers, body: Body | None) -> httpx.Response:
        """The head of the answer. Its ``stream`` is the body, and it must be closed."""
        wait = {"connect": CONNECT_TIMEOUT_S, "read": self.longest_s, "write": self.longest_s, "pool": self.longest_s}
        request = httpx.Request(
            method,
            self._url,
            headers=headers,
            content=None if body is None else body.pieces(),
            extensions={"timeout": wait, "target": target},
        )
        return await self._transport.handle_async_request(request)

    def keep(self, task: "asyncio.Task[None]") -> None:
        """Hold a task until it is done: the loop alone would not."""
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def aclose(self) -> None:
        """Give up what is under way, and close the connections."""
        for task in tuple(self._under_way):
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._transport.aclose()


class Exchange:
    """One request at the monolith. `run` is a task of its own; who waits for the answer may leave at any time."""

    def __init__(self, upstream: Upstream, door: Door, context: TenantContext) -> None:
        self._upstream = upstream
        self._door = door
        self._context = context
        self._head: asyncio.Future[httpx.Response] = asyncio.get_running_loop().create_future()
        self._head.add_done_callback(_seen)
        self._pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(PIECES)
        self._body: Body | None = None
        self._left = False
        self._task: asyncio.Task[None] | None = None

    async def begin(self, method: str, target: bytes, headers: Headers, body: Body | None) -> httpx.Response:
        """Send the request; the head of its answer. From here on it may have an effect, if it is not a safe one."""
        self._body = body
        self._context.committed = self._context.committed or method not in SAFE
        self._task = asyncio.get_running_loop().create_task(self._run(method, target, headers))
        self._upstream.keep(self._task)
        try:
            return await asyncio.shield(self._head)
        except NOT_CONNECTED as e:
            self._context.committed = False
            raise ShardUnavailableError(f"the monolith cannot be reached: {type(e).__name__}") from e
        except (httpx.HTTPError, TimeoutError) as e:
            raise ShardUnavailableError(f"the monolith gave no answer: {type(e).__name__}") from e

    async def body(self) -> AsyncIterator[bytes]:
        """The answer's body."""
        while True:
            piece = await self._pieces.get()
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                return
            yield piece

    def leave(self) -> None:
        """Nobody waits any more. The rest of the answer is read and dropped; a request that is not whole is cut."""
        self._left = True
        if self._task is None or self._task.done():
            return
        if self._body is not None and not self._body.sent:
            self._task.cancel()
            return
        while not self._pieces.empty():
            self._pieces.get_nowait()

    async def _run(self, method: str, target: bytes, headers: Headers) -> None:
        tenant = self._context.tenant
        with self._door.exchanging(tenant):
            try:
                async with asyncio.timeout(self._upstream.longest_s):
                    await self._carry(method, target, headers)
            except NOT_CONNECTED as e:
                await self._fail(e)
            except asyncio.CancelledError:
                self._door.lost_sight(tenant)
                self._head.cancel()
                raise
            except Exception as e:  # a time-out too: the monolith's own time began later than ours
                self._door.lost_sight(tenant)
                await self._fail(e)

    async def _carry(self, method: str, target: bytes, headers: Headers) -> None:
        response = await self._upstream.ask(method, target, headers, self._body)
        try:
            if not self._head.done():
                self._head.set_result(response)
            async for piece in pieces(response):
                if not self._left:
                    await self._pieces.put(piece)
        finally:
            await response.aclose()
        await self._tell(None)

    async def _fail(self, error: Exception) -> None:
        if self._head.done():
            await self._tell(error)
        elif not self._left:
            self._head.set_exception(error)

    async def _tell(self, last: Exception | None) -> None:
        if not self._left:
            await self._pieces.put(last)


def _seen(head: "asyncio.Future[httpx.Response]") -> None:
    """Whoever waited may have left: then nobody else looks at what came of it."""
    if not head.cancelled():
        head.exception()
