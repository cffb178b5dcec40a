"""The router as a process, between real clients and cells that behave badly."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.integration.router.wire import WITHIN_S, Cell, Router, ask, cell_ports, connect, read_answer, until

GET = b"GET /a HTTP/1.1\r\nHost: t1.example.test\r\n\r\n"
GET2 = GET.replace(b"t1", b"t2")
POST = b"POST /a HTTP/1.1\r\nHost: t1.example.test\r\nContent-Length: 5\r\n\r\nhello"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ROUTES = {"t1": ("cell-1", 1, "active"), "t2": ("cell-2", 1, "active")}

ABANDONED_S = 20.0  # below the time that any request has

Script = Callable[[Cell, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def polite(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request with the name of the tenant and the size of its body."""
    while True:
        head = await cell.head(reader)
        fields = {k.lower(): v for k, _, v in (line.partition(b": ") for line in head.split(b"\r\n")[1:])}
        size = int(fields.get(b"content-length", b"0"))
        left = size
        while left:
            left -= len(await reader.read(min(left, 65536)))
        body = fields[b"cell-tenant"] + b" " + str(size).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """A router for the tests that leave it as they found it; each brings cells of its own to the same ports."""
    router = Router(tmp_path_factory.mktemp("router"), cell_ports())
    yield router
    router.stop()


@asynccontextmanager
async def cells(router: Router, one: Script, two: Script = polite) -> AsyncIterator[tuple[Cell, Cell]]:
    first, second = Cell(one), Cell(two)
    await first.start(router.cells["cell-1"])
    await second.start(router.cells["cell-2"])
    try:
        await router.ready()
        yield first, second
    finally:
        await first.stop()
        await second.stop()


@asynccontextmanager
async def fleet(
    folder: Path, one: Script, two: Script = polite, *, module: str = "router", **caps: int
) -> AsyncIterator[tuple[Router, Cell, Cell]]:
    router = Router(folder, cell_ports(), caps=caps, module=module)
    try:
        async with cells(router, one, two) as (first, second):
            yield router, first, second
    finally:
        await asyncio.to_thread(router.stop)


async def test_keep_alive_on_both_sides_and_pipelined_answers_in_order(shared: Router) -> None:
    async with cells(shared, polite) as (cell, _), connect(shared.port) as (reader, writer):
        writer.write(GET + POST + GET * 8)
        bodies = [(await read_answer(reader))[2] for _ in range(10)]
        assert bodies == [b"t1 0", b"t1 5"] + [b"t1 0"] * 8
        assert cell.connections == 1


