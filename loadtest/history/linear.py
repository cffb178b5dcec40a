"""Whether a history of concurrent operations on one object is linearizable: pure, exact, and bounded.

A history is linearizable if every operation can be given one moment between its call and its return so that, in the
order of these moments, each was answered as the sequential object answers (Herlihy and Wing 1990). The search is that
of J. M. Wing and C. Gong, "Testing and verifying concurrent objects" (1993), with the just-in-time linearization of
G. Lowe, "Testing for linearizability" (2017): an operation is given its moment only when some return demands it, and
what has been seen, a state with the set of open operations that have had their moment, is never looked at twice. An
operation without a return may have its moment at any time after its call, or never. Deciding this is NP-complete
(Gibbons and Korach 1997), so the search has a budget, and says that it is too hard where that is used up.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Final, Generic, Protocol, TypeVar

BUDGET: Final = 100_000  # cases looked at; seconds at the most


class Timed(Protocol):
    """When an operation was called and when it returned; infinite where nobody knows."""

    @property
    def invoked(self) -> float: ...

    @property
    def returned(self) -> float: ...


S = TypeVar("S", bound=Hashable)
Op = TypeVar("Op", bound=Timed)


class Verdict(StrEnum):
    """What came of the search."""

    LINEARIZABLE = "linearizable"
    VIOLATED = "violated"
    TOO_HARD = "too hard"


@dataclass(frozen=True)
class Searched(Generic[Op]):
    """The result. ``stuck`` is the operation whose return no order of those before it and beside it allows."""

    verdict: Verdict
    stuck: Op | None = None
    cases: int = 0  # that were looked at


class _TooHardError(Exception):
    pass


def search(
    operations: Sequence[Op],
    initial: S,
    step: Callable[[S, Op], S | None],
    *,
    behind: Callable[[S, Op], bool] = lambda _state, _operation: False,
    alike: Callable[[Op], Hashable | None] = lambda _operation: None,
    budget: int = BUDGET,
) -> Searched[Op]:
    """Look for an order. ``step`` is the object: the state after an operation, or None where it cannot happen there.

    Two more may save time, and change nothing else. ``behind`` says of a state that an operation can never happen any
    more. ``alike`` gives the same value to operations that do the same wherever they happen and never return: of those
    the one that was called first goes first. Calls and returns at the same moment are concurrent.
    """
    frontier = _Frontier(operations, initial, step, behind, list(map(alike, operations)), budget)
    try:
        for place, ends in _events(operations):
            if not ends:
                frontier.call(place)
            elif not frontier.end(place):
                return Searched(Verdict.VIOLATED, operations[place], frontier.looked)
    except _TooHardError:
        return Searched(Verdict.TOO_HARD, cases=frontier.looked)
    return Searched(Verdict.LINEARIZABLE, cases=frontier.looked)


def _events(operations: Sequence[Timed]) -> Iterator[tuple[int, bool]]:
    """Calls and returns in their order: the place of the operation, and whether it ends."""
    calls = [(operation.invoked, False, place) for place, operation in enumerate(operations)]
    ends = [(operation.returned, True, place) for place, operation in enumerate(operations) if operation.returned < inf]
    for _, is_end, place in sorted(calls + ends):
        yield place, is_end


class _Frontier(Generic[S, Op]):
    """All that may be the case at one moment: states, each with the open operations that have had their moment."""

    def __init__(
        self,
        operations: Sequence[Op],
        initial: S,
        step: Callable[[S, Op], S | None],
        behind: Callable[[S, Op], bool],
        sorts: Sequence[Hashable | None],
        budget: int,
    ) -> None:
        self._operations = operations
        self._step = step
        self._behind = behind
        self._sorts = sorts
        self._budget = budget
        self._open: list[int] = []
        self._cases: dict[tuple[S, frozenset[int]], None] = {(initial, frozenset()): None}  # a set with an order
        self.looked = 0

    def call(self, place: int) -> None:
        """From now on it may have its moment."""
        self._open.append(place)

    def end(self, place: int) -> bool:
        """It must have had its moment by now; False where that is so in no case."""
        seen = dict(self._cases)
        waiting = list(self._cases)
        found: dict[tuple[S, frozenset[int]], None] = {}
        while waiting:
            state, done = waiting.pop()
            if place in done:
                found[state, done - {place}] = None
                continue
            for case in self._further(state, done, place):
                if case not in seen:
                    self._spend()
                    seen[case] = None
                    waiting.append(case)
        self._open.remove(place)
        self._cases = found
        return bool(found)

    def _further(self, state: S, done: frozenset[int], ending: int) -> Iterator[tuple[S, frozenset[int]]]:
        """The cases after one more moment, without those in which what ends cannot have its own any more."""
        tried = set()
        for place in self._open:
            if place in done or self._sorts[place] in tried:
                continue
            if (sort := self._sorts[place]) is not None:
                tried.add(sort)
            after = self._step(state, self._operations[place])
            if after is not None and (place == ending or not self._behind(after, self._operations[ending])):
                yield after, done | {place}

    def _spend(self) -> None:
        self.looked += 1
        if self.looked > self._budget:
            raise _TooHardError
