"""The router's walls between real clients and cells, each with a mutation that takes it away and must be noticed."""

import asyncio
import contextlib
import functools
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.integration.router.test_proxy import GET, GET2, OK, POST, cells, polite
from tests.integration.router.wire import Cell, Router, ask, cell_ports, connect, read_answer, until
from tests.mutations import router_walls

TOKEN = "operator-" + "x" * 32
WITHIN_S = 60.0
Test = Callable[[Path, str], Awaitable[None]]
SLOW = b"POST /a HTTP/1.1\r\nHost: t1.example.test\r\nContent-Length: 4000\r\n\r\n"


class Held:
    """A cell that answers when it is let, and goes on to be polite."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def __call__(self, cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await cell.head(reader)
            await self.gate.wait()
            writer.write(OK)
            await writer.drain()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The module to run: the router, or the router without the part that the test names."""
    monkeypatch.setenv("CELLWALL_ROUTER_ADMIN_TOKEN", TOKEN)
    part = getattr(request, "param", "")
    if not part:
        return "router"
    monkeypatch.setenv(router_walls.VARIABLE, part)
    return "tests.mutations.router_walls"


class MissedError(AssertionError):
    """What a test says where the wall does not hold; anything else is a failure of the test."""


def red(part: str, words: str, *, invariant: int = 0) -> Callable[[Test], Test]:
    """Run the test with everything in place, and once more without ``part``: then it must miss, in these words."""

    def both(test: Test) -> Test:
        @functools.wraps(test)
        async def run(tmp_path: Path, without: str) -> None:
            if without == "router":
                await test(tmp_path, without)
                return
            with pytest.raises(MissedError, match=words):
                await test(tmp_path, without)

        marks = (pytest.mark.invariant(invariant), pytest.mark.mutation(invariant)) if invariant else ((), ())
        cases = [pytest.param("", id="whole", marks=marks[0]), pytest.param(part, id=f"without-{part}", marks=marks[1])]
        return pytest.mark.parametrize("without", cases, indirect=True)(run)

    return both


def check(holds: bool, words: str) -> None:
    if not holds:
        raise MissedError(words)


@asynccontextmanager
async def running(
    folder: Path,
    one: object,
    *flags: str,
    module: str,
    plan: dict[str, int] | None = None,
    **caps: int,
) -> AsyncIterator[tuple[Router, Cell, Cell]]:
    router = Router(folder, cell_ports(), *flags, caps=caps, plan=plan, module=module)
    try:
        async with cells(router, one, polite) as (first, second):  # type: ignore[arg-type]
            yield router, first, second
    finally:
        await asyncio.to_thread(router.stop)


async def counted(router: Router, wall: str, outcome: str) -> int:
    """What the wall has refused or only observed, as Prometheus sees it."""
    request = f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    _, _, body = await ask(router.admin, request.encode())
    found = re.search(rf'cellwall_router_walls_total{{outcome="{outcome}",wall="{wall}"}} (\d+)', body.decode())
    return int(found[1]) if found else 0


async def settled(router: Router) -> None:
    """The router knows t9 (in cell-2), and has read what was sent to it before: much that came later is answered."""
    deadline, answered = time.monotonic() + WITHIN_S, 0
    while answered < 20:
        answered += (await ask(router.port, GET.replace(b"t1", b"t9")))[0] == 200
        assert time.monotonic() < deadline


@red("plans", "the tenant takes more than its plan")
async def test_a_tenant_takes_no_more_than_its_plan(tmp_path: Path, without: str) -> None:
    held = Held()
    async with running(tmp_path, held, module=without, plan={"in_flight": 2}) as (router, cell, _):
        waiting = [asyncio.create_task(ask(router.port, GET)) for _ in range(2)]
        await until(lambda: len(cell.heads) == 2, WITHIN_S)
        more = asyncio.create_task(ask(router.port, GET))
        await until(lambda: more.done() or len(cell.heads) == 3, WITHIN_S)
        held.gate.set()
        answers = [(await task)[0] for task in (*waiting, more)]
        check(answers == [200, 200, 429], "the tenant takes more than its plan")
        assert await counted(router, "plans", "refused") == 1


