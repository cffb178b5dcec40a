"""A TCP proxy whose connections can be cut, delayed or left half open on demand. It runs in a thread of its own."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")
CHUNK = 1 << 16


class Fault(StrEnum):
    """What happens to a connection. Those that met ``CUT`` or ``HALF_OPEN`` are gone for good."""

    NONE = "none"
    CUT = "cut"  # reset, and so is every new one
    HALF_OPEN = "half-open"  # open, but nothing arrives any more, in either direction
    DELAY = "delay"  # everything arrives later


class FaultProxy:
    """In front of one listener. ``met`` counts what has felt the fault since it was set."""

    DELAY_S = 0.05

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._fault = Fault.NONE
        self._open: dict[asyncio.StreamWriter, bool] = {}  # whether it met a fault that it does not survive
        self.port = 0
        self.met = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serve for as long as the block runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            self.set(Fault.CUT)

    def set(self, fault: Fault) -> None:
        """From now on. ``NONE`` heals: connections that are half open are reset, as a network that returns does it."""
        self._fault, self.met = fault, 0
        for writer, doomed in list(self._open.items()):
            if fault is Fault.CUT or doomed:
                self.met += fault is Fault.CUT
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = False
        try:
            if self._fault is Fault.CUT:
                self.met += 1
                return
            there, away = await asyncio.open_connection(*self._upstream)
            self._open[away] = False
            pair = (writer, away)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._carry(reader, away, pair))
                    group.create_task(self._carry(there, writer, pair))
            finally:
                self._open.pop(away, None)
                away.transport.abort()
        except* OSError:
            pass
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: tuple[asyncio.StreamWriter, ...]
    ) -> None:
        while data := await reader.read(CHUNK):
            if self._fault is Fault.HALF_OPEN or self._open.get(writer):
                self.met += 1
                for each in pair:
                    self._open[each] = True
                continue
            if self._fault is Fault.DELAY:
                self.met += 1
                await asyncio.sleep(self.DELAY_S)
            writer.write(data)
            await writer.drain()
        if not self._open.get(writer):
            raise ConnectionResetError("one side closed: the other one hears of it")


class ProxyThread:
    """Proxies by name; usable from any event loop and from none."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxies", daemon=True)
        self._stack = contextlib.AsyncExitStack()
        self.proxies: dict[str, FaultProxy] = {}

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator["ProxyThread"]:
        """Until the end of the block."""
        self = cls()
        self._thread.start()
        try:
            yield self
        finally:
            self._do(self._stack.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def add(self, name: str, upstream: str) -> FaultProxy:
        """One more; it listens when this returns."""
        proxy = FaultProxy(upstream)
        self._do(self._stack.enter_async_context(proxy.listening()))
        self.proxies[name] = proxy
        return proxy

    def set(self, name: str, fault: Fault) -> None:
        """The fault of one proxy, felt when this returns."""
        self._call(lambda: self.proxies[name].set(fault))

    def _call(self, what: Callable[[], None]) -> None:
        async def call() -> None:
            what()

        self._do(call())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)
