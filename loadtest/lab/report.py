"""The report of a folder of results: one self-contained page, its plots as PNG, its scores as JSON, and a summary.

The page loads nothing from anywhere: it can be mailed, and opened in ten years.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final

import msgspec
from matplotlib.figure import Figure

from loadtest.lab import plots, tables
from loadtest.lab.result import FailureCount, Result, Role
from loadtest.lab.score import Verdict, judge

PAGE: Final = "report.html"
SCORES: Final = "score.json"
CAUSES_SHOWN: Final = 5

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.2rem } h3 { font-size: 1rem; margin: 1.2rem 0 .2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
.wide { overflow-x: auto }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } thead th { border-bottom-width: 2px }
tr.judged td:first-child { font-weight: 600 }
.good { color: #1b7837 } .bad { color: #c0392b; font-weight: 600 } .dim { opacity: .6 }
.plot svg, .plot img { max-width: 100%; height: auto }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: 6px; padding: .3rem .8rem }
summary { cursor: pointer }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem } dd { margin: 0 }
@media (prefers-color-scheme: dark) {
  .good { color: #5fbf77 } .bad { color: #ff7b6b }
  .plot svg { filter: invert(.92) hue-rotate(180deg) }
}
"""


@dataclass(frozen=True)
class Report:
    """What was written, and the verdicts to go on with."""

    page: Path
    verdicts: list[Verdict]

    @property
    def passed(self) -> bool:
        """Every case that has to pass did."""
        judged = [verdict for verdict in self.verdicts if verdict.judged]
        return bool(judged) and all(verdict.passed for verdict in judged)


