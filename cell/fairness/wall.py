"""The wall between the tenants of a cell: who begins now, who waits, who is refused, and how long each may take.

`Wall.plan` names the operation, its level and its time limits; `Wall.ask` gives a seat at once where one is free, with
no task, timer or future; `Wall.seated` waits for one; `Wall.leave` gives it back. A refusal says that nothing ran;
routers do not repeat it, because only the client knows whether it is worth it.

Each level of each shard is a station of its own: a shard that hangs holds its own tenants' seats only.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil, inf
from typing import Final, NamedTuple, Protocol

from cell.fairness import timeouts
from cell.fairness.estimates import Estimates
from cell.fairness.levels import Enforcement, Level, Operations
from cell.fairness.limits import CallerLimits, Limits
from cell.fairness.pace import SHARE, Pace
from cell.fairness.queues import Ticket
from cell.fairness.station import RefusedError, Size, Station, cost_of
from cell.fairness.timeouts import Budget
from cell.shards.context import TenantContext, at_once, unlimited
from contracts import problems
from contracts.envelope import LARGE_BODY
from contracts.names import Refusal

CELL: Final = ""  # the shard of work that belongs to none
INTERNAL_SEATS: Final = 3
CALLER_PART: Final = 0.8  # of what a tenant may have under way
REST: Final = "rest"  # what the wall would have made long work do between two parts, where it only observes
_OFF: Final = Enforcement.OFF
_ON: Final = Enforcement.ON


@dataclass(frozen=True, slots=True)
class Enforced:
    """What each wall does."""

    fairness: Enforcement = Enforcement.ON
    limits: Enforcement = Enforcement.ON
    timeouts: Enforcement = Enforcement.ON


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes and limits. ``level_s`` is the most that a request of a level may take, where there is such a limit;
    ``batch_share`` the part of a shard's time that the batch level has while others want it."""

    sizes: Mapping[Level, Size]
    level_s: Mapping[Level, float] = field(default_factory=dict)
    key: Limits = field(default_factory=Limits)
    user: Limits = field(default_factory=Limits)
    enforced: Enforced = field(default_factory=Enforced)
    batch_share: float = SHARE

    @classmethod
    def fit(
        cls,
        connections: int,
        enforced: Enforced | None = None,
        *,
        interactive: int | None = None,
        batch: int | None = None,
        tenant_room: int = 64,
        room: int = 256,
        per_s: float = 1_000.0,
        burst: int = 2_000,
        interactive_s: float = 15.0,
        batch_share: float = SHARE,
    ) -> "Config":
        """What suits so many connections to each shard: no request with a seat waits for a connection, as far as there
        are three or more, and one is left for probes."""
        heavy = batch or max(1, connections // 10)
        most = interactive or max(1, connections - heavy - 1)
        length = max(1, ceil(tenant_room / 2))
        sizes = {
            # Two at least, as far as there are two: of one seat none can be kept from heavy tenants.
            Level.INTERACTIVE: Size(
                least=min(most, max(2, most // 3)), most=most, length=length, tenant_room=tenant_room, room=room
            ),
            # One queue a tenant: of its long work one is done after the other, instead of all of it at the end.
            Level.BATCH: Size(least=1, most=heavy, hand=1, length=8, tenant_room=8, room=64),
            Level.INTERNAL: Size(least=INTERNAL_SEATS, most=INTERNAL_SEATS, length=8, tenant_room=8, room=64),
        }
        caller = Limits(per_s, burst, max(1, int((most + tenant_room) * CALLER_PART)))
        return cls(sizes, {Level.INTERACTIVE: interactive_s}, caller, caller, enforced or Enforced(), batch_share)


class Told(Protocol):
    """Who counts what the wall does: `cell.metrics.CellMetrics`."""

    def queued(self, level: str, seconds: float) -> None:
        """A request has waited for a seat, whether it got one or not."""

    def observed(self, wall: str, reason: str) -> None:
        """A wall that only observes would have refused a request."""


class Plan(NamedTuple):  # made for every request: a frozen dataclass costs four times as much
    """What is known of a request before it is let in. ``overdue_at``: when a wall that only observes would stop it."""

    operation: str
    level: Level
    budget: Budget
    overdue_at: float = inf
    large: bool = False  # its body is: `Wall.foresee` comes before it is read


class Visit:
    """One request at the wall."""

    __slots__ = ("charged_s", "context", "counted", "left", "pace", "plan", "station", "ticket")

    def __init__(self, context: TenantContext, plan: Plan) -> None:
        self.context = context
        self.plan = plan
        self.counted: list[tuple[CallerLimits, object]] = []  # whose limits count it
        self.station: Station | None = None
        self.ticket: Ticket | None = None
        self.left = False
        self.pace: Pace | None = None  # of work that is done in parts
        self.charged_s = 0.0  # database seconds of the parts that are done

    @property
    def waits(self) -> bool:
        """Whether it has no seat yet: `Wall.seated` comes next."""
        return self.ticket is not None and self.ticket.seated_at < 0


class Wall:
    """One per process and event loop. ``clock`` is monotonic, in seconds; ``seed`` deals the queues."""

    def __init__(
        self,
        config: Config,
        operations: Operations,
        shard_of: Callable[[int], str],
        told: Told,
        *,
        clock: Callable[[], float],
        seed: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._operations = operations
        self._shard_of = shard_of
        self._told = told
        self._clock = clock
        self._seed = seed
        self._sleep = sleep
        self._paces: dict[str, Pace] = {}
        self._stations: dict[Level, dict[str, Station]] = {level: {} for level in Level}
        self._estimates = Estimates()
        self._keys = CallerLimits(config.key)
        self._users = CallerLimits(config.user)
        self._limits, self._timeouts = config.enforced.limits, config.enforced.timeouts
        self._fairness = config.enforced.fairness
        self._observes = self._fairness is Enforcement.OBSERVE

    def plan(self, method: str, path: str, envelope_s: float, now: float, *, body: float = 0.0) -> Plan:
        """Name the operation and its limits. A request with a large ``body`` (bytes) is long work, whatever it asks."""
        operation = self._operations.name(method, path)
        level = self._operations.level(operation)
        large = body > LARGE_BODY
        if large and level is Level.INTERACTIVE:
            level, operation = Level.BATCH, f"{operation} (large)"
        enforced = self._timeouts
        if enforced is _OFF:
            return Plan(operation, level, timeouts.outer(now, envelope_s), large=large)
        nested = timeouts.nested(now, envelope_s, self._config.level_s.get(level, inf))
        if enforced is _ON:
            return Plan(operation, level, nested, large=large)
        return Plan(operation, level, timeouts.outer(now, envelope_s), nested.application_by, large)

    def foresee(self, context: TenantContext, plan: Plan, caller: int) -> None:
        """`RefusedError` where there would be no place for the request now: before a large body is read in vain. Takes
        none, counts nothing, and `ask` may still refuse."""
        if self._fairness is _ON:
            now = self._clock()
            ticket = Ticket(context.tenant, caller, 0.0, now)
            self._station(plan.level, context.tenant, now).foresee(ticket, context.deadline - now, now)

    def ask(self, context: TenantContext, plan: Plan, caller: int) -> Visit:
        """Let a request in, or have it wait; `RefusedError` where it is not. Every visit ends with `leave`.

        ``caller`` tells the tenant's users and keys apart before anybody is authenticated: a hash of the credential.
        """
        visit = Visit(context, plan)
        now = self._clock()
        if self._limits is not _OFF and plan.level is not Level.INTERNAL:
            self._count(visit, self._keys, caller)
            context.identified = partial(self._count, visit, self._users)
        if self._fairness is not _OFF:
            try:
                self._queue(visit, caller, now)
            except RefusedError:
                self._uncount(visit)
                raise
        return visit

    def _count(self, visit: Visit, limits: CallerLimits, caller: object) -> None:
        """Once for a request, however often its handler enters a session."""
        for counted, _ in visit.counted:
            if counted is limits:
                return
        try:
            limits.enter(visit.context.tenant, caller, self._clock())
            visit.counted.append((limits, caller))
        except RefusedError as e:
            if self._limits is _ON:
                raise
            self._told.observed("limits", e.refusal)

    def _uncount(self, visit: Visit) -> None:
        for limits, caller in visit.counted:
            limits.leave(visit.context.tenant, caller)
        visit.counted.clear()

    def _queue(self, visit: Visit, caller: int, now: float) -> None:
        context, plan = visit.context, visit.plan
        station = self._station(plan.level, context.tenant, now)
        estimate = self._estimates.of(context.tenant, plan.operation)
        ticket = Ticket(context.tenant, caller, estimate.cost_s, now)
        try:
            evicted = station.ask(ticket, context.deadline - now, now)
        except RefusedError as e:
            if not self._observes:
                raise
            self._told.observed("fairness", e.refusal)
            evicted = None
        visit.station, visit.ticket = station, ticket
        if plan.level is Level.BATCH:
            visit.pace = self._pace(context.tenant)
            context.turn = partial(self._turn, visit)
        if ticket.seated_at < 0:
            ticket.ready = asyncio.get_running_loop().create_future()
        if evicted is not None and not evicted.ready.done():
            wait = station.wait_s(evicted.tenant, now)
            evicted.ready.set_exception(RefusedError(problems.TENANT_BUSY, Refusal.TENANT_BUSY, wait))

    def _station(self, level: Level, tenant: int, now: float) -> Station:
        shards = self._stations[level]
        shard = CELL if level is Level.INTERNAL else self._shard_of(tenant)
        station = shards.get(shard)
        if station is None:
            station = shards[shard] = Station(self._config.sizes[level], self._seed, now, observe=self._observes)
        return station

    def _pace(self, tenant: int) -> Pace:
        shard = self._shard_of(tenant)
        pace = self._paces.get(shard)
        if pace is None:
            pace = self._paces[shard] = Pace(self._config.batch_share)
        return pace

    async def _turn(self, visit: Visit) -> None:
        """Between two parts of long work: charge what is done, let those go first who are due, and rest."""
        station, ticket = visit.station, visit.ticket
        if station is None or ticket is None or visit.left:
            return
        now = self._clock()
        ticket.ready, ticket.asked_at = asyncio.get_running_loop().create_future(), now
        charged = self._charge(visit, ticket, now)
        estimate_s = self._estimates.of(ticket.tenant, visit.plan.operation).cost_s
        self._wake(station.turn(ticket, charged, estimate_s, now))
        if ticket.seated_at < 0:
            await self.seated(visit)
        await self.rest(visit)

    async def rest(self, visit: Visit) -> None:
        """Wait, in the seat, until long work of this level may have its next part. Its time in the seat begins then."""
        pace, ticket = visit.pace, visit.ticket
        if pace is None or ticket is None or not pace.rest_s(self._clock()):
            return
        if self._observes:
            self._told.observed("fairness", REST)
            return
        await pace.rest(self._clock, self._sleep)
        ticket.seated_at = self._clock()

    def _charge(self, visit: Visit, ticket: Ticket, now: float) -> float:
        """What the work since the last turn did cost; the estimates and the pace learn of it."""
        cost, seat_s = visit.context.cost, now - ticket.seated_at
        cost.seat_s += seat_s
        part_s = cost.database_s - visit.charged_s
        visit.charged_s = cost.database_s
        charged = cost_of(part_s, seat_s)
        self._estimates.of(ticket.tenant, visit.plan.operation).learn(charged)
        self._estimates.of_anyone(visit.plan.operation).learn(charged)
        if visit.pace is not None:
            others = self._stations[Level.INTERACTIVE].get(self._shard_of(ticket.tenant))
            visit.pace.spent(seat_s, -inf if others is None else others.touched_at, now)
        return charged

    async def seated(self, visit: Visit) -> None:
        """Wait for the seat. `RefusedError` where the place in the queue went to a tenant with fewer requests.

        Whatever comes of it, `leave` gives the place up.
        """
        ticket = visit.ticket
        assert ticket is not None, "who waits has a ticket"
        try:
            await ticket.ready
        finally:
            now = self._clock()
            visit.context.cost.queued_s += now - ticket.asked_at
            self._told.queued(visit.plan.level, now - ticket.asked_at)

    def leave(self, visit: Visit, *, usual: bool) -> None:
        """The request is over, or has been given up; again does nothing. ``usual``: it went as such requests go."""
        if visit.left:
            return
        visit.left = True
        visit.context.identified = unlimited  # which referred back to the visit: nothing is left to the collector
        visit.context.turn = at_once
        if visit.counted:
            self._uncount(visit)
        station, ticket = visit.station, visit.ticket
        now = self._clock()
        if now > visit.plan.overdue_at:
            self._told.observed("timeouts", Refusal.DEADLINE)
        if station is None or ticket is None:
            return
        if ticket.seated_at < 0:
            self._wake(station.withdraw(ticket, now))
            return
        charged, held_s = self._charge(visit, ticket, now), ticket.held_s + now - ticket.seated_at
        estimate = self._estimates.of(ticket.tenant, visit.plan.operation)
        self._wake(station.leave(ticket, charged, estimate.slowness(held_s) if usual else 0.0, now))

    def _wake(self, seated: list[Ticket]) -> None:
        for ticket in seated:
            if not ticket.ready.done():  # else its owner is about to notice, and leaves the seat
                ticket.ready.set_result(None)

    @asynccontextmanager
    async def inside(self, context: TenantContext, plan: Plan, caller: int) -> AsyncIterator[None]:
        """A seat for the block, waited for until ``plan.budget.application_by``; `RefusedError` where there is none."""
        visit, usual = self.ask(context, plan, caller), False
        try:
            if visit.waits:
                try:
                    async with asyncio.timeout_at(plan.budget.application_by):
                        await self.seated(visit)
                except TimeoutError:
                    raise RefusedError(problems.OVERLOADED, Refusal.OVERLOADED, 1.0) from None
            yield
            usual = True
        finally:
            self.leave(visit, usual=usual)

    def seats(self, level: Level) -> tuple[int, int, int]:
        """Of all shards: how many seats there are, how many are taken, and how many requests wait."""
        stations = self._stations[level].values()
        return (
            sum(station.seats.limit for station in stations),
            sum(station.running for station in stations),
            sum(station.waiting for station in stations),
        )
