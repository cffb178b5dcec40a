"""The whole path under any split of the bytes, with and without the head cache: the outcome is the same."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.http1 import KnownHead, MalformedError, parse_request
from tests.unit.router.wire import World, requests_in, sent, statuses

_HOST = b"Host: t1.example.test\r\n"
_ANSWER = b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 5\r\n\r\nhello"

_REQUESTS = st.sampled_from(
    [
        b"GET /a HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"GET /b HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"\r\nGET /d HTTP/1.1\r\nhost: T2.example.test:80\r\nConnection: x\r\nX: 1\r\n\r\n",
        b"POST /e HTTP/1.1\r\n" + _HOST + b"Content-Length: 11\r\n\r\nhello GET /",
        b"POST /f HTTP/1.1\r\n"
        + _HOST
        + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\n",
        b"POST /g HTTP/1.1\r\n" + _HOST + b"Content-Length: 0\r\n\r\n",
        b"GET /unknown HTTP/1.1\r\nHost: nobody.example.test\r\n\r\n",
        b"GET /last HTTP/1.1\r\n" + _HOST + b"Connection: close\r\n\r\n",
        b"POST /bad HTTP/1.1\r\n" + _HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
        b"GET /bad HTTP/1.1\r\n" + _HOST + b"X : y\r\n\r\n",
        b"GET /t1 HTTP/1.1\r\n" + _HOST + b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01\r\nX: y\r\n\r\n",
        b"GET /t2 HTTP/1.1\r\n" + _HOST + b"traceparent: 00-" + b"c" * 32 + b"-" + b"d" * 16 + b"-00\r\nX: y\r\n\r\n",
        b"GET /t3 HTTP/1.1\r\n" + _HOST + b"traceparent: 00-" + b"C" * 32 + b"-" + b"d" * 16 + b"-00\r\nX: y\r\n\r\n",
        b"GET /bad\r\n\r\n",
        b"GET /lf HTTP/1.1\n" + _HOST + b"\r\n",
    ]
)


def _outcome(pieces: list[bytes], answer: list[bytes]) -> tuple[list[tuple[bytes, bytes]], bytes, bool]:
    """What the cell read whole, what the client read, and whether its connection ended."""
    world = World()
    client, transport = world.client()
    for piece in pieces:
        if transport.ended or transport.closed:
            break
        client.data_received(piece)
        _answer_all(world, answer)
    seen = [request for upstream in world.pool().made for request in requests_in(bytes(sent(upstream).sent))]
    assert world.pool().in_flight == (1 if client._exchange is not None else 0)
    return seen, bytes(transport.sent), transport.ended or transport.closed


def _answer_all(world: World, answer: list[bytes]) -> None:
    """Answer every request that has reached the cell whole; the next of a pipeline may come at once."""
    while True:
        busy = [u for u in world.pool().made if u.user is not None and u.user.request_sent]
        if not busy:
            return
        for upstream in busy:
            for piece in answer:
                upstream.data_received(piece)


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(edges)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(_REQUESTS, min_size=1, max_size=4),
    st.lists(st.integers(0, 10**6), max_size=30),
    st.lists(st.integers(0, 200), max_size=5),
)
def test_how_requests_and_answers_were_cut_changes_nothing(
    requests: list[bytes], cuts: list[int], answer_cuts: list[int]
) -> None:
    stream = b"".join(requests)
    whole = _outcome([stream], [_ANSWER])
    split = _outcome(_cut(stream, cuts), _cut(_ANSWER, answer_cuts))
    assert split[0] == whole[0]
    assert statuses(split[1]) == statuses(whole[1])
    assert split[2] == whole[2]


@given(st.lists(_REQUESTS, min_size=2, max_size=6))
def test_a_known_head_is_read_like_a_new_one(requests: list[bytes]) -> None:
    known: KnownHead | None = None
    for raw in requests:
        head = raw.removeprefix(b"\r\n").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        try:
            fresh = parse_request(head)[0]
        except MalformedError:
            with pytest.raises(MalformedError):
                parse_request(head, known)
            continue
        request, known = parse_request(head, known)
        assert request == fresh


def test_one_byte_at_a_time_is_the_same_request() -> None:
    stream = b"POST /f HTTP/1.1\r\n" + _HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    bytewise = _outcome(
        [stream[i : i + 1] for i in range(len(stream))], [_ANSWER[i : i + 1] for i in range(len(_ANSWER))]
    )
    assert bytewise == _outcome([stream], [_ANSWER])
