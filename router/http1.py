"""The guard: what of HTTP/1.1 (RFC 9110, 9112) gets through, for requests and for answers.

llhttp reads the field lines; it is fed exactly one head and nothing after it. Everything it is lenient about is decided
here: the start line, Host, framing, obs-text in framing fields, hop-by-hop fields, upgrades. The result holds the field
lines that may be passed on, already written; framing, Host and Connection are never among them, they are made anew.
"""

import re
from dataclasses import dataclass
from typing import Final

import httptools

from contracts import envelope
from contracts.problems import HEAD_TOO_LARGE, MALFORMED, NOT_SUPPORTED, Problem
from router.framing import CHUNKED, UNTIL_EOF

MAX_HEAD: Final = 32 * 1024  # bytes of a head, start line included
MAX_FIELDS: Final = 128  # field lines of a head
_NAMES_REMEMBERED: Final = 4096  # spellings of field names, of all connections

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21\x22\x24-\x7e]+) HTTP/1\.([01])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t \x21-\x7e\x80-\xff]*))?\r\n")
_BARE = re.compile(rb"\r(?!\n|\Z)|(?<!\r)\n")  # CR or LF alone; a CR at the end may still get its LF
_AUTHORITY = re.compile(rb"((?:[A-Za-z0-9._~!$&'()*+;=%\-]+)|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?\Z")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]+)(.*)\Z", re.DOTALL)
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")

# What llhttp reads of IANA's registry of methods, but CONNECT. A cell's server would answer others in words of its own
# and close the connection; RFC 9110, section 9.1, has 501 for them.
METHODS: Final = frozenset(
    b"ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY OPTIONS"
    b" PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE UNBIND UNLINK UNLOCK"
    b" UNSUBSCRIBE".split()
)
_UNKNOWN_METHOD: Final = "the method is not one of HTTP's (methods are in capitals)"

# Fields that belong to one connection (RFC 9110, 7.6.1), and those whose value only the router may set.
_HOP: Final = (b"keep-alive", b"proxy-connection", b"te", b"trailer", b"proxy-authenticate", b"proxy-authorization")
_OURS: Final = (b"http2-settings", b"forwarded", b"x-real-ip", b"x-tenant-id")
_FRAMING: Final = (b"content-length", b"transfer-encoding", b"connection", b"upgrade")
_NOTED: Final = frozenset((*_FRAMING, b"host", b"expect", b"authorization", b"traceparent", b"x-tenant-id"))
_DROPPED_PREFIXES: Final = (envelope.PREFIX, b"cell_", b"x-forwarded-", b"x_forwarded_")
_REQUEST_DROPS: Final = frozenset((*_HOP, *_OURS, *_NOTED)) - {b"authorization"}
_ANSWER_NOTED: Final = frozenset((*_FRAMING, envelope.REFUSED, envelope.ROUTE))
_ANSWER_DROPS: Final = frozenset(_HOP) | _ANSWER_NOTED


class MalformedError(ValueError):
    """A head that does not get through; `problem` is what a client is told, `reason` says which rule it broke."""

    def __init__(self, reason: str, problem: Problem = MALFORMED) -> None:
        super().__init__(reason)
        self.reason = reason
        self.problem = problem


@dataclass(slots=True)
class RequestFields:
    """The fields of a request, after the guard. Shared by all requests that repeat the same bytes: never changed."""

    authority: bytes  # Host as it was sent
    host: bytes  # lower-case, without port
    tenants: tuple[bytes, ...]  # the values of X-Tenant-ID
    authorization: bytes | None
    framing: int  # bytes of body, or `CHUNKED`
    keep_alive: bool
    expects_continue: bool
    websocket: bytes  # the lines that ask for a WebSocket, or empty
    lines: bytes  # what may be passed on


@dataclass(slots=True)
class Request:
    """One request head. ``version`` is the minor version of HTTP/1."""

    method: bytes
    target: bytes
    version: int
    fields: RequestFields
    traceparent: bytes | None  # only where it is well-formed


@dataclass(slots=True)
class KnownHead:
    """The field block of an accepted request, so that one that repeats it is not parsed again.

    Only blocks of HTTP/1.1 without a body and without an upgrade become known. ``trace`` is the place of the one
    traceparent value, which may differ: it changes with every request of a client that traces.
    """

    block: bytes
    fields: RequestFields
    trace: slice | None

    def repeated_by(self, block: bytes) -> bool:
        """Whether ``block`` is the same, but for a well-formed traceparent at its place."""
        trace = self.trace
        if trace is None:
            return block == self.block
        return (
            len(block) == len(self.block)
            and block[: trace.start] == self.block[: trace.start]
            and block[trace.stop :] == self.block[trace.stop :]
            and _TRACEPARENT.match(block[trace]) is not None
        )


@dataclass(slots=True)
class AnswerHead:
    """One answer head. `framing` is a length, `CHUNKED` or `UNTIL_EOF`; ``length`` is Content-Length, or < 0."""

    status: int
    reason: bytes
    framing: int
    length: int
    keep_alive: bool
    refused: bytes | None  # Cell-Refused
    route: bytes | None  # Cell-Route
    websocket: bool
    lines: bytes
    wire: bytes = b""  # as an HTTP/1.1 client on a connection that stays gets it; filled when first written


