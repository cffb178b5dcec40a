"""``python -m loadtest.bench.noisy``: the figures of noisy neighbours and of faults, from results of the lab.

Runs the scenarios on a fleet of its own (``--full``: every kind, count and place, which takes hours; otherwise four
aggressors of every kind beside the victims, and in another cell), or takes the results below ``--results``. With
``--resume`` and ``--minutes`` it is done piece by piece. Every figure is a ratio within one run, the median of the
repeats. Writes ``build/bench/noisy.json``, and exits with 1 where a figure does not hold, with 2 where there is
nothing to judge, with 4 where the time was over before all runs were done: then it judges those that were.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from infra.local.spec import CHECKOUT
from loadtest.bench.figures import Figure, Report
from loadtest.lab.result import Case, Result, ResultError, results
from loadtest.lab.score import Part, Verdict, judge
from loadtest.show import console

SAME_GOAL: Final = 1.2
OTHER_GOAL: Final = 1.05
OUT: Final = Path("build/lab/bench-noisy")
QUICK: Final = ("noisy-quick", "noisy-elsewhere")
FULL: Final = ("noisy-neighbour", "blast-radius")
RUN_STATUS_DONE: Final = (0, 3)  # 3: some runs are invalid, and count for nothing
INCOMPLETE: Final = 4


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--full", is_flag=True, help="Every kind, count and place, and every fault.")
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1, 20))
@click.option("--results", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Judge these.")
@click.option("--resume", is_flag=True, help="Keep what was measured before, and do what is missing.")
@click.option("--minutes", type=click.FloatRange(min=0.1), help="Begin no run after so many minutes.")
def main(full: bool, repeat: int, folder: Path | None, resume: bool, minutes: float | None) -> None:
    """Run, print a table, write the figures."""
    status = 0
    if folder is None:
        folder = CHECKOUT / OUT
        command = [sys.executable, "-m", "loadtest.lab", "run", *(FULL if full else QUICK)]
        command += ["--peer", "--repeat", str(repeat), "--out", str(folder)]
        command += ["--resume"] if resume else []
        command += [] if minutes is None else ["--minutes", str(minutes)]
        status = subprocess.run(command, cwd=CHECKOUT, check=False).returncode
        if status not in (*RUN_STATUS_DONE, INCOMPLETE):
            sys.exit(status)
    try:
        report = Report(list(figures(list(results(folder)))))
    except ResultError as e:
        raise click.UsageError(str(e)) from None
    if not report.figures:
        raise click.UsageError(f"there is no valid run below {folder}")
    screen = console()
    report.show(screen, "victims with the cause, by the same victims alone")
    report.write(screen, "noisy")
    sys.exit(INCOMPLETE if status == INCOMPLETE else 0 if report.holds else 1)


def figures(runs: Sequence[Result]) -> Iterator[Figure]:
    """For each kind of aggressor and place the worst count; for faults the worst one; and the same without walls."""
    verdicts = [verdict for verdict in judge(runs) if verdict.score is not None]
    noisy = [verdict for verdict in verdicts if verdict.case.aggressor]
    for where, goal in (("same", SAME_GOAL), ("other", OTHER_GOAL)):
        for kind in dict.fromkeys(verdict.case.aggressor for verdict in noisy):
            of_kind = [v for v in noisy if (v.case.aggressor, v.case.where) == (kind, where)]
            yield from _of_kind(kind, where, goal, of_kind)
    faults = [verdict for verdict in verdicts if verdict.case.fault and verdict.judged]
    if faults:
        yield _worst("other cells under faults: victims' p99", faults, OTHER_GOAL)
        yield _errors("other cells under faults: victims' errors", faults)
    invalid = sum(not run.validity.valid for run in runs)
    if runs:
        yield Figure("runs left out as invalid", invalid, f"of {len(runs)}")


def _of_kind(kind: str, where: str, goal: float, verdicts: Sequence[Verdict]) -> Iterator[Figure]:
    place = f"{kind}, {where} cell"
    judged = [verdict for verdict in verdicts if verdict.judged]
    if judged:
        yield _worst(f"{place}: victims' p99", judged, goal)
        yield _errors(f"{place}: victims' errors", judged)
    for name, chosen in (("walls off", _walls("off")), ("peer", lambda v: v.system != "cellwall")):
        worlds = [verdict for verdict in verdicts if chosen(verdict)]
        if worlds:
            yield _worst(f"{place}: victims' p99, {name}", worlds, None)


def _walls(mode: str) -> Callable[[Verdict], bool]:
    return lambda verdict: verdict.system == "cellwall" and verdict.case.walls == mode


def _worst(name: str, verdicts: Iterable[Verdict], goal: float | None) -> Figure:
    worst = max(verdicts, key=lambda verdict: verdict.marks[Part.LATENCY].figure.value)
    figure = worst.marks[Part.LATENCY].figure
    value = round(min(figure.value, 1e6), 2)  # nobody served: JSON has no infinity
    name = f"{name}{_at(worst.case)}"
    return Figure(name, value, "times alone") if goal is None else Figure.at_most(name, value, "times alone", goal)


def _errors(name: str, verdicts: Iterable[Verdict]) -> Figure:
    worst = max(verdicts, key=lambda verdict: verdict.marks[Part.ERRORS].figure.high)
    share = worst.marks[Part.ERRORS].figure.high
    return Figure.at_most(f"{name}{_at(worst.case)}", round(100 * share, 3), "%", 0)


def _at(case: Case) -> str:
    """Which count or fault was the worst."""
    return f" (worst: {case.fault or f'x{case.count}'})"


if __name__ == "__main__":
    main()
