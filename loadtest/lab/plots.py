"""The plots of a report, by matplotlib, each as a figure that the report writes as SVG into the page and as PNG."""

import base64
import io
from collections.abc import Sequence
from math import inf, log10
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from loadtest.lab.result import NONE_MS, PhaseKind, Result, Role
from loadtest.lab.score import Part, Verdict, latency_ratio, victim_cells

WIDTH: Final = 9.0  # inches
LABEL_EVENTS: Final = 12  # more than these would cover the plot
LEAST_MS: Final = 0.1
SERIES: Final = {
    "walls on": "#1b7837",
    "walls observe": "#c2a5cf",
    "walls off": "#d6604d",
    "peer": "#4d4d4d",
}
CELLS: Final = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#e08214", "#35978f")
CURVES: Final = {
    PhaseKind.ALONE: ("#1b7837", "alone"),
    PhaseKind.LOAD: ("#d6604d", "with"),
    PhaseKind.AFTER: ("#2166ac", "after"),
}
PHASES: Final = {PhaseKind.ALONE: "#eef4ee", PhaseKind.LOAD: "#fbeeee", PhaseKind.AFTER: "#eef0f6"}

mpl.rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text: small, and it can be searched
        "svg.hashsalt": "cellwall",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
)


def ratios(verdicts: Sequence[Verdict]) -> Figure:
    """Victims' p99 with the cause, by theirs alone: a row for each case, a dot for each world, 95% intervals."""
    names = list(dict.fromkeys(verdict.name for verdict in verdicts))
    worlds = [world for world in SERIES if any(verdict.world == world for verdict in verdicts)]
    figure = Figure(figsize=(WIDTH, 1.0 + 0.32 * len(names) * max(1.0, len(worlds) / 3)))
    axes = figure.subplots()
    step = 0.7 / max(1, len(worlds))
    for verdict in verdicts:
        mark = verdict.marks.get(Part.LATENCY)
        if mark is None or mark.figure.value == inf:
            continue
        world = verdict.world
        y = names.index(verdict.name) + (worlds.index(world) - (len(worlds) - 1) / 2) * step
        value, high = mark.figure.value, min(mark.figure.high, mark.figure.value * 100)
        axes.errorbar(
            value, y, xerr=[[value - mark.figure.low], [high - value]], fmt="o", color=SERIES[world], capsize=2
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    _logarithmic(axes, axes.xaxis)
    axes.axvline(1.0, color="#999999", linewidth=0.8)
    axes.axvline(1.2, color="#1b7837", linewidth=0.8, linestyle="--")
    axes.set_xlabel("victims' p99 with the cause / alone (log; dashed: the pass mark in the same cell, 1.2)")
    for world in worlds:
        axes.plot([], [], "o", color=SERIES[world], label=world)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def timeline(result: Result) -> Figure:
    """Victims' p99 (line) and p50 (thin) of each second, a colour for each cell; phases shaded, events marked."""
    figure = Figure(figsize=(WIDTH, 2.6))
    axes = figure.subplots()
    for index, cell in enumerate(result.meta.cells):
        points = [second for second in result.seconds if second.cell == cell and second.role is Role.VICTIM]
        points.sort(key=lambda second: second.at)
        if not points:
            continue
        colour = CELLS[index % len(CELLS)]
        times = [second.at + 0.5 for second in points]
        axes.plot(times, [_shown(second.p99_ms) for second in points], color=colour, label=f"{cell} p99")
        axes.plot(times, [_shown(second.p50_ms) for second in points], color=colour, linewidth=0.7, alpha=0.6)
        failed = [second.at + 0.5 for second in points if second.errors]
        axes.plot(failed, [LEAST_MS] * len(failed), "x", color=colour, markersize=5)
    _logarithmic(axes, axes.yaxis)
    axes.set_ylabel("ms (x: errors)")
    axes.set_xlabel("seconds")
    _shade(axes, result)
    _events(axes, result)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def distribution(result: Result) -> Figure:
    """The victims' latencies alone and with the cause, as shares that were answered within so many milliseconds."""
    figure = Figure(figsize=(WIDTH * 0.55, 2.6))
    axes = figure.subplots()
    cells = victim_cells(result)
    for phase in result.phases:
        if phase.kind not in CURVES:
            continue
        colour, label = CURVES[phase.kind]
        histogram = result.latency(phase.name, Role.VICTIM, cells=cells).decode()
        if not histogram.get_total_count():
            continue
        shares = [share / 10 for share in range(1, 1000, 4)] + [99.9, 99.99, 100.0]
        values = [max(LEAST_MS, float(histogram.get_value_at_percentile(share)) / 1000) for share in shares]
        axes.plot(values, shares, color=colour, label=label)
    _logarithmic(axes, axes.xaxis)
    axes.set_xlabel("ms")
    axes.set_ylabel("% answered within")
    axes.legend(loc="lower right", frameon=False)
    return figure


def heat(result: Result) -> Figure:
    """Each victim's slowest answer of each second; a cross where it got an error."""
    rows = [line for line in result.timelines if line.role is Role.VICTIM]
    rows.sort(key=lambda line: (line.cell, line.tenant))
    figure = Figure(figsize=(WIDTH, 0.8 + min(6.0, 0.14 * len(rows))))
    axes = figure.subplots()
    if not rows:
        axes.text(0.5, 0.5, "no victims", transform=axes.transAxes, ha="center")
        return figure
    width = max(len(line.max_ms) for line in rows)
    grid = [[_log(value) for value in line.max_ms] + [_log(NONE_MS)] * (width - len(line.max_ms)) for line in rows]
    image = axes.imshow(
        grid, aspect="auto", interpolation="nearest", cmap="magma_r", vmin=0, vmax=4, extent=(0, width, len(rows), 0)
    )
    crosses = [(at + 0.5, row + 0.5) for row, line in enumerate(rows) for at, count in enumerate(line.errors) if count]
    if crosses:
        axes.plot(*zip(*crosses, strict=True), "x", color="#00a0ff", markersize=3)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 1, 2, 3, 4])
    bar.ax.set_yticklabels(["1 ms", "10 ms", "100 ms", "1 s", "10 s"])
    edges = [row for row in range(1, len(rows)) if rows[row].cell != rows[row - 1].cell]
    for edge in edges:
        axes.axhline(edge, color="white", linewidth=1.5)
    starts = [0, *edges]
    axes.set_yticks([start + 0.5 for start in starts], [rows[start].cell for start in starts])
    axes.set_xlabel("seconds")
    return figure