class _Collector:
    """What llhttp calls back. Names and values come whole: httptools joins their pieces."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def head_end(buf: bytes, scanned: int) -> int:
    """The place after the first head in ``buf``, or -1 while it is not complete. ``scanned`` bytes were seen before.

    An incomplete head is judged at once where it can only become malformed, so that nobody waits for an end that a
    strict reader would never see.
    """
    end = buf.find(b"\r\n\r\n", max(0, scanned - 3), MAX_HEAD)
    if end >= 0:
        return end + 4
    if len(buf) >= MAX_HEAD:
        raise MalformedError("the head is larger than 32 KiB", HEAD_TOO_LARGE)
    if _BARE.search(buf, max(0, scanned - 1)):
        raise MalformedError("a line does not end with CRLF")
    return -1


def check_request_line(buf: bytes) -> None:
    """Judge the request line of an incomplete head as soon as it is there."""
    if b"\n" in buf and not _REQUEST_LINE.match(buf):
        raise MalformedError("a malformed request line")


def parse_request(head: bytes, known: KnownHead | None = None) -> tuple[Request, KnownHead | None]:
    """A whole request head -> the request, and what may be given as ``known`` with the next head of the connection.

    A block that repeats the known one is not parsed again; the request line always is.
    """
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise MalformedError("a malformed request line")
    method, target, minor = line.groups()
    if method not in METHODS:
        raise MalformedError("CONNECT is not supported" if method == b"CONNECT" else _UNKNOWN_METHOD, NOT_SUPPORTED)
    block = head[line.end() :]
    if known is not None and target[0] == 0x2F and minor == b"1" and known.repeated_by(block):
        return Request(method, target, 1, known.fields, block[known.trace] if known.trace else None), known
    fields, trace = _request_fields(_fields(b"POST / HTTP/1.1\r\n", block), method, int(minor))
    if target[0] != 0x2F:
        target = _other_form(method, target, fields)
    request = Request(method, target, int(minor), fields, trace)
    return request, _known(request, block)


def _known(request: Request, block: bytes) -> KnownHead | None:
    fields, trace = request.fields, request.traceparent
    if request.version == 0 or fields.framing != 0 or fields.websocket:
        return None
    if trace is None:
        return KnownHead(block, fields, None)
    at = block.find(trace)
    if block.find(trace, at + 1) >= 0:
        return None  # the same text twice: which of them is the field?
    return KnownHead(block, fields, slice(at, at + len(trace)))


def _fields(start: bytes, block: bytes) -> list[tuple[bytes, bytes]]:
    """The field lines of a head. llhttp gets a start line of ours: methods and versions are decided elsewhere."""
    collector = _Collector()
    parser = (
        httptools.HttpRequestParser(collector) if start.startswith(b"POST") else httptools.HttpResponseParser(collector)
    )
    try:
        parser.feed_data(start + block)
    except httptools.HttpParserUpgrade:
        pass  # an upgrade is asked for; the head was complete
    except httptools.HttpParserError as e:
        raise MalformedError(str(e)) from None
    if len(collector.fields) > MAX_FIELDS:
        raise MalformedError("more than 128 field lines", HEAD_TOO_LARGE)
    return collector.fields


class _Sorter:
    """Sorts fields into those that are noted and those that are passed on; names are judged once and remembered."""

    def __init__(self, noted: frozenset[bytes], drops: frozenset[bytes], prefixes: tuple[bytes, ...]) -> None:
        self._noted = noted
        self._drops = drops
        self._prefixes = prefixes
        self._names: dict[bytes, tuple[bytes, bool, bool]] = {}

    def sort(self, fields: list[tuple[bytes, bytes]]) -> tuple[dict[bytes, list[bytes]], bytes]:
        """Fields -> the noted ones by name, and the lines to pass on. What Connection nominates is not passed on."""
        found: dict[bytes, list[bytes]] = {}
        passed, names = [], []
        for name, raw in fields:
            low, noted, passes = self._names.get(name) or self._judge(name)
            value = raw.rstrip(b" \t")
            if noted:
                found.setdefault(low, []).append(value)
            if passes:
                passed.append(b"%b: %b\r\n" % (name, value))
                names.append(low)
        if b"connection" in found:
            nominated = _options(found[b"connection"]) - {b"close", b"keep-alive", b"upgrade"}
            if nominated:
                passed = [line for low, line in zip(names, passed, strict=True) if low not in nominated]
        return found, b"".join(passed)

    def _judge(self, name: bytes) -> tuple[bytes, bool, bool]:
        low = name.lower()
        judged = low, low in self._noted, low not in self._drops and not low.startswith(self._prefixes)
        if len(self._names) >= _NAMES_REMEMBERED:
            self._names.clear()
        self._names[name] = judged
        return judged


_requests = _Sorter(_NOTED, _REQUEST_DROPS, _DROPPED_PREFIXES)
_answers = _Sorter(_ANSWER_NOTED, _ANSWER_DROPS, ())


def _options(values: list[bytes] | None) -> set[bytes]:
    """The members of a list field, in lower case."""
    if not values:
        return set()
    return {option.strip(b" \t").lower() for value in values for option in value.split(b",")} - {b""}


def _single(found: dict[bytes, list[bytes]], name: bytes) -> bytes | None:
    values = found.get(name)
    if values is None:
        return None
    if len(values) > 1:
        raise MalformedError(f"more than one {name.decode()} field")
    return values[0]


def _framing(found: dict[bytes, list[bytes]], minor: int) -> int | None:
    """The framing that the fields name, None where they name none."""
    coding, length = _single(found, b"transfer-encoding"), _single(found, b"content-length")
    if coding is not None:
        if length is not None:
            raise MalformedError("Content-Length beside Transfer-Encoding")
        if minor == 0:
            raise MalformedError("Transfer-Encoding in HTTP/1.0")
        if coding.lower() != b"chunked":
            raise MalformedError("a transfer coding other than chunked", NOT_SUPPORTED)
        return CHUNKED
    if length is None:
        return None
    if not _LENGTH.match(length):
        raise MalformedError("a malformed Content-Length")
    return int(length)


def _request_fields(raw: list[tuple[bytes, bytes]], method: bytes, minor: int) -> tuple[RequestFields, bytes | None]:
    found, lines = _requests.sort(raw)
    authority = _single(found, b"host")
    if authority is None:
        if minor:
            raise MalformedError("no Host field")
        authority = b""
    framing = _framing(found, minor)
    options = _options(found.get(b"connection"))
    expect = _single(found, b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise MalformedError("an expectation other than 100-continue")
    fields = RequestFields(
        authority=authority,
        host=_host(authority),
        tenants=tuple(found.get(b"x-tenant-id", ())),
        authorization=_single(found, b"authorization"),
        framing=framing or 0,
        keep_alive=minor == 1 and b"close" not in options,
        expects_continue=expect is not None and minor == 1 and framing not in (None, 0),
        websocket=_websocket(found, options, method, minor, framing),
        lines=lines,
    )
    traces = found.get(b"traceparent")
    trace = traces[0] if traces is not None and len(traces) == 1 and _TRACEPARENT.match(traces[0]) else None
    return fields, trace


def _websocket(
    found: dict[bytes, list[bytes]], options: set[bytes], method: bytes, minor: int, framing: int | None
) -> bytes:
    """The upgrade to pass on: GET and websocket alone, no body (RFC 6455, 4.1). Any other upgrade is ignored, as RFC
    9110 allows, and its field dropped; a WebSocket with a body would tunnel that body, so it is refused."""
    if b"upgrade" not in options or _options(found.get(b"upgrade")) != {b"websocket"}:
        return b""
    if method != b"GET" or minor == 0 or framing is not None:
        raise MalformedError("a WebSocket needs GET without a body")
    return b"connection: upgrade\r\nupgrade: websocket\r\n"


def _host(authority: bytes) -> bytes:
    if not authority:
        return b""
    match = _AUTHORITY.match(authority)
    if match is None or (match[2] and int(match[2]) > 65535):
        raise MalformedError("a malformed Host")
    return match[1].lower()


def _other_form(method: bytes, target: bytes, fields: RequestFields) -> bytes:
    """A target that is no path: ``*`` for OPTIONS, or the absolute form (RFC 9112, 3.2.2)."""
    if target == b"*" and method == b"OPTIONS":
        return target
    match = _ABSOLUTE.match(target)
    if match is None:
        raise MalformedError("a malformed request target")
    if match[1].lower() != fields.authority.lower():
        raise MalformedError("the target and Host name different authorities")
    path = match[2]
    if not path.startswith(b"/"):
        path = b"*" if not path and method == b"OPTIONS" else b"/" + path
    return path


def parse_answer(head: bytes, method: bytes) -> AnswerHead:
    """A whole answer head to a request with ``method``, or `MalformedError`."""
    line = _STATUS_LINE.match(head)
    if line is None:
        raise MalformedError("a malformed status line")
    status, minor = int(line[2]), int(line[1])
    found, lines = _answers.sort(_fields(b"HTTP/1.1 204 \r\n", head[line.end() :]))
    named = _framing(found, minor)
    options = _options(found.get(b"connection"))
    bodyless = status < 200 or status in (204, 304) or method == b"HEAD"
    framing = 0 if bodyless else UNTIL_EOF if named is None else named
    return AnswerHead(
        status=status,
        reason=line[3] or b"",
        framing=framing,
        length=named if named is not None else -1,
        keep_alive=b"close" not in options and minor == 1 and framing != UNTIL_EOF,
        refused=_single(found, envelope.REFUSED),
        route=_single(found, envelope.ROUTE),
        websocket=b"upgrade" in options and _options(found.get(b"upgrade")) == {b"websocket"},
        lines=lines,
    )
