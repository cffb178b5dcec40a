"""A client's connection: heads one at a time, bodies as they come, answers in order.

While a request is worked on, at most `SURPLUS` bytes behind it are read and kept unparsed, enough to notice a client
that leaves. A FIN in the middle of a request means that the client left: half-close is not supported.
"""

import asyncio
from enum import Enum
from typing import Final, cast

from contracts.problems import CLIENT_TOO_SLOW, CONNECTIONS_LIMITED, ROUTER_FULL, Problem
from router.framing import BodyReader, FramingError, reader
from router.http1 import (
    KnownHead,
    MalformedError,
    Request,
    RequestFields,
    check_request_line,
    head_end,
    parse_request,
)
from router.path import Path, problem_answer, static_lines
from router.proxy import Exchange
from router.walls import Wall

SURPLUS: Final = 64 * 1024
WRITE_HIGH: Final = 256 * 1024  # bytes in the write buffer before the cell is paused
LINGER_S: Final = 1.0  # how long what a refused client still sends is read and thrown away
LINGER_BYTES: Final = 1 << 20
LEAVING: Final = 256  # refused connections that are told why at a time; more are cut
LARGE_ANSWER: Final = 16 * 1024  # bytes: whether the client takes it is looked at

_ADDRESS_FULL: Final = problem_answer(CONNECTIONS_LIMITED, "", close=True, retry_after=5)
_WORKER_FULL: Final = problem_answer(ROUTER_FULL, "", close=True, retry_after=1)


class _Phase(Enum):
    IDLE = 0  # between requests
    HEAD = 1  # in a head
    BUSY = 2  # an exchange is running
    LINGER = 3  # the last answer is out; reading on, so that a reset does not overtake it
    CLOSED = 4