async def test_a_large_body_streams_through_a_slow_cell_with_bounded_memory(shared: Router) -> None:
    gate = asyncio.Event()

    async def slow(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await cell.head(reader)
        await gate.wait()
        await reader.readexactly(32 << 20)
        writer.write(OK)
        await writer.drain()

    async with cells(shared, slow) as (cell, _), connect(shared.port) as (reader, writer):
        writer.write(b"POST /a HTTP/1.1\r\nHost: t1.example.test\r\nContent-Length: %d\r\n\r\n" % (32 << 20))
        await until(lambda: bool(cell.heads))
        before = _rss(shared.worker())
        sending = asyncio.create_task(_send(writer, 32))
        await asyncio.sleep(0)
        await until(lambda: writer.transport.get_write_buffer_size() > 0)
        assert _rss(shared.worker()) - before < 8 << 20
        gate.set()
        await sending
        assert (await read_answer(reader))[0] == 200


async def test_a_client_that_does_not_read_stops_the_cell_and_memory_stays_bounded(shared: Router) -> None:
    sent = 0

    async def flood(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await cell.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536

    async with cells(shared, flood) as (_, _):
        before = _rss(shared.worker())
        reader, writer = await asyncio.open_connection("127.0.0.1", shared.port, limit=1024)
        writer.write(GET)
        await _still(lambda: sent)
        assert sent < 32 << 20
        assert _rss(shared.worker()) - before < 8 << 20
        writer.transport.abort()
        assert reader is not None


async def test_a_client_that_leaves_frees_the_cell_at_once(shared: Router) -> None:
    left = asyncio.Event()

    async def patient(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await cell.head(reader)
        assert await reader.read(1) == b""
        left.set()

    async with cells(shared, patient) as (cell, _):
        async with connect(shared.port) as (_, writer):
            writer.write(GET)
            await until(lambda: bool(cell.heads))
        await asyncio.wait_for(left.wait(), ABANDONED_S)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n", 502),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", 502),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, 502),
    ],
)
async def test_a_broken_answer_is_502_and_harms_no_later_request(shared: Router, answer: bytes, status: int) -> None:
    broken = True

    async def script(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not broken:
            await polite(cell, reader, writer)
        await cell.head(reader)
        writer.write(answer)
        await writer.drain()
        await reader.read(1)

    async with cells(shared, script) as (_, _), connect(shared.port) as (reader, writer):
        writer.write(GET)
        got, head, body = await read_answer(reader)
        assert (got, b"cell-broken-answer" in body) == (status, True)
        assert b"application/problem+json" in head
        broken = False
        writer.write(GET)
        assert (await read_answer(reader))[2] == b"t1 0"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\npart",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npartX",
    ],
)
async def test_a_truncated_answer_never_looks_whole(shared: Router, answer: bytes) -> None:
    async def script(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await cell.head(reader)
        writer.write(answer)
        await writer.drain()

    async with cells(shared, script) as (_, _):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # its head had gone out: cut, not ended
            assert (await asyncio.wait_for(ask(shared.port, GET), WITHIN_S))[0] == 502


@pytest.mark.invariant(5)
async def test_a_dead_cell_answers_503_with_retry_after_and_the_other_cell_works_on(tmp_path: Path) -> None:
    async with fleet(tmp_path, polite) as (router, dead, _):
        await dead.stop()
        for _ in range(5):
            status, head, body = await ask(router.port, GET)
            assert (status, b"cell-unavailable" in body) == (503, True)
            assert b"retry-after: " in head
            assert (await asyncio.wait_for(ask(router.port, GET2), WITHIN_S))[2] == b"t2 0"
        port = dead.port
        await dead.start(port)
        deadline = time.monotonic() + WITHIN_S
        while (await ask(router.port, GET))[0] != 200:  # the breaker tries again by itself
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


async def check_that_a_full_cell_takes_no_room_of_another(folder: Path, module: str = "router") -> None:
    release = asyncio.Event()

    async def slow(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await cell.head(reader)
        await release.wait()
        writer.write(OK)
        await writer.drain()

    async with fleet(folder, slow, polite, module=module, connections=2, pending=1, in_flight=8) as (router, cell, _):
        waiting = [asyncio.create_task(ask(router.port, GET)) for _ in range(2)]
        await until(lambda: len(cell.heads) == 2)
        more = [asyncio.create_task(ask(router.port, GET)) for _ in range(2)]  # one waits for a connection
        done, _ = await asyncio.wait(more, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result()[0] for task in done] == [503]
        try:
            assert (await asyncio.wait_for(ask(router.port, GET2), WITHIN_S))[0] == 200, "the neighbour is refused"
        finally:
            release.set()
            answers = sorted([(await task)[0] for task in (*waiting, *more)])
        assert answers == [200, 200, 200, 503]
        assert cell.connections <= 3


@pytest.mark.invariant(5)
async def test_a_full_cell_refuses_and_takes_no_room_of_another(tmp_path: Path) -> None:
    await check_that_a_full_cell_takes_no_room_of_another(tmp_path)


@pytest.mark.mutation(5)
async def test_with_one_bulkhead_for_all_a_full_cell_takes_its_neighbour_down(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the neighbour is refused"):
        await check_that_a_full_cell_takes_no_room_of_another(tmp_path, "tests.mutations.one_bulkhead")


async def test_a_post_whose_cell_dies_is_not_sent_twice_but_a_get_is(shared: Router) -> None:
    async def dying(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await cell.head(reader)
        if head.startswith(b"POST"):
            await reader.readexactly(5)
        if len(cell.heads) % 2 == 0:
            writer.write(OK)
            await writer.drain()

    async with cells(shared, dying) as (cell, _):
        assert (await ask(shared.port, POST))[0] == 502
        assert len(cell.heads) == 1
        cell.heads.append(b"")
        assert (await ask(shared.port, GET))[0] == 200
        assert len(cell.heads) == 4


async def test_frozen_is_held_and_finished_in_the_new_cell_after_a_reload(tmp_path: Path) -> None:
    async def frozen(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await cell.head(reader)
            await reader.readexactly(5)
            writer.write(b"HTTP/1.1 503 X\r\nCell-Refused: tenant-frozen\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

    async with fleet(tmp_path, frozen) as (router, old, new):
        asking = asyncio.create_task(ask(router.port, POST))
        await until(lambda: len(old.heads) >= 2)  # sent, then probed
        router.reload(ROUTES | {"t1": ("cell-2", 2, "active")})
        status, head, body = await asyncio.wait_for(asking, WITHIN_S)
        assert (status, body) == (200, b"t1 5")
        assert b"ell-Refused" not in head
        assert b"cell-epoch: 2\r\n" in new.heads[-1]


async def test_a_websocket_goes_both_ways_until_either_side_closes(shared: Router) -> None:
    async def echo(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await cell.head(reader)
        writer.write(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: k\r\n\r\n")
        while data := await reader.read(100):
            writer.write(b"<" + data + b">")
            await writer.drain()
            if data == b"bye":
                return

    upgrade = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n")
    async with cells(shared, echo) as (_, _), connect(shared.port) as (reader, writer):
        writer.write(upgrade)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"Sec-WebSocket-Accept: k\r\n" in head
        writer.write(b"one")
        assert await reader.readexactly(5) == b"<one>"
        writer.write(b"bye")
        assert await reader.read() == b"<bye>"


async def test_expect_100_continue_is_passed_through(shared: Router) -> None:
    async def careful(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"expect: 100-continue" in await cell.head(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.readexactly(5)
        writer.write(OK)
        await writer.drain()

    async with cells(shared, careful) as (_, _), connect(shared.port) as (reader, writer):
        writer.write(POST.removesuffix(b"hello").replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"hello")
        assert (await read_answer(reader))[0] == 200


async def test_a_refusal_arrives_although_the_client_is_still_sending(shared: Router) -> None:
    async with cells(shared, polite) as (_, _), connect(shared.port) as (reader, writer):
        writer.write(
            b"POST /a HTTP/1.1\r\nHost: nobody.example.test\r\nContent-Length: 900000\r\n\r\n" + b"x" * 500_000
        )
        status, head, _ = await asyncio.wait_for(read_answer(reader), WITHIN_S)
        assert status == 404
        assert b"connection: close" in head


async def test_a_drain_finishes_what_runs_and_accepts_no_more(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def slow(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await cell.head(reader)
        await release.wait()
        writer.write(OK)
        await writer.drain()

    async with fleet(tmp_path, slow) as (router, cell, _), connect(router.port) as (idle, _):
        asking = asyncio.create_task(ask(router.port, GET))
        await until(lambda: bool(cell.heads))
        os.kill(router.process.pid, signal.SIGTERM)
        assert await asyncio.wait_for(idle.read(), WITHIN_S) == b""
        release.set()
        status, head, _ = await asyncio.wait_for(asking, WITHIN_S)
        assert status == 200
        assert b"connection: close" in head
        assert await asyncio.wait_for(asyncio.to_thread(router.process.wait), WITHIN_S) == 0


async def _send(writer: asyncio.StreamWriter, mebibytes: int) -> None:
    for _ in range(mebibytes * 16):
        writer.write(b"x" * 65536)
        await writer.drain()


async def _still(value: Callable[[], int]) -> None:
    """Wait until a number has not changed for a quarter of a second: everybody waits for somebody."""
    last, since = value(), time.monotonic()
    while last == 0 or time.monotonic() - since < 0.25:
        await asyncio.sleep(0.02)
        if value() != last:
            last, since = value(), time.monotonic()


def _rss(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
