"""Limits inside a tenant: each user and each API key has a rate of its own, and a part of what the tenant may have
under way, so that one script of a tenant leaves room for the tenant's other users.

Pure. The rate is GCRA (ITU-T I.371): one theoretical arrival time for each caller, no timer. Memory is bounded: callers
whose limits say nothing are forgotten.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

from cell.fairness.station import RefusedError
from contracts import problems
from contracts.names import Refusal

KNOWN_MAX: Final = 65_536


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one caller. ``per_s`` 0 is no rate; ``under_way`` counts requests that wait and requests that are served."""

    per_s: float = 1_000.0
    burst: int = 2_000
    under_way: int = 57


class _Meter:
    __slots__ = ("arrival", "under_way")

    def __init__(self, now: float) -> None:
        self.arrival = now
        self.under_way = 0


class CallerLimits:
    """The meters of one kind of caller, in one process. A caller is named by the tenant and anything that hashes."""

    def __init__(self, limits: Limits, known_max: int = KNOWN_MAX) -> None:
        self._limits = limits
        self._interval = 1.0 / limits.per_s if limits.per_s else 0.0
        self._slack = max(0, limits.burst - 1) * self._interval
        self._known_max = known_max
        self._meters: dict[tuple[int, object], _Meter] = {}

    def __len__(self) -> int:
        return len(self._meters)

    def enter(self, tenant: int, caller: object, now: float) -> None:
        """Count a request in, or `RefusedError`. Whoever came in must `leave`."""
        key = (tenant, caller)
        meter = self._meters.get(key)
        if meter is None:
            if len(self._meters) >= self._known_max:
                self._forget(now)
            meter = self._meters[key] = _Meter(now)
        early = meter.arrival - now - self._slack
        if early > 1e-9:  # the clock's float is no finer
            raise RefusedError(problems.CALLER_LIMITED, Refusal.CALLER, early)
        if meter.under_way >= self._limits.under_way:
            raise RefusedError(problems.CALLER_LIMITED, Refusal.CALLER, 1.0)
        meter.under_way += 1
        meter.arrival = max(meter.arrival, now) + self._interval

    def leave(self, tenant: int, caller: object) -> None:
        """The request has ended."""
        self._meters[tenant, caller].under_way -= 1

    def _forget(self, now: float) -> None:
        """Drop who has nothing under way and no debt; where that is nobody, half of those with nothing under way."""
        self._meters = {k: m for k, m in self._meters.items() if m.under_way or m.arrival > now}
        if len(self._meters) >= self._known_max:
            idle = [k for k, m in self._meters.items() if not m.under_way]
            for key in idle[: ceil(len(idle) / 2)]:
                del self._meters[key]
