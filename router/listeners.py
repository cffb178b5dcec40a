"""The listening sockets of a router, all made by the supervisor, so that no worker's death closes one."""

import errno
import socket
import time
from collections.abc import Callable
from typing import Final

from contracts.routes import split_address
from router.settings import SettingsError

_RETRY_S: Final = 1.0  # a router that was killed a moment ago may still hold the port for some milliseconds
_PAUSE_S: Final = 0.05


def listen(
    address: str,
    count: int,
    backlog: int,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[socket.socket]:
    """``count`` sockets that listen on one address; the kernel spreads connections over them (SO_REUSEPORT).

    `SettingsError` says in one line why there are none. SO_REUSEPORT alone would let a second router of the same
    user share the port in silence, so the address is first bound without it.
    """
    host, port = split_address(address)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as e:
        raise SettingsError(f"cannot listen on {address}: {e.strerror}") from e
    deadline = clock() + _RETRY_S
    while True:
        try:
            _probe(family, where)
            return _open(family, where, count, backlog)
        except OSError as e:
            if e.errno != errno.EADDRINUSE or clock() >= deadline:
                reason = "the port is in use" if e.errno == errno.EADDRINUSE else e.strerror
                raise SettingsError(f"cannot listen on {address}: {reason}") from e
        sleep(_PAUSE_S)


def _probe(family: int, where: tuple[object, ...]) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)


def _open(family: int, where: tuple[object, ...], count: int, backlog: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(where)
        # Only when all are bound: a socket that listens gets connections at once.
        for sock in sockets:
            sock.setblocking(False)
            sock.listen(backlog)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets
