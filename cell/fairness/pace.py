"""Cooperative preemption: long work is done in short parts, and rests between them while others want the database.

In seconds. A running statement cannot be stopped without failing it, so nobody may begin a long one. Long work
asks its shard in parts of `PART_S`, and after a part of so long its level rests until it has kept the shard busy for
its share of the time at most (a duty cycle; the idea of Linux' CFS bandwidth control, per level instead of per group).
A part that took longer because others were at work is followed by a longer rest: so the share gives way by itself.
"""

from collections.abc import Awaitable, Callable
from math import inf
from typing import Final

PART_S: Final = 0.004  # what a part should take; a request that arrives meanwhile waits for no more than that
SHARE: Final = 0.2  # of a shard's time that a level of long work has while others want it
SHARE_QUIET: Final = 0.8  # ... and while nobody else has asked for a while
QUIET_S: Final = 1.0
REST_MAX_S: Final = 2.0  # after one part, however long it took
_GROWTH: Final = 2.0  # of a part from one to the next, at most, and of its shrinking


class Pace:
    """When long work may have its next part at one shard. All parts of a process at that shard share it."""

    __slots__ = ("_free_at", "share")

    def __init__(self, share: float = SHARE) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"a share of {share} is none: it must be above 0, and 1 at most")
        self.share = share
        self._free_at = -inf

    def spent(self, part_s: float, wanted_at: float, now: float) -> None:
        """A part has kept the shard busy for ``part_s``. Others asked for it last at ``wanted_at``."""
        share = self.share if now - wanted_at < QUIET_S else max(self.share, SHARE_QUIET)
        rest = min(REST_MAX_S, part_s * (1 / share - 1))
        self._free_at = max(self._free_at, now) + rest

    def rest_s(self, now: float) -> float:
        """How long it still has to rest; 0 where the next part may begin."""
        return max(0.0, self._free_at - now)

    async def rest(self, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]) -> None:
        """Rest until then. Of several that wait one begins first, and the others see what it has taken: each looks
        again before it goes on."""
        while (seconds := self.rest_s(clock())) > 0:
            await sleep(seconds)


class PartSize:
    """How many things a part takes, so that it takes `PART_S`: it follows what the parts before it took."""

    __slots__ = ("_goal_s", "_least", "_most", "count")

    def __init__(self, first: int, *, least: int = 20, most: int = 20_000, goal_s: float = PART_S) -> None:
        self.count = first
        self._least = least
        self._most = most
        self._goal_s = goal_s

    def took(self, seconds: float) -> None:
        """A part of ``count`` things took so long."""
        factor = self._goal_s / max(seconds, 1e-6)
        factor = min(_GROWTH, max(1 / _GROWTH, factor))
        self.count = min(self._most, max(self._least, int(self.count * factor)))
