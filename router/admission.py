"""Who may come in: rate and requests in flight, for each client address and for each tenant by its plan.

The rate is GCRA (ITU-T I.371): one theoretical arrival time for each key, no timer. The limits hold for the router,
not for each worker: a worker writes what it let in to its own words of the board and counts in what the others wrote.

How exact that is. Two workers may decide in the same microseconds and both let the last request in: the excess is at
most one request for each other worker. Keys share 65,536 words by hash; while two busy keys collide, the workers do
not see each other's share of these two, and each may get up to its limit in every worker. Never is one key charged
for another (24 bits of the hash are compared). A worker that starts grants one more burst.
"""

from collections.abc import Callable, Sequence
from typing import Final

from contracts import problems
from contracts.envelope import FRONT_DOOR, NO_TENANT
from router.board import USAGE_SLOTS, Board
from router.locator import Refused
from router.settings import AddressLimits
from router.table import Located
from router.walls import ALL_ON, Wall, Walls

REST_S: Final = 1.0  # for which a tenant whose cell had no room for a large body sends it no other

FRONT_DOOR_ADDRESS_LIMITS: Final = AddressLimits(requests_per_s=20.0, burst=100, in_flight=32)

_ADDRESS_LIMITS: Final = AddressLimits()
_TAG_SHIFT: Final = 40
_VALUE_MASK: Final = (1 << _TAG_SHIFT) - 1
_TAG_MASK: Final = (1 << 24) - 1
_METERS_LIMIT: Final = 65_536
_RESTING_LIMIT: Final = 10_000  # tenants; of more it is not remembered
_BEYOND: Final = 1 << 40  # no cap
_ALL_ON: Final = Walls(ALL_ON, lambda *_: None)


class Meter:
    """What one key used, in this worker and in the others."""

    __slots__ = ("admitted", "arrival", "at", "in_flight", "last", "seen", "tag")

    def __init__(self, at: int, tag: int, now: float, workers: int) -> None:
        self.at = at
        self.tag = tag
        self.arrival = now  # the theoretical arrival time of GCRA
        self.last = now
        self.in_flight = 0
        self.admitted = 0
        self.seen = [-1] * workers


