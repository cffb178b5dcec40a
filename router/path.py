"""What every request of one worker shares: services, request ids, signatures, and how heads are written.

Composed once in `worker`; nothing here does I/O.
"""

import http
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from contracts import keys
from contracts.envelope import message, signer
from contracts.problems import CONTENT_TYPE, Problem
from router.admission import Admission
from router.framing import CHUNKED, UNTIL_EOF
from router.hold import Holds
from router.http1 import AnswerHead, Request, RequestFields
from router.locator import Locator
from router.metrics import Metrics
from router.pool import Pools
from router.settings import Budgets
from router.table import Located
from router.timers import Timer, Wheel
from router.walls import Walls

_WANT_LENGTH: Final = frozenset((b"POST", b"PUT", b"PATCH"))  # RFC 9110, 8.6: say that there is no content
_PHRASES: Final = {status.value: status.phrase.encode() for status in http.HTTPStatus} | {421: b"Misdirected Request"}


class Drainable(Protocol):
    """A client's connection, as the worker's drain sees it."""

    def drain(self) -> None:
        """Close if idle."""

    def abort(self) -> None:
        """Cut."""


class Downstream(Protocol):
    """A client's connection (`router.client.Client`), as the request on it sees it."""

    address: bytes  # of the client, without port
    tunnel: bool  # set after 101: bytes go to `Exchange.tunnelled` unread

    def static(self, fields: RequestFields) -> bytes:
        """The lines that every request with these fields sends to a cell (`static_lines`), remembered."""

    def write(self, data: bytes) -> None:
        """Send; nothing happens on a connection that is gone (`Exchange.client_left` tells that)."""

    def pause(self) -> None:
        """Read no more until `resume`."""

    def resume(self) -> None:
        """Read again; not while more than a request's share stands unread behind the running one."""

    def deadline(self, delay_s: float) -> None:
        """Call `Exchange.timed_out` after ``delay_s``; an earlier deadline of this request is forgotten."""

    def take_surplus(self) -> bytes:
        """The bytes that came behind the request; they are the exchange's from now on."""

    def finished(self, keep_alive: bool) -> None:
        """The answer was written whole: go on with the next request, or close once it has gone."""

    def abort(self) -> None:
        """Cut the connection now: what was sent must not look whole."""

    def shut(self) -> None:
        """Close after what is written has gone."""


class Signatures:
    """Request ids and envelopes. Ids are a random prefix and a counter: unique, unguessable as a set, and cheap."""

    def __init__(self, root: bytes | None, prefix: bytes) -> None:
        self._root = root
        self._prefix = prefix
        self._count = 0
        self._signers: dict[str, Callable[[bytes], bytes]] = {}

    def next_id(self) -> bytes:
        """A request id: 32 hexadecimal digits, so that it can be a trace id, too."""
        self._count += 1
        return b"%b%016x" % (self._prefix, self._count)

    def envelope(self, route: Located, timeout_ms: int, request_id: bytes, method: bytes, target: bytes) -> bytes:
        """The envelope's lines for a request (contracts.envelope), signed for the cell where there is a root key."""
        epoch, timeout, plan = b"%d" % route.epoch, b"%d" % timeout_ms, route.plan.name.encode()
        lines = (
            b"cell-tenant: %b\r\ncell-epoch: %b\r\ncell-timeout-ms: %b\r\ncell-request-id: %b\r\ncell-plan: %b\r\n"
            % (route.tenant, epoch, timeout, request_id, plan)
        )
        if self._root is None:
            return lines
        sign = self._signers.get(route.cell.name) or self._signer(route.cell.name)
        signed = sign(message(route.tenant, epoch, timeout, request_id, plan, method, target))
        return b"%bcell-signature: %b\r\n" % (lines, signed)

    def _signer(self, cell: str) -> Callable[[bytes], bytes]:
        assert self._root is not None
        sign = self._signers[cell] = signer(keys.derive(self._root, keys.Purpose.ENVELOPE, cell))
        return sign


