"""The driver's processes against real sockets: what they send, what they count, and how they end."""

import asyncio
import itertools
import math
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httptools
import pytest

from loadtest.driver import Driver
from loadtest.lab.collect import Collector
from loadtest.lab.drivers import crew
from loadtest.lab.hogs import hog
from loadtest.lab.job import Address, Hold
from loadtest.lab.machine import Reading
from loadtest.lab.plan import Drive, Tenant, jobs, phases
from loadtest.lab.quiet import quiet
from loadtest.lab.reading import parse
from loadtest.lab.remote import Remote, RemoteSystem
from loadtest.lab.result import Books, Case, Meta, Role, Validity
from loadtest.lab.samples import SampleRecord
from loadtest.lab.system import Need
from loadtest.operator import LabError
from loadtest.record import Record
from loadtest.schedule import Intent, Kind
from loadtest.wire import Pool
from loadtest.workload import Account

PATIENCE_S = 60.0
CLOSING = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class Shop:
    """The few answers of the product that the driver needs, from memory. ``stale``: orders that reads do not show."""

    stale: bool = False
    refuse: bytes = b""  # the status line with which every list is refused
    port: int = 0
    tenants: int = 0
    targets: list[str] = field(default_factory=list)
    orders: dict[str, list[str]] = field(default_factory=dict)

    def answer(self, method: str, target: str, host: str, body: bytes) -> tuple[str, bytes]:
        self.targets.append(f"{method} {target}")
        mine = self.orders.setdefault(host, [])
        if target == "/v1/signup":
            self.tenants += 1
            n = self.tenants
            made = f'{{"tenant":"t{n}","slug":"t{n}","host":"t{n}.shop.test","api_key":"cwk_x","user_id":"u"}}'
            return "201 Created", made.encode()
        if method == "POST" and target == "/v1/orders":
            reference = body.partition(b'"reference":"')[2].partition(b'"')[0].decode()
            mine.append(reference)
            return "201 Created", b'{"id":"order-of-%s"}' % reference.encode()
        if method == "POST":
            return "201 Created", b'{"id":"p1"}'
        if target.startswith("/v1/orders?"):
            if self.refuse:
                return self.refuse.decode(), b"{}"
            shown = [] if self.stale else [f'{{"id":"order-of-{ref}","reference":"{ref}"}}' for ref in mine]
            return "200 OK", f'{{"items":[{",".join(shown)}],"next":null}}'.encode()
        if target.startswith("/v1/orders/"):
            known = not self.stale and target.removeprefix("/v1/orders/order-of-") in mine
            return (
                ("200 OK", b'{"id":"%s"}' % target.rpartition("/")[2].encode()) if known else ("404 Not Found", b"{}")
            )
        return "200 OK", b"{}"


class _Connection(asyncio.Protocol):
    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._target, self._host, self._body = "", "", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._target += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"host":
            self._host = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        status, body = self._shop.answer(method, self._target, self._host, self._body)
        head = f"HTTP/1.1 {status}\r\nCell-Served: cell-1;epoch=1\r\nContent-Type: application/json\r\n"
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self._reset()


@asynccontextmanager
async def opened(shop: Shop) -> AsyncIterator[Shop]:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(shop), "127.0.0.1", 0)
    shop.port = server.sockets[0].getsockname()[1]
    try:
        yield shop
    finally:
        server.close()


def tenant(number: int, role: Role = Role.VICTIM) -> Tenant:
    name = f"t{number}"
    return Tenant(
        number, Account(name, name, f"{name}.shop.test", "cwk_x", ("p1",)), "cell-1", role, ("order-of-first",)
    )


SCENARIO = parse(
    """
kind: noisy-neighbour
name: x
victims: {per_cell: 3, rate: 20, mix: {order create: 0.5, order list: 0.5}}
aggressors: {kinds: [cheap-flood], counts: [1], times: 3}
phases: {warmup: 0, alone: 1, load: 1, after: 0}
driver: {processes: 2}
""",
    "x",
)
CASE = SCENARIO.cases()[0]


async def test_processes_of_the_driver_send_other_requests_than_the_schedule_has() -> None:
    tenants = [*map(tenant, range(3)), tenant(3, Role.AGGRESSOR)]
    async with opened(Shop()) as shop:
        target = [Address("shop", "127.0.0.1", shop.port)]
        plan = phases(SCENARIO, 3)
        parts = jobs(SCENARIO, Drive("run", 7, target, 20.0, 2.0, (1.0, 2.0), CASE), tenants)
        assert len(parts) == 3
        async with asyncio.timeout(PATIENCE_S), crew(parts) as ready:
            ready.go()
            tallies = await ready.tallies()
            seen = ready.progress
    collector = Collector(plan, tenants)
    collector.add(parts, tallies)
    valid = Validity(valid=True, reasons=[], drivers=[], steal_share=0, pressure_share=0)
    meta = Meta(scenario="x", kind="x", case=Case(), repeat=1, seed=7, started="")
    result = collector.result(meta, events=[], books=Books(checked=False), validity=valid)
    assert len(shop.targets) == sum(tally.requests for tally in tallies) == sum(group.sent for group in result.groups)
    assert all(group.errors == 0 for group in result.groups)
    assert {(group.role, group.phase) for group in result.groups} == {
        (Role.VICTIM, "alone"),
        (Role.VICTIM, "with"),
        (Role.AGGRESSOR, "with"),
    }
    told = [ack for tally in tallies for ack in tally.acknowledged]
    assert len(told) == shop.targets.count("POST /v1/orders") > 0
    assert [stale for tally in tallies for stale in tally.stale] == []
    assert seen.failed == 0


async def test_a_stale_read_over_real_sockets_goes_unseen() -> None:
    """Negative control of `Wrong.STALE`: a replica, say, that is behind. Nothing of it is ever in the rows."""
    async with opened(Shop(stale=True)) as shop:
        pool = Pool("127.0.0.1", shop.port)
        record = Record()
        driver = Driver([pool], [tenant(0).account], {"t0": ["order-of-first"]}, "run", record)
        kinds = [Kind.CREATE, Kind.LIST, Kind.READ]
        async with asyncio.timeout(PATIENCE_S):
            for n, kind in enumerate(kinds):
                await driver.run([Intent(n, 0.0, 0, kind, 0.99)])
        pool.close()
    assert [(stale.tenant, stale.order) for stale in record.stale] == [("t0", "order-of-run-0")] * 2


async def test_a_process_of_the_driver_dies_and_its_part_is_just_missing() -> None:
    async with opened(Shop()) as shop:
        target = [Address("shop", "127.0.0.1", shop.port)]
        parts = jobs(SCENARIO, Drive("run", 7, target, 20.0, 60.0, None, CASE), [*map(tenant, range(3))])
        pids: list[int] = []

        async def lose_one() -> None:
            async with asyncio.timeout(PATIENCE_S), crew(parts) as ready:
                pids.extend(ready.pids)
                ready.go()
                os.kill(pids[0], signal.SIGKILL)
                await ready.tallies()

        with pytest.raises(ExceptionGroup) as died:
            await lose_one()
        assert died.group_contains(LabError, match="has ended before its work was done")
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@asynccontextmanager
async def door(behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    server = await asyncio.start_server(behave, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def attack(port: int, *, slow: bool, seconds: float = 0.4, refusals: float = math.inf) -> SampleRecord:
    """For so long, or until so many connections were refused."""
    loop, record = asyncio.get_running_loop(), SampleRecord()
    start = loop.time()
    hold = Hold(0, 3, 0.0, seconds, slow, "127.0.0.9")

    def now() -> float:
        return seconds if record.progress.refused >= refusals else loop.time() - start

    async with asyncio.timeout(PATIENCE_S):
        await hog(hold, tenant(0).account, [Address("d", "127.0.0.1", port)], record, now)
    return record


async def test_a_hog_lets_go_of_what_it_holds_or_is_not_told_apart_from_one_that_was_thrown_out() -> None:
    sources: set[str] = set()

    async def keeps(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sources.add(writer.get_extra_info("peername")[0])
        while await reader.read(1000):
            pass
        writer.close()

    async def throws_out(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    for slow in (False, True):
        async with door(keeps) as port:
            kept = await attack(port, slow=slow)
        assert (kept.progress.succeeded, kept.progress.refused, kept.progress.failed) == (3, 0, 0)
        async with door(throws_out) as port:
            thrown = await attack(port, slow=slow, seconds=PATIENCE_S, refusals=3)
        assert (thrown.progress.succeeded, thrown.progress.failed) == (0, 0)
        assert thrown.progress.refused >= 3
    assert sources == {"127.0.0.9"}
    nobody = await attack(1, slow=False)
    assert (nobody.progress.succeeded, nobody.progress.refused) == (0, 0)
    assert nobody.progress.failed >= 3


async def test_a_base_url_is_cast_and_its_books_are_not_read() -> None:
    async with opened(Shop()) as shop, asyncio.timeout(PATIENCE_S):
        system = RemoteSystem(Remote(f"http://127.0.0.1:{shop.port}", "start.shop.test"), "run")
        await system.connect("business")
        assert system.cells == ["cell-1"]
        cast = await system.cast(Need("business", 2, 5, {"cell-1": 1}, 0))
        assert [t.role for t in cast] == [Role.AGGRESSOR, Role.VICTIM, Role.VICTIM]
        assert (await system.books(cast, [])).balanced
        shop.orders["t1.shop.test"].pop()
        books = await system.books(cast, [])
        assert (books.balanced, books.lost) == (False, 1)
        with pytest.raises(LabError, match="cannot be switched"):
            await system.set_walls("off")
        await system.aclose()


async def test_a_base_url_that_is_down_or_none_at_all_is_not_said_first() -> None:
    for url, words in [
        ("https://127.0.0.1:1", "speaks no TLS"),
        ("127.0.0.1:1", "no base URL"),
        ("http://127.0.0.1:x", "no base URL"),
    ]:
        with pytest.raises(LabError, match=words):
            RemoteSystem(Remote(url, "x"), "run")
    system = RemoteSystem(Remote("http://127.0.0.1:1", "x"), "run")
    with pytest.raises(LabError, match="nothing answers at"):
        await system.connect("business")
    await system.aclose()


def readings(idle: float) -> Callable[[], Reading]:
    """A machine of two processors that rest for this share of their time."""
    seconds = itertools.count()

    def read() -> Reading:
        at = float(next(seconds))
        return Reading(total_s=2 * at, steal_s=0.0, pressure_s=0.0, at=at, idle_s=2 * at * idle)

    return read


async def test_what_the_run_before_left_is_measured_with_the_baseline() -> None:
    async with opened(Shop()) as shop, asyncio.timeout(PATIENCE_S):
        target = Address("shop", "127.0.0.1", shop.port)
        idle, busy = readings(idle=0.9), readings(idle=0.5)
        assert await quiet(target, [tenant(0)], read=idle) == ""
        restless = await quiet(target, [tenant(0)], within_s=2.5, read=busy)
        assert restless == "the processors did not come to rest within 2.5 s: 50% busy"
        shop.refuse = b"503 Service Unavailable"
        assert await quiet(target, [tenant(0)], within_s=0.3, read=idle) == "cell-1 did not come to rest within 0.3 s"
        assert await quiet(Address("nobody", "127.0.0.1", 1), [tenant(0)], within_s=0.3) != ""
