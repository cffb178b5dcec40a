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

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21\x22\x24-\x7e]+) HTTP/1\.([01])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t \x21-\x7e\x80-\xff]*))?\r\n")
_BARE = re.compile(rb"\r(?!\n|\Z)|(?<!\r)\n")  # CR or LF alone; a CR at the end may still get its LF
_AUTHORITY = re.compile(rb"((?:[A-Za-z0-9._~!$&'()*+;=%\-]+)|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?\Z")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]+)(.*)\Z", re.DOTALL)
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")

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
    traceparent: bytes | None  # only where it is well-formed
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


def parse_request(head: bytes, known: bytes = b"", known_fields: RequestFields | None = None) -> tuple[Request, bytes]:
    """A whole request head -> the request and its field block.

    The block and its fields may be given as ``known`` next time, where the block is not empty and the request has no
    body and asks for no upgrade. A block that equals ``known`` is not parsed again; the request line always is.
    """
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise MalformedError("a malformed request line")
    method, target, minor = line.groups()
    if method == b"CONNECT":
        raise MalformedError("CONNECT is not supported", NOT_SUPPORTED)
    block = head[line.end() :]
    if known_fields is not None and block == known and target[0] == 0x2F and minor == b"1":
        return Request(method, target, 1, known_fields), block
    fields = _request_fields(_fields(b"POST / HTTP/1.1\r\n", block), method, int(minor))
    if target[0] != 0x2F:
        target, fields = _other_form(method, target, fields)
        return Request(method, target, int(minor), fields), b""
    return Request(method, target, int(minor), fields), block if minor == b"1" else b""


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


def _sort(
    fields: list[tuple[bytes, bytes]], noted: frozenset[bytes], drops: frozenset[bytes]
) -> tuple[dict[bytes, list[bytes]], list[tuple[bytes, bytes]]]:
    """Fields -> the noted ones by name, and the lines to pass on with their lower-case names."""
    found: dict[bytes, list[bytes]] = {}
    passed = []
    for name, raw in fields:
        low = name.lower()
        value = raw.rstrip(b" \t")
        if low in noted:
            found.setdefault(low, []).append(value)
        if low not in drops:
            passed.append((low, b"%b: %b\r\n" % (name, value)))
    nominated = _options(found.get(b"connection")) - {b"close", b"keep-alive", b"upgrade"}
    if nominated:
        passed = [(low, line) for low, line in passed if low not in nominated]
    return found, passed


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


def _request_fields(raw: list[tuple[bytes, bytes]], method: bytes, minor: int) -> RequestFields:
    found, passed = _sort(raw, _NOTED, _REQUEST_DROPS)
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
    traceparent = found.get(b"traceparent", [b""])
    return RequestFields(
        authority=authority,
        host=_host(authority),
        tenants=tuple(found.get(b"x-tenant-id", ())),
        authorization=_single(found, b"authorization"),
        traceparent=traceparent[0] if len(traceparent) == 1 and _TRACEPARENT.match(traceparent[0]) else None,
        framing=framing or 0,
        keep_alive=minor == 1 and b"close" not in options,
        expects_continue=expect is not None and minor == 1 and framing not in (None, 0),
        websocket=_websocket(found, options, method, minor, framing),
        lines=b"".join([line for low, line in passed if not low.startswith(_DROPPED_PREFIXES)]),
    )


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


def _other_form(method: bytes, target: bytes, fields: RequestFields) -> tuple[bytes, RequestFields]:
    """A target that is no path: ``*`` for OPTIONS, or the absolute form (RFC 9112, 3.2.2)."""
    if target == b"*" and method == b"OPTIONS":
        return target, fields
    match = _ABSOLUTE.match(target)
    if match is None:
        raise MalformedError("a malformed request target")
    if match[1].lower() != fields.authority.lower():
        raise MalformedError("the target and Host name different authorities")
    path = match[2]
    if not path.startswith(b"/"):
        path = b"*" if not path and method == b"OPTIONS" else b"/" + path
    return path, fields


def parse_answer(head: bytes, method: bytes) -> AnswerHead:
    """A whole answer head to a request with ``method``, or `MalformedError`."""
    line = _STATUS_LINE.match(head)
    if line is None:
        raise MalformedError("a malformed status line")
    status, minor = int(line[2]), int(line[1])
    found, passed = _sort(_fields(b"HTTP/1.1 204 \r\n", head[line.end() :]), _ANSWER_NOTED, _ANSWER_DROPS)
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
        lines=b"".join([line for _, line in passed]),
    )
