"""The parts of the ambassador that decide, without sockets: identity, paths, fields, differences, settings."""

from typing import Any

import pytest

from cell.zero import identity, settings
from cell.zero.exchange import Body, BodyTooLargeError, ClientLeftError, end_to_end
from cell.zero.modern import Paths
from cell.zero.shadow import difference, readable
from contracts import keys
from contracts.problems import ProblemError

SID = "a" * 64


@pytest.mark.parametrize(
    ("cookies", "found"),
    [
        ([b"SITZUNG=abc"], ["abc"]),
        ([b"a=b; SITZUNG=abc; c=d", b"SITZUNG=def"], ["abc", "def"]),
        ([b"SITZUNG=abc; SITZUNG=def"], ["abc", "def"]),
        ([b"a=b SITZUNG = abc"], ["abc"]),
        ([b'SITZUNG="abc"'], ['"abc"']),
        ([b"other=abc"], []),
    ],
)
def test_a_second_session_would_be_overlooked(cookies: list[bytes], found: list[str]) -> None:
    assert identity.sessions_in([(b"host", b"x"), *((b"cookie", each) for each in cookies)]) == found


@pytest.mark.parametrize("value", ['"abc"', '"\\141bc"', "ab,c", "x" * 129, "a%41"])
async def test_a_session_that_the_monolith_reads_otherwise_would_pass(value: str) -> None:
    no_pool: Any = None
    with pytest.raises(ProblemError, match="unauthenticated"):
        await identity.Sessions(no_pool).check([(b"cookie", b"SITZUNG=" + value.encode())], 1)


@pytest.mark.parametrize(
    ("query", "form", "passes"),
    [
        (b"", b"", True),
        (b"knr=17", b"", True),
        (b"knr=%31%37", b"knr=17&login=x", True),
        (b"knr=18", b"", False),
        (b"knr=17&knr=18", b"", False),
        (b"k%6er=18", b"", False),
        (b"", b"login=x&knr=18", False),
        (b"knr=017", b"", False),
        (b"knr=", b"", True),
    ],
)
def test_another_customers_number_would_pass(query: bytes, form: bytes, passes: bool) -> None:
    named = identity.customers_in(query, form)
    if passes:
        identity.check_named(named, 17)
    else:
        with pytest.raises(ProblemError, match="forbidden"):
            identity.check_named(named, 17)


def test_a_path_would_be_served_by_the_wrong_side() -> None:
    short, long, page = object(), object(), object()
    cells: Any = {"/v1": short, "/v1/orders": long, "/export.php": page}
    paths = Paths(cells)
    for path, cell in {
        "/v1": short, "/v1/": short, "/v1/products": short, "/v1/orders": long, "/v1/orders/7": long,
        "/v1/ordersx": short, "/v1x": None, "/": None, "/export.php": page, "/export.phpx": None,
    }.items():  # fmt: skip
        assert paths.cell_of(path) is cell, path


def test_a_field_of_one_connection_or_of_the_envelope_would_go_on() -> None:
    kept = [(b"accept", b"x"), (b"content-length", b"3"), (b"x-celly", b"1")]
    dropped = [
        (b"connection", b"close, X-Once"), (b"x-once", b"1"), (b"transfer-encoding", b"chunked"), (b"te", b"trailers"),
        (b"Cell-Tenant", b"t1"), (b"cell-signature", b"s"), (b"upgrade", b"h2c"), (b"expect", b"100-continue"),
    ]  # fmt: skip
    assert end_to_end([*kept, *dropped]) == kept


async def test_a_body_without_end_or_a_cut_one_would_count_as_sent() -> None:
    def told(*messages: dict[str, Any]) -> Any:
        left = iter(messages)

        async def receive() -> Any:
            return next(left)

        return receive

    some = {"type": "http.request", "body": b"12345", "more_body": True}
    last = {"type": "http.request", "body": b"67890", "more_body": False}
    whole = Body(told(some, last), 10)
    assert [piece async for piece in whole.pieces()] == [b"12345", b"67890"]
    assert whole.sent
    for body, error in (
        (Body(told(some, last), 9), BodyTooLargeError),
        (Body(told(some, {"type": "http.disconnect"}), 10), ClientLeftError),
    ):
        with pytest.raises(error):
            assert [piece async for piece in body.pieces()]
        assert not body.sent


def test_a_shadow_read_would_call_the_same_different_or_the_different_same() -> None:
    html = "text/html; charset=utf-8"
    same = difference(html, b"<b>x</b> <i>y</i>", 200, "text/html;charset=UTF-8", b"<b>x</b>\n\n<i>y</i>\n")
    assert same == ""
    assert "+<b>y</b>" in difference(html, b"<p><b>x</b></p>", 200, html, b"<p><b>y</b></p>")
    assert difference(html, b"x y", 200, html, b"x  y") != ""
    assert "status 404" in difference(html, b"", 404, html, b"")
    assert "text/csv" in difference("text/csv", b"", 200, html, b"")
    assert len(difference("text/csv", b"a\n" * 9000, 200, "text/csv", b"b\n" * 9000)) == 2000
    assert readable("text/plain", b"<a> <b>") == ["<a> <b>"]


GOOD = {
    "DSN": "postgresql://u:p@127.0.0.1/shop",
    "LISTEN": "127.0.0.1:1",
    "INTERNAL_LISTEN": "127.0.0.1:2",
    "ENVELOPE_KEY": keys.text_of(b"k" * 32),
    "SECRETS_KEY": keys.text_of(b"s" * 32),
    "TRANSFER_TOKEN": "t" * 43,
    "MONOLITH": "http://127.0.0.1:3/",
}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DSN", "mysql://x", "CELLWALL_ZERO_DSN"),
        ("MONOLITH", "https://u@h/x", "CELLWALL_ZERO_MONOLITH: Value error, must be http://HOST:PORT"),
        ("PATHS", '{"/v1": "cell-1"}', "names cells that CELLWALL_ZERO_CELLS does not: cell-1"),
        ("PATHS", '{"v1": "cell-1"}', "a path begins with /"),
        ("PATHS", "{", "CELLWALL_ZERO_PATHS: not valid JSON"),
        ("TRANSFER_TOKEN", "short", "CELLWALL_ZERO_TRANSFER_TOKEN"),
        ("AT_ONCE", "0", "CELLWALL_ZERO_AT_ONCE"),
        ("LONGEST_REQUEST_S", "0", "CELLWALL_ZERO_LONGEST_REQUEST_S"),
        ("CONTROL_PLANE_URL", "http://x", "CELLWALL_ZERO_AGENT_TOKEN"),
    ],
)
def test_a_bad_setting_would_be_a_traceback(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for each, text in (GOOD | {name: value}).items():
        monkeypatch.setenv(f"CELLWALL_ZERO_{each}", text)
    with pytest.raises(SystemExit) as stopped:
        settings.load(settings.AmbassadorSettings)
    (line,) = capsys.readouterr().err.splitlines()
    assert (stopped.value.code, said in line) == (2, True), line


def test_good_settings_would_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = f'{{"cell-1": {{"address": "127.0.0.1:4", "envelope_key": "{GOOD["ENVELOPE_KEY"]}"}}}}'
    for each, text in (GOOD | {"CELLS": cells, "PATHS": '{"/v1": "cell-1"}'}).items():
        monkeypatch.setenv(f"CELLWALL_ZERO_{each}", text)
    loaded = settings.load(settings.AmbassadorSettings)
    assert (loaded.name, loaded.monolith, loaded.paths) == ("cell-zero", "http://127.0.0.1:3", {"/v1": "cell-1"})
