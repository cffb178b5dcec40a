"""From what a run recorded to what people read: the table, and whether the run was good. Pure."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from contracts import problems
from loadtest.books import Audit, Wrong
from loadtest.effects import Effects
from loadtest.history.judge import Judgement
from loadtest.incidents import Happened
from loadtest.leaving import Left
from loadtest.negative import Verdict
from loadtest.newcell import Joined
from loadtest.record import Failure, Latency, Record, write_gap
from loadtest.show import Line

KINDS_SHOWN = 10  # of failures, each with one example
FAILED: Final = "failed requests"
OWN_LIMITS: Final = frozenset(p.title for p in (problems.CALLER_LIMITED, problems.TENANT_BUSY, problems.RATE_LIMITED))
_TITLE: Final = re.compile(r'"title":"([^"]*)"')  # of a problem whose body may be cut off
HOLD_GOAL_MS = 250.0  # a longer hold is marked, but makes no run bad: `good` is about what is right, not how fast


@dataclass(frozen=True)
class Outcome:
    """Everything about one run of the demo. ``seconds`` is for how long traffic was offered; ``joined`` is None where
    no cell was to be added, ``effects`` where nothing was to happen outside, ``left`` where there was no cell zero.
    """

    seconds: float
    record: Record
    audit: Audit
    control: Verdict
    happened: Happened
    moved: str
    slug: str
    joined: Joined | None = None
    effects: Effects | None = None
    left: Left | None = None
    judged: Judgement | None = None

    @property
    def blamed(self) -> list[Failure]:
        """Requests that were in flight in the killed worker."""
        return [f for f in self.record.failures if self.happened.kill.caused(f)]

    @property
    def failures(self) -> list[Failure]:
        """Failed tries that the demo did not cause. One that a retry answered counts all the same."""
        return [f for f in self.record.failures if not self.happened.kill.caused(f)]

    @property
    def good(self) -> bool:
        """Nothing lost, doubled or misplaced; nothing failed that the demo did not cause; books that can be trusted;
        the tenant moved, and the new cell serves new tenants; reads and writes were in one order.
        """
        return not self._wrong

    @property
    def _wrong(self) -> list[str]:
        """The rows that make the run bad."""
        rows = [
            (FAILED, not self.failures),
            ("the move", self.happened.move.state == "done"),
            (self._new_cell, self.joined is None or self.joined.good),
            ("negative control", self.control.caught),
            ("books", self.audit.balanced),
            ("registers", self.judged is None or self.judged.good),
            ("charges and webhooks", self.effects is None or self.effects.balanced),
            ("cell zero", self.left is None or self.left.good),
        ]
        return [row for row, good in rows if not good]

    def verdict(self) -> str:
        """What came of it, in one line: what failed is told apart from what could not be measured."""
        kept, wrong = self.record.pace.kept, self._wrong
        aside = "" if kept else "; the times mean nothing: the machine was too busy for the driver (row: driver)"
        if not wrong:
            return f"nothing lost, doubled or misplaced; no request failed{aside}"
        if wrong == [FAILED]:
            count = f"{len(self.failures)} requests failed (row: {FAILED})"
            if not kept:
                return (
                    f"the measurement is not valid: the driver fell behind, the machine was too busy (row: driver), and"
                    f" {count}; nothing was lost, doubled or misplaced. Try a quieter machine, or a lower --rate"
                )
            if all(_title(failure) in OWN_LIMITS for failure in self.failures):
                return f"{count}: refused by their tenant's own limits; nothing was lost, doubled or misplaced"
            return f"the product failed: {count}; nothing was lost, doubled or misplaced"
        return f"the product failed; see the rows: {', '.join(wrong)}{aside}"

    def lines(self) -> list[Line]:
        """The table."""
        record, move = self.record, self.happened.move
        hold = "unknown" if move.hold_ms is None else f"{move.hold_ms:.0f} ms (goal: {HOLD_GOAL_MS:.0f} ms)"
        rates = f"{record.intended / self._lasted:.1f}/s offered, {self._achieved:.1f}/s achieved"
        return [
            Line("requests", f"{record.intended} in {self._lasted:.0f} s: {rates}", record.succeeded < record.sent),
            Line(FAILED, self._failed(), bool(self.failures)),
            Line("in flight in the killed worker", self._killed()),
            *(line for cell in record.cells for line in self._of_cell(cell)),
            Line("the move", f"{self.slug}: {move.source} -> {move.target}, {move.state}", move.state != "done"),
            Line("hold time of the move", hold, move.hold_ms is None or move.hold_ms > HOLD_GOAL_MS),
            Line("longest write gap of the moved tenant", self._gap()),
            *self._joined(),
            Line("control plane away", f"{self.happened.away_until - self.happened.away_from:.1f} s"),
            Line("negative control", "caught" if self.control.caught else "MISSED", not self.control.caught),
            Line("books", self._books(), not self.audit.balanced),
            *self._judged(),
            *self._outside(),
            *self._left(),
            Line("driver", record.pace.words(), not record.pace.kept),
        ]

    def examples(self) -> Sequence[str]:
        """How many failed in which way, and one of each, up to a few ways."""
        kinds = Counter(map(_kind, self.failures)).most_common()
        lines = []
        for kind, count in kinds[:KINDS_SHOWN]:
            alike = [failure for failure in self.failures if _kind(failure) == kind]
            of = ", ".join(sorted({failure.tenant for failure in alike})[:KINDS_SHOWN])
            lines += [f"{count} x {kind}, of {of}; for example:", f"  {alike[0].words()}"]
            if _title(alike[0]) in OWN_LIMITS:
                lines.append("  (the tenant's own limit: what waited in a hold comes at once when it ends)")
        if len(kinds) > KINDS_SHOWN:
            lines.append(f"and {len(kinds) - KINDS_SHOWN} kinds more")
        return lines

    @property
    def _lasted(self) -> float:
        """Seconds from the first request to the last answer, that of newcomers included."""
        return max(self.seconds, self.record.seconds)

    @property
    def _achieved(self) -> float:
        return self.record.succeeded / self._lasted

    @property
    def _new_cell(self) -> str:
        return "" if self.joined is None else f"{self.joined.cell}, added under traffic"

    def _gap(self) -> str:
        writes, (began, ended) = self.record.writes.get(self.moved, []), self.happened.moving
        longest = write_gap(writes)
        moving = write_gap(writes, during=(began, ended))
        told = f"{longest.seconds * 1000:.0f} ms, {longest.at:.2f} s into the run"
        return f"{told}; while it moved {moving.seconds * 1000:.0f} ms (from {began:.2f} s to {ended:.2f} s)"

    def _joined(self) -> list[Line]:
        if self.joined is None:
            return []
        return [Line(self._new_cell, self.joined.words(), not self.joined.good)]

    def _judged(self) -> list[Line]:
        return [] if self.judged is None else [Line("registers", self.judged.words(), not self.judged.good)]

    def _outside(self) -> list[Line]:
        if self.effects is None:
            return []
        wrong = not self.effects.balanced
        return [Line("charges", self.effects.charges(), wrong), Line("webhooks", self.effects.webhooks(), wrong)]

    def _left(self) -> list[Line]:
        return [] if self.left is None else [Line("cell zero", self.left.words(), not self.left.good)]

    def _failed(self) -> str:
        if not self.failures:
            return "0"
        by_kind = Counter(map(_kind, self.failures))
        return f"{len(self.failures)}: " + ", ".join(f"{n} {kind}" for kind, n in by_kind.items())

    def _killed(self) -> str:
        count = len(self.blamed)
        if not count:
            return "0"
        again = sum(f.retried for f in self.blamed)
        return f"{count}, of which {again} were sent again; {self.record.retried_well} then got their answer"

    def _of_cell(self, cell: str) -> list[Line]:
        return [
            Line(f"{cell} {what}", _figures(self.record.of_cell(cell, writes=writes)))
            for what, writes in (("reads", False), ("writes", True))
        ]

    def _books(self) -> str:
        counts = ", ".join(f"{self.audit.count(wrong)} {wrong}" for wrong in Wrong)
        return f"{self.audit.found} of {self.audit.acknowledged} acknowledged orders found once and at home; {counts}"


def _title(failure: Failure) -> str:
    found = _TITLE.search(failure.body)
    return found[1] if found else ""


def _kind(failure: Failure) -> str:
    """Failures of one kind are told once."""
    what = f"{failure.cause} ({failure.status})" if failure.status else failure.cause
    title = _title(failure)
    return f"{what}: {title}" if title else what


def _figures(latency: Latency) -> str:
    p50, p99, top = latency.percentile_ms(50), latency.percentile_ms(99), latency.max_ms
    return f"{latency.count}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {top:.0f} ms"
