"""Listeners of one process: several uvicorn servers on one uvloop loop, stopped together and gently."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
import uvicorn
import uvloop

from contracts import routes

KEEP_ALIVE_S: Final = 75  # outlives the routers' idle connections (55 s): a router never finds one closed
STOP_S: Final = 20  # how long requests in flight may still take
AGAIN_S: Final = 1.0  # until work beside the servers that failed begins again
_BACKLOG: Final = 2048

_log = structlog.get_logger()


class ListenError(Exception):
    """The address cannot be listened on; the message says why."""


def listen(address: str) -> socket.socket:
    """A listening socket."""
    host, port = routes.split_address(address)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as e:
        raise ListenError(f"cannot listen on {address}: {e.strerror}") from e
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as e:
        sock.close()
        raise ListenError(f"cannot listen on {address}: {e.strerror}") from e
    return sock


class _Server(uvicorn.Server):
    """A server that leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True)
class Listener:
    """An application and the socket it is served on."""

    application: Any
    socket: socket.socket


async def serve(listeners: Sequence[Listener], stopping: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``stopping`` is called at once; then the listeners stop in the given order,
    each after its requests in flight have been answered or `STOP_S` has passed."""
    # A full collection looks at everything that was ever loaded, for 80 ms in which nobody is served; and the more
    # requests, the more often. What is there by now stays, and is not looked at again.
    gc.collect()
    gc.freeze()
    servers = [_server(listener.application) for listener in listeners]
    tasks = [
        asyncio.get_running_loop().create_task(server.serve(sockets=[listener.socket]))
        for server, listener in zip(servers, listeners, strict=True)
    ]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    waiting = loop.create_task(stop.wait())
    await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    stopping()
    for server, task in zip(servers, tasks, strict=True):
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def running(*work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Work beside the servers that has no end of its own, cancelled with them and then awaited.

    Whatever ends it before is logged, and it begins again after `AGAIN_S`: a cell whose agent had died unnoticed would
    serve, and count as dead.
    """
    stopping = asyncio.Event()
    tasks = [asyncio.get_running_loop().create_task(_kept(each, stopping)) for each in work]
    try:
        yield
    finally:
        stopping.set()
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):  # of the last turn, on its way out
                raise result


async def _kept(work: Callable[[], Coroutine[Any, Any, None]], stopping: asyncio.Event) -> None:
    while True:
        turn: Any = work()
        try:
            await turn
        except Exception:
            if stopping.is_set():  # its cancellation is lost with the failure
                raise
            _log.exception("background_work_failed", work=turn.__qualname__)
        await asyncio.sleep(AGAIN_S)


def _server(application: Any) -> uvicorn.Server:
    config = uvicorn.Config(
        application,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
    )
    return _Server(config)


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run the process's main coroutine on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
