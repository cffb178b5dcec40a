"""From what the processes of the driver saw to the figures of a result. Pure; every request is counted."""

import array
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from loadtest.books import Audit, Wrong
from loadtest.history.judge import Judgement
from loadtest.lab.job import REFUSED, Job, Tally
from loadtest.lab.plan import Tenant
from loadtest.lab.result import (
    NONE_MS,
    Books,
    Counts,
    Event,
    FailureCount,
    FailureExample,
    Group,
    Histogram,
    Meta,
    Phase,
    Result,
    Role,
    Second,
    TenantFigures,
    Timeline,
    Validity,
)
from loadtest.lab.samples import KINDS

EXAMPLES_MAX: Final = 200
NO_PHASE: Final = ""


@dataclass(slots=True)
class _Pile:
    """Requests that belong together: the latencies of those that succeeded, and how many did not."""

    latencies: "array.array[int]" = field(default_factory=lambda: array.array("i"))
    refused: int = 0
    failed: int = 0

    def add(self, ended: int) -> None:
        if ended >= 0:
            self.latencies.append(ended)
        elif ended == REFUSED:
            self.refused += 1
        else:
            self.failed += 1

    def counts(self) -> Counts:
        succeeded = len(self.latencies)
        sent = succeeded + self.refused + self.failed
        return Counts(sent=sent, succeeded=succeeded, refused=self.refused, failed=self.failed)

    def fields(self) -> dict[str, int]:
        return msgspec.structs.asdict(self.counts())

    def percentiles(self) -> tuple[float, float, float]:
        """p50, p99 and the largest, in milliseconds: the value at the rank itself, nothing interpolated."""
        ordered = sorted(self.latencies)
        if not ordered:
            return NONE_MS, NONE_MS, NONE_MS
        at = (ordered[max(0, math.ceil(len(ordered) * part) - 1)] / 1000 for part in (0.5, 0.99, 1.0))
        p50, p99, top = at
        return p50, p99, top