def typical(results: Sequence[Result]) -> Result:
    """The repeat to look at: the one whose ratio is the median (the lower of two)."""
    ordered = sorted(results, key=lambda result: latency_ratio(result)[2])
    return ordered[(len(ordered) - 1) // 2]


def svg(figure: Figure) -> str:
    """To stand in a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def inline_png(figure: Figure) -> str:
    """To stand in a page as an image: for plots that would be large as SVG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _shown(value: float) -> float:
    return max(LEAST_MS, value) if value != NONE_MS else float("nan")


def _log(value: float) -> float:
    return log10(max(1.0, value)) if value != NONE_MS else float("nan")


def _logarithmic(axes: Axes, axis: Axis) -> None:
    """A logarithmic axis with plain numbers: 20, not 2 x 10^1."""
    if axis is axes.xaxis:
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _position: f"{value:g}")
    axis.set_major_formatter(plain)
    low, high = sorted(axis.get_view_interval())
    if high < 30 * low:  # over more than that the steps in between would cover each other
        axis.set_minor_formatter(plain)


def _shade(axes: Axes, result: Result) -> None:
    for phase in result.phases:
        colour = PHASES.get(phase.kind)
        if colour is not None:
            axes.axvspan(phase.begin, phase.end, color=colour, zorder=-2)
            axes.text(phase.begin, 1.0, f" {phase.name}", transform=axes.get_xaxis_transform(), va="bottom", fontsize=8)


def _events(axes: Axes, result: Result) -> None:
    for event in result.events:
        axes.axvline(event.at, color="#888888", linewidth=0.8, linestyle=":")
    for event in result.events[:LABEL_EVENTS]:
        axes.text(
            event.at, 0.98, f" {event.name} {event.target}", transform=axes.get_xaxis_transform(), rotation=90,
            va="top", fontsize=7, color="#555555",
        )  # fmt: skip