class Limiter:
    """The meters of one kind of key. ``own`` and ``others`` are the same words of each worker's region."""

    def __init__(
        self, own: "memoryview[int]", others: "Sequence[memoryview[int]]", *, limit: int = _METERS_LIMIT
    ) -> None:
        self._own = own
        self._others = tuple(others)
        self._limit = limit
        self._meters: dict[bytes, Meter] = {}

    def enter(self, key: bytes, now: float, requests_per_s: float, burst: int, in_flight: int) -> float:
        """Let one request in and return 0, or return for how many seconds it comes too early; a full house is 1.

        A rate of 0 means no rate. Every 0 needs a `leave`.
        """
        meter = self._meters.get(key) or self._meter(key, now)
        if self._in_flight(meter) >= in_flight:
            return 1.0
        if requests_per_s:
            interval = 1.0 / requests_per_s
            arrival = max(self._arrival(meter, interval), now)
            early = arrival - now - (burst - 1) * interval
            meter.last = now
            # The clock's float has less precision than an interval of a very high rate: 1 ns of grace.
            if early > 1e-9:
                meter.arrival = arrival
                return early
            meter.arrival = arrival + interval
        meter.in_flight += 1
        meter.admitted = (meter.admitted + 1) & _VALUE_MASK
        self._own[meter.at] = meter.tag << _TAG_SHIFT | meter.admitted
        self._own[USAGE_SLOTS + meter.at] = meter.tag << _TAG_SHIFT | meter.in_flight
        return 0.0

    def leave(self, key: bytes) -> None:
        """The request that `enter` let in has ended."""
        meter = self._meters[key]
        meter.in_flight -= 1
        self._own[USAGE_SLOTS + meter.at] = meter.tag << _TAG_SHIFT | meter.in_flight

    def _in_flight(self, meter: Meter) -> int:
        total, at, tag = meter.in_flight, USAGE_SLOTS + meter.at, meter.tag
        for other in self._others:
            word = other[at]
            if word >> _TAG_SHIFT == tag:
                total += word & _VALUE_MASK
        return total

    def _arrival(self, meter: Meter, interval: float) -> float:
        """The arrival time with what the other workers let in since the last look."""
        foreign, at, tag, seen = 0, meter.at, meter.tag, meter.seen
        for number, other in enumerate(self._others):
            word = other[at]
            if word >> _TAG_SHIFT == tag:
                count = word & _VALUE_MASK
                if 0 <= seen[number] < count:
                    foreign += count - seen[number]
                seen[number] = count
        if foreign:
            return max(meter.arrival, meter.last) + foreign * interval
        return meter.arrival

    def _meter(self, key: bytes, now: float) -> Meter:
        if len(self._meters) >= self._limit:
            self._forget(now)
        digest = hash(key)  # secret seed; the same in all workers, because they are forked from one process
        tag = (digest >> 16 & _TAG_MASK) or 1
        meter = Meter(digest % USAGE_SLOTS, tag, now, len(self._others))
        self._arrival(meter, 0.0)
        self._meters[key] = meter
        return meter

    def _forget(self, now: float) -> None:
        """Drop the meters that say nothing any more; where all are busy, the idle half that came first."""
        self._meters = {k: m for k, m in self._meters.items() if m.in_flight or m.arrival > now}
        if len(self._meters) >= self._limit:
            idle = [k for k, m in self._meters.items() if not m.in_flight]
            for key in idle[: len(self._meters) // 2]:
                del self._meters[key]


class Admission:
    """The limits of one worker. ``clock`` is monotonic, in seconds. Who is let through a wall that only observes is
    counted in flight like all others, and takes nothing of the rate."""

    def __init__(
        self,
        clock: Callable[[], float],
        board: Board,
        index: int,
        addresses: AddressLimits = _ADDRESS_LIMITS,
        walls: Walls = _ALL_ON,
    ) -> None:
        self._clock = clock
        self._walls = walls
        self._by_address = walls.watches(Wall.ADDRESSES)
        self._by_plan = walls.watches(Wall.PLANS)
        self._by_connection = walls.watches(Wall.CONNECTIONS)
        others = [slot for number, slot in enumerate(board) if number != index]
        own = board.slot(index)
        self._tenants = Limiter(own.tenant_usage, [slot.tenant_usage for slot in others])
        self._addresses = Limiter(own.address_usage, [slot.address_usage for slot in others])
        self._limits = addresses
        self._rests: dict[bytes, float] = {}  # until when

    def connect(self, address: bytes) -> bool:
        """Count a new connection of this address. False where it has too many; else `disconnect` is needed."""
        if not self._by_connection:
            return True
        key, now = b"c %b" % address, self._clock()
        if self._addresses.enter(key, now, 0.0, 1, self._limits.connections):
            if self._walls.refuses(Wall.CONNECTIONS):
                return False
            self._addresses.enter(key, now, 0.0, 1, _BEYOND)
        return True

    def disconnect(self, address: bytes) -> None:
        """A counted connection is gone."""
        if self._by_connection:
            self._addresses.leave(b"c %b" % address)

    def enter_address(self, address: bytes) -> Refused | None:
        """Let a request of this client address in, before anything else is looked at. Then `leave_address`."""
        return self._enter_address(address, self._limits, "client address") if self._by_address else None

    def leave_address(self, address: bytes) -> None:
        """The request has ended."""
        if self._by_address:
            self._addresses.leave(address)

    def enter_tenant(self, route: Located, address: bytes) -> Refused | None:
        """Let a request of this route in. Then `leave_tenant` with the same route and address.

        The front door has limits for each address as well, far below those of tenants.
        """
        front = route.cell.name == FRONT_DOOR and self._by_address
        if front:
            who = "client address at the front door"
            refused = self._enter_address(b"%b %b" % (address, route.tenant), FRONT_DOOR_ADDRESS_LIMITS, who)
            if refused is not None:
                return refused
        if not self._by_plan:
            return None
        now, plan = self._clock(), route.plan
        wait = self._tenants.enter(_key(route), now, plan.requests_per_s, plan.burst, plan.in_flight)
        if not wait:
            return None
        if self._walls.refuses(Wall.PLANS):
            if front:
                self._addresses.leave(b"%b %b" % (address, route.tenant))
            return _refused("tenant", wait)
        self._tenants.enter(_key(route), now, 0.0, 1, _BEYOND)
        return None

    def rest(self, route: Located) -> None:
        """The cell had no room for a large body of this tenant: see `rests`."""
        if len(self._rests) >= _RESTING_LIMIT:
            now = self._clock()
            self._rests = {key: until for key, until in self._rests.items() if until > now}
            if len(self._rests) >= _RESTING_LIMIT:
                return
        self._rests[_key(route)] = self._clock() + REST_S

    def rests(self, route: Located) -> Refused | None:
        """Whether a large body comes too early after one of this tenant that the cell had no room for. Its client was
        told to wait; where it does not, the body is not carried to the cell in vain. Each worker knows of its own."""
        if not self._by_plan:
            return None
        until = self._rests.get(_key(route))
        if until is None:
            return None
        if until <= self._clock():
            del self._rests[_key(route)]
            return None
        if self._walls.refuses(Wall.PLANS):
            return Refused(problems.RATE_LIMITED, "the cell has no room for large bodies of this tenant yet", 1)
        return None

    def leave_tenant(self, route: Located, address: bytes) -> None:
        """The request has ended."""
        if self._by_plan:
            self._tenants.leave(_key(route))
        if self._by_address and route.cell.name == FRONT_DOOR:
            self._addresses.leave(b"%b %b" % (address, route.tenant))

    def _enter_address(self, key: bytes, limits: AddressLimits, who: str) -> Refused | None:
        now = self._clock()
        wait = self._addresses.enter(key, now, limits.requests_per_s, limits.burst, limits.in_flight)
        if not wait:
            return None
        if self._walls.refuses(Wall.ADDRESSES):
            return _refused(who, wait)
        self._addresses.enter(key, now, 0.0, 1, _BEYOND)
        return None


def _key(route: Located) -> bytes:
    return route.tenant if route.tenant != NO_TENANT else b"- " + route.cell.name.encode()


def _refused(who: str, wait: float) -> Refused:
    return Refused(problems.RATE_LIMITED, f"the limit of this {who} is reached", max(1, -int(-wait // 1)))
