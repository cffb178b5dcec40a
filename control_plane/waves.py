"""Waves: which moves of a batch may start now, and what becomes of the batch. Pure; every answer has its reason.

A batch is cut into waves that grow: the first is one move, so that a target that cannot take anybody costs one
tenant's hold. The next wave begins when the one before is over and was watched for ``bake_s``. A batch that fails too
often stops by itself; what runs then finishes, because a half-done move is worse than a finished one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class BatchState(StrEnum):
    """What was committed last of a batch."""

    RUNNING = "running"
    PAUSED = "paused"  # by an operator: what runs finishes, nothing starts
    STOPPED = "stopped"  # by itself: too many errors
    CANCELLING = "cancelling"  # nothing starts; what runs is asked to go back, and is waited for
    CANCELLED = "cancelled"
    DONE = "done"
    INCOMPLETE = "incomplete"  # over, and some tenants did not move


class ItemState(StrEnum):
    """One tenant of a batch."""

    WAITING = "waiting"
    RUNNING = "running"  # its move exists; set in the transaction that planned it
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"  # nothing to do any more: the tenant is gone, or there already
    CANCELLED = "cancelled"


OPEN: Final = frozenset({ItemState.WAITING, ItemState.RUNNING})
OVER: Final = frozenset({BatchState.CANCELLED, BatchState.DONE, BatchState.INCOMPLETE})
RESUMABLE: Final = frozenset({BatchState.PAUSED, BatchState.STOPPED})


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a batch goes at once. ``per_source`` and ``per_target`` are of a cell, ``per_shard`` of a source's.

    Below the number of moves that the control plane executes at once, so that an operator's move need not wait.
    """

    at_once: int = 4
    per_source: int = 4
    per_target: int = 4
    per_shard: int = 2
    max_errors: float = 0.1  # of the moves of the waves so far
    tries: int = 2  # of one tenant
    first_wave: int = 1
    growth: int = 4  # each wave is so many times the one before,
    wave_max: int = 200  # up to this
    bake_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Item:
    """One tenant of a batch. ``shard`` of its source, empty where not known; not ``ready`` for a while after a try."""

    tenant: int
    wave: int
    source: str
    target: str
    shard: str
    state: ItemState
    ready: bool = True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a decision depends on.

    ``wave`` has begun. ``baked_s``: since it was over, None while that was not noted. ``elsewhere``: moves under way
    that are not of this batch, by each cell that they touch. What touches an ``unhealthy`` cell waits.
    """

    state: BatchState
    items: Sequence[Item]
    limits: Limits
    wave: int = 0
    baked_s: float | None = None
    elsewhere: Mapping[str, int] = field(default_factory=dict)
    unhealthy: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Decision:
    """Commit ``state`` and ``wave``, note that the wave is over where ``bake``, then start ``start`` in this order."""

    state: BatchState
    wave: int
    reason: str
    start: tuple[Item, ...] = ()
    bake: bool = False


def cut(count: int, limits: Limits, first: int = 0) -> list[int]:
    """The wave of each of ``count`` items in their order; waves are numbered from ``first``."""
    waves: list[int] = []
    size, number = limits.first_wave, first
    while len(waves) < count:
        waves += [number] * min(size, count - len(waves))
        size, number = min(size * limits.growth, limits.wave_max), number + 1
    return waves


def decide(s: Snapshot) -> Decision:
    """What is next. Total: every state has an answer."""
    if s.state in OVER:
        return Decision(s.state, s.wave, f"the batch is {s.state}: there is nothing left to do")
    running = [item for item in s.items if item.state is ItemState.RUNNING]
    if s.state is BatchState.CANCELLING:
        if running:
            return Decision(s.state, s.wave, f"cancelled; waiting for {_count(running)} under way")
        return Decision(BatchState.CANCELLED, s.wave, "cancelled; nothing is under way any more")
    if s.state is not BatchState.RUNNING:
        return Decision(s.state, s.wave, f"{s.state}; {_count(running)} under way")
    return _too_many_errors(s) or _forward(s, running)


def _too_many_errors(s: Snapshot) -> Decision | None:
    failed = sum(item.state is ItemState.FAILED for item in s.items)
    so_far = sum(item.wave <= s.wave for item in s.items)
    if failed > 0 and failed > s.limits.max_errors * so_far:
        rate = f"{failed} of the {so_far} moves up to wave {s.wave + 1} failed; {s.limits.max_errors:.0%} may"
        return Decision(BatchState.STOPPED, s.wave, rate)
    return None


def _forward(s: Snapshot, running: Sequence[Item]) -> Decision:
    open_waves = [item.wave for item in s.items if item.state in OPEN]
    if not open_waves:
        failed = sum(item.state is ItemState.FAILED for item in s.items)
        if failed:
            return Decision(BatchState.INCOMPLETE, s.wave, f"every move was tried; {failed} failed")
        return Decision(BatchState.DONE, s.wave, "every move is done")
    wave = max(min(open_waves), s.wave)
    if wave > s.wave:
        if s.baked_s is None and s.limits.bake_s > 0:
            return Decision(s.state, s.wave, f"wave {s.wave + 1} is over and is watched", bake=True)
        if (s.baked_s or 0.0) < s.limits.bake_s:
            return Decision(s.state, s.wave, f"wave {s.wave + 1} is watched for {s.limits.bake_s:g} s")
    start, held_back = _startable(s, wave, running)
    going = len(running) + len(start)
    reason = f"wave {wave + 1}: {going} under way, {sum(w <= wave for w in open_waves) - going} wait"
    return Decision(s.state, wave, f"{reason} ({held_back})" if held_back and not going else reason, start)


def _startable(s: Snapshot, wave: int, running: Sequence[Item]) -> tuple[tuple[Item, ...], str]:
    """Those of the wave that no limit keeps back, in their order; and what keeps the first one back that waits."""
    cells = Counter(dict(s.elsewhere))
    shards: Counter[tuple[str, str]] = Counter()
    for item in running:
        _count_in(item, cells, shards)
    start: list[Item] = []
    held_back = ""
    for item in s.items:
        if item.wave > wave or item.state is not ItemState.WAITING:
            continue
        limit = _limit(item, s, len(running) + len(start), cells, shards)
        if limit:
            held_back = held_back or limit
            continue
        start.append(item)
        _count_in(item, cells, shards)
    return tuple(start), held_back


def _count_in(item: Item, cells: Counter[str], shards: Counter[tuple[str, str]]) -> None:
    cells.update((item.source, item.target))
    if item.shard:
        shards[item.source, item.shard] += 1


def _limit(item: Item, s: Snapshot, going: int, cells: Mapping[str, int], shards: Mapping[tuple[str, str], int]) -> str:
    """Which limit keeps the item from starting now; empty: none."""
    limits = s.limits
    if not item.ready:
        return "what failed waits a moment before it is tried again"
    if going >= limits.at_once:
        return f"{limits.at_once} moves of a batch go at once"
    if item.target in s.unhealthy or item.source in s.unhealthy:
        return f"{item.target if item.target in s.unhealthy else item.source} is not healthy"
    if cells.get(item.source, 0) >= limits.per_source:
        return f"{limits.per_source} moves at once touch {item.source}"
    if cells.get(item.target, 0) >= limits.per_target:
        return f"{limits.per_target} moves at once touch {item.target}"
    if shards.get((item.source, item.shard), 0) >= limits.per_shard:
        return f"{limits.per_shard} moves at once touch {item.shard} of {item.source}"
    return ""


def _count(items: Sequence[Item]) -> str:
    return "1 move" if len(items) == 1 else f"{len(items)} moves"
