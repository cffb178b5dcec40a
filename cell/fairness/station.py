"""One level of one shard: its seats, its queues, and the decision about each request.

Pure: time comes in as an argument, in seconds, and nothing waits in here. Who asked is told at once that it has a seat,
that it waits, or that it is refused; whoever gets a seat because another one was left is returned to be woken.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

from cell.fairness.queues import Deck, FullError, Queues, Ticket
from cell.fairness.seats import AdaptiveLimit, Shares, heavy_seats
from contracts import problems
from contracts.names import Refusal
from contracts.problems import Problem

RETRY_MAX_S: Final = 60
SEAT_WEIGHT: Final = 0.25  # of the time in a seat that counts as cost although no database was at work
SERVICE_FIRST_S: Final = 0.01
SERVICE_WEIGHT: Final = 0.05


@dataclass(frozen=True, slots=True)
class Size:
    """Seats and room to wait of one station. Defaults fit ten connections to a shard."""

    least: int = 2
    most: int = 7
    deck: int = 1024
    hand: int = 8
    length: int = 32
    tenant_room: int = 64
    room: int = 256


class RefusedError(Exception):
    """The request is not let in, and nothing of it ran. ``retry_after_s`` is when it may well be, in whole seconds."""

    def __init__(self, problem: Problem, refusal: Refusal, retry_after_s: float) -> None:
        super().__init__(problem.title)
        self.problem = problem
        self.refusal = refusal
        self.retry_after_s = min(RETRY_MAX_S, max(1, ceil(retry_after_s)))


class Station:
    """Seats and queues. With ``observe`` everybody gets a seat at once, and what would have happened is only told."""

    def __init__(self, size: Size, seed: int, now: float, *, observe: bool = False) -> None:
        self.seats = AdaptiveLimit(size.least, size.most, now)
        self.running = 0
        self._size = size
        self._observe = observe
        self._shares = Shares(now)
        self._queues = Queues(
            Deck(size.deck, size.hand, seed), length=size.length, tenant_room=size.tenant_room, room=size.room
        )
        self._heavy = 0
        self._running_of: dict[int, int] = {}
        self._service_s = SERVICE_FIRST_S
        self._progress = now  # when a seat was last left, or taken while one was free
        self._now = now

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._queues.waiting

    @property
    def touched_at(self) -> float:
        """When a request came or went last."""
        return self._now

    def ask(self, ticket: Ticket, patience_s: float, now: float) -> Ticket | None:
        """Seat the request, or let it wait (``seated_at`` tells which); `RefusedError` where neither makes sense.

        ``patience_s`` is the time it has left. The answer is a request that had to give up its place, to be refused.
        """
        self._now = now
        if self.running < self.seats.limit and self._may_sit(ticket):
            self._queues.begin(ticket)
            self._seat(ticket)
            return None
        if self._observe:
            self._observed(ticket, patience_s)
            return None
        self._check_patience(ticket.tenant, patience_s)
        try:
            return self._queues.push(ticket)
        except FullError as e:
            raise self._full(e.own, ticket.tenant) from None

    def foresee(self, ticket: Ticket, patience_s: float, now: float) -> None:
        """`RefusedError` where `ask` would raise it now. Takes no place."""
        self._now = now
        if self._observe or (self.running < self.seats.limit and self._may_sit(ticket)):
            return
        self._check_patience(ticket.tenant, patience_s)
        try:
            self._queues.place(ticket)
        except FullError as e:
            raise self._full(e.own, ticket.tenant) from None

    def _observed(self, ticket: Ticket, patience_s: float) -> None:
        """Seat it whatever the limit; then say what the wall would have said. The caller leaves the seat either way."""
        self._queues.begin(ticket)
        self._seat(ticket)
        if self._running_of[ticket.tenant] > self.seats.limit + self._size.tenant_room:
            raise self._full(True, ticket.tenant)
        if self.running > self.seats.limit + self._size.room:
            raise self._full(False, ticket.tenant)
        self._check_patience(ticket.tenant, patience_s)

    def _check_patience(self, tenant: int, patience_s: float) -> None:
        wait = self.wait_s(tenant, self._now)
        if wait > patience_s:
            raise RefusedError(problems.OVERLOADED, Refusal.OVERLOADED, wait)

    def _full(self, own: bool, tenant: int) -> RefusedError:
        wait = self.wait_s(tenant, self._now)
        if own:
            return RefusedError(problems.TENANT_BUSY, Refusal.TENANT_BUSY, wait)
        return RefusedError(problems.OVERLOADED, Refusal.OVERLOADED, wait)

    def wait_s(self, tenant: int, now: float) -> float:
        """How long one more request of the tenant would probably wait.

        Fair queueing lets as many requests of every other tenant go first as this one has waiting itself. A seat comes
        free as often as the requests' time in it says, or, where nothing has moved for longer, as rarely as that.
        """
        ahead = (self._queues.waiting_of(tenant) + 1) * max(1, self._queues.tenants)
        interval = max(self._service_s / max(1, self.running), now - self._progress)
        return min(ahead, self.waiting + 1) * interval

    def leave(self, ticket: Ticket, cost_s: float, ratio: float, now: float) -> list[Ticket]:
        """The seat of a request is free. ``ratio`` is its latency in units of the usual, 0 where it says nothing.

        The answer is who sits now, in order.
        """
        if ratio:
            self.seats.sample(ratio, self.running, now)
        self._rise(ticket, cost_s, now)
        self._service_s += SERVICE_WEIGHT * (ticket.held_s - self._service_s)
        return self._fill() if self._queues.waiting else []

    def turn(self, ticket: Ticket, cost_s: float, estimate_s: float, now: float) -> list[Ticket]:
        """The request in this seat has done a part of its work, which did cost this much, and wants to go on.

        Whoever is due before it gets the seat; then it waits again (``seated_at`` tells). The answer is who sits now,
        this request itself among them where it may go on.
        """
        self._rise(ticket, cost_s, now)
        ticket.estimate_s, ticket.seated_at = estimate_s, -1.0
        if self._observe:
            self._queues.begin(ticket)
            self._seat(ticket)
            return [ticket]
        self._queues.push_again(ticket)
        return self._fill()

    def _rise(self, ticket: Ticket, cost_s: float, now: float) -> None:
        self._now = now
        ticket.held_s += now - ticket.seated_at
        self.running -= 1
        self._heavy -= ticket.heavy
        left = self._running_of[ticket.tenant] - 1
        if left:
            self._running_of[ticket.tenant] = left
        else:
            del self._running_of[ticket.tenant]
        self._progress = now
        self._queues.settle(ticket, cost_s)
        self._shares.end(ticket.tenant, ticket.estimate_s, cost_s, now)

    def withdraw(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Whoever waited with this ticket is gone. The answer is who sits now: it may have stood in the way."""
        self._now = now
        return self._fill() if self._queues.discard(ticket) and self._queues.waiting else []

    def _fill(self) -> list[Ticket]:
        seated = []
        while self.running < self.seats.limit:
            ticket = self._queues.pop(self._may_sit)
            if ticket is None:
                break
            self._seat(ticket)
            seated.append(ticket)
        return seated

    def _may_sit(self, ticket: Ticket) -> bool:
        """Whether a seat that is free is for this request: some are kept for tenants that use little."""
        limit = self.seats.limit
        if self._heavy < heavy_seats(limit):
            return True
        return not self._shares.heavy(ticket.tenant, limit, self._now)

    def _seat(self, ticket: Ticket) -> None:
        if self.running < self.seats.limit:
            self._progress = self._now
        ticket.seated_at = self._now
        ticket.heavy = self._shares.heavy(ticket.tenant, self.seats.limit, self._now)
        self._heavy += ticket.heavy
        self._shares.begin(ticket.tenant, ticket.estimate_s)
        self.running += 1
        self._running_of[ticket.tenant] = self._running_of.get(ticket.tenant, 0) + 1


def cost_of(database_s: float, seat_s: float) -> float:
    """What a request is charged: its database seconds; or a part of its time in the seat, where that is more, because
    others cannot have a seat that is held without asking the database anything."""
    return max(database_s, SEAT_WEIGHT * seat_s)