class Client(asyncio.Protocol):
    """One connection. Implements what `Exchange` asks of its client."""

    __slots__ = (
        *("_begun", "_body", "_buf", "_counted", "_exchange", "_excused", "_full", "_known", "_leaves", "_lingered"),
        *("_looping", "_mark", "_pace", "_path", "_paused", "_phase", "_read_bytes", "_scanned", "_static"),
        *("_static_for", "_timer", "_transport", "_written", "address", "tunnel"),
    )

    def __init__(self, path: Path) -> None:
        self._path = path
        self._transport: asyncio.Transport | None = None
        self._timer = path.timer(self._timed_out)
        self._pace = path.timer(self._look)  # runs only while the client keeps the router waiting
        self._mark = (0, 0, 0)  # read, written and not yet taken, when the window began
        self._read_bytes = self._written = 0
        self._begun = 0  # written before the running request
        self._excused = False  # in this window the router did not read
        self._full = False  # the client has more to take than it may
        self._counted = self._leaves = False
        self._phase = _Phase.IDLE
        self._exchange: Exchange | None = None
        self._body: BodyReader | None = None
        self._buf = b""
        self._scanned = 0
        self._known: KnownHead | None = None
        self._static = b""
        self._static_for: RequestFields | None = None
        self._looping = False
        self._paused = False
        self._lingered = 0
        self.address = b""
        self.tunnel = False

    # -- what asyncio calls ---------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]).encode() if isinstance(peer, tuple) else b"unknown"
        self._path.clients.add(self)
        self._timer.start(self._path.budgets.client_idle_s)
        if self._path.walls.watches(Wall.CONNECTIONS):
            self._admit()

    def data_received(self, data: bytes) -> None:
        self._read_bytes += len(data)
        if self._phase is _Phase.BUSY:
            if self._body is not None:
                self._more(data)
            else:
                self._behind(data)
        elif self._phase is _Phase.LINGER:
            self._lingered += len(data)
            if self._lingered > LINGER_BYTES:
                self.abort()
        elif self._full:
            self._behind(data)
        elif self._phase is not _Phase.CLOSED:
            self._heads(self._buf + data if self._buf else data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = _Phase.CLOSED
        self._timer.close()
        self._pace.close()
        self._path.clients.discard(self)
        if self._counted:
            self._path.admission.disconnect(self.address)
        self._path.leaving -= self._leaves
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_left()

    def pause_writing(self) -> None:
        self._full = True
        self._watch()
        if self._exchange is not None:
            self._exchange.client_full()

    def resume_writing(self) -> None:
        self._full = False
        if self._exchange is not None:
            self._exchange.client_ready()
        elif self._phase in (_Phase.IDLE, _Phase.HEAD):
            if self._buf and not self._looping:
                self._heads(self._buf)
            self.resume()

    # -- the walls ------------------------------------------------------------------------------------------------
    def _admit(self) -> None:
        """Count this connection, or refuse it: cheaply, and telling why only as many as can be told at a time."""
        path = self._path
        if len(path.clients) - path.leaving > path.connections and path.walls.refuses(Wall.CONNECTIONS):
            self._turn_away(ROUTER_FULL, _WORKER_FULL)
        elif path.admission.connect(self.address):
            self._counted = True
        else:
            self._turn_away(CONNECTIONS_LIMITED, _ADDRESS_FULL)

    def _turn_away(self, problem: Problem, answer: bytes) -> None:
        self._path.metrics.refused(problem.slug)
        self._leaves = True
        self._path.leaving += 1
        if self._path.leaving > LEAVING:
            self.abort()
            return
        self.write(answer)
        self._close()

    def _watch(self) -> None:
        """From now on it is the client's turn: look at its pace after each window, until it has done its part."""
        if self._path.walls.watches(Wall.SLOW_CLIENTS):
            self._begin_window()

    def _begin_window(self) -> None:
        self._mark = (self._read_bytes, self._written, self._untaken())
        self._excused = self._paused
        self._pace.start(self._path.budgets.client_window_s)

    def _untaken(self) -> int:
        """Bytes that were written and that the kernel could not take yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _look(self) -> None:
        """The end of a window. Who did too little of its part goes; who has nothing to do is not looked at again."""
        read, written, untaken = self._mark
        left, least = self._untaken(), self._least()
        sends = self._owes_request()
        if not sends and not left:
            return
        slow = sends and not self._excused and self._read_bytes - read < least
        # Only what lay there when the window began could have been taken all through it.
        slow = slow or self._written - written + untaken - left < min(least, untaken)
        if slow and self._path.walls.refuses(Wall.SLOW_CLIENTS):
            self._too_slow()
        else:
            self._begin_window()

    def _least(self) -> float:
        return self._path.budgets.client_bytes_per_s * self._path.budgets.client_window_s

    def _owes_request(self) -> bool:
        """Whether more of a head or body is due from the client. One that waits for 100 Continue owes nothing yet."""
        if self._phase is _Phase.HEAD:
            return not self._full
        waits = self._exchange is not None and self._exchange.expects_continue and self._written == self._begun
        return self._phase is _Phase.BUSY and self._body is not None and not self._paused and not waits

    def _too_slow(self) -> None:
        if self._phase is _Phase.HEAD:
            self._refuse(CLIENT_TOO_SLOW, self._slowness())
        elif self._phase is _Phase.BUSY and self._exchange is not None:
            self._exchange.too_slow(self._slowness())
        else:
            self.abort()

    def _slowness(self) -> str:
        budgets = self._path.budgets
        return f"fewer than {budgets.client_bytes_per_s:g} bytes a second over {budgets.client_window_s:g} s"

    # -- reading requests -----------------------------------------------------------------------------------------
    def _heads(self, buf: bytes) -> None:
        """Start what is complete in ``buf``. An answer that comes at once continues this loop and not the stack."""
        self._buf = buf
        self._looping = True
        try:
            while self._buf and self._phase in (_Phase.IDLE, _Phase.HEAD) and not self._full:
                if not self._one_head():
                    break
        except MalformedError as e:
            self._refuse(e.problem, e.reason)
        finally:
            self._looping = False

    def _one_head(self) -> bool:
        """Take one head out of the buffer and start its request; False while it is not complete."""
        buf = self._buf
        if self._phase is _Phase.IDLE and buf[:1] == b"\r":  # RFC 9112, 2.2: one empty line before a request
            if buf == b"\r":
                return False
            buf = buf.removeprefix(b"\r\n")
            if not buf:
                self._buf = b""
                return False
        end = head_end(buf, self._scanned)
        if end < 0:
            check_request_line(buf)
            if self._phase is _Phase.IDLE:
                self._phase = _Phase.HEAD
                self._timer.start(self._path.budgets.client_head_s)
                self._watch()
            self._buf, self._scanned = buf, len(buf)
            return False
        request, self._known = parse_request(buf[:end], self._known)
        self._buf, self._scanned = buf[end:] if end < len(buf) else b"", 0
        self._begin(request)
        return True

    def _begin(self, request: Request) -> None:
        self._phase = _Phase.BUSY
        self._begun = self._written
        payload, complete = b"", True
        if request.fields.framing != 0:
            self._body = body = reader(request.fields.framing)
            payload = self._read(body, self._buf)
            complete = body.done
            if not complete:
                self._watch()
        self._exchange = exchange = Exchange(self._path, self, request)
        exchange.run(payload, complete)

    def _read(self, body: BodyReader, data: bytes) -> bytes:
        """Payload in ``data``; what stands behind the body goes back to the buffer."""
        try:
            payload = body.feed(data) if data else b""
        except FramingError as e:
            raise MalformedError(str(e)) from None
        self._buf = body.rest
        if body.done:
            self._body = None
        return payload

    def _more(self, data: bytes) -> None:
        assert self._body is not None
        exchange = self._exchange
        try:
            payload = self._read(self._body, data)
        except MalformedError as e:
            if exchange is not None:
                exchange.malformed(e)
            return
        if exchange is not None and (payload or self._body is None):
            exchange.more(payload, self._body is None)

    def _behind(self, data: bytes) -> None:
        """Bytes behind the running request: of a tunnel, or of the next request."""
        if self.tunnel and self._exchange is not None:
            self._exchange.tunnelled(data)
            return
        self._buf += data
        if len(self._buf) > SURPLUS:
            self.pause()

    # -- what the exchange calls ----------------------------------------------------------------------------------
    def static(self, fields: RequestFields) -> bytes:
        """What every request with these fields sends: Host, passed fields, who the client is (RFC 7239)."""
        if self._static_for is not fields:
            self._static_for = fields
            self._static = static_lines(fields, self.address)
        return self._static

    def deadline(self, delay_s: float) -> None:
        """Call `Exchange.timed_out` after ``delay_s``."""
        self._timer.start(delay_s)

    def write(self, data: bytes) -> None:
        """Send to the client."""
        self._written += len(data)
        if self._transport is not None and self._phase is not _Phase.CLOSED:
            self._transport.write(data)

    def pause(self) -> None:
        """Read no more until `resume`."""
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = self._excused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._paused and self._transport is not None and len(self._buf) <= SURPLUS:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def take_surplus(self) -> bytes:
        """The bytes that stand behind the request; they are the exchange's from now on (a tunnel begins)."""
        surplus, self._buf = self._buf, b""
        return surplus

    def finished(self, keep_alive: bool) -> None:
        """The answer was written whole. Go on with the next request, or close."""
        self._exchange = None
        if self._phase is _Phase.CLOSED:
            return
        if not keep_alive or self._body is not None:
            self._close()
            return
        self._phase = _Phase.IDLE
        self._timer.start(self._path.budgets.client_idle_s)
        if self._written - self._begun > LARGE_ANSWER:
            self._watch()
        if self._buf and not self._looping:
            self._heads(self._buf)
        if self._paused:
            self.resume()

    def abort(self) -> None:
        """Cut the connection: what was sent must not look whole."""
        self._exchange = None
        self._phase = _Phase.CLOSED
        self._timer.close()
        self._pace.close()
        if self._transport is not None:
            self._transport.abort()

    def shut(self) -> None:
        """Close after what is written has gone (a tunnel ended)."""
        self._exchange = None
        self._phase = _Phase.CLOSED
        self._timer.close()
        if self._transport is not None:
            self._watch()  # it is closed when all has gone, and who takes nothing would keep it open for ever
            self._transport.close()

    def drain(self) -> None:
        """The worker stops: close if idle; a running answer says ``Connection: close``."""
        if self._phase in (_Phase.IDLE, _Phase.HEAD):
            self.shut()

    # -- ends -----------------------------------------------------------------------------------------------------
    def _refuse(self, problem: Problem, detail: str) -> None:
        """Answer a request that never became one, and close."""
        self._path.metrics.refused(problem.slug)
        self.write(problem_answer(problem, detail, close=True))
        self._close()

    def _close(self) -> None:
        """Close so that the answer arrives: FIN, then read on for a while what the client had sent already."""
        self._buf, self._body = b"", None
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._phase = _Phase.LINGER
        self._timer.start(LINGER_S)
        self._watch()
        transport.write_eof()
        if self._paused:
            self.resume()

    def _timed_out(self) -> None:
        takes = self._untaken() and self._path.walls.enforces(Wall.SLOW_CLIENTS)
        if takes and (self._full or self._phase is _Phase.LINGER):
            # The answer is still being taken, however slowly: `_look` says whether that is fast enough.
            self._timer.start(self._path.budgets.client_stall_s if self._full else LINGER_S)
        elif self._phase is _Phase.BUSY and self._exchange is not None:
            self._exchange.timed_out()
        elif self._phase is _Phase.HEAD:
            self._refuse(CLIENT_TOO_SLOW, "the request head did not arrive in time")
        elif self._phase is _Phase.IDLE:
            self.shut()
        else:
            self.abort()
