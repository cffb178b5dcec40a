"""The row stream: a sequence of frames that says when it is whole. Opaque to everybody but cells.

``magic``, for a snapshot a frame that says where its stream begins, the tenant's key where it has one, then per table
one header frame (JSON), data frames (PostgreSQL's binary COPY format, in pieces), an end frame with the number of rows;
at last a final frame with the totals. A frame is one byte of kind, four bytes of length (big-endian) and the payload. A
stream without its final frame was cut, and is refused as a whole.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, TypeVar

import msgspec

from cell.vault import KEY_BYTES
from contracts import ids
from contracts.transfer import Stream, parse_stream_name

MAGIC: Final = b"cellwall-rows-1\n"
PIECE_BYTES: Final = 1 << 18
_FRAME_BYTES_MAX: Final = 1 << 20
_HEAD: Final = 5
T = TypeVar("T", bound=msgspec.Struct)


class Kind(IntEnum):
    """What a frame is."""

    TABLE = 1
    DATA = 2
    TABLE_END = 3
    END = 4
    STREAM = 5
    KEY = 6


_KINDS: Final = {kind.value: kind for kind in Kind}


class TableHeader(msgspec.Struct, frozen=True):
    """Which table follows, and its columns in the order of the data."""

    schema: str
    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """The tenant's key, unwrapped: for the importing cell to wrap, and for nobody to log."""

    key: bytes = field(repr=False)


class Count(msgspec.Struct, frozen=True):
    """At the end of a table its rows; at the end of the stream all tables, rows and data bytes."""

    rows: int
    tables: int = 0
    bytes: int = 0


class BrokenStreamError(ValueError):
    """A row stream that is cut, or was not written by a cell."""


def frame(kind: Kind, payload: bytes, lane: int = 0) -> bytes:
    """One frame."""
    return b"".join((bytes((lane << 4 | kind,)), len(payload).to_bytes(4, "big"), payload))


def data_frames(data: bytes, lane: int = 0) -> list[bytes]:
    """Data as frames of bounded size."""
    return [frame(Kind.DATA, data[i : i + PIECE_BYTES], lane) for i in range(0, len(data), PIECE_BYTES)]


class Reader:
    """Reads frames from pieces of any size. Memory is bounded by one frame and one piece."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = bytearray()

    async def start(self) -> None:
        """The magic; `BrokenStreamError` where it is not there."""
        if await self._take(len(MAGIC)) != MAGIC:
            raise BrokenStreamError("this is no row stream of a cell")

    async def laned(self) -> tuple[int, Kind, bytes]:
        """The next frame and its lane; `BrokenStreamError` where the stream ends instead."""
        head = await self._take(_HEAD)
        lane, number, size = head[0] >> 4, head[0] & 15, int.from_bytes(head[1:], "big")
        if number not in _KINDS or size > _FRAME_BYTES_MAX:
            raise BrokenStreamError("a frame of unknown kind or size")
        return lane, _KINDS[number], await self._take(size)

    async def next(self) -> tuple[Kind, bytes]:
        """The next frame of a stream that has one lane; `BrokenStreamError` where it ends instead."""
        lane, kind, payload = await self.laned()
        if lane:
            raise BrokenStreamError("a frame of a lane where there should be none")
        return kind, payload

    async def table(self) -> TableHeader | Count | Stream | Key:
        """The next table's header, or the totals at the end of the stream; before them where changes continue it, and
        the tenant's key."""
        kind, payload = await self.next()
        if kind is Kind.TABLE:
            return decoded(payload, TableHeader)
        if kind is Kind.END:
            return decoded(payload, Count)
        if kind is Kind.STREAM:
            return decoded(payload, Stream)
        if kind is Kind.KEY:
            return key_of(payload)
        raise BrokenStreamError(f"a {kind.name} frame where a table should begin")

    async def rows(self, ended: list[Count]) -> AsyncIterator[bytes]:
        """The data of the table whose header was read last; puts its count into ``ended``."""
        while True:
            kind, payload = await self.next()
            if kind is Kind.DATA:
                yield payload
            elif kind is Kind.TABLE_END:
                ended.append(decoded(payload, Count))
                return
            else:
                raise BrokenStreamError(f"a {kind.name} frame inside of a table")

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                self._buffer += await anext(self._pieces)
            except StopAsyncIteration:
                raise BrokenStreamError("the stream is cut") from None
        with memoryview(self._buffer) as view:
            taken = bytes(view[:size])
        del self._buffer[:size]
        return taken


def key_of(payload: bytes) -> Key:
    """The tenant's key; `BrokenStreamError` where it is none."""
    if len(payload) != KEY_BYTES:
        raise BrokenStreamError(f"a key of {len(payload)} bytes")
    return Key(payload)


def once(before: object | None, tables_seen: bool) -> None:
    """`BrokenStreamError` where what stands before the tables comes twice, or after one of them."""
    if before is not None or tables_seen:
        raise BrokenStreamError("the beginning of a stream, in the middle of it")


def check_start(start: Stream, tenant: int) -> None:
    """`BrokenStreamError` where the changes that continue these rows are not the tenant's."""
    try:
        named = parse_stream_name(start.stream)
    except ValueError as e:
        raise BrokenStreamError(str(e)) from e
    if named.tenant != ids.tenant_of(tenant):
        raise BrokenStreamError(f"{start.stream} is a stream of another tenant")


def decoded(payload: bytes, kind: type[T]) -> T:
    """A frame's payload; `BrokenStreamError` where it is something else."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.DecodeError as e:
        raise BrokenStreamError(str(e)) from e
