"""Requests that wait while their tenant moves (moves.md, rule 6).

A hold is bounded in requests, in bytes of kept bodies and in time; what finds no room, or waits too long, is answered
503. Two things start one: the route says ``held``, or a cell answered ``tenant-frozen``. Two things end it: the table
changed (`Holds.wake`), or a probe got through. A probe is the first request of the queue, sent although nobody said
that the hold is over: soon and with backoff where a cell said frozen, and after `SILENCE_S` where only the route said
held, because a router that lost its control plane would wait for ever otherwise.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from router.timers import Timer, Wheel

PROBE_FIRST_S: Final = 0.025  # after tenant-frozen; doubled with each probe that finds it frozen still
PROBE_MOST_S: Final = 0.4
SILENCE_S: Final = 3.0  # a move's hold is over long before


class Waiter(Protocol):
    """A request that can wait."""

    @property
    def kept_bytes(self) -> int:
        """The size of the body kept for it. While it waits, growth is told by `Holds.grew`, and it never shrinks."""

    def released(self, probe: bool) -> None:
        """Go on: locate again and forward. A probe reports back by `Holds.answered`, `Holds.add` or `Holds.forget`."""


class _Queue:
    """The waiting requests of one tenant."""

    __slots__ = ("delay", "frozen", "probe", "timer", "waiters")

    def __init__(self, timer: Timer) -> None:
        self.waiters: deque[Waiter] = deque()
        self.probe: Waiter | None = None
        self.delay = PROBE_FIRST_S
        self.frozen = False
        self.timer = timer


class Holds:
    """The holds of one worker. ``still_held`` looks a tenant up in the table by now."""

    def __init__(self, wheel: Wheel, still_held: Callable[[bytes], bool], *, requests: int, max_bytes: int) -> None:
        self._wheel = wheel
        self._still_held = still_held
        self._requests = requests
        self._max_bytes = max_bytes
        self._queues: dict[bytes, _Queue] = {}
        self._passed: set[bytes] = set()  # held by the table, yet a probe got through
        self.waiting = 0
        self._bytes = 0

    def must_wait(self, tenant: bytes, held: bool) -> bool:
        """Whether a new request of this tenant waits; ``held`` is what its route says."""
        return tenant in self._queues or (held and tenant not in self._passed)

    def add(self, tenant: bytes, waiter: Waiter, *, frozen: bool) -> bool:
        """Let ``waiter`` wait. False where there is no room. ``frozen``: its cell said so just now."""
        queue = self._queues.get(tenant)
        if self.waiting >= self._requests or self._bytes + waiter.kept_bytes > self._max_bytes:
            if queue is not None and queue.probe is waiter:
                self._again(queue)
            return False
        if queue is None:
            queue = self._queues[tenant] = _Queue(Timer(self._wheel, lambda: self._send_probe(tenant)))
            queue.timer.start(PROBE_FIRST_S if frozen else SILENCE_S)
        elif frozen and not queue.frozen and queue.probe is None:
            queue.timer.start(PROBE_FIRST_S)
        queue.frozen = queue.frozen or frozen
        if queue.probe is waiter:
            self._again(queue)
            queue.waiters.appendleft(waiter)
        else:
            queue.waiters.append(waiter)
        self._passed.discard(tenant)
        self.waiting += 1
        self._bytes += waiter.kept_bytes
        return True

    def grew(self, size: int) -> bool:
        """A waiter keeps ``size`` bytes more. False where there is no room for them: it has to leave."""
        self._bytes += size
        return self._bytes <= self._max_bytes

    def forget(self, tenant: bytes, waiter: Waiter) -> None:
        """``waiter`` left: its time is up, its client gone, or it was a probe that learnt nothing."""
        queue = self._queues.get(tenant)
        if queue is None:
            return
        if queue.probe is waiter:
            self._again(queue)
        elif waiter in queue.waiters:
            queue.waiters.remove(waiter)
            self._left(waiter)
        if not queue.waiters and queue.probe is None:
            self._end(tenant, queue)

    def answered(self, tenant: bytes, waiter: Waiter) -> None:
        """A cell served ``waiter``: if it was a probe, the hold is over, whatever the table says."""
        queue = self._queues.get(tenant)
        if queue is not None and queue.probe is waiter:
            self._passed.add(tenant)
            self._release(tenant, queue)

    def wake(self) -> None:
        """The table changed: release every tenant whose route is not held any more."""
        self._passed.clear()
        for tenant, queue in list(self._queues.items()):
            if not self._still_held(tenant):
                self._release(tenant, queue)

    def _send_probe(self, tenant: bytes) -> None:
        queue = self._queues[tenant]
        if queue.probe is None and queue.waiters:
            queue.probe = probe = queue.waiters.popleft()
            self._left(probe)
            probe.released(True)

    def _again(self, queue: _Queue) -> None:
        """The probe did not get through: the next one waits twice as long."""
        queue.probe = None
        queue.delay = min(queue.delay * 2, PROBE_MOST_S)
        queue.timer.start(queue.delay)

    def _release(self, tenant: bytes, queue: _Queue) -> None:
        self._end(tenant, queue)
        for waiter in queue.waiters:
            self._left(waiter)
        for waiter in list(queue.waiters):
            waiter.released(False)

    def _end(self, tenant: bytes, queue: _Queue) -> None:
        queue.timer.close()
        self._queues.pop(tenant, None)

    def _left(self, waiter: Waiter) -> None:
        self.waiting -= 1
        self._bytes -= waiter.kept_bytes
