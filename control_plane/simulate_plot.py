"""The curves of a simulation: in the terminal, and as a figure by matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from control_plane.simulate import Month, Scenario

HEIGHT: Final = 8  # lines of a curve
WIDTH: Final = 72
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"


def curve(title: str, values: Sequence[float]) -> str:
    """A bar for each value, from nought to the largest, for a terminal."""
    top = max(values) or 1.0
    wide = max(1, WIDTH // len(values))
    lines = []
    for line in reversed(range(HEIGHT)):
        level = [min(8, max(0, round(8 * (value / top * HEIGHT - line)))) for value in values]
        label = f"{top:>14,.0f}" if line == HEIGHT - 1 else ""
        lines.append("".join(_BLOCKS[step] * wide for step in level) + label)
    return "\n".join((title, *lines))


def scaled(what: str, values: Sequence[float]) -> tuple[str, list[float]]:
    """The values in units that their largest is a few of, and what they are then called."""
    top = max(values, default=0.0)
    for unit, words in ((1e6, "millions"), (1e3, "thousands")):
        if top >= 2 * unit:
            return f"{what}, {words}", [value / unit for value in values]
    return what, list(values)


def write(path: Path, scenario: Scenario, months: Sequence[Month]) -> None:
    """Draw growth, balance, moves and the route table's size; the format is that of the file's ending."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    growth, balance, moves, table = figure.subplots(2, 2).flat
    x = [month.month for month in months]
    tenants, cells = scaled("tenants", [m.tenants for m in months]), scaled("cells", [m.cells for m in months])
    growth.plot(x, tenants[1], color="#2166ac", label=tenants[0])
    growth.plot(x, cells[1], color="#b2182b", linestyle="--", label=cells[0])
    balance.plot(x, [m.fullest_before for m in months], color="#b2182b", label="fullest cell, placement alone")
    balance.plot(x, [m.fullest for m in months], color="#1b7837", label="fullest cell, rebalanced")
    balance.plot(x, [m.p99 for m in months], color="#762a83", label="99th of a hundred, rebalanced")
    balance.axhline(1 + scenario.tolerance, color="#999999", linestyle=":", label="what counts as level")
    label, moved = scaled("moves of a rebalance", [m.moves for m in months])
    moves.bar(x, moved, color="#e08214", label=label)
    table.plot(x, [m.table_bytes / 2**20 for m in months], color="#35978f", label="route table, MiB")
    for axes in (growth, balance, moves, table):
        axes.set_xlabel("month")
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    balance.set_ylabel("load by the mean of the region")
    figure.suptitle(f"{scenario.tenants:,} tenants in cells of {scenario.capacity:,}, simulated (seed {scenario.seed})")
    figure.savefig(path, dpi=120)