class Collector:
    """Takes the tallies of one run, drive by drive, and makes its result."""

    def __init__(self, phases: Sequence[Phase], tenants: Iterable[Tenant]) -> None:
        self._phases = list(phases)
        self._begins = [phase.begin for phase in phases]
        self._tenants: Mapping[str, Tenant] = {tenant.account.tenant: tenant for tenant in tenants}
        self._groups: defaultdict[tuple[str, Role, str, str], _Pile] = defaultdict(_Pile)
        self._of_tenant: defaultdict[tuple[str, str], _Pile] = defaultdict(_Pile)
        self._seconds: defaultdict[tuple[int, str, Role], _Pile] = defaultdict(_Pile)
        self._timelines: dict[str, Timeline] = {}
        self._causes: Counter[tuple[str, Role, str, str, int]] = Counter()
        self._examples: list[FailureExample] = []
        self._length = math.ceil(phases[-1].end) if phases else 0

    def add(self, jobs: Sequence[Job], tallies: Sequence[Tally], *, offset: float = 0.0) -> None:
        """Count what one drive saw; ``offset`` is its second 0 on the time axis of the run."""
        by_process = {tally.process: tally for tally in tallies}
        for job in jobs:
            tally = by_process[job.process]
            tenants = [self._tenants[account.tenant] for account in job.accounts]
            for place, kind, at, ended in zip(*tally.samples.columns(), strict=True):
                self._sample(tenants[place], KINDS[kind].value, at + offset, ended)
            for cause in tally.causes:
                tenant = tenants[cause.tenant]
                key = (self._phase(cause.second + offset), tenant.role, tenant.cell, cause.cause, cause.status)
                self._causes[key] += cause.count
            self._examples += [self._example(example, offset) for example in tally.examples]

    def result(
        self,
        meta: Meta,
        *,
        events: Sequence[Event],
        books: Books,
        validity: Validity,
        measures: Mapping[str, float] | None = None,
    ) -> Result:
        """All of it."""
        by_id = {tenant.account.tenant: tenant for tenant in self._tenants.values()}
        return Result(
            meta=meta,
            phases=self._phases,
            groups=[
                Group(
                    phase=phase, role=role, cell=cell, kind=kind, latency=Histogram.of(pile.latencies), **pile.fields()
                )
                for (phase, role, cell, kind), pile in sorted(self._groups.items())
            ],
            tenants=[
                TenantFigures(
                    phase=phase,
                    tenant=name,
                    role=by_id[name].role,
                    cell=by_id[name].cell,
                    latency=Histogram.of(pile.latencies),
                    **pile.fields(),
                )
                for (phase, name), pile in sorted(self._of_tenant.items())
            ],
            seconds=[self._second(*key, pile) for key, pile in sorted(self._seconds.items())],
            timelines=[self._timelines[name] for name in sorted(self._timelines)],
            events=sorted(events, key=lambda event: event.at),
            failures=sorted(self._examples, key=lambda example: example.at)[:EXAMPLES_MAX],
            failure_counts=[
                FailureCount(phase=phase, role=role, cell=cell, cause=cause, status=status, count=count)
                for (phase, role, cell, cause, status), count in sorted(self._causes.items())
            ],
            books=books,
            validity=validity,
            measures=dict(measures or {}),
        )

    def pile(self, phase: str, role: Role) -> tuple[Counts, float]:
        """The counts of a phase and role, and its p99 in milliseconds."""
        total = _Pile()
        for (its_phase, its_role, _, _), pile in self._groups.items():
            if (its_phase, its_role) == (phase, role):
                total.latencies.extend(pile.latencies)
                total.refused += pile.refused
                total.failed += pile.failed
        return total.counts(), total.percentiles()[1]

    def _sample(self, tenant: Tenant, kind: str, at: float, ended: int) -> None:
        phase, role, second = self._phase(at), tenant.role, int(at)
        if phase != NO_PHASE:
            self._groups[phase, role, tenant.cell, kind].add(ended)
            self._of_tenant[phase, tenant.account.tenant].add(ended)
        self._seconds[second, tenant.cell, role].add(ended)
        if 0 <= second < self._length:
            line = self._timeline(tenant)
            if ended >= 0:
                line.max_ms[second] = max(line.max_ms[second], ended / 1000)
            else:
                line.errors[second] += 1

    def _timeline(self, tenant: Tenant) -> Timeline:
        name = tenant.account.tenant
        found = self._timelines.get(name)
        if found is None:
            empty, none = [NONE_MS] * self._length, [0] * self._length
            found = Timeline(tenant=name, role=tenant.role, cell=tenant.cell, max_ms=empty, errors=none)
            self._timelines[name] = found
        return found

    def _phase(self, at: float) -> str:
        place = bisect_right(self._begins, at) - 1
        if place < 0 or at >= self._phases[place].end:
            return NO_PHASE
        return self._phases[place].name

    def _second(self, at: int, cell: str, role: Role, pile: _Pile) -> Second:
        p50, p99, top = pile.percentiles()
        return Second(at=at, cell=cell, role=role, p50_ms=p50, p99_ms=p99, max_ms=top, **pile.fields())

    def _example(self, example: FailureExample, offset: float) -> FailureExample:
        tenant = self._tenants[example.tenant]
        return msgspec.structs.replace(
            example,
            at=example.at + offset,
            intended=example.intended + offset,
            phase=self._phase(example.intended + offset),
            role=tenant.role,
            cell=tenant.cell,
        )


def books_of(audit: Audit, judged: Judgement | None = None) -> Books:
    """The verdict of an audit, and of the registers that clients read and wrote beside it, where some did."""
    counts = {wrong.value: audit.count(wrong) for wrong in Wrong}
    words = audit.words()
    if judged is not None and judged.keys:
        words = [words[0], judged.words(), *words[1:], *judged.examples()]
        counts["disordered"] = len(judged.violations) + len(judged.too_hard)
    return Books(checked=True, acknowledged=audit.acknowledged, found=audit.found, words=words, **counts)
