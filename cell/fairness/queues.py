"""Queues of a level: whose request begins next when there are more requests than seats.

Pure. Shuffle sharding deals each tenant a hand of queues, so that a flood fills its own hand and hardly anybody else's
(Kubernetes' API Priority and Fairness, KEP-1040; its dealer is the model of `Deck`). A user or API key gets a part of
its tenant's hand, for the same reason. A request joins the shortest queue it may use. The next to begin is the head
of a queue that would end first in virtual time: of those that would start at the same time, the cheapest. A queue's
virtual time rises by what its requests cost: by the estimate when one begins, corrected when it has ended. It never
lags behind that of the system, which is the least of all queues that wait: start-time fair queueing for several
servers, SFQ(D) (Jin, Chase and Kaur, SIGMETRICS 2004).
"""

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Final

import xxhash

HANDS_MAX: Final = 16_384  # remembered


class Ticket:
    """One request on its way to a seat, in a seat, or past it. ``caller`` tells users and API keys of a tenant apart.

    ``charge`` is the virtual time that it was charged per second of cost; ``ready`` belongs to who waits for the seat;
    ``held_s`` is how long it has had one, over all parts of its work.
    """

    __slots__ = (
        "asked_at",
        "caller",
        "charge",
        "estimate_s",
        "heavy",
        "held_s",
        "queue",
        "ready",
        "seated_at",
        "tenant",
    )

    def __init__(self, tenant: int, caller: int, estimate_s: float, asked_at: float) -> None:
        self.tenant = tenant
        self.caller = caller
        self.estimate_s = estimate_s
        self.asked_at = asked_at
        self.seated_at = -1.0
        self.charge = 1.0
        self.heavy = False
        self.held_s = 0.0
        self.queue: Queue | None = None
        self.ready: Any = None


class Queue:
    """A queue, first come first served. ``virtual`` is when, in virtual time, its next request may begin."""

    __slots__ = ("number", "virtual", "waiting")

    def __init__(self, number: int) -> None:
        self.number = number
        self.virtual = 0.0
        self.waiting: deque[Ticket] = deque()


