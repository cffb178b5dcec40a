"""Sharing a database's own counter out: which part of ``pg_stat_database.active_time`` was whose. Pure.

The counter is right about how long statements ran in the server, and knows no tenants. A client knows whose statement
it was, but measures the network, the loop and the queue for the processor as well. So the counter is divided, in
proportion to what the clients measured. Three things stand in the way of that, and each has its own answer:

- **Others use the database too** (psql, a migration, a move's copy). `Foreigners` follows their statements through
  ``pg_stat_activity``; what they are seen to take is set aside first.
- **The counter is late**: a backend reports about once a second, and up to ten seconds after it went idle. So time that
  clients measured stays claimable for `WINDOWS_KEPT` windows.
- **Clients measure too much**, never too little, and tell it up to a second late: what exceeds all claims waits for one
  window, and was nobody's of ours if nobody has claimed it by then.

So the parts of a shard add up to its counter, no later than one window after it.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

WINDOWS_KEPT: Final = 3  # of 5 s: more than the ten seconds after which an idle backend has reported
# Claimants that are no tenants; no tenant has these numbers.
PLATFORM: Final = 0
OTHERS: Final = -1

Claims = dict[int, float]  # tenant -> seconds that its clients measured


@dataclass(frozen=True, slots=True)
class Parts:
    """One shard and window, in seconds. ``tenants`` holds each tenant's part; all of it adds up to ``active_s``."""

    active_s: float
    tenants: Mapping[int, float]
    platform_s: float
    other_s: float


@dataclass(frozen=True, slots=True)
class Backend:
    """A client's backend as ``pg_stat_activity`` shows it. ``elapsed_s``: of its running, else its last statement."""

    pid: int
    statement: float  # when that statement began: with the pid, its name
    elapsed_s: float
    running: bool
    ours: bool  # of a process of this cell, though not one that measures its tenants' statements


@dataclass(slots=True)
class _Followed:
    statement: float
    elapsed_s: float
    counted: bool


@dataclass(slots=True)
class Foreigners:
    """Follows backends whose statements no meter measures; `take` says how long finished statements of theirs took.

    Statements shorter than the pause between two looks are seen only where they are a backend's last: a lower bound.
    """

    _followed: dict[int, tuple[_Followed, bool]] = field(default_factory=dict)
    _finished: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})

    def look(self, seen: Iterable[Backend]) -> None:
        """What the database shows now."""
        here = {backend.pid: backend for backend in seen}
        for pid in [p for p in self._followed if p not in here]:
            self._finish(*self._followed.pop(pid))
        for pid, backend in here.items():
            known = self._followed.get(pid)
            if known is not None and known[0].statement == backend.statement:
                known[0].elapsed_s = backend.elapsed_s
            else:
                if known is not None:
                    self._finish(*known)
                # What had ended before the backend was first seen may lie anywhere in the past.
                counted = known is None and not backend.running
                known = _Followed(backend.statement, backend.elapsed_s, counted), backend.ours
                self._followed[pid] = known
            if not backend.running:
                self._finish(*known)

    def _finish(self, followed: _Followed, ours: bool) -> None:
        if not followed.counted:
            followed.counted = True
            self._finished[ours] += followed.elapsed_s

    def take(self) -> tuple[float, float]:
        """Seconds of ours and of others that ended since the last call."""
        taken = self._finished[True], self._finished[False]
        self._finished = {True: 0.0, False: 0.0}
        return taken


class Ledger:
    """The accounts of one shard, window after window."""

    def __init__(self) -> None:
        self._foreign: deque[Claims] = deque(maxlen=WINDOWS_KEPT)
        self._measured: deque[Claims] = deque(maxlen=WINDOWS_KEPT)
        self._unclaimed = 0.0  # of the last window

    def divide(self, active_s: float, measured: Mapping[int, float], ours_s: float, others_s: float) -> Parts:
        """Share what the counter grew by out. ``ours_s`` and ``others_s`` are what `Foreigners` saw end since then."""
        self._foreign.append({PLATFORM: ours_s, OTHERS: others_s})
        self._measured.append(dict(measured))
        left, given = active_s + self._unclaimed, {PLATFORM: 0.0, OTHERS: 0.0}
        for kept in (self._foreign, self._measured):
            for claims in reversed(kept):  # the newest first: a busy backend is at most a second late
                left -= _settle(claims, left, given)
        old = min(self._unclaimed, max(left, 0.0))
        self._unclaimed = max(left, 0.0) - old
        platform, others = given.pop(PLATFORM), given.pop(OTHERS) + old
        return Parts(sum(given.values()) + platform + others, given, platform, others)


def _settle(claims: Claims, most: float, given: Claims) -> float:
    """Give the claimants what they claim, or their proportional part of ``most``; how much was given."""
    total = sum(claims.values())
    if total <= 0 or most <= 0:
        return 0.0
    factor = min(1.0, most / total)
    for tenant, seconds in claims.items():
        given[tenant] = given.get(tenant, 0.0) + seconds * factor
        claims[tenant] = seconds * (1.0 - factor)
    return total * factor
