"""The agent: registers, reports, and finds back to a control plane that was away or has forgotten it."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from cell.agent import BACKOFF_MAX_S, Agent
from cell.gate import Gate
from cell.health import Report
from contracts.fleet import Accepted, Heartbeat, Registration

REGISTRATION = Registration("127.0.0.1:1", "127.0.0.1:2", "local", "shared", 10, ("shard-1",), "s0001", "0.1.0")


class Pool:
    async def fetchval(self, query: str, timeout: float) -> int:
        assert "active" in query
        return 3


class FakeShards:
    names = ("shard-1", "shard-2")

    def pool(self, name: str) -> Pool:
        assert name in self.names
        return Pool()


class FakeHealth:
    async def report(self) -> Report:
        return Report(True)


class Ended(BaseException):
    """The test has seen enough."""


async def run(
    answers: Callable[[httpx.Request], httpx.Response], pauses: int
) -> tuple[list[httpx.Request], list[float]]:
    """The requests and the pauses of an agent that ends at its n-th pause."""
    requests: list[httpx.Request] = []
    slept: list[float] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return answers(request)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == pauses:
            raise Ended

    transport = httpx.MockTransport(handle)
    async with httpx.AsyncClient(transport=transport, base_url="http://control") as http:
        parts: dict[str, Any] = {"shards": FakeShards(), "health": FakeHealth()}
        gate = Gate(asyncio.get_running_loop().time)
        agent = Agent(
            http, cell="cell-1", registration=REGISTRATION, gate=gate, sleep=sleep, jitter=lambda: 1.0, **parts
        )
        with pytest.raises(Ended):
            await agent.run()
    return requests, slept


def accepted(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=msgspec.json.encode(Accepted("active", 5.0)))


async def test_it_registers_once_and_then_reports_when_asked() -> None:
    requests, slept = await run(accepted, pauses=3)
    assert [(r.method, r.url.path) for r in requests] == [
        ("PUT", "/v1/agent/cells/cell-1"),
        ("POST", "/v1/agent/cells/cell-1/heartbeat"),
        ("POST", "/v1/agent/cells/cell-1/heartbeat"),
    ]
    assert slept == [5.0, 5.0, 5.0]
    assert msgspec.json.decode(requests[0].content, type=Registration) == REGISTRATION
    assert msgspec.json.decode(requests[1].content, type=Heartbeat) == Heartbeat("s0001", "0.1.0", 6, 0, True)


async def test_a_control_plane_that_forgot_the_cell_hears_of_it_again() -> None:
    def forgets(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404) if request.method == "POST" else accepted(request)

    requests, _ = await run(forgets, pauses=4)
    assert [r.method for r in requests] == ["PUT", "POST", "PUT", "POST"]


async def test_a_control_plane_that_is_away_is_asked_with_backoff() -> None:
    def away(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    _, slept = await run(away, pauses=12)
    assert slept == sorted(slept)
    assert slept[0] < 1.0
    assert slept[-1] == BACKOFF_MAX_S
