"""The proxy of the fault tests does what it says: a test that injects no fault proves nothing."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.system.fault_proxy import Fault, FaultProxy


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """In front of a server that says back what it hears."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = FaultProxy(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with proxy.listening():
        yield proxy
    server.close()


async def opened(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def said_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, word: bytes) -> bool:
    writer.write(word)
    return await reader.readexactly(len(word)) == word


async def felt(proxy: FaultProxy) -> None:
    while not proxy.met:  # what counts it has no event
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("fault", [Fault.NONE, Fault.DELAY])
async def test_what_is_not_cut_arrives(proxy: FaultProxy, fault: Fault) -> None:
    connection = await opened(proxy)
    proxy.set(fault)
    assert await said_back(*connection, b"hello")
    assert bool(proxy.met) is (fault is Fault.DELAY)


async def test_a_cut_resets_what_is_open_and_what_comes_until_it_heals(proxy: FaultProxy) -> None:
    connection = await opened(proxy)
    assert await said_back(*connection, b"before")
    proxy.set(Fault.CUT)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await said_back(*connection, b"lost")
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await said_back(*(await opened(proxy)), b"lost")
    assert proxy.met >= 2
    proxy.set(Fault.NONE)
    assert await said_back(*(await opened(proxy)), b"after")


async def test_a_half_open_connection_says_nothing_and_is_reset_when_the_network_returns(proxy: FaultProxy) -> None:
    connection = await opened(proxy)
    assert await said_back(*connection, b"before")
    proxy.set(Fault.HALF_OPEN)
    waiting = asyncio.create_task(said_back(*connection, b"into nothing"))
    await felt(proxy)
    assert not waiting.done()
    proxy.set(Fault.NONE)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await waiting
    assert await said_back(*(await opened(proxy)), b"after")
