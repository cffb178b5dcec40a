"""The driver's HTTP client against real sockets: every way in which an exchange can go wrong has its own name."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loadtest.incidents import peers
from loadtest.wire import ExchangeError, Pool

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GOOD = b"HTTP/1.1 200 OK\r\nCell-Served: cell-1;epoch=3\r\nContent-Length: 2\r\n\r\n{}"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(script: Script, *, size: int = 1) -> AsyncIterator[tuple[Pool, list[int]]]:
    """A pool on a server that runs ``script`` for each connection, and the peer ports that it saw."""
    seen: list[int] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername")[1])
        try:
            await script(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    pool = Pool("127.0.0.1", server.sockets[0].getsockname()[1], name="router-1", size=size)
    try:
        yield pool, seen
    finally:
        pool.close()
        server.close()
        await server.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, at most 10 seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def answering(*answers: bytes) -> Script:
    """Answers each request with the next of ``answers``, the last one for ever."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = list(answers)
        while not reader.at_eof():
            try:
                await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return
            writer.write(left.pop(0) if len(left) > 1 else left[0])

    return script


async def test_every_request_opens_a_connection() -> None:
    async with served(answering(GOOD)) as (pool, seen):
        for _ in range(5):
            answer = await pool.exchange(REQUEST)
            assert (answer.status, answer.body, answer.cell, answer.epoch) == (200, b"{}", "cell-1", 3)
        assert len(seen) == 1
        assert pool.local_ports == frozenset(seen)


async def test_one_connection_carries_everything_and_half_the_workers_see_nothing() -> None:
    async with served(answering(GOOD), size=4) as (pool, seen):
        await pool.warm()
        for _ in range(8):
            await pool.exchange(REQUEST)
        assert len(seen) == 4


async def test_a_busy_pool_makes_an_open_loop_wait() -> None:
    gate = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await gate.wait()
        writer.write(GOOD)
        await reader.read()

    async with served(script) as (pool, seen):
        waiting = [asyncio.ensure_future(pool.exchange(REQUEST)) for _ in range(3)]
        await until(lambda: len(seen) >= 3)
        gate.set()
        assert [a.status for a in await asyncio.gather(*waiting)] == [200] * 3


async def test_a_reset_is_told_as_an_answer_or_without_its_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()

    async with served(script) as (pool, seen):
        with pytest.raises(ExchangeError) as lost:
            await pool.exchange(REQUEST)
        assert lost.value.cause == ExchangeError.LOST
        assert lost.value.local_port == seen[0]
        assert 0 < lost.value.connected_at <= asyncio.get_running_loop().time()
        assert pool.local_ports == frozenset()


async def test_a_connection_that_died_while_idle_is_used_again() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(GOOD)
        await writer.drain()

    async with served(script) as (pool, seen):
        for expected in (1, 2):
            assert (await pool.exchange(REQUEST)).status == 200
            assert len(seen) == expected
            await until(lambda: not pool.local_ports)


async def test_nobody_listens_and_the_driver_breaks() -> None:
    async with served(answering(GOOD)) as (pool, _):
        pass
    with pytest.raises(ExchangeError) as refused:
        await pool.exchange(REQUEST)
    assert refused.value.cause == ExchangeError.REFUSED


@pytest.mark.parametrize(
    "garbage", [b"hello\r\n\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
async def test_garbage_passes_for_an_answer(garbage: bytes) -> None:
    async with served(answering(garbage)) as (pool, _):
        with pytest.raises(ExchangeError) as unreadable:
            await pool.exchange(REQUEST)
        assert unreadable.value.cause == ExchangeError.UNREADABLE


async def test_a_second_answer_to_one_request_is_given_to_the_next() -> None:
    other = GOOD.replace(b"{}", b"no")
    async with served(answering(GOOD + other, GOOD)) as (pool, seen):
        assert (await pool.exchange(REQUEST)).body == b"{}"
        await until(lambda: not pool.local_ports)
        assert (await pool.exchange(REQUEST)).body == b"{}"
        assert len(seen) == 2


async def test_an_interim_answer_passes_for_the_final_one() -> None:
    async with served(answering(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + GOOD)) as (pool, _):
        assert (await pool.exchange(REQUEST)).status == 200


async def test_a_request_given_up_on_leaves_its_answer_to_the_next() -> None:
    gate = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await gate.wait()
        writer.write(GOOD)

    async with served(script) as (pool, seen):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await pool.exchange(REQUEST)
        gate.set()
        assert (await pool.exchange(REQUEST)).status == 200
        assert len(seen) == 2


ACCEPT = """
import socket, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(64)
print(listener.getsockname()[1], flush=True)
held = []
while True:
    held.append(listener.accept())
"""


async def worker(port: int) -> tuple[asyncio.subprocess.Process, int]:
    """A process that accepts and holds connections on a port that it shares; and that port."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", ACCEPT, str(port), stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, int(await process.stdout.readline())


@pytest.mark.skipif(not Path("/proc/self/net").is_dir(), reason="reads /proc")
async def test_the_connections_of_a_killed_worker_are_mixed_up_with_those_of_its_sibling() -> None:
    """Two processes share a port, as a router's workers do; each one's connections are told apart."""
    one, port = await worker(0)
    two, _ = await worker(port)
    pool = Pool("127.0.0.1", port, size=12)
    try:
        await pool.warm()
        ours = pool.local_ports

        def held(process: asyncio.subprocess.Process) -> frozenset[int]:
            return peers(process.pid, port) or frozenset()

        await until(lambda: len(held(one)) + len(held(two)) == len(ours))
        assert held(one) | held(two) == ours
        assert not held(one) & held(two)
        assert peers(one.pid, 1) == frozenset()
    finally:
        pool.close()
        for process in (one, two):
            process.kill()
            await process.communicate()
    assert peers(one.pid, port) is None