@pytest.mark.parametrize(("mode", "observed"), [("observe", 3), ("off", 0)])
async def test_walls_that_do_not_refuse_let_all_through_and_say_what_they_would_have_refused(
    tmp_path: Path, without: str, mode: str, observed: int
) -> None:
    held, walls = Held(), ("plans", "bulkheads", "addresses", "connections", "slow-clients")
    flags = [word for wall in walls for word in ("--wall", f"{wall}={mode}")]
    limits = {"in_flight": 2, "connections": 1, "pending": 0}
    flags += ["--address-in-flight", "2", "--address-connections", "2"]
    async with running(tmp_path, held, *flags, module=without, plan={"in_flight": 2}, **limits) as (router, cell, _):
        waiting = [asyncio.create_task(ask(router.port, GET)) for _ in range(5)]
        await until(lambda: len(cell.heads) == 5, WITHIN_S)
        held.gate.set()
        assert [(await task)[0] for task in waiting] == [200] * 5
        for wall in ("plans", "addresses", "connections"):
            assert await counted(router, wall, "observed") == observed
            assert await counted(router, wall, "refused") == 0
        assert (await counted(router, "bulkheads", "observed") > 0) is (mode == "observe")


@red("bulkhead", "the cell takes more than its bulkhead")
async def test_a_cell_takes_no_more_than_its_bulkhead(tmp_path: Path, without: str) -> None:
    held = Held()
    async with running(tmp_path, held, module=without, in_flight=2) as (router, cell, _):
        waiting = [asyncio.create_task(ask(router.port, GET)) for _ in range(2)]
        await until(lambda: len(cell.heads) == 2, WITHIN_S)
        more = asyncio.create_task(ask(router.port, GET))
        await until(lambda: more.done() or len(cell.heads) == 3, WITHIN_S)
        held.gate.set()
        answers = [(await task)[0] for task in (*waiting, more)]
        check(answers == [200, 200, 503], "the cell takes more than its bulkhead")
        assert await counted(router, "bulkheads", "refused") == 1


@red("turns", "the neighbour waits behind the flood")
async def test_a_flood_that_waits_for_connections_lets_a_neighbour_of_its_cell_go_before(
    tmp_path: Path, without: str
) -> None:
    held = Held()
    async with running(tmp_path, held, module=without, connections=1) as (router, cell, _):
        router.reload(dict.fromkeys(("t1", "t2"), ("cell-1", 1, "active")) | {"t9": ("cell-2", 1, "active")})
        await settled(router)
        flood = [asyncio.create_task(ask(router.port, GET))]
        await until(lambda: len(cell.heads) == 1, WITHIN_S)
        flood += [asyncio.create_task(ask(router.port, GET)) for _ in range(5)]
        await settled(router)
        neighbour = asyncio.create_task(ask(router.port, GET2))
        await settled(router)
        held.gate.set()
        assert [(await task)[0] for task in (*flood, neighbour)] == [200] * 7
        asked = [b"cell-tenant: t2\r\n" in head for head in cell.heads]
        check(asked.index(True) <= 2, "the neighbour waits behind the flood")


@red("connections", "the hog holds more than its part")
async def test_a_connection_hog_holds_no_more_than_its_part_and_others_get_in(tmp_path: Path, without: str) -> None:
    async with running(tmp_path, polite, "--address-connections", "4", module=without) as (router, _, _):
        async with AsyncExitStack() as stack:
            hogs = [await stack.enter_async_context(connect(router.port)) for _ in range(12)]
            answers = []
            for reader, writer in hogs:
                writer.write(GET)
                answers.append((await read_answer(reader))[0])
            check(answers.count(200) == 4, "the hog holds more than its part")
            assert answers.count(429) == 8
            assert [await reader.read() for (reader, _), status in zip(hogs, answers, strict=True) if status == 429]
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port, local_addr=("127.0.0.2", 0))
            writer.write(GET)
            assert (await read_answer(reader))[0] == 200
            writer.close()
            assert await counted(router, "connections", "refused") == 8
        deadline = time.monotonic() + WITHIN_S
        while (await ask(router.port, GET))[0] != 200:  # what the hog has closed is free again
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


