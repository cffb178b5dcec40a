"""Requests that must not get through, and what of good ones does. Each group is a class of attack or of breakage."""

import httptools
import pytest

from router.framing import CHUNKED
from router.http1 import MAX_HEAD, METHODS, MalformedError, Request, check_request_line, head_end, parse_request

HOST = b"Host: t1.example.test\r\n"


def parse(line: bytes = b"GET /a HTTP/1.1", fields: bytes = HOST) -> Request:
    return parse_request(line + b"\r\n" + fields + b"\r\n")[0]


def refused(line: bytes = b"GET /a HTTP/1.1", fields: bytes = HOST) -> int:
    with pytest.raises(MalformedError) as caught:
        parse(line, fields)
    return caught.value.problem.status


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"GET /a HTTP/2.0",
            b"GET /a HTTP/0.9",
            b"GET /a HTTP/1.2",
            b"GET /a http/1.1",
            b"GET /a",
            b"GET /a HTTP/1.1 ",
        ),
        *(b"GET  /a HTTP/1.1", b"GET\t/a HTTP/1.1", b" GET /a HTTP/1.1", b"G(T /a HTTP/1.1", b"GET /a b HTTP/1.1"),
        *(
            b"GET /a\x00 HTTP/1.1",
            b"GET /a#b HTTP/1.1",
            b"GET /\xc3\xa9 HTTP/1.1",
            b"GET a HTTP/1.1",
            b"GET * HTTP/1.1",
        ),
        *(
            b"GET http:/a HTTP/1.1",
            b"GET ftp://t1.example.test/a HTTP/1.1",
            b"PRI * HTTP/2.0",
            b"GET http:///a HTTP/1.1",
        ),
    ],
)
def test_a_request_line_that_two_readers_could_read_differently_is_refused(line: bytes) -> None:
    assert refused(line) == 400


@pytest.mark.parametrize("value", [b"chunked, identity", b"gzip, chunked", b"xchunked", b'"chunked"', b"chunked;q=1"])
def test_a_transfer_coding_other_than_chunked_alone_is_refused(value: bytes) -> None:
    assert refused(b"POST /a HTTP/1.1", HOST + b"Transfer-Encoding: " + value + b"\r\n") in (400, 501)


@pytest.mark.parametrize(
    "value", [b"", b"\x0bchunked", b"chunked\x85", b"\xa0chunked", b"chunked, chunked", b"chunked,"]
)
def test_a_disguised_chunked_is_refused(value: bytes) -> None:
    assert refused(b"POST /a HTTP/1.1", HOST + b"Transfer-Encoding: " + value + b"\r\n") in (400, 501)


@pytest.mark.parametrize(
    "value", [b"-5", b"+5", b"0x5", b"5.0", b"5,5", b'"5"', b"", b"5 5", b"1e1", b"\xb2", b"9" * 19, b"5\x0b"]
)
def test_a_content_length_that_is_not_one_number_is_refused(value: bytes) -> None:
    assert refused(b"POST /a HTTP/1.1", HOST + b"Content-Length: " + value + b"\r\n") == 400


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_a_body_framed_twice_is_refused(fields: bytes) -> None:
    assert refused(b"POST /a HTTP/1.1", HOST + fields) in (400, 501)


def test_chunks_in_http_1_0_are_refused_because_the_next_hop_may_not_know_them() -> None:
    assert refused(b"POST /a HTTP/1.0", HOST + b"Transfer-Encoding: chunked\r\n") == 400


@pytest.mark.parametrize(
    "fields",
    [
        *(
            b"X-A : b\r\n",
            b"X-A\t: b\r\n",
            b" X-A: b\r\n",
            b"X-A: b\r\n c\r\n",
            b": b\r\n",
            b"X A: b\r\n",
            b"nocolon\r\n",
        ),
        *(b"X\x00A: b\r\n", b"X-A: \x00\r\n", b"X-A: \x01\r\n", b"X-A: \x7f\r\n", b"(X): b\r\n", b"X\xff: b\r\n"),
        *(b"X-A: b\nX-B: c\r\n", b"X-A: b\rX-B: c\r\n", b"\rX-A: b\r\n"),
    ],
)
def test_a_field_line_that_two_readers_could_read_differently_is_refused(fields: bytes) -> None:
    assert refused(fields=HOST + fields) == 400


