"""Message bodies of HTTP/1.1 (RFC 9112, sections 6 and 7): read strictly on one side, framed anew on the other.

A reader takes the bytes of a connection and gives back payload alone. It knows where the body ends, so `rest` holds
what followed it, unparsed. Chunk extensions and trailer fields are checked and dropped. llhttp could read chunks, too,
but does not say where a message ended inside the bytes it was fed; that place is what request smuggling is about.
"""

import re
from typing import Final, Protocol

CHUNKED: Final = -1  # a framing: the length is told chunk by chunk
UNTIL_EOF: Final = -2  # a framing of answers only: the body ends with the connection
LAST_CHUNK: Final = b"0\r\n\r\n"

MAX_CHUNK_LINE: Final = 4096  # bytes of one chunk-size line with its extensions
MAX_CHUNK_EXTENSIONS: Final = 16 * 1024  # bytes of all extensions of one message
MAX_TRAILERS: Final = 8 * 1024  # bytes of a trailer section
_MAX_CHUNK: Final = 2**62

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_EXTENSION = rb"(?:[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(" + _EXTENSION + rb")\r\n")
_SIZE_BEGUN = re.compile(rb"[0-9A-Fa-f]{0,16}(?:[ \t;][^\n]*|\r)?\Z")
_TRAILER_LINE = re.compile(_TOKEN + rb":[^\x00-\x08\x0a-\x1f\x7f]*\r\n")


class FramingError(ValueError):
    """A body that is not framed as RFC 9112 says. The connection it came on cannot be used any more."""


class BodyReader(Protocol):
    """What all readers do: `feed` gives payload back; once `done`, `rest` holds the bytes after the message."""

    done: bool
    rest: bytes

    def feed(self, data: bytes) -> bytes:
        """The payload in ``data``, or `FramingError`."""


class LengthReader:
    """A body of a length known from Content-Length."""

    __slots__ = ("_left", "done", "rest")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """The payload in ``data``."""
        size = len(data)
        if size < self._left:
            self._left -= size
            return data
        self.done = True
        if size == self._left:
            return data
        self.rest = data[self._left :]
        return data[: self._left]


class EofReader:
    """A body that ends with its connection; `done` is set by nobody but the owner of the connection."""

    __slots__ = ("done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """All of it."""
        return data


class ChunkedReader:
    """A chunked body. All payload of one `feed` comes back in one piece, however it was chunked."""

    __slots__ = ("_chunk_end", "_extensions", "_left", "_partial", "_trailers", "done", "rest")

    def __init__(self) -> None:
        self._partial = b""
        self._left = 0  # bytes of the current chunk still to come
        self._chunk_end = False  # the CRLF after the chunk's data is due
        self._trailers = -1  # bytes of trailer section read, -1 before the last chunk
        self._extensions = 0
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """The payload in ``data``, or `FramingError`."""
        buf = self._partial + data if self._partial else data
        self._partial = b""
        pos, size = 0, len(buf)
        out: list[bytes] = []
        while not self.done:
            if self._left:
                take = min(self._left, size - pos)
                out.append(buf[pos : pos + take])
                pos += take
                self._left -= take
                if self._left:
                    break
            after = self._line(buf, pos)
            if after < 0:
                self._partial = buf[pos:]
                break
            pos = after
        if self.done:
            self.rest = buf[pos:]
        return out[0] if len(out) == 1 else b"".join(out)

    def _line(self, buf: bytes, pos: int) -> int:
        """Consume one line at ``pos``: the place after it, or -1 where it is not complete."""
        if self._chunk_end:
            two = buf[pos : pos + 2]
            if two == b"\r\n":
                self._chunk_end = False
                return pos + 2
            if two in (b"", b"\r"):
                return -1
            raise FramingError("chunk data does not end with CRLF")
        return self._size_line(buf, pos) if self._trailers < 0 else self._trailer_line(buf, pos)

    def _size_line(self, buf: bytes, pos: int) -> int:
        if buf.find(b"\n", pos, pos + MAX_CHUNK_LINE) < 0:
            if len(buf) - pos >= MAX_CHUNK_LINE:
                raise FramingError("the chunk-size line is too long")
            if not _SIZE_BEGUN.match(buf, pos):
                raise FramingError("a malformed chunk size")
            return -1
        match = _SIZE_LINE.match(buf, pos)
        if match is None:
            raise FramingError("a malformed chunk-size line")
        self._extensions += len(match[2])
        if self._extensions > MAX_CHUNK_EXTENSIONS:
            raise FramingError("too many chunk extensions")
        self._left = int(match[1], 16)
        if self._left > _MAX_CHUNK:
            raise FramingError("the chunk size is too large")
        if self._left:
            self._chunk_end = True
        else:
            self._trailers = 0
        return match.end()

    def _trailer_line(self, buf: bytes, pos: int) -> int:
        end = buf.find(b"\n", pos) + 1
        size = (end or len(buf)) - pos
        if self._trailers + size > MAX_TRAILERS:
            raise FramingError("the trailer section is too large")
        if not end:
            return -1
        self._trailers += size
        if buf[pos:end] == b"\r\n":
            self.done = True
        elif not _TRAILER_LINE.match(buf, pos):
            raise FramingError("a malformed trailer field")
        return end


def reader(framing: int) -> BodyReader:
    """The reader for a framing: a length, `CHUNKED` or `UNTIL_EOF`."""
    if framing >= 0:
        return LengthReader(framing)
    return ChunkedReader() if framing == CHUNKED else EofReader()


def chunk(payload: bytes) -> bytes:
    """One chunk; ``payload`` must not be empty, for an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)
