"""Connections to cells: one pool for each (cell, address), with its caps, its breaker and its keep-alive.

A pool is a bulkhead: what one cell does to its connections cannot use up anything of another's.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final

from contracts.problems import CELL_BUSY, CELL_UNAVAILABLE, Problem
from contracts.routes import split_address
from router.breaker import Breaker, RetryBudget, Silence
from router.settings import Budgets
from router.table import Caps
from router.timers import Timer, Wheel
from router.turns import Turns
from router.upstream import Upstream, User
from router.walls import Wall, Walls

KEPT: Final = 8  # the last eighth of a cell's room is kept from tenants that have more than half of an equal part of it


class NoRoomError(Exception):
    """The pool takes no more requests; ``problem`` is what the client is told."""

    def __init__(self, problem: Problem, retry_after_s: float) -> None:
        super().__init__(problem.slug)
        self.problem = problem
        self.retry_after_s = retry_after_s


class Pool:
    """The connections of one worker to one cell at one address."""

    def __init__(
        self,
        name: str,
        address: str,
        caps: Caps,
        budgets: Budgets,
        wheel: Wheel,
        clock: Callable[[], float],
        rng: random.Random,
        walls: Walls,
    ) -> None:
        self.name = name
        self.caps = caps
        self._walls = walls
        self.breaker = Breaker(clock, rng)
        self.silence = Silence(clock, rng)
        self.retries = RetryBudget()
        self.in_flight = 0
        self._running: dict[bytes, int] = {}  # in flight, by tenant
        self._host, self._port = split_address(address)
        self._budgets = budgets
        self._clock = clock
        self._idle: deque[Upstream] = deque()  # the most recently used at the right
        self._all: set[Upstream] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: Turns[User] = Turns()
        self._sweep = Timer(wheel, self._expire)
        self._closed = False

    @property
    def size(self) -> int:
        """Connections open or being opened."""
        return len(self._all) + len(self._opening)

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    @property
    def pending(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    def enter(self, tenant: bytes) -> None:
        """Count a request in, or `NoRoomError`: at the cap, or the cell is set aside. Each entry needs one `leave`."""
        if not self.silence.allows() and self._walls.refuses(Wall.BULKHEADS):
            raise NoRoomError(CELL_UNAVAILABLE, self.silence.retry_after_s)
        room, own = self.caps.in_flight, self._running.get(tenant, 0)
        if own > room // (2 * max(KEPT, len(self._running))):
            room -= room // KEPT
        if self.in_flight >= room and self._walls.refuses(Wall.BULKHEADS):
            raise NoRoomError(CELL_BUSY, 1.0)
        self.in_flight += 1
        self._running[tenant] = own + 1

    def leave(self, tenant: bytes) -> None:
        """Count a request out."""
        self.in_flight -= 1
        left = self._running[tenant] - 1
        if left:
            self._running[tenant] = left
        else:
            del self._running[tenant]

    def acquire(self, user: User) -> None:
        """Give ``user`` a connection, now or later (`User.connected`, `User.unconnected`); `NoRoomError` where not."""
        while self._idle:
            upstream = self._idle.pop()
            if upstream.transport is not None and not upstream.transport.is_closing():
                upstream.user = user
                user.connected(upstream)
                return
        if self.size < self.caps.connections or not self._walls.enforces(Wall.BULKHEADS):
            if not self.breaker.allows():
                raise NoRoomError(CELL_UNAVAILABLE, self.breaker.retry_after_s)
            if self.size >= self.caps.connections + self.caps.pending:
                self._walls.refuses(Wall.BULKHEADS)  # it does not, but it may count
            self._open()
        elif len(self._waiting) >= self.caps.pending:
            self._walls.refuses(Wall.BULKHEADS)
            raise NoRoomError(CELL_BUSY, 1.0)
        self._waiting.append(user)

    def forget(self, user: User) -> None:
        """``user`` does not wait any more."""
        self._waiting.discard(user)

    def put_back(self, upstream: Upstream) -> None:
        """A connection is free again."""
        if upstream.transport is None or upstream.transport.is_closing():
            self.discard(upstream)
        elif self._waiting:
            upstream.user = user = self._waiting.popleft()
            user.connected(upstream)
        elif self._closed:
            self.discard(upstream)
        else:
            upstream.idle_since = self._clock()
            if not self._idle:
                self._sweep.start(self._budgets.upstream_idle_s)
            self._idle.append(upstream)

    def discard(self, upstream: Upstream, *, flush: bool = False) -> None:
        """Close a connection, after what is written has gone if ``flush``; where requests wait, open another."""
        if upstream not in self._all:
            return
        self._all.discard(upstream)
        if upstream in self._idle:
            self._idle.remove(upstream)
        if upstream.transport is not None and flush:
            upstream.transport.close()
        elif upstream.transport is not None:
            upstream.transport.abort()
        if len(self._waiting) > len(self._opening) and self.size < self.caps.connections and self.breaker.allows():
            self._open()  # with the walls down nobody waits for a connection that is not being opened

    def drop_idle(self) -> None:
        """Close what waits for a request: where one connection has died unseen, its neighbours have most likely too."""
        for upstream in list(self._idle):
            self.discard(upstream)

    def close(self) -> None:
        """Close the idle connections now, the others after their requests."""
        self._closed = True
        self._sweep.close()
        self.drop_idle()

    def _open(self) -> None:
        task = asyncio.get_running_loop().create_task(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._budgets.connect_s):
                _, upstream = await loop.create_connection(lambda: Upstream(self), self._host, self._port)
        except (OSError, TimeoutError) as e:
            self._unconnected(str(e) or "the connect timed out")
            return
        self._opening.discard(_this_task())
        self.breaker.succeeded()
        self._all.add(upstream)
        self.put_back(upstream)

    def _unconnected(self, reason: str) -> None:
        """One attempt failed: one request loses, or all that wait when nothing else is on its way to them."""
        self._opening.discard(_this_task())
        self.breaker.failed()
        losers = 1 if self._opening or self._all else len(self._waiting)
        for _ in range(min(losers, len(self._waiting))):
            self._waiting.popleft().unconnected(reason)

    def _expire(self) -> None:
        """Close what was idle for too long: the cell would close it under a request otherwise."""
        oldest = self._clock() - self._budgets.upstream_idle_s
        while self._idle and self._idle[0].idle_since <= oldest:
            self.discard(self._idle[0])
        if self._idle:
            self._sweep.start(self._idle[0].idle_since - oldest)


def _this_task() -> "asyncio.Task[None]":
    task = asyncio.current_task()
    assert task is not None
    return task


class Pools:
    """The pools of one worker. A pool whose cell has got another address is closed when it is replaced."""

    def __init__(
        self, budgets: Budgets, wheel: Wheel, clock: Callable[[], float], rng: random.Random, walls: Walls
    ) -> None:
        self._walls = walls
        self._budgets = budgets
        self._wheel = wheel
        self._clock = clock
        self._rng = rng
        self._pools: dict[str, tuple[str, Pool]] = {}

    def get(self, name: str, address: str, caps: Caps) -> Pool:
        """The pool of a cell at an address; ``caps`` are the ones in force from now on."""
        known = self._pools.get(name)
        if known is not None and known[0] == address:
            pool = known[1]
            pool.caps = caps
            return pool
        if known is not None:
            known[1].close()
        pool = Pool(name, address, caps, self._budgets, self._wheel, self._clock, self._rng, self._walls)
        self._pools[name] = (address, pool)
        return pool

    def all(self) -> list[Pool]:
        """Every pool."""
        return [pool for _, pool in self._pools.values()]

    def close(self) -> None:
        """Close them all."""
        for pool in self.all():
            pool.close()
