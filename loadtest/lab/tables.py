"""Verdicts and comparisons as tables for a terminal."""

from collections.abc import Sequence
from math import inf
from typing import Final

from rich.table import Table

from loadtest.lab.compare import Change
from loadtest.lab.score import LEAST_SAMPLES, Mark, Part, Verdict

COLUMNS: Final = ("p99 alone", "with, ms", "ratio", "Jain", "worst", "errors", "books", "score", "")


def summary(verdicts: Sequence[Verdict], *, judged: bool = True) -> Table:
    """A line for each verdict. Where nothing hangs on them (``judged`` is false) they are shown without a score."""
    table = Table(
        title="Victims: p99 alone and with the cause, fairness, the worst one's share of its requests",
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("case", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for verdict in verdicts:
        if not judged:
            table.add_row(f"{verdict.name}, {verdict.world}", *cells(verdict)[:-2], "", "shown")
            continue
        style = "bold red" if verdict.judged and not verdict.passed else None if verdict.judged else "dim"
        table.add_row(f"{verdict.name}, {verdict.world}", *cells(verdict), style=style)
    return table


def changes(found: Sequence[Change]) -> Table:
    """A comparison of two folders for a terminal."""
    table = Table(title="Victims' p99 ratio, before and after", title_justify="left", pad_edge=False)
    for column in ("case", "before", "after", "after / before", "errors", "verdict"):
        table.add_column(column, justify="left" if column in ("case", "verdict") else "right")
    for change in found:
        by = f"{change.by:.2f} [{change.low:.2f}, {change.high:.2f}]"
        errors = f"{change.errors_before:.3%} -> {change.errors_after:.3%}"
        name = f"{change.scenario} {change.case} {change.system}"
        table.add_row(name, f"{change.before:.2f}", f"{change.after:.2f}", by, errors, change.words)
    return table


def cells(verdict: Verdict) -> list[str]:
    """What `COLUMNS` name."""
    if verdict.score is None:
        return ["-"] * (len(COLUMNS) - 1) + ["invalid"]
    marks = [_figure(verdict.marks[part]) for part in Part]
    word = ("passed" if verdict.passed else "FAILED") if verdict.judged else "shown"
    few = f" (longest of {verdict.samples})" if verdict.samples < LEAST_SAMPLES else ""
    return [f"{verdict.alone_ms:.1f}{few}", f"{verdict.with_ms:.1f}", *marks, f"{verdict.score:.0f}", word]


def _figure(mark: Mark) -> str:
    value, low, high = mark.figure.value, mark.figure.low, mark.figure.high
    match mark.part:
        case Part.LATENCY:
            if value == inf:
                return "nobody served"
            return f"{value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if mark.figure.sure else "")
        case Part.ERRORS | Part.WORST:
            return f"{value:.2%}" if value < 1 else "100%"
        case Part.BOOKS:
            return "whole" if mark.passed else "WRONG"
        case Part.FAIRNESS:
            return f"{value:.3f}"
