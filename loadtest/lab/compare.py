"""Two sets of runs side by side: for each shared case, whether victims fare better or worse, and how sure that is."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log
from statistics import median
from typing import Final

from loadtest.lab.result import Result
from loadtest.lab.score import CONFIDENCE, LEAST_REPEATS, RESAMPLES, Part, latency_ratio, measured

Key = tuple[str, str, str]
ENOUGH: Final = LEAST_REPEATS


@dataclass(frozen=True, slots=True)
class Change:
    """Victims' p99 ratio before and after (medians), and after by before with its 95% interval."""

    scenario: str
    case: str
    system: str
    before: float
    after: float
    by: float
    low: float
    high: float
    repeats: int  # of the side with fewer
    errors_before: float
    errors_after: float

    @property
    def words(self) -> str:
        """What can be said of it."""
        if self.repeats < ENOUGH:
            return f"{ENOUGH} valid runs of each are needed to say anything"
        if self.high < 1:
            return "better"
        if self.low > 1:
            return "worse"
        return "no evidence of a change"


def compare(before: Iterable[Result], after: Iterable[Result]) -> list[Change]:
    """Every case that both sides have a valid run of, in the order of the first."""
    old, new = _grouped(before), _grouped(after)
    return [_change(key, old[key], new[key]) for key in old if key in new]


def _grouped(results: Iterable[Result]) -> Mapping[Key, list[Result]]:
    found: dict[Key, list[Result]] = {}
    for result in results:
        if result.validity.valid:
            key = (result.meta.scenario, result.meta.case.slug, result.meta.system)
            found.setdefault(key, []).append(result)
    return found


def _change(key: Key, old: Sequence[Result], new: Sequence[Result]) -> Change:
    before = [latency_ratio(result)[2] for result in old]
    after = [latency_ratio(result)[2] for result in new]
    low, high = _interval(before, after, "/".join(key))
    was, now = median(before), median(after)
    return Change(
        *key,
        before=was,
        after=now,
        by=now / was if was not in (0, inf) else inf,
        low=low,
        high=high,
        repeats=min(len(old), len(new)),
        errors_before=max(measured(result)[Part.ERRORS] for result in old),
        errors_after=max(measured(result)[Part.ERRORS] for result in new),
    )


def _interval(before: Sequence[float], after: Sequence[float], seed: str) -> tuple[float, float]:
    """The bootstrap interval of the quotient of the two medians."""
    if inf in (*before, *after):
        return 0.0, inf
    rng = random.Random(seed)
    old, new = [log(value) for value in before], [log(value) for value in after]
    quotients = sorted(
        median(rng.choices(new, k=len(new))) - median(rng.choices(old, k=len(old))) for _ in range(RESAMPLES)
    )
    tail = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return exp(quotients[tail]), exp(quotients[-1 - tail])
