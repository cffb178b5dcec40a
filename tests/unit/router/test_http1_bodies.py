"""Bodies: where they end is decided once, strictly, and the same however the bytes were cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.framing import (
    MAX_CHUNK_EXTENSIONS,
    MAX_TRAILERS,
    ChunkedReader,
    FramingError,
    LengthReader,
    chunk,
)


@pytest.mark.parametrize(
    "body",
    [
        *(
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
        ),
        *(
            b"\r\nhello\r\n0\r\n\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\r0\r\n\r\n",
            b"g\r\n",
        ),
        *(
            b"5;\r\nhello\r\n0\r\n\r\n",
            b"5;a\nhello\r\n0\r\n\r\n",
            b"5;a\rb\r\nhello\r\n0\r\n\r\n",
            b"5;a\x00b\r\nhello\r\n",
        ),
        *(
            b"FFFFFFFFFFFFFFFF\r\nhello",
            b"10000000000000005\r\nhello",
            b"5,\r\nhello\r\n",
            b"5_0\r\n",
            b"5 5\r\nhello\r\n",
        ),
        *(
            b"5\r\nhello\r\n0\n\n",
            b"0\r\nbad trailer\r\n\r\n",
            b"0\r\nX: a\rb\r\n\r\n",
            b"0\r\n X: a\r\n\r\n",
            b"0\r\nX : a\r\n\r\n",
        ),
        *(b"-5\r\nhello\r\n", b"5\r\nhelloXX0\r\n\r\n", b"\xef\xbc\x95\r\nhello\r\n"),
    ],
)
def test_a_chunk_that_two_readers_could_read_differently_is_refused(body: bytes) -> None:
    with pytest.raises(FramingError):
        ChunkedReader().feed(body)


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"5\r\nhello\r\n0\r\n\r\n",
            b"005\r\nhello\r\n000\r\n\r\n",
            b"5;a=b\r\nhello\r\n0;x\r\n\r\n",
            b'5 ; a = "b;c"\r\nhello\r\n0\r\n\r\n',
        ),
        *(b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"),
    ],
)
def test_payload_comes_out_without_extensions_and_trailers_and_the_rest_is_kept(body: bytes) -> None:
    reader = ChunkedReader()
    assert reader.feed(body + b"GET /next") == b"hello"
    assert reader.done
    assert reader.rest == b"GET /next"


def test_endless_extensions_and_trailers_are_bounded() -> None:
    with pytest.raises(FramingError):
        ChunkedReader().feed(b"1;a=" + b"b" * 5000)
    with pytest.raises(FramingError):
        ChunkedReader().feed((b"1;" + b"e" * 500 + b"\r\na\r\n") * (MAX_CHUNK_EXTENSIONS // 500 + 1))
    with pytest.raises(FramingError):
        ChunkedReader().feed(b"0\r\n" + b"X-T: v\r\n" * (MAX_TRAILERS // 8 + 1))
    with pytest.raises(FramingError):
        ChunkedReader().feed(b"0\r\nX-T: " + b"v" * MAX_TRAILERS)


def test_a_body_never_takes_bytes_of_the_next_request() -> None:
    reader = LengthReader(5)
    assert reader.feed(b"hel") == b"hel"
    assert not reader.done
    assert reader.feed(b"loGET /") == b"lo"
    assert reader.done
    assert reader.rest == b"GET /"


def _read(pieces: list[bytes]) -> tuple[bytes, bytes] | str:
    reader, out = ChunkedReader(), b""
    for number, piece in enumerate(pieces):
        try:
            out += reader.feed(piece)
        except FramingError:
            return "refused"
        if reader.done:
            return out, reader.rest + b"".join(pieces[number + 1 :])
    return out, b"incomplete"


_BAD = st.sampled_from([b"", b"5\nhello\r\n", b"1;\r\na\r\n", b"x", b"\r", b"0\r\nX: a\x00\r\n\r\n", b"3\r\nabc0\r\n"])
_SENT = st.tuples(st.lists(st.binary(min_size=1, max_size=40).map(chunk), max_size=6), _BAD, st.binary(max_size=20))


@given(_SENT, st.lists(st.integers(0, 400), max_size=12))
def test_how_the_bytes_were_cut_changes_nothing(parts: tuple[list[bytes], bytes, bytes], cuts: list[int]) -> None:
    body = b"".join(parts[0]) + parts[1] + b"0\r\nX-T: 1\r\n\r\n" + parts[2]
    edges = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    pieces = [body[a:b] for a, b in pairwise(edges)]
    assert _read(pieces) == _read([body])