def write(results: Sequence[Result], folder: Path) -> Report:
    """The page, the plots and the scores, into ``folder``."""
    verdicts = judge(results)
    pictures = folder / "plots"
    pictures.mkdir(parents=True, exist_ok=True)
    scores = {"version": 1, "cases": [_as_json(verdict) for verdict in verdicts]}
    (folder / SCORES).write_bytes(msgspec.json.format(msgspec.json.encode(scores)))
    page = folder / PAGE
    page.write_text(_page(results, verdicts, pictures), encoding="utf-8")
    return Report(page, verdicts)


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "scenario": verdict.scenario,
        "case": verdict.case.slug,
        "name": verdict.name,
        "system": verdict.system,
        "walls": verdict.case.walls,
        "judged": verdict.judged,
        "passed": verdict.passed,
        "score": verdict.score,
        "alone_ms": verdict.alone_ms,
        "with_ms": verdict.with_ms,
        "valid_runs": verdict.valid,
        "invalid_runs": list(verdict.invalid),
        "parts": {
            part.value: {
                "value": _finite(mark.figure.value),
                "low": _finite(mark.figure.low),
                "high": _finite(mark.figure.high),
                "repeats": mark.figure.repeats,
                "points": mark.points,
                "passed": mark.passed,
            }
            for part, mark in verdict.marks.items()
        },
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity; null says that nobody was served."""
    return None if value == inf else value


# The page.


def _page(results: Sequence[Result], verdicts: Sequence[Verdict], pictures: Path) -> str:
    first = results[0].meta
    scenarios = list(dict.fromkeys(result.meta.scenario for result in results))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{_text(', '.join(scenarios))}</title><style>{_STYLE}</style>",
        f"<h1>{_text(', '.join(scenarios))}</h1>",
        f"<p>{_headline(verdicts)}</p>",
        _facts(results),
    ]
    for scenario in scenarios:
        of_scenario = [verdict for verdict in verdicts if verdict.scenario == scenario]
        parts += [f"<h2>{_text(scenario)}</h2>", _table(of_scenario)]
        if any(verdict.marks for verdict in of_scenario):
            parts.append(_plot(plots.ratios(of_scenario), pictures / f"{scenario}_ratios.png"))
        parts += _cases([result for result in results if result.meta.scenario == scenario], of_scenario, pictures)
    parts.append(f"<p class=dim>Begun {_text(first.started)}; cellwall {_text(first.software)}.</p></html>")
    return "\n".join(parts)


def _headline(verdicts: Sequence[Verdict]) -> str:
    judged = [verdict for verdict in verdicts if verdict.judged]
    passed = sum(verdict.passed for verdict in judged)
    invalid = sum(verdict.score is None for verdict in judged)
    words = f"{passed} of {len(judged)} cases with the walls on passed"
    return words + (f"; {invalid} could not be judged, because no run of them was valid" if invalid else "") + "."


def _facts(results: Sequence[Result]) -> str:
    meta = results[0].meta
    drivers = [figures for result in results for figures in result.validity.drivers]
    worst = max(drivers, key=lambda figures: figures.lag_p99_ms, default=None)
    rows = {
        "machine": meta.machine,
        "CPU walls": meta.cpu_walls,
        "cells": ", ".join(meta.cells),
        "tenants": f"{meta.victims} victims",
        "runs": f"{len(results)}, of which {sum(not result.validity.valid for result in results)} invalid",
    }
    if worst is not None:
        rows["driver"] = (
            f"send lag p99 at most {worst.lag_p99_ms:.1f} ms, processor share at most"
            f" {max(figures.cpu_share for figures in drivers):.0%}"
        )
    return "<dl>" + "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in rows.items() if v) + "</dl>"


def _table(verdicts: Sequence[Verdict]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in ("case", *tables.COLUMNS))
    rows = []
    for verdict in verdicts:
        cells = tables.cells(verdict)
        classes = "judged" if verdict.judged else "dim"
        colour = "" if not verdict.judged else "good" if verdict.passed else "bad"
        inner = "".join(f"<td>{_text(cell)}</td>" for cell in cells[:-1])
        name = f"{verdict.name}, {verdict.world}"
        rows.append(
            f"<tr class={classes}><td>{_text(name)}</td>{inner}<td class='{colour}'>{_text(cells[-1])}</td></tr>"
        )
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _cases(results: Sequence[Result], verdicts: Sequence[Verdict], pictures: Path) -> list[str]:
    """Below one heading for each case, its worlds one after the other."""
    parts = []
    for name in dict.fromkeys(verdict.name for verdict in verdicts):
        worlds = [verdict for verdict in verdicts if verdict.name == name]
        bad = any(verdict.judged and not verdict.passed for verdict in worlds)
        parts.append(f"<details{' open' if bad else ''}><summary>{_text(name)}</summary>")
        for verdict in worlds:
            of_case = [
                result
                for result in results
                if result.meta.case.slug == verdict.case.slug and result.meta.system == verdict.system
            ]
            shown = plots.typical([result for result in of_case if result.validity.valid] or of_case)
            parts.append(_case(shown, verdict, pictures))
        parts.append("</details>")
    return parts


def _case(result: Result, verdict: Verdict, pictures: Path) -> str:
    stem = f"{result.meta.scenario}_{verdict.system}_{verdict.case.slug}"
    notes = [f"<p class=bad>left out: {_text(reason)}</p>" for reason in verdict.invalid]
    notes += [f"<li>{_text(line)}</li>" for line in _causes(result)]
    heading = f"{verdict.world} (run {result.meta.repeat} of {verdict.valid + len(verdict.invalid)})"
    heat = plots.heat(result)
    heat.savefig(pictures / f"{stem}_tenants.png", dpi=110)
    return "".join(
        [
            f"<h3>{_text(heading)}</h3>",
            *notes,
            _plot(plots.timeline(result), pictures / f"{stem}_time.png"),
            _plot(plots.distribution(result), pictures / f"{stem}_distribution.png"),
            f"<div class=plot>{plots.inline_png(heat)}</div>",
        ]
    )


def _causes(result: Result) -> list[str]:
    """What victims were told, the most frequent first."""

    def words(count: FailureCount) -> str:
        status = f" ({count.status})" if count.status else ""
        return f"{count.count} errors of victims in {count.cell}, phase {count.phase}: {count.cause}{status}"

    found = sorted(result.failure_counts, key=lambda count: -count.count)
    return [words(count) for count in found if count.role is Role.VICTIM][:CAUSES_SHOWN]


def _plot(figure: Figure, png: Path) -> str:
    figure.savefig(png, dpi=110)
    return f"<div class=plot>{plots.svg(figure)}</div>"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
