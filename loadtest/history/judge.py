"""The verdict over recorded histories: each key by itself, and for a violation the few operations that show it. Pure.

A set of registers is linearizable exactly if each of them is (locality: Herlihy and Wing 1990; as a way to check,
P-compositionality: A. Horn and D. Kroening, "Faster linearizability checking via P-compositionality", 2015).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from loadtest.history.linear import BUDGET, Searched, Verdict, search
from loadtest.history.operation import ANY, History, Operation, Outcome, State, relaxed
from loadtest.history.register import alike, behind, sharpened, step

EXAMPLES: Final = 3
WIDTH: Final = 32  # characters of the bars of a timeline
LINES_MOST: Final = 40  # of a timeline
CORE_MOST: Final = 64  # operations of a window that are tried one by one
EXPLAIN_BUDGET: Final = 10_000  # of each of the many searches of an explanation


@dataclass(frozen=True)
class Violation:
    """A key whose operations have no order. ``window``: those that cannot all be right, in the order of their calls."""

    key: str
    operations: int  # of the key, in all
    window: tuple[Operation, ...]
    stuck: Operation
    began: State | None  # what the key held at first, where that is part of the contradiction

    def lines(self) -> list[str]:
        """A little timeline; times are milliseconds since the first of these calls."""
        window = self.window[-LINES_MOST:]
        first = min(operation.invoked for operation in window)
        last = max([operation.invoked for operation in window] + _ends(window))
        held = "" if self.began is None else f", which held {self.began.value}, version {self.began.version}, at first"
        lines = [f"{self.key}{held}: no order of its {self.operations} operations explains these {len(self.window)}"]
        for operation in window:
            begin, end = operation.invoked - first, min(operation.returned, last) - first
            mark = "  <- cannot be" if operation is self.stuck else ""
            times = f"{begin * 1000:9.1f} to {end * 1000:9.1f} ms"
            lines.append(f"{times} |{_bar(begin, end, last - first)}| {operation.words()}{mark}")
        return lines


@dataclass(frozen=True)
class Judgement:
    """The result. ``operations`` have an answer, ``unknown`` changes have none, and ``silent`` ones say nothing."""

    keys: int
    operations: int
    unknown: int
    silent: int
    violations: tuple[Violation, ...]
    too_hard: tuple[str, ...]  # keys

    @property
    def good(self) -> bool:
        """Every key was looked at to the end, and every one is linearizable."""
        return not self.violations and not self.too_hard

    def words(self) -> str:
        """In one line."""
        asked = f"{self.operations:,} reads and writes of {_keys(self.keys)}"
        if self.unknown:
            asked += f", and {self.unknown} without a known end"
        if self.good:
            return f"{asked}: linearizable"
        hard = [f"too hard to tell for {', '.join(self.too_hard)}"] if self.too_hard else []
        wrong = [f"NOT linearizable in {_keys(len(self.violations))}"] if self.violations else []
        return f"{asked}: {'; '.join(wrong + hard)}"

    def examples(self) -> Sequence[str]:
        """The timelines of violations, up to a few."""
        return [line for violation in self.violations[:EXAMPLES] for line in violation.lines()]


def judge(histories: Iterable[History], *, budget: int = BUDGET) -> Judgement:
    """Look at every key of every history; ``budget`` bounds the search of each."""
    keys = operations = unknown = silent = 0
    violations: list[Violation] = []
    too_hard: list[str] = []
    for history in histories:
        by_key: dict[str, list[Operation]] = defaultdict(list)
        for operation in history.operations:
            by_key[operation.key].append(operation)
        for key, initial in history.initial.items():
            counted = [operation for operation in by_key[key] if operation.counts]
            open_ended = sum(operation.outcome is Outcome.UNKNOWN for operation in counted)
            keys += 1
            operations, unknown = operations + len(counted) - open_ended, unknown + open_ended
            silent += len(by_key[key]) - len(counted)
            found = _search(counted, initial, budget)
            if found.verdict is Verdict.TOO_HARD:
                too_hard.append(key)
            elif found.stuck is not None:
                violations.append(explain(counted, initial, found.stuck))
    return Judgement(keys, operations, unknown, silent, tuple(violations), tuple(too_hard))


def explain(operations: Sequence[Operation], initial: State, stuck: Operation) -> Violation:
    """The shortest window that contradicts itself whatever the key held before, and of it only what is needed.

    Nothing is left out that could excuse the rest: a change from before the window that may still come, and one that
    turns out not to be needed, stays in the search as one that may be done at any later time or never.
    """
    until = sorted((o for o in operations if o.invoked <= stuck.returned), key=lambda o: o.invoked)
    began: State | None = initial
    window, excuses = until, list[Operation]()
    if _contradict(*_window(until, 0), ANY):
        began = None
        low, high = 0, len(until)
        while high - low > 1:  # a longer window contradicts itself too
            middle = (low + high) // 2
            low, high = (middle, high) if _contradict(*_window(until, middle), ANY) else (low, middle)
        window, excuses = _window(until, low)
    start = ANY if began is None else began
    if len(window) <= CORE_MOST:
        window, excuses = _core(window, excuses, start)
    found = _search([*excuses, *window], start)
    last = found.stuck if found.stuck is not None else stuck
    shown = tuple(operation for operation in window if operation.outcome is not Outcome.UNKNOWN)
    return Violation(stuck.key, len(operations), shown, last, began)


def _window(operations: Sequence[Operation], first: int) -> tuple[list[Operation], list[Operation]]:
    """What was called from one operation on, and the changes from before that may come as late as this."""
    begin = operations[first].invoked
    late = [relaxed(o) for o in operations[:first] if o.changes and o.returned >= begin]
    return list(operations[first:]), late


def _core(
    window: Sequence[Operation], excuses: Sequence[Operation], start: State
) -> tuple[list[Operation], list[Operation]]:
    """The window without whatever is not needed for the contradiction."""
    kept, excusing = list(window), list(excuses)
    for operation in window:
        fewer = [each for each in kept if each is not operation]
        more = [*excusing, relaxed(operation)] if operation.changes else excusing
        if _contradict(fewer, more, start):
            kept, excusing = fewer, more
    return kept, excusing


def _contradict(window: Sequence[Operation], excuses: Sequence[Operation], start: State) -> bool:
    return _search([*excuses, *window], start).verdict is Verdict.VIOLATED


def _search(operations: Sequence[Operation], start: State, budget: int = EXPLAIN_BUDGET) -> Searched[Operation]:
    return search(sharpened(operations), start, step, behind=behind, alike=alike, budget=budget)


def _ends(operations: Iterable[Operation]) -> list[float]:
    return [operation.returned for operation in operations if operation.returned < inf]


def _keys(count: int) -> str:
    return "1 key" if count == 1 else f"{count} keys"


def _bar(begin: float, end: float, whole: float) -> str:
    """Where it lies on the time axis; at least one character."""
    scale = (WIDTH - 1) / whole if whole else 0.0
    left, right = round(begin * scale), round(end * scale)
    return " " * left + "=" * (right - left + 1) + " " * (WIDTH - 1 - right)