@pytest.mark.parametrize(
    "value", [b"a b", b"a/b", b"a?b", b"a#b", b"<a>", b"a:b", b"u@a", b"a,b", b"a:99999", b"a\x00", b"[::1", b"a\\b"]
)
def test_a_host_that_is_no_authority_is_refused(value: bytes) -> None:
    assert refused(fields=b"Host: " + value + b"\r\n") == 400


@pytest.mark.parametrize("fields", [b"", HOST + HOST, HOST + b"hOsT: evil.example\r\n", b"Host : a\r\n"])
def test_no_host_or_two_are_refused(fields: bytes) -> None:
    assert refused(fields=fields) == 400


def test_an_absolute_target_must_name_the_authority_that_host_names() -> None:
    assert refused(b"GET http://evil.example/a HTTP/1.1") == 400
    request = parse(b"GET http://t1.example.test/a?b=c HTTP/1.1")
    assert (request.target, request.fields.host) == (b"/a?b=c", b"t1.example.test")
    assert parse(b"GET http://t1.example.test HTTP/1.1").target == b"/"
    assert parse(b"GET http://t1.example.test?x HTTP/1.1").target == b"/?x"
    assert parse(b"OPTIONS http://t1.example.test HTTP/1.1").target == b"*"


def test_connect_is_not_supported_even_behind_a_known_head() -> None:
    _, known = parse_request(b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n")
    assert known is not None
    with pytest.raises(MalformedError) as caught:
        parse_request(b"CONNECT /a HTTP/1.1\r\n" + HOST + b"\r\n", known)
    assert caught.value.problem.status == 501


@pytest.mark.parametrize("method", [b"WAT", b"get", b"A" * 300, b"PRI", b"DESCRIBE", b"G"])
def test_a_method_that_no_cell_can_read_is_not_sent_to_one(method: bytes) -> None:
    """Its server would answer 400 in plain text, and close a connection that others could have used."""
    _, known = parse_request(b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n")
    for behind in (None, known):
        with pytest.raises(MalformedError) as caught:
            parse_request(method + b" /a HTTP/1.1\r\n" + HOST + b"\r\n", behind)
        assert caught.value.problem.status == 501


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_that_is_sent_to_cells_is_one_that_their_server_reads(method: bytes) -> None:
    server = httptools.HttpRequestParser(object())
    server.feed_data(method + b" /a HTTP/1.1\r\n" + HOST + b"\r\n")
    assert server.get_method() == method
    assert parse(method + b" /a HTTP/1.1").method == method


def test_more_than_one_credential_is_refused_because_the_cell_may_read_the_other() -> None:
    assert refused(fields=HOST + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n") == 400


def test_hop_by_hop_fields_and_what_connection_nominates_stay_on_their_hop() -> None:
    lines = parse(
        fields=HOST
        + b"Connection: X-One, keep-alive\r\nX-One: 1\r\nConnection: x-two\r\nX-Two: 2\r\nKeep-Alive: a\r\n"
        + b"TE: trailers\r\n"
        + b"Upgrade: h2c\r\nHTTP2-Settings: a\r\nProxy-Connection: a\r\nProxy-Authorization: b\r\n"
        + b"Trailer: c\r\nX-Three: 3\r\n"
    ).fields.lines
    assert lines == b"X-Three: 3\r\n"


def test_a_client_cannot_set_what_only_the_router_may_say() -> None:
    lines = parse(
        fields=HOST
        + b"Cell-Tenant: t2\r\nCELL-SIGNATURE: x\r\nCell_Epoch: 9\r\nForwarded: for=1.1.1.1\r\n"
        + b"X-Forwarded-For: 1.1.1.1\r\n"
        + b"X-Forwarded-Host: evil\r\nX-Real-IP: 1.1.1.1\r\nX-Tenant-ID: t2\r\nAccept: */*\r\n"
    ).fields.lines
    assert lines == b"Accept: */*\r\n"


def test_a_good_field_is_passed_as_it_is() -> None:
    fields = b"X-Empty:\r\nX-A:\t b \t\r\nX.|~: \xc3\xa9\r\nCookie: a=1\r\nCookie: b=2\r\n"
    expected = b"X-Empty: \r\nX-A: b\r\nX.|~: \xc3\xa9\r\nCookie: a=1\r\nCookie: b=2\r\n"
    assert parse(fields=HOST + fields).fields.lines == expected


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (b"POST /a HTTP/1.1", b""),
        (b"GET /a HTTP/1.1", b"Content-Length: 5\r\n"),
        (b"GET /a HTTP/1.1", b"Transfer-Encoding: chunked\r\n"),
        (b"GET /a HTTP/1.0", b""),
    ],
)
def test_a_websocket_with_a_body_is_refused_because_the_body_would_come_out_of_the_tunnel(
    line: bytes, fields: bytes
) -> None:
    assert refused(line, HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + fields) == 400


def test_only_a_websocket_upgrade_is_passed_on() -> None:
    asked = parse(fields=HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n").fields
    assert asked.websocket == b"connection: upgrade\r\nupgrade: websocket\r\n"
    assert parse(fields=HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n").fields.websocket == b""
    assert parse(fields=HOST + b"Upgrade: websocket\r\n").fields.websocket == b""


def test_framing_and_persistence_are_read_from_the_fields() -> None:
    assert parse(b"POST /a HTTP/1.1", HOST + b"Content-Length: 007\r\n").fields.framing == 7
    assert parse(b"POST /a HTTP/1.1", HOST + b"Transfer-Encoding: CHUNKED\r\n").fields.framing == CHUNKED
    assert parse().fields.keep_alive
    assert not parse(fields=HOST + b"Connection: Close\r\n").fields.keep_alive
    assert not parse(b"GET /a HTTP/1.0", HOST + b"Connection: keep-alive\r\n").fields.keep_alive


def test_a_malformed_trace_is_not_continued() -> None:
    good = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    assert parse(fields=HOST + b"traceparent: " + good + b"\r\n").traceparent == good
    assert parse(fields=HOST + b"traceparent: 00-zz\r\n").traceparent is None
    assert parse(fields=HOST + (b"traceparent: " + good + b"\r\n") * 2).traceparent is None


def test_a_known_head_is_left_where_anything_but_the_trace_differs() -> None:
    def head(trace: bytes, rest: bytes = b"X: 1\r\n") -> bytes:
        return b"GET /a HTTP/1.1\r\n" + HOST + b"traceparent: " + trace + b"\r\n" + rest + b"\r\n"

    one, two = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"00-" + b"c" * 32 + b"-" + b"d" * 16 + b"-01"
    first, known = parse_request(head(one))
    again, same = parse_request(head(two), known)
    assert (again.fields is first.fields, again.traceparent, same) == (True, two, known)
    for other in (head(two, b"X: 2\r\n"), head(two[:-1] + b"g"), head(b"X\r\nY: " + two[6:]), head(two[:-2] + b"0\r")):
        request = None
        try:
            request, _ = parse_request(other, known)
        except MalformedError:
            continue
        assert request.fields is not first.fields


def test_a_trace_that_stands_twice_in_a_head_is_not_taken_for_the_other_field() -> None:
    trace = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    fields = HOST + b"X-Debug: " + trace + b"\r\ntraceparent: " + trace + b"\r\n"
    assert parse_request(b"GET /a HTTP/1.1\r\n" + fields + b"\r\n")[1] is None


@pytest.mark.parametrize(
    "head",
    [
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /a HTTP/1.0\r\nHost: a\r\n\r\n",
    ],
)
def test_what_depends_on_more_than_its_fields_never_becomes_a_known_head(head: bytes) -> None:
    assert parse_request(head)[1] is None


def test_a_head_that_never_ends_is_bounded() -> None:
    with pytest.raises(MalformedError) as caught:
        head_end(b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD, 0)
    assert caught.value.problem.status == 431
    assert refused(fields=HOST + b"X: y\r\n" * 200) == 431


@pytest.mark.parametrize("begun", [b"GET /\r\n", b"GET / HTTP/3\r\n", b"\x16\x03\x01\r\n"])
def test_an_incomplete_head_that_cannot_become_good_is_answered_at_once(begun: bytes) -> None:
    with pytest.raises(MalformedError):
        check_request_line(begun)


@pytest.mark.parametrize(
    "begun", [b"GET / HTTP/1.1\nHost: a\n\n", b"GET / HTTP/1.1\r\nHost: a\n\r\n", b"GET /\r HTTP/1.1"]
)
def test_bare_cr_and_lf_do_not_end_lines(begun: bytes) -> None:
    with pytest.raises(MalformedError):
        head_end(begun, 0)


def test_a_cr_whose_lf_is_still_on_its_way_is_no_error() -> None:
    assert head_end(b"GET / HTTP/1.1\r", 0) == -1
