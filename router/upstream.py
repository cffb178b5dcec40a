"""One connection to a cell: it carries one request at a time and reads its answer strictly.

It goes back to its pool only when the request was sent whole, the answer was read whole, nothing followed it and nobody
asked for a close; everything else closes it.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

from router.framing import UNTIL_EOF, BodyReader, FramingError, reader
from router.http1 import AnswerHead, MalformedError, head_end, parse_answer

MAX_INTERIM: Final = 16  # 1xx answers to one request
WRITE_HIGH: Final = 256 * 1024  # bytes in a write buffer before the other side is paused


class LostError(Exception):
    """The upstream connection is of no use any more. ``broken`` means that it answered, but not in HTTP/1.1;
    ``heard`` that bytes of an answer had come."""

    def __init__(self, reason: str, *, broken: bool = False, heard: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.broken = broken
        self.heard = heard


class User(Protocol):
    """The exchange that an upstream connection works for."""

    def connected(self, upstream: "Upstream") -> None:
        """A connection is there; may come inside `router.pool.Pool.acquire`."""

    def unconnected(self, reason: str) -> None:
        """No connection can be had: not a byte was sent."""

    def interim(self, head: AnswerHead) -> None:
        """A 1xx answer that is not final."""

    def answer(self, head: AnswerHead, payload: bytes, complete: bool) -> None:
        """The final head, with what came of the body."""

    def payload(self, data: bytes, complete: bool) -> None:
        """More of the body; ``data`` may be empty when ``complete``."""

    def lost(self, error: LostError) -> None:
        """The connection failed before the answer was complete."""

    def upstream_full(self) -> None:
        """Stop writing."""

    def upstream_ready(self) -> None:
        """Go on writing."""

    @property
    def tenant(self) -> bytes:
        """Whose request it is."""

    @property
    def method(self) -> bytes:
        """The method that was sent."""

    @property
    def request_sent(self) -> bool:
        """Whether the whole request was handed over."""


class Owner(Protocol):
    """The pool that a connection belongs to (`router.pool.Pool`)."""

    def put_back(self, upstream: "Upstream") -> None:
        """The connection is free again."""

    def discard(self, upstream: "Upstream", *, flush: bool = False) -> None:
        """Close the connection, after what is written has gone if ``flush``."""


class Upstream(asyncio.Protocol):
    """One connection to a cell."""

    __slots__ = (
        *("_buf", "_interims", "_known", "_known_for", "_known_head", "_paused", "_pool", "_reader", "_scanned"),
        *("idle_since", "transport", "tunnel", "user"),
    )

    def __init__(self, pool: Owner) -> None:
        self._pool = pool
        self.user: User | None = None
        self.transport: asyncio.Transport | None = None
        self.tunnel: Callable[[bytes], None] | None = None  # set after 101: bytes go there unread
        self.idle_since = 0.0
        self._buf = b""
        self._scanned = 0
        self._interims = 0
        self._reader: BodyReader | None = None
        self._known, self._known_for = b"", b""  # the last answer head accepted, and to which method
        self._known_head: AnswerHead | None = None
        self._paused = False

    # -- what asyncio calls ---------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH)

    def data_received(self, data: bytes) -> None:
        if self.tunnel is not None:
            self.tunnel(data)
        elif self.user is None:
            self._pool.discard(self)  # an answer that nobody asked for
        elif self._reader is not None:
            self._body(self.user, data)
        else:
            self._heads(self.user, self._buf + data if self._buf else data)

    def eof_received(self) -> bool:
        user = self.user
        if user is not None and self._reader is not None and self.tunnel is None and self._eof_ends:
            self._finish(user, None, b"", reusable=False)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(LostError("the cell closed the connection", heard=self._reader is not None or bool(self._buf)))

    def pause_writing(self) -> None:
        if self.user is not None:
            self.user.upstream_full()

    def resume_writing(self) -> None:
        if self.user is not None:
            self.user.upstream_ready()

    # -- what the exchange calls ----------------------------------------------------------------------------------
    def write(self, data: bytes) -> None:
        """Send; nothing happens on a connection that is closing (its loss is reported by `User.lost`)."""
        assert self.transport is not None
        self.transport.write(data)

    def pause(self) -> None:
        """Read no more until `resume`: the client is slow."""
        if not self._paused and self.transport is not None and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._paused and self.transport is not None:
            self._paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def abandon(self) -> None:
        """The exchange wants no more of it: close, and say nothing back."""
        flush = self.tunnel is not None
        self.user = None
        self.tunnel = None
        self._pool.discard(self, flush=flush)

    # -- reading an answer ----------------------------------------------------------------------------------------
    @property
    def _eof_ends(self) -> bool:
        return self._known_head is not None and self._known_head.framing == UNTIL_EOF

    def _heads(self, user: User, buf: bytes) -> None:
        """Heads up to the final one, one at a time; what follows the final one goes to its body."""
        try:
            while True:
                end = head_end(buf, self._scanned)
                if end < 0:
                    self._buf, self._scanned = buf, len(buf)
                    if not b"HTTP/1.".startswith(buf[:7]):
                        raise MalformedError("this is no HTTP/1.1 answer")
                    return
                head, buf, self._scanned = self._head(buf[:end], user.method), buf[end:], 0
                if head.status >= 200 or head.status == 101:
                    break
                self._interims += 1
                if self._interims > MAX_INTERIM:
                    raise MalformedError("too many interim answers")
                user.interim(head)
                if self.user is not user:
                    return
                if not buf:
                    self._buf = b""
                    return
        except MalformedError as e:
            self._fail(LostError(e.reason, broken=True, heard=True))
            return
        self._buf = b""
        self._final(user, head, buf)

    def _head(self, raw: bytes, method: bytes) -> AnswerHead:
        if raw == self._known and method == self._known_for and self._known_head is not None:
            return self._known_head
        head = parse_answer(raw, method)
        self._known, self._known_for, self._known_head = raw, method, head
        return head

    def _final(self, user: User, head: AnswerHead, buf: bytes) -> None:
        if head.status == 101:
            self._reader = None
            user.answer(head, buf, False)
            return
        if head.framing == 0:
            self._finish(user, head, b"", reusable=head.keep_alive and not buf)
            return
        if head.framing == len(buf):
            self._finish(user, head, buf, reusable=head.keep_alive)
            return
        self._reader = reader(head.framing)
        try:
            payload = self._reader.feed(buf)
        except FramingError as e:
            self._fail(LostError(str(e), broken=True, heard=True))
            return
        if self._reader.done:
            self._finish(user, head, payload, reusable=head.keep_alive and not self._reader.rest)
        else:
            user.answer(head, payload, False)

    def _body(self, user: User, data: bytes) -> None:
        assert self._reader is not None
        try:
            payload = self._reader.feed(data)
        except FramingError as e:
            self._fail(LostError(str(e), broken=True, heard=True))
            return
        if self._reader.done:
            head = self._known_head
            self._finish(user, None, payload, reusable=head is not None and head.keep_alive and not self._reader.rest)
        elif payload:
            user.payload(payload, False)

    def _finish(self, user: User, head: AnswerHead | None, payload: bytes, *, reusable: bool) -> None:
        """The answer is complete. The connection is given back first, so that a next request can use it."""
        self._reader = None
        self._interims = 0
        self.user = None
        if reusable and user.request_sent:
            self.resume()
            self._pool.put_back(self)
        else:
            self._pool.discard(self)
        if head is not None:
            user.answer(head, payload, True)
        else:
            user.payload(payload, True)

    def _fail(self, error: LostError) -> None:
        user, self.user = self.user, None
        self.tunnel = None
        self._pool.discard(self)
        if user is not None:
            user.lost(error)