@dataclass(slots=True)
class Path:
    """The services of one worker's request path."""

    budgets: Budgets
    locator: Locator
    admission: Admission
    pools: Pools
    holds: Holds
    wheel: Wheel
    metrics: Metrics
    signatures: Signatures
    hint_key: bytes | None
    walls: Walls
    clock: Callable[[], float] = time.monotonic
    connections: int = 8192  # of clients, at most
    clients: set[Drainable] = field(default_factory=set)
    leaving: int = 0  # of these, connections that were refused and are told so
    gathered: int = 0  # bytes that bodies may take which are waited for (`Exchange`)
    draining: bool = False

    def timer(self, fire: Callable[[], None]) -> Timer:
        """A timer of the worker's wheel."""
        return Timer(self.wheel, fire)


def static_lines(fields: RequestFields, address: bytes) -> bytes:
    """Host, the passed fields, and who the client is (RFC 7239 and its older forms), as all requests that repeat
    these fields on one connection send them."""
    node = b'"[%b]"' % address if b":" in address else address
    who = b"x-forwarded-for: %b\r\nx-forwarded-proto: http\r\n" % address
    host = b""
    if fields.authority:
        host = b'forwarded: for=%b;host="%b";proto=http\r\nx-forwarded-host: %b\r\n'
        host %= (node, fields.authority, fields.authority)
    return b" HTTP/1.1\r\nhost: %b\r\n%b%b%b" % (fields.authority, fields.lines, host, who)


def request_head(request: Request, static: bytes, envelope: bytes, request_id: bytes, body_begun: bool) -> bytes:
    """A request as the cell gets it: framing, expectation, trace and upgrade are made anew."""
    fields = request.fields
    span = request_id[16:]
    if request.traceparent is None:
        trace = b"traceparent: 00-%b-%b-00\r\n" % (request_id, span)
    else:
        trace = b"traceparent: %b%b%b\r\n" % (request.traceparent[:36], span, request.traceparent[52:])
    if fields.framing > 0:
        framing = b"content-length: %d\r\n" % fields.framing
    elif fields.framing == CHUNKED:
        framing = b"transfer-encoding: chunked\r\n"
    else:
        framing = b"content-length: 0\r\n" if request.method in _WANT_LENGTH else fields.websocket
    expect = b"expect: 100-continue\r\n" if fields.expects_continue and not body_begun else b""
    return b"%b %b%b%b%b%b%b\r\n" % (request.method, request.target, static, envelope, trace, framing, expect)


def answer_head(head: AnswerHead, version: int, keep_alive: bool) -> bytes:
    """An answer's head as the client gets it, framing made anew. Remembered for the common client."""
    if keep_alive and head.wire:
        return head.wire
    framing = b""
    if head.status != 204:
        if head.length >= 0:
            framing = b"content-length: %d\r\n" % head.length
        elif head.framing in (CHUNKED, UNTIL_EOF) and version:
            framing = b"transfer-encoding: chunked\r\n"
    connection = b"" if keep_alive else b"connection: close\r\n"
    wire = b"HTTP/1.1 %d %b\r\n%b%b%b\r\n" % (head.status, head.reason, head.lines, framing, connection)
    if keep_alive:
        head.wire = wire
    return wire


def problem_answer(
    problem: Problem, detail: str, *, close: bool, retry_after: int = 0, request_id: bytes = b"", bodyless: bool = False
) -> bytes:
    """A whole answer of the router's own (RFC 9457)."""
    extra = {"request_id": request_id.decode()} if request_id else {}
    body = problem.body(detail, **extra)
    lines = b"content-type: %b\r\ncontent-length: %d\r\n" % (CONTENT_TYPE.encode(), len(body))
    if retry_after:
        lines += b"retry-after: %d\r\n" % retry_after
    if close:
        lines += b"connection: close\r\n"
    phrase = _PHRASES.get(problem.status, b"")
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (problem.status, phrase, lines, b"" if bodyless else body)
