"""Listeners of a cell's processes: bound before anything else starts, stopped by the process and not by uvicorn."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Final

import uvicorn

from contracts import routes

BACKLOG: Final = 2048
KEEP_ALIVE_S: Final = 75  # longer than the router's idle time (55 s), or its next request meets a closed connection
DRAIN_S: Final = 10


class ListenError(Exception):
    """An address that cannot be listened on; the message names it and says why."""


def bind(address: str) -> socket.socket:
    """A listening socket on ``HOST:PORT``, or `ListenError`."""
    host, port = routes.split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as e:
        raise ListenError(f"cannot listen on {address}: {e.strerror or e}") from e


class Server(uvicorn.Server):
    """uvicorn on one socket. Signals belong to the process, which has more than this to stop: set ``should_exit``."""

    def __init__(self, application: Any, listener: socket.socket) -> None:
        config = uvicorn.Config(
            application,
            loop="none",
            http="httptools",
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
        )
        super().__init__(config)
        self._listener = listener

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's handlers alone."""
        yield

    async def run_until_stopped(self) -> None:
        """Serve until ``should_exit`` is set, then drain within `DRAIN_S`."""
        await self.serve(sockets=[self._listener])
