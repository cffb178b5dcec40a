"""Webhooks go where anybody may go and nowhere else, signed so that the receiver can tell who sent them."""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from cell.modules.webhooks.guard import check_url, chosen
from cell.modules.webhooks.sender import DeliveryError, Sender, signature
from cell.modules.webhooks.service import Endpoint

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.0.0.5",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",  # the metadata of a machine in a cloud
    "100.64.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fc00::1",
    "fd12:3456::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2002:a00:5::1",
    "2001:db8::1",
]
PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_webhook_would_reach_what_only_the_cell_can_reach(address: str) -> None:
    assert chosen([address], private=False) is None
    assert chosen([address, "8.8.8.8"], private=False) == "8.8.8.8"
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ValueError, match="not a public address"):
        check_url(f"https://{host}/hook", private=False)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_webhook_to_a_public_address_is_refused(address: str) -> None:
    assert chosen([address], private=False) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook",
        "ftp://example.com/",
        "http://example.com/",
        "https://",
        "https:///path",
        "https://user:pass@example.com/",
        "https://user@example.com/",
        "https://example.com/#x",
        "https://example.com:port/",
        "https://example.com:99999/",
        "https://exa mple.com/",
        "https://example.com/\r\nHost: x",
        "https://[::1",
        "https://example.com/" + "x" * 1000,
        "https://exämple.com/",
        "file:///etc/passwd",
    ],
)
def test_a_url_that_is_none_or_hides_something_is_taken(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        check_url(url, private=False)


def test_a_laptop_may_send_to_itself_when_it_is_told_so() -> None:
    check_url("http://127.0.0.1:8000/hook", private=True)
    check_url("https://example.com:8443/hook?a=b", private=False)
    assert chosen(["127.0.0.1"], private=True) == "127.0.0.1"


def endpoint(url: str) -> Endpoint:
    return Endpoint(UUID(int=1), url, ("order.confirmed",), datetime(2026, 1, 1, tzinfo=UTC))


def send(
    url: str, answer: httpx.Response | Exception, addresses: Sequence[str] = ("93.184.216.34",), private: bool = False
) -> tuple[int, list[httpx.Request]]:
    """The status, and what was sent."""
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return addresses

    async def run() -> int:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
            sender = Sender(http, private=private, wall_clock=lambda: 1_700_000_000.7, resolve=resolve)
            return await sender.send(endpoint(url), SECRET, "event-1", b'{"a":1}')

    return asyncio.run(run()), seen


def test_a_receiver_could_not_tell_who_sent_it() -> None:
    status, (request,) = send("https://shop.example.com:8443/hook?x=1", httpx.Response(204))
    assert status == 204
    key, signed = b"k" * 32, b'evt_event-1.1700000000.{"a":1}'
    expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert request.headers["webhook-signature"] == expected
    assert (request.headers["webhook-id"], request.headers["webhook-timestamp"]) == ("evt_event-1", "1700000000")
    assert expected == signature(SECRET, "evt_event-1", "1700000000", b'{"a":1}')
    assert expected != signature(SECRET, "evt_event-1", "1700000001", b'{"a":1}')


def test_the_connection_would_be_made_by_a_name_that_may_change_its_mind() -> None:
    _, (request,) = send("https://shop.example.com:8443/hook?x=1", httpx.Response(200))
    assert (request.url.host, request.url.port, request.url.raw_path) == ("93.184.216.34", 8443, b"/hook?x=1")
    assert request.headers["host"] == "shop.example.com:8443"
    assert request.extensions["sni_hostname"] == "shop.example.com"


def test_a_name_that_resolves_to_the_inside_is_called() -> None:
    calls: list[Any] = []
    with pytest.raises(DeliveryError, match=r"shop.example.com has no public address"):
        calls += send("https://shop.example.com/", httpx.Response(200), ["10.0.0.1", "::1"])[1]
    assert calls == []


def test_an_endpoint_that_was_added_when_more_was_allowed_is_still_called() -> None:
    with pytest.raises(DeliveryError, match="https://HOST"):
        send("http://shop.example.com/", httpx.Response(200))


@pytest.mark.parametrize("status", [199, 301, 302, 307, 400, 401, 404, 410, 429, 500, 503])
def test_an_answer_that_is_no_success_counts_as_one(status: int) -> None:
    with pytest.raises(DeliveryError, match=str(status)) as caught:
        send("https://shop.example.com/", httpx.Response(status, headers={"location": "http://127.0.0.1/"}))
    assert caught.value.answer == status


def test_a_lost_connection_ends_the_worker() -> None:
    with pytest.raises(DeliveryError, match="ConnectError"):
        send("https://shop.example.com/", httpx.ConnectError("refused"))
