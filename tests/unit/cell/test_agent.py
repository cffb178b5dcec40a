"""The agent: registers, reports, and finds back to a control plane that was away or has forgotten it."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from cell.agent import BACKOFF_MAX_S, WINDOWS_KEPT, Agent, UsageReports
from cell.gate import Gate
from cell.health import Report
from contracts.fleet import Accepted, Heartbeat, Registration
from contracts.usage import PUSHED_TENANTS, TenantUsage, Window, added

REGISTRATION = Registration("127.0.0.1:1", "127.0.0.1:2", "local", "shared", 10, ("shard-1",), "s0001", "0.1.0")


class Pool:
    async def acquire(self, timeout: float) -> "Pool":
        return self

    async def release(self, connection: "Pool", timeout: float) -> None:
        assert connection is self

    async def fetchval(self, query: str) -> int:
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


def window(number: int, tenants: int = 1) -> Window:
    lines = tuple(TenantUsage(f"t{n}", 1) for n in range(1, tenants + 1))
    return Window(f"window-{number:04}", "cell-1", 0.0, 5.0, ("api",), tenants, 1.0, 1.0, (), lines, added("rest", ()))


async def told(answers: Callable[[int], httpx.Response], offered: int, *, until: int) -> list[Window]:
    """What reaches a control plane that gives these answers, by the number of the try, until so many tries."""
    tried: list[Window] = []
    enough = asyncio.Event()

    def handle(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("POST", "/v1/agent/cells/cell-1/usage")
        tried.append(msgspec.json.decode(request.content, type=Window))
        if len(tried) == until:
            enough.set()
        return answers(len(tried))

    async def at_once(_s: float) -> None:
        await asyncio.sleep(0)

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://control") as http:
        reports = UsageReports(http, cell="cell-1", sleep=at_once, jitter=lambda: 1.0)
        for number in range(offered):
            reports.offer(window(number))
        running = asyncio.create_task(reports.run())
        async with asyncio.timeout(60):
            await enough.wait()
        for _ in range(20):  # whatever is told beyond what was expected is told now
            await asyncio.sleep(0)
        running.cancel()
    return tried


def taken(_: int) -> httpx.Response:
    return httpx.Response(200, json={"message": "stored"})


async def test_windows_are_told_in_order_and_once() -> None:
    assert [w.id for w in await told(taken, 3, until=3)] == [window(n).id for n in range(3)]


async def test_a_window_is_told_until_it_was_taken() -> None:
    tried = await told(lambda n: httpx.Response(503) if n < 3 else taken(n), 2, until=4)
    assert [w.id for w in tried] == [window(n).id for n in (0, 0, 0, 1)]


async def test_a_window_that_is_refused_does_not_hold_up_the_next() -> None:
    tried = await told(lambda n: httpx.Response(400) if n == 1 else taken(n), 2, until=2)
    assert [w.id for w in tried] == [window(0).id, window(1).id]


async def test_a_long_absence_costs_bounded_memory_and_the_oldest_windows() -> None:
    tried = await told(taken, WINDOWS_KEPT + 5, until=WINDOWS_KEPT)
    assert [w.id for w in tried] == [window(n).id for n in range(5, WINDOWS_KEPT + 5)]


async def test_a_push_is_bounded_and_its_sum_is_not() -> None:
    pushed: list[Window] = []

    def handle(request: httpx.Request) -> httpx.Response:
        pushed.append(msgspec.json.decode(request.content, type=Window))
        return taken(1)

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://control") as http:
        reports = UsageReports(http, cell="cell-1")
        reports.offer(window(1, tenants=5000))
        running = asyncio.create_task(reports.run())
        async with asyncio.timeout(60):
            while not pushed:
                await asyncio.sleep(0)
        running.cancel()
    (only,) = pushed
    assert len(only.tenants) == PUSHED_TENANTS
    assert sum(line.requests for line in (*only.tenants, only.rest)) == 5000
