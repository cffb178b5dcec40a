"""What the results of a scenario are worth: ratios, fairness, errors and books, each against its landmarks. Pure.

Every ratio is taken within one run (victims with their aggressors, by the same victims alone a moment before), so a
slow machine is slow on both sides of it; repeats give the median and how sure it is. A case is as good as its worst
part. A run that is marked invalid counts for nothing, and a case without a valid run has no score.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from math import exp, inf, log
from statistics import median
from typing import Final

from loadtest.lab.result import Case, PhaseKind, Result, Role, TenantFigures

PASS: Final = 90.0
RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95
LEAST_REPEATS: Final = 3  # fewer say nothing of how sure a median is
TOP_PERCENT: Final = 99.0
LEAST_SAMPLES: Final = 100  # of fewer the p99 is the longest


class Part(StrEnum):
    """What is judged of a case."""

    LATENCY = "victims' p99"
    FAIRNESS = "fairness (Jain)"
    WORST = "worst victim"
    ERRORS = "victims' errors"
    BOOKS = "books"


@dataclass(frozen=True, slots=True)
class Landmarks:
    """The values worth 100, 90 (the pass mark), 60 and 0 points; between two of them it is linear."""

    best: float
    good: float
    poor: float
    worst: float

    def points(self, value: float) -> float:
        """From 0 to 100."""
        marks = ((self.best, 100.0), (self.good, PASS), (self.poor, 60.0), (self.worst, 0.0))
        rising = self.worst > self.best
        if (value <= self.best) if rising else (value >= self.best):
            return 100.0
        for (low, upper), (high, lower) in pairwise(marks):
            if (value <= high) if rising else (value >= high):
                return upper - (upper - lower) * (value - low) / (high - low)
        return 0.0


SAME_CELL: Final = Landmarks(1.05, 1.2, 2.0, 10.0)  # victims' p99 with the cause, by theirs alone
OTHER_CELL: Final = Landmarks(1.0, 1.05, 1.3, 3.0)
MOVING: Final = Landmarks(1.1, 1.3, 2.5, 10.0)  # of a cell that tenants leave
JAIN: Final = Landmarks(1.0, 0.99, 0.9, 0.5)
GOODPUT: Final = Landmarks(1.0, 0.99, 0.9, 0.5)  # the worst victim's share of what it asked for
ERRORS: Final = Landmarks(0.0, 0.0001, 0.01, 0.1)  # share of victims' requests
_BOOKS: Final = Landmarks(0.0, 0.5, 0.75, 1.0)  # wrong entries: one is too many


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of the repeats, and the interval that holds it with 95% confidence (bootstrap; Efron 1979)."""

    value: float
    low: float
    high: float
    repeats: int

    @property
    def sure(self) -> bool:
        """Whether the repeats were enough to say how sure it is."""
        return self.repeats >= LEAST_REPEATS


