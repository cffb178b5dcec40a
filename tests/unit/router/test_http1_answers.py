"""Answers of a cell that must not reach a client as if they were good."""

import pytest

from router.framing import CHUNKED, UNTIL_EOF
from router.http1 import AnswerHead, MalformedError, parse_answer


def parse(fields: bytes = b"", line: bytes = b"HTTP/1.1 200 OK", method: bytes = b"GET") -> AnswerHead:
    return parse_answer(line + b"\r\n" + fields + b"\r\n", method)


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"HTTP/1.1 20 OK",
            b"HTTP/1.1 2000 OK",
            b"HTTP/1.1 600 X",
            b"HTTP/1.1 099 X",
            b"HTTP/2.0 200 OK",
            b"HTTP/1.1  200 OK",
        ),
        *(
            b"HTTP/1.1 200\tOK",
            b"ICY 200 OK",
            b"HTTP/1.1 200 O\x00K",
            b"HTTP/1.1 200 O\rK",
            b" HTTP/1.1 200 OK",
            b"200 OK",
        ),
    ],
)
def test_a_malformed_status_line_is_not_passed_on(line: bytes) -> None:
    with pytest.raises(MalformedError):
        parse(line=line)


@pytest.mark.parametrize(
    "fields",
    [
        *(
            b"Content-Length: 5\r\nContent-Length: 6\r\n",
            b"Content-Length: 5\r\nContent-Length: 5\r\n",
            b"Content-Length: x\r\n",
        ),
        *(
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: gzip\r\n",
            b"X : y\r\n",
            b"X: y\r\n z\r\n",
        ),
        *(
            b"Content-Length : 5\r\n",
            b"Transfer-Encoding: \x0bchunked\r\n",
            b"X: a\rSet-Cookie: b\r\n",
            b"X: a\nY: b\r\n",
        ),
    ],
)
def test_an_answer_that_two_readers_could_read_differently_is_not_passed_on(fields: bytes) -> None:
    with pytest.raises(MalformedError):
        parse(fields)


def test_chunks_in_an_http_1_0_answer_are_not_passed_on() -> None:
    with pytest.raises(MalformedError):
        parse(b"Transfer-Encoding: chunked\r\n", line=b"HTTP/1.0 200 OK")


def test_an_answer_without_a_body_is_finished_at_its_head_whatever_its_fields_say() -> None:
    assert parse(b"Content-Length: 5\r\n", method=b"HEAD").framing == 0
    assert parse(b"Content-Length: 5\r\n", line=b"HTTP/1.1 304 Not Modified").framing == 0
    assert parse(b"Transfer-Encoding: chunked\r\n", line=b"HTTP/1.1 204 No Content").framing == 0
    assert parse(b"Content-Length: 5\r\n", line=b"HTTP/1.1 100 Continue").framing == 0


def test_framing_is_read_from_the_fields() -> None:
    assert parse(b"Content-Length: 5\r\n").framing == 5
    assert parse(b"Transfer-Encoding: chunked\r\n").framing == CHUNKED
    head = parse()
    assert head.framing == UNTIL_EOF
    assert not head.keep_alive


def test_the_cells_words_to_the_router_do_not_reach_the_client() -> None:
    head = parse(b"Cell-Refused: misdirected\r\nCell-Route: x\r\nCell-Served: cell-1;epoch=3\r\nContent-Length: 0\r\n")
    assert (head.refused, head.route) == (b"misdirected", b"x")
    assert head.lines == b"Cell-Served: cell-1;epoch=3\r\n"


def test_hop_by_hop_fields_of_an_answer_stay_on_their_hop() -> None:
    head = parse(
        b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: a\r\nUpgrade: h2c\r\nTrailer: X\r\nX-End: 1\r\n"
    )
    assert head.lines == b"X-End: 1\r\n"


def test_a_close_of_the_cell_is_heard() -> None:
    assert parse(b"Content-Length: 0\r\n").keep_alive
    assert not parse(b"Content-Length: 0\r\nConnection: close\r\n").keep_alive
    assert not parse(b"Content-Length: 0\r\n", line=b"HTTP/1.0 200 OK").keep_alive