@red("pace", "the slow client is not told that it is slow")
async def test_a_request_that_trickles_is_ended(tmp_path: Path, without: str) -> None:
    flags = ("--client-window-s", "0.5", "--request-s", "4")
    async with running(tmp_path, polite, *flags, module=without) as (router, cell, _):
        async with connect(router.port) as (reader, writer):
            writer.write(SLOW)
            answering = asyncio.create_task(read_answer(reader))
            while not answering.done():
                writer.write(b"x")
                await asyncio.wait([answering], timeout=0.1)
            status, head, body = await answering
        assert (status, b"connection: close" in head) == (408, True)
        check(b"bytes a second" in body, "the slow client is not told that it is slow")
        assert cell.heads == []
        assert await counted(router, "slow-clients", "refused") == 1


@red("gathering", "the slow client took the room of the cell")
async def test_slow_clients_take_no_room_of_a_cell(tmp_path: Path, without: str) -> None:
    limits = {"connections": 1, "pending": 0}
    flags = ("--client-window-s", "60")  # it is slow for as long as the others take
    async with (
        running(tmp_path, polite, *flags, module=without, **limits) as (router, cell, _),
        connect(router.port) as slow,
    ):
        slow[1].write(POST[:-3])
        for _ in range(20):  # until the router has seen the slow request
            assert (await ask(router.port, GET2))[0] == 200
        check((await ask(router.port, GET))[0] == 200, "the slow client took the room of the cell")
        slow[1].write(POST[-3:])
        assert (await read_answer(slow[0]))[2] == b"t1 5"
        assert cell.connections == 1


@asynccontextmanager
async def numb(port: int) -> AsyncIterator[asyncio.StreamWriter]:
    """A client that asks and never reads; its kernel takes little for it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1)
    try:
        yield writer
    finally:
        writer.transport.abort()
        assert reader is not None


@red("pace", "the client that takes nothing is kept")
async def test_a_client_that_does_not_take_its_answer_is_cut(tmp_path: Path, without: str) -> None:
    ended = asyncio.Event()

    async def large(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await cell.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        try:
            for _ in range(1024):
                writer.write(b"x" * 65536)
                await writer.drain()
        finally:
            ended.set()

    flags = ("--client-window-s", "0.5")
    async with running(tmp_path, large, *flags, module=without) as (router, _, _), numb(router.port) as writer:
        writer.write(GET)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), WITHIN_S if without == "router" else 5.0)
        check(ended.is_set(), "the client that takes nothing is kept")
        assert await counted(router, "slow-clients", "refused") == 1


@red("taking", "unread answers pile up in the router")
async def test_unread_answers_do_not_pile_up_in_the_router(tmp_path: Path, without: str) -> None:
    body, asked = b"x" * 16_000, 1500

    async def generous(cell: Cell, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await cell.head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()

    flags = ("--client-window-s", "60", "--wall", "plans=off")
    async with running(tmp_path, generous, *flags, module=without) as (router, cell, _), numb(router.port) as writer:
        writer.write(GET * asked)
        await until(lambda: bool(cell.heads))
        seen = -1
        while seen != len(cell.heads):  # until nothing more is asked for over a second
            seen = len(cell.heads)
            await asyncio.sleep(1.0)  # a router that asks no more says so nowhere: only silence shows it
        check(0 < seen < asked // 2, "unread answers pile up in the router")


@red("silence", "a hanging cell takes everybody's time", invariant=5)
async def test_a_cell_that_hangs_is_set_aside_and_taken_back(tmp_path: Path, without: str) -> None:
    held = Held()
    names = [f"t{number}" for number in range(1, 6)]
    async with running(tmp_path, held, "--request-s", "1", module=without) as (router, _, _):
        router.reload(dict.fromkeys(names, ("cell-1", 1, "active")) | {"t9": ("cell-2", 1, "active")})
        every = [GET.replace(b"t1", name.encode()) for name in names]
        await settled(router)
        deadline = time.monotonic() + WITHIN_S
        answers = await asyncio.gather(*(ask(router.port, one) for one in every))
        assert [status for status, _, _ in answers] == [504] * 5
        later = await asyncio.gather(*(ask(router.port, GET) for _ in range(2)))  # one of them may be the cell's trial
        refused = any(status == 503 and b"retry-after: " in head for status, head, _ in later)
        check(refused, "a hanging cell takes everybody's time")
        assert (await ask(router.port, GET.replace(b"t1", b"t9")))[0] == 200
        held.gate.set()
        while (await ask(router.port, GET))[0] != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