@dataclass(frozen=True, slots=True)
class Mark:
    """One part of a case: what was measured and its points."""

    part: Part
    figure: Figure
    points: float
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """One case over all its repeats. ``score`` is None where no run of it was valid."""

    scenario: str
    kind: str
    system: str
    case: Case
    marks: Mapping[Part, Mark]
    alone_ms: float  # the victims' p99 alone, median of the repeats
    with_ms: float
    valid: int
    samples: int  # the fewest requests that one of these p99 is of
    invalid: tuple[str, ...]  # why runs were left out

    @property
    def score(self) -> float | None:
        """The points of the worst part."""
        return min((mark.points for mark in self.marks.values()), default=None)

    @property
    def passed(self) -> bool:
        """Every part reaches its pass mark."""
        return bool(self.marks) and all(mark.passed for mark in self.marks.values())

    @property
    def name(self) -> str:
        """The case without its walls, so that on, off and peer stand side by side."""
        case = self.case
        parts = [case.aggressor, f"x{case.count}" if case.count else "", case.where]
        return " ".join(part for part in [*parts, case.fault] if part) or self.kind

    @property
    def world(self) -> str:
        """Which of the compared worlds it is of: ``walls on``, ``walls off``, ``walls observe`` or ``peer``."""
        return "peer" if self.system != "cellwall" else f"walls {self.case.walls}"

    @property
    def judged(self) -> bool:
        """Whether it has to pass: our own system with its walls on. The others show what walls and cells are for."""
        return self.system == "cellwall" and self.case.walls == "on"


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness (Jain, Chiu, Hawe 1984): 1 where all are equal, 1/n where one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def interval(values: Sequence[float], *, seed: str) -> Figure:
    """The median of positive or zero values and its bootstrap interval; the same seed, the same interval."""
    rng = random.Random(seed)
    middle = median(values)
    if len(values) < 2:
        return Figure(middle, middle, middle, len(values))
    medians = sorted(median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    tail = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Figure(middle, medians[tail], medians[-1 - tail], len(values))


def victim_cells(result: Result) -> list[str]:
    """The cells whose victims a run judges: those that nothing was done to, where there was a place elsewhere.

    With aggressors in the victims' own cell these are the victims beside them, and nobody else: neighbours at a
    distance would hide what happens here.
    """
    case, cells = result.meta.case, {figures.cell for figures in result.tenants if figures.role is Role.VICTIM}
    hit = set(result.meta.hit)
    beside = cells & hit if case.where == "same" else cells - hit
    return sorted(beside or cells)


def latency_ratio(result: Result) -> tuple[float, float, float]:
    """The victims' p99 alone and with the cause, milliseconds, and their ratio (infinite where nobody got through)."""
    cells = victim_cells(result)
    alone, load = (_p99(result, kind, cells) for kind in (PhaseKind.ALONE, PhaseKind.LOAD))
    return alone, load, load / alone if alone and load else inf


def _samples(result: Result) -> int:
    """The fewest of the judged victims' latencies that a phase has, alone or with the cause."""
    phases = [*result.phase_of(PhaseKind.ALONE), *result.phase_of(PhaseKind.LOAD)]
    cells = victim_cells(result)
    return min((result.latency(phase.name, Role.VICTIM, cells=cells).count for phase in phases), default=0)


def _p99(result: Result, kind: PhaseKind, cells: Sequence[str]) -> float:
    phases = result.phase_of(kind)
    if not phases:
        return 0.0
    worst = [result.latency(phase.name, Role.VICTIM, cells=cells).percentile_ms(TOP_PERCENT) for phase in phases]
    return max(worst)


def victims_under_load(result: Result) -> list[TenantFigures]:
    """The judged victims' figures in the phases with the cause."""
    phases, cells = {phase.name for phase in result.phase_of(PhaseKind.LOAD)}, set(victim_cells(result))
    return [f for f in result.tenants if f.phase in phases and f.role is Role.VICTIM and f.cell in cells]


def goodputs(result: Result) -> list[float]:
    """Each judged victim's share of its requests that got the answer they asked for."""
    sent: dict[str, int] = defaultdict(int)
    good: dict[str, int] = defaultdict(int)
    for figures in victims_under_load(result):
        sent[figures.tenant] += figures.sent
        good[figures.tenant] += figures.succeeded
    return [good[tenant] / count for tenant, count in sent.items() if count]


def measured(result: Result) -> dict[Part, float]:
    """All parts of one run. ``inf`` is a latency of nobody."""
    under = victims_under_load(result)
    shares = goodputs(result)
    sent = sum(figures.sent for figures in under)
    return {
        Part.LATENCY: latency_ratio(result)[2],
        Part.FAIRNESS: jain(shares) if shares else 0.0,
        Part.WORST: min(shares, default=0.0),
        Part.ERRORS: sum(figures.errors for figures in under) / sent if sent else 1.0,
        Part.BOOKS: float(result.books.wrong) if result.books.checked else 1.0,
    }


def landmarks(part: Part, result: Result) -> Landmarks:
    """What a part is measured against in this kind of run."""
    if part is not Part.LATENCY:
        return {Part.FAIRNESS: JAIN, Part.WORST: GOODPUT, Part.ERRORS: ERRORS, Part.BOOKS: _BOOKS}[part]
    if result.meta.kind in ("move-under-load", "evacuate"):
        return MOVING
    return SAME_CELL if result.meta.case.where == "same" or not result.meta.hit else OTHER_CELL


def judge(results: Iterable[Result]) -> list[Verdict]:
    """One verdict for each case and system, in the order in which they first come."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        key = (result.meta.scenario, result.meta.case.slug, result.meta.system)
        groups.setdefault(key, []).append(result)
    return [_verdict(each) for each in groups.values()]


def _verdict(results: Sequence[Result]) -> Verdict:
    first = results[0]
    valid = [result for result in results if result.validity.valid]
    invalid = tuple(
        f"run {result.meta.repeat}: {'; '.join(result.validity.reasons)}"
        for result in results
        if not result.validity.valid
    )
    marks = {part: _mark(part, valid) for part in Part} if valid else {}
    latencies = [latency_ratio(result) for result in valid]
    return Verdict(
        scenario=first.meta.scenario,
        kind=first.meta.kind,
        system=first.meta.system,
        case=first.meta.case,
        marks=marks,
        alone_ms=median(alone for alone, _, _ in latencies) if valid else 0.0,
        with_ms=median(load for _, load, _ in latencies) if valid else 0.0,
        valid=len(valid),
        samples=min(map(_samples, valid), default=0),
        invalid=invalid,
    )


def _mark(part: Part, results: Sequence[Result]) -> Mark:
    values = [measured(result)[part] for result in results]
    seed = f"{results[0].meta.case.slug}/{part}"
    figure = _of_ratios(values, seed) if part is Part.LATENCY else interval(values, seed=seed)
    if part in (Part.ERRORS, Part.BOOKS):
        worst = max(values)  # an error in any run is an error
        return Mark(part, figure, landmarks(part, results[0]).points(worst), worst == 0)
    points = landmarks(part, results[0]).points(figure.value)
    return Mark(part, figure, points, points >= PASS)


def _of_ratios(values: Sequence[float], seed: str) -> Figure:
    """Ratios are compared as logarithms: half and double are equally far from one."""
    if any(value == inf for value in values):
        return Figure(median(values), min(values), inf, len(values))
    found = interval([log(value) for value in values], seed=seed)
    return Figure(exp(found.value), exp(found.low), exp(found.high), found.repeats)
