"""What the lab tells a process of its driver, and what that process reports: msgpack frames on stdin and stdout.

Parent to child: a `Job`, then, once every child is `READY`, a `Go`. Child to parent: `READY`, a `Progress` a second,
and one `Tally` at the end. A frame is four bytes of length, big endian, and that many bytes.
"""

import array
from typing import Final, Protocol

import msgspec

from loadtest.lab.result import FailureExample, Histogram
from loadtest.record import Acknowledged, Stale
from loadtest.schedule import Stream
from loadtest.workload import Account

READY: Final = b"ready"
LENGTH_BYTES: Final = 4

# How a sample says how a request ended; a success is its latency in microseconds.
FAILED: Final = -1
REFUSED: Final = -2


class Address(msgspec.Struct, frozen=True):
    """A router, or whatever answers requests."""

    name: str
    host: str
    port: int


class Source(msgspec.Struct, frozen=True):
    """Clients behind one address. ``local`` is the address to connect from; empty leaves it to the machine."""

    local: str
    streams: list[Stream]


class Hold(msgspec.Struct, frozen=True):
    """Connections that one tenant holds from ``begin`` to ``end``; if ``slow``, each with a body that trickles in."""

    tenant: int
    connections: int
    begin: float
    end: float
    slow: bool
    local: str


class Job(msgspec.Struct, frozen=True):
    """One process' part. ``accounts`` are its tenants; streams and holds name them by their place in it."""

    process: int
    run: str
    seed: int
    targets: list[Address]
    connections: int
    accounts: list[Account]
    orders: dict[str, list[str]]
    sources: list[Source]
    holds: list[Hold]


class Go(msgspec.Struct, frozen=True):
    """Second 0 of the run, by the machine's monotonic clock, which all processes share."""

    start: float


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far it is."""

    sent: int
    succeeded: int
    refused: int
    failed: int


class Samples(msgspec.Struct, frozen=True):
    """One entry a request, in columns: place of the tenant, code of the kind, intended second, and how it ended."""

    tenants: bytes = b""  # array "I"
    kinds: bytes = b""  # array "B": the place in `Kind`
    at_s: bytes = b""  # array "d"
    ended: bytes = b""  # array "i": microseconds, or `FAILED` or `REFUSED`

    def columns(self) -> "tuple[array.array[int], array.array[int], array.array[float], array.array[int]]":
        """The four columns."""
        tenants, kinds, at_s, ended = array.array("I"), array.array("B"), array.array("d"), array.array("i")
        tenants.frombytes(self.tenants)
        kinds.frombytes(self.kinds)
        at_s.frombytes(self.at_s)
        ended.frombytes(self.ended)
        return tenants, kinds, at_s, ended


class Cause(msgspec.Struct, frozen=True):
    """How often requests of one tenant ended in one way that they should not, by the second they were intended for."""

    tenant: int
    second: int
    cause: str
    status: int
    count: int


class Tally(msgspec.Struct, frozen=True, tag="tally"):
    """All that a process saw. ``examples`` are the first few of each sort; their role, cell and phase are the parent's
    to fill in."""

    process: int
    samples: Samples
    causes: list[Cause]
    examples: list[FailureExample]
    acknowledged: list[Acknowledged]
    unacknowledged: dict[str, str]
    stale: list[Stale]
    lag: Histogram
    lag_max_ms: float
    cpu_share: float
    waited_share: float
    requests: int


Report = Progress | Tally


class _Bytes(Protocol):
    def __call__(self, data: bytes, /) -> object: ...


def send(write: _Bytes, frame: bytes) -> None:
    """Write one frame."""
    write(len(frame).to_bytes(LENGTH_BYTES, "big") + frame)
