"""A router worker without sockets: real client, exchange and upstream protocols over transports that only remember."""

import random
from dataclasses import dataclass, field

from contracts.envelope import signer
from router.admission import Admission
from router.board import Board
from router.breaker import RetryBudget, Silence
from router.client import Client
from router.framing import CHUNKED, ChunkedReader
from router.hold import Holds
from router.http1 import parse_request
from router.locator import Locator
from router.metrics import Metrics
from router.path import Path, Signatures
from router.pool import NoRoomError
from router.settings import AddressLimits, Budgets, FrontDoor
from router.table import Caps, CellEntry, Located, PlanEntry, RouteState, tenant_key
from router.timers import Wheel
from router.upstream import Upstream, User
from router.walls import Modes, Walls

HINT_KEY = b"h" * 32
ROOT = b"r" * 32
CAPS = Caps(connections=8, pending=8, in_flight=8)
PLAN = PlanEntry("standard", requests_per_s=1e6, burst=10**6, in_flight=1000)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class MemoryTransport:
    """Remembers; never fails."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.paused = self.closed = self.aborted = self.ended = False
        self.untaken = 0

    def write(self, data: bytes) -> None:
        assert not self.ended or not data, "written after the end"
        self.sent += data

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return self.untaken

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_extra_info(self, name: str) -> object:
        return ("192.0.2.7", 5555) if name == "peername" else None

    def take(self) -> bytes:
        data = bytes(self.sent)
        self.sent.clear()
        return data


class MemoryPool:
    """A pool whose connections are there at once. ``connect`` False leaves requests waiting."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connect = True
        self.full = False
        self.retries = RetryBudget()
        self.silence = Silence(lambda: 0.0, random.Random(1))
        self.in_flight = 0
        self.made: list[Upstream] = []
        self.idle: list[Upstream] = []
        self.waiting: list[User] = []

    def enter(self, tenant: bytes) -> None:
        if self.full:
            from contracts.problems import CELL_BUSY

            raise NoRoomError(CELL_BUSY, 1.0)
        self.in_flight += 1

    def leave(self, tenant: bytes) -> None:
        self.in_flight -= 1
        assert self.in_flight >= 0

    def drop_idle(self) -> None:
        for upstream in list(self.idle):
            self.discard(upstream)

    def acquire(self, user: User) -> None:
        if not self.connect:
            self.waiting.append(user)
            return
        upstream = self.idle.pop() if self.idle else self._make()
        upstream.user = user
        user.connected(upstream)

    def forget(self, user: User) -> None:
        if user in self.waiting:
            self.waiting.remove(user)

    def put_back(self, upstream: Upstream) -> None:
        self.idle.append(upstream)

    def discard(self, upstream: Upstream, *, flush: bool = False) -> None:
        if upstream in self.idle:
            self.idle.remove(upstream)
        assert upstream.transport is not None
        upstream.transport.abort()

    def _make(self) -> Upstream:
        upstream = Upstream(self)  # type: ignore[arg-type]
        upstream.connection_made(MemoryTransport())  # type: ignore[arg-type]
        self.made.append(upstream)
        return upstream


class MemoryPools:
    def __init__(self) -> None:
        self.pools: dict[str, MemoryPool] = {}

    def get(self, name: str, address: str, caps: Caps) -> MemoryPool:
        return self.pools.setdefault(name, MemoryPool(name))


class MemoryTable:
    def __init__(self) -> None:
        self.complete = True
        self.routes: dict[bytes, Located] = {}

    def lookup(self, key: bytes) -> Located | None:
        return self.routes.get(key)

    def cell(self, name: str) -> CellEntry | None:
        return CellEntry(name, f"{name}:1", CAPS)

    def put(self, tenant: str, cell: str = "cell-1", epoch: int = 1, state: RouteState = RouteState.ACTIVE) -> None:
        route = Located(tenant.encode(), CellEntry(cell, f"{cell}:1", CAPS), epoch, state, PLAN)
        self.routes[tenant_key(tenant.encode())] = self.routes[f"{tenant}.example.test".encode()] = route


@dataclass
class World:
    """One worker, its table with tenants ``t1`` and ``t2`` in cell-1, and no time that passes by itself."""

    clock: Clock = field(default_factory=Clock)
    table: MemoryTable = field(default_factory=MemoryTable)
    pools: MemoryPools = field(default_factory=MemoryPools)
    wheel: Wheel = field(default_factory=Wheel)
    budgets: Budgets = field(default_factory=Budgets)
    addresses: AddressLimits = field(default_factory=AddressLimits)
    trust: bool = False
    modes: Modes = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.table.put("t1")
        self.table.put("t2")
        board = Board.create(1)
        metrics = Metrics(board.slot(0))
        self.walls = Walls(self.modes, metrics.walled)
        self.path = Path(
            budgets=self.budgets,
            locator=Locator(
                self.table,
                trust_tenant_header=self.trust,
                front_door=FrontDoor(b"start.example.test", "127.0.0.1:1"),
            ),
            admission=Admission(self.clock, board, 0, self.addresses, self.walls),
            pools=self.pools,  # type: ignore[arg-type]
            holds=Holds(self.wheel, self._held, requests=self.budgets.held_requests, max_bytes=self.budgets.held_bytes),
            wheel=self.wheel,
            metrics=metrics,
            signatures=Signatures(ROOT, b"0123456789abcdef"),
            hint_key=HINT_KEY,
            walls=self.walls,
            clock=self.clock,
        )

    def _held(self, tenant: bytes) -> bool:
        route = self.table.lookup(tenant_key(tenant))
        return route is not None and route.state is RouteState.HELD

    def client(self) -> tuple[Client, MemoryTransport]:
        client, transport = Client(self.path), MemoryTransport()
        client.connection_made(transport)  # type: ignore[arg-type]
        return client, transport

    def pool(self, cell: str = "cell-1") -> MemoryPool:
        return self.pools.get(cell, "", CAPS)

    def pass_time(self, seconds: float) -> None:
        from router.timers import TICK_S

        for _ in range(int(seconds / TICK_S) + 2):
            self.clock.now += TICK_S
            self.wheel.turn()


def sent(upstream: Upstream) -> MemoryTransport:
    """What went to the cell on this connection."""
    assert isinstance(upstream.transport, MemoryTransport)
    return upstream.transport


def requests_in(stream: bytes) -> list[tuple[bytes, bytes]]:
    """The complete requests that a cell reads in ``stream``: heads, and bodies without their framing."""
    found = []
    while b"\r\n\r\n" in stream:
        end = stream.index(b"\r\n\r\n") + 4
        head, stream = stream[:end], stream[end:]
        framing = parse_request(head)[0].fields.framing
        if framing == CHUNKED:
            reader = ChunkedReader()
            body = reader.feed(stream)
            if not reader.done:
                break
            stream = reader.rest
        else:
            if len(stream) < framing:
                break
            body, stream = stream[:framing], stream[framing:]
        found.append((head, body))
    return found


def statuses(stream: bytes) -> list[int]:
    """The status of every answer in ``stream``, which has Content-Length or no body."""
    found = []
    while stream:
        head, _, stream = stream.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        found.append(int(lines[0].split(b" ")[1]))
        lengths = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
        stream = stream[lengths[0] :] if lengths else stream
    return found


def sign(text: bytes) -> bytes:
    """A signature under the hint key."""
    return signer(HINT_KEY)(text)


def seeded(seed: int) -> random.Random:
    """Randomness that a test owns."""
    return random.Random(seed)
