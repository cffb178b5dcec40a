"""Free ports on loopback, below the range from which the kernel draws ports for outgoing connections."""

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.local.errors import LocalFleetError

LOOPBACK: Final = "127.0.0.1"
LOWEST: Final = 15_000
_DEFAULT_EPHEMERAL: Final = 32_768
_TRIES: Final = 2_000


def ephemeral_start() -> int:
    """Where the kernel's range for outgoing connections begins: a port above it can vanish at any moment."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if low > LOWEST + 1_000:
            return low
    return _DEFAULT_EPHEMERAL


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with contextlib.suppress(OSError), _bound(port):
        return True
    return False


@contextlib.contextmanager
def reserved(
    count: int, *, pick: random.Random | None = None, avoid: frozenset[int] = frozenset()
) -> Iterator[list[int]]:
    """``count`` different free ports, held against everybody inside the ``with`` block.

    Outside of it another program could take one: start the servers soon after, and be ready to try again.
    """
    chance = pick or random.SystemRandom()
    span = range(LOWEST, ephemeral_start())
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for _ in range(_TRIES):
            if len(ports) == count:
                break
            port = chance.choice(span)
            if port in avoid or port in ports:
                continue
            with contextlib.suppress(OSError):
                held.enter_context(_bound(port))
                ports.append(port)
        if len(ports) < count:
            raise LocalFleetError(f"found only {len(ports)} of {count} free ports between {span.start} and {span.stop}")
        yield ports


def free_ports(count: int, *, avoid: frozenset[int] = frozenset()) -> list[int]:
    """``count`` ports that were free a moment ago."""
    with reserved(count, avoid=avoid) as ports:
        return list(ports)


@contextlib.contextmanager
def _bound(port: int) -> Iterator[None]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections in TIME_WAIT do not count
        probe.bind((LOOPBACK, port))
        probe.listen(1)
        yield
