"""The row stream: whole or refused, however the network cuts it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import json

from cell.transfer import frames, lanes
from cell.transfer.frames import BrokenStreamError, Count, Kind, Reader, TableHeader
from contracts.transfer import Stream, stream_name

HEADER = TableHeader("product", "orders", ("a", "b"))


def stream(data: bytes) -> bytes:
    parts = [frames.MAGIC, frames.frame(Kind.TABLE, json.encode(HEADER)), *frames.data_frames(data)]
    parts.append(frames.frame(Kind.TABLE_END, json.encode(Count(3))))
    parts.append(frames.frame(Kind.END, json.encode(Count(3, 1, len(data)))))
    return b"".join(parts)


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(data: bytes, size: int) -> tuple[object, bytes, list[Count], object]:
    reader = Reader(pieces(data, size))
    await reader.start()
    header = await reader.table()
    ended: list[Count] = []
    rows = b"".join([piece async for piece in reader.rows(ended)])
    return header, rows, ended, await reader.table()


@given(data=st.binary(max_size=2000), size=st.integers(1, 500))
async def test_pieces_of_any_size_give_the_same_rows(data: bytes, size: int) -> None:
    assert await read(stream(data), size) == (HEADER, data, [Count(3)], Count(3, 1, len(data)))


@given(cut=st.integers(0, len(stream(b"x" * 50)) - 1))
async def test_a_stream_cut_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(BrokenStreamError):
        await read(stream(b"x" * 50)[:cut], 16)


@given(junk=st.binary(min_size=30, max_size=200))
async def test_junk_is_refused_as_junk(junk: bytes) -> None:
    for data in (junk, frames.MAGIC + junk):
        with pytest.raises(BrokenStreamError):
            await read(data, 64)


async def test_a_frame_that_claims_to_be_huge_is_not_waited_for() -> None:
    with pytest.raises(BrokenStreamError, match="size"):
        await read(frames.MAGIC + bytes((Kind.TABLE,)) + b"\xff\xff\xff\xff", 64)


def test_data_is_framed_in_bounded_pieces() -> None:
    data = bytes(3 * frames.PIECE_BYTES + 1)
    assert [len(f) - 5 for f in frames.data_frames(data)] == [frames.PIECE_BYTES] * 3 + [1]


@given(data=st.lists(st.tuples(st.integers(0, 15), st.binary(max_size=200)), max_size=20), size=st.integers(1, 500))
async def test_frames_of_several_lanes_come_out_as_they_went_in(data: list[tuple[int, bytes]], size: int) -> None:
    written = frames.MAGIC + b"".join(frames.frame(Kind.DATA, payload, lane) for lane, payload in data)
    reader = Reader(pieces(written, size))
    await reader.start()
    assert [await reader.laned() for _ in data] == [(lane, Kind.DATA, payload) for lane, payload in data]


async def test_a_stream_of_several_lanes_is_refused_by_who_reads_one() -> None:
    reader = Reader(pieces(frames.MAGIC + frames.frame(Kind.DATA, b"x", 1), 64))
    await reader.start()
    with pytest.raises(BrokenStreamError, match="lane"):
        await reader.next()


@pytest.mark.parametrize("size", [0, 5, 31, 33, 1 << 20])
async def test_a_key_of_another_size_would_seal_nothing_that_can_be_opened(size: int) -> None:
    with pytest.raises(BrokenStreamError, match=f"a key of {size} bytes"):
        await read(frames.MAGIC + frames.frame(Kind.KEY, bytes(size)), 1 << 16)


def test_the_changes_of_another_tenant_do_not_continue_these_rows() -> None:
    mine = stream_name("t7", "m1", "out")
    frames.check_start(Stream(mine, 1), 7)
    for start in (Stream(mine, 1), Stream("no name of a stream", 1)):
        with pytest.raises(BrokenStreamError):
            frames.check_start(start, 8)


@pytest.mark.parametrize("kind", [Kind.KEY, Kind.STREAM])
@pytest.mark.parametrize("late", [False, True])
async def test_what_stands_before_the_tables_does_not_come_twice_or_later(kind: Kind, late: bool) -> None:
    payload = bytes(32) if kind is Kind.KEY else json.encode(Stream(stream_name("t7", "m1", "out"), 1))
    once = frames.frame(kind, payload)
    table = frames.frame(Kind.TABLE, json.encode(HEADER)) if late else b""
    with pytest.raises(BrokenStreamError, match="the beginning of a stream, in the middle of it"):
        await lanes.import_(lane, [], 7, pieces(frames.MAGIC + (table or once) + once, 64))


@asynccontextmanager
async def lane(number: int) -> AsyncIterator[None]:
    assert number < 0, "a lane is opened"
    yield