class _Room:
    """What of one tenant waits: in all, and in which queues."""

    __slots__ = ("queues", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.queues: dict[int, int] = {}


class FullError(Exception):
    """There is no room to wait. ``own``: because of the tenant's own requests."""

    def __init__(self, own: bool) -> None:
        super().__init__("the tenant's room is full" if own else "the level's room is full")
        self.own = own


class Deck:
    """Deals ``hand`` of ``deck`` queues to a tenant, and half of these to each of its callers."""

    def __init__(self, deck: int, hand: int, seed: int) -> None:
        if not 1 <= hand <= deck:
            raise ValueError(f"a hand of {hand} cannot be dealt from {deck} queues")
        self.hand = hand
        self.caller_hand = (hand + 1) // 2
        self._deck = deck
        self._seed = seed
        self._hands: dict[tuple[int, int], tuple[int, ...]] = {}

    def of(self, tenant: int, caller: int) -> tuple[int, ...]:
        """The numbers of the queues that requests of this caller may join."""
        key = (tenant, caller)
        found = self._hands.get(key)
        if found is None:
            if len(self._hands) >= HANDS_MAX:
                self._hands.clear()
            own = deal(self._deck, self.hand, self._digest(tenant))
            picks = deal(self.hand, self.caller_hand, self._digest(caller))
            found = self._hands[key] = tuple(own[pick] for pick in picks)
        return found

    def _digest(self, number: int) -> int:
        return xxhash.xxh3_128_intdigest(number.to_bytes(16, "big", signed=True), self._seed)


def deal(deck: int, hand: int, entropy: int) -> tuple[int, ...]:
    """``hand`` different cards of ``deck``, all hands equally likely for a number that is random in 128 bits."""
    cards: list[int] = []
    for left in range(deck, deck - hand, -1):
        entropy, card = divmod(entropy, left)
        for smaller in sorted(cards):
            if card >= smaller:
                card += 1
        cards.append(card)
    return tuple(cards)


class Queues:
    """The queues of one level. ``length`` bounds each, ``tenant_room`` each tenant, ``room`` all of them together."""

    def __init__(self, deck: Deck, *, length: int, tenant_room: int, room: int) -> None:
        self._deck = deck
        self._length = length
        self._tenant_room = tenant_room
        self._room = room
        self._queues: dict[int, Queue] = {}
        self._busy: dict[int, Queue] = {}
        self._rooms: dict[int, _Room] = {}
        self._virtual = 0.0
        self.waiting = 0

    @property
    def tenants(self) -> int:
        """How many tenants wait."""
        return len(self._rooms)

    def waiting_of(self, tenant: int) -> int:
        """How many requests of the tenant wait."""
        room = self._rooms.get(tenant)
        return 0 if room is None else room.waiting

    def begin(self, ticket: Ticket) -> None:
        """Charge a request that begins without having waited."""
        queue = self._shortest(ticket)
        if not self._busy:
            self._virtual = max(self._virtual, queue.virtual)
        self._charge(queue, ticket)

    def push(self, ticket: Ticket) -> Ticket | None:
        """Let a request wait. `FullError` where there is no room for it.

        Where the level is full of others, the newest request of the tenant with the most makes room for one of a tenant
        with clearly fewer, and is returned: it must be refused (longest queue drop, as in RFC 8290, section 4.1).
        """
        queue = self.place(ticket)
        evicted = self._evict() if self.waiting >= self._room else None
        self._busy_with(queue)
        queue.waiting.append(ticket)
        self._entered(ticket, queue)
        return evicted

    def place(self, ticket: Ticket) -> Queue:
        """The queue that the request would wait in. `FullError` where there is no room for it."""
        own = self.waiting_of(ticket.tenant)
        if own >= self._tenant_room:
            raise FullError(own=True)
        queue = self._shortest(ticket)
        if len(queue.waiting) >= self._length:
            room = self._rooms.get(ticket.tenant)
            raise FullError(own=room is not None and 2 * room.queues.get(queue.number, 0) >= self._length)
        if self.waiting >= self._room and self._largest()[1].waiting <= own + 1:
            raise FullError(own=False)
        return queue

    def push_again(self, ticket: Ticket) -> None:
        """Let a request that has done a part of its work wait for the next: first in its queue, and there is always
        room for it, because it had a seat."""
        queue = ticket.queue
        assert queue is not None, "it had a seat, and so a queue"
        self._busy_with(queue)
        queue.waiting.appendleft(ticket)
        self._entered(ticket, queue)

    def _busy_with(self, queue: Queue) -> None:
        if not queue.waiting:
            queue.virtual = max(queue.virtual, self._virtual)
            self._busy[queue.number] = queue

    def _entered(self, ticket: Ticket, queue: Queue) -> None:
        ticket.queue = queue
        room = self._rooms.setdefault(ticket.tenant, _Room())
        room.waiting += 1
        room.queues[queue.number] = room.queues.get(queue.number, 0) + 1
        self.waiting += 1

    def pop(self, allowed: Callable[[Ticket], bool]) -> Ticket | None:
        """The request that begins next, of those at the head of a queue that are ``allowed``; it is charged."""
        chosen: Queue | None = None
        least = soonest = inf
        for queue in self._busy.values():
            least = min(least, queue.virtual)
            head = queue.waiting[0]
            ends = queue.virtual + head.estimate_s * len(self._rooms[head.tenant].queues)
            if ends < soonest and allowed(head):
                chosen, soonest = queue, ends
        if chosen is None:
            return None
        # Virtual time is that of the queue that is furthest behind, also if it may not be served now: who comes anew
        # must not find itself behind the queues that are waiting for more than a seat.
        self._virtual = max(self._virtual, least)
        ticket = chosen.waiting[0]
        # Who waits in several queues is served from each of them: that much dearer in each.
        ticket.charge = float(len(self._rooms[ticket.tenant].queues))
        self._take_out(ticket, chosen)
        self._charge(chosen, ticket)
        return ticket

    def discard(self, ticket: Ticket) -> bool:
        """Forget a request that waits; false where it does not."""
        queue = ticket.queue
        if queue is None or ticket not in queue.waiting:
            return False
        self._take_out(ticket, queue)
        return True

    def settle(self, ticket: Ticket, cost_s: float) -> None:
        """The request has ended: replace its estimate by what it did cost."""
        if ticket.queue is not None:
            ticket.queue.virtual += (cost_s - ticket.estimate_s) * ticket.charge

    def _shortest(self, ticket: Ticket) -> Queue:
        shortest: Queue | None = None
        for number in self._deck.of(ticket.tenant, ticket.caller):
            queue = self._queues.get(number)
            if queue is None:
                queue = self._queues[number] = Queue(number)
            if not queue.waiting:
                return queue
            if shortest is None or len(queue.waiting) < len(shortest.waiting):
                shortest = queue
        assert shortest is not None, "a hand has at least one queue"
        return shortest

    def _charge(self, queue: Queue, ticket: Ticket) -> None:
        queue.virtual = max(queue.virtual, self._virtual) + ticket.estimate_s * ticket.charge
        ticket.queue = queue

    def _take_out(self, ticket: Ticket, queue: Queue) -> None:
        queue.waiting.remove(ticket)
        if not queue.waiting:
            del self._busy[queue.number]
        room = self._rooms[ticket.tenant]
        room.waiting -= 1
        if not room.waiting:
            del self._rooms[ticket.tenant]
        elif room.queues[queue.number] == 1:
            del room.queues[queue.number]
        else:
            room.queues[queue.number] -= 1
        self.waiting -= 1

    def _largest(self) -> tuple[int, _Room]:
        return max(self._rooms.items(), key=lambda item: item[1].waiting)

    def _evict(self) -> Ticket:
        tenant, _ = self._largest()
        # What has begun goes last: a refusal says that nothing ran, and its work would be lost.
        newest = max(
            (ticket for queue in self._busy.values() for ticket in queue.waiting if ticket.tenant == tenant),
            key=lambda ticket: (ticket.held_s == 0.0, ticket.asked_at),
        )
        assert newest.queue is not None, "it waits"
        self._take_out(newest, newest.queue)
        return newest
