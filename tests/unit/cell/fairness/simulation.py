"""Tenants at a station, event by event, in a time of the test's own."""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

from cell.fairness.queues import Ticket
from cell.fairness.station import RefusedError, Station


@dataclass(frozen=True)
class Arrival:
    """A request: when, whose, and how long it is at work once it sits. ``estimate_s`` None: known exactly."""

    at: float
    tenant: int
    work_s: float
    caller: int = 0
    estimate_s: float | None = None


@dataclass
class Outcome:
    """What became of all requests."""

    served: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    cost_s: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    waits: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[int, list[RefusedError]] = field(default_factory=lambda: defaultdict(list))
    idle_while_waiting: float = 0.0  # seconds times seats


Look = Callable[[float], None]


def simulate(
    station: Station, arrivals: Iterable[Arrival], until: float = inf, look: Look | None = None, patience_s: float = inf
) -> Outcome:
    """Run until everything has ended, or until ``until``."""
    outcome, order, last = Outcome(), itertools.count(), 0.0
    work: dict[Ticket, Arrival] = {}
    events: list[tuple[float, int, Arrival | Ticket]] = []
    for arrival in arrivals:
        heapq.heappush(events, (arrival.at, next(order), arrival))

    def sit(ticket: Ticket, now: float) -> None:
        outcome.waits[ticket.tenant].append(now - ticket.asked_at)
        heapq.heappush(events, (now + work[ticket].work_s, next(order), ticket))

    while events and events[0][0] <= until:
        now, _, event = heapq.heappop(events)
        if station.waiting:
            outcome.idle_while_waiting += max(0, station.seats.limit - station.running) * (now - last)
        last = now
        if isinstance(event, Arrival):
            estimate = event.work_s if event.estimate_s is None else event.estimate_s
            ticket = Ticket(event.tenant, event.caller, estimate, now)
            work[ticket] = event
            try:
                evicted = station.ask(ticket, patience_s, now)
            except RefusedError as e:
                outcome.refused[event.tenant].append(e)
                continue
            if evicted is not None:
                outcome.refused[evicted.tenant].append(RefusedError.__new__(RefusedError))
            if ticket.seated_at >= 0:
                sit(ticket, now)
        else:
            done = work.pop(event)
            outcome.served[done.tenant] += 1
            outcome.cost_s[done.tenant] += done.work_s
            for seated in station.leave(event, done.work_s, 1.0, now):
                sit(seated, now)
        if look is not None:
            look(now)
    return outcome


def flood(tenant: int, *, every_s: float, work_s: float, until: float, first: float = 0.0) -> list[Arrival]:
    """Requests at a fixed rate."""
    count = int((until - first) / every_s)
    return [Arrival(first + number * every_s, tenant, work_s) for number in range(count)]
