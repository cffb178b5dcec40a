"""cellctl top."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import rich_click as click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from control_plane.cli.client import INTERRUPTED, UnreachableError
from control_plane.cli.context import Cli, pass_cli, shared
from control_plane.usage_views import CellUsage, TenantLine, UsageView

REFRESH_S: Final = 2.0
WINDOW_S: Final = 10.0  # two windows of a cell: one is never missing
_CELLS: Final = ("CELL", "REQ/S", "REJ/S", "P50 MS", "P99 MS", "DB MS/S", "TENANTS", "PLATFORM", "OTHERS")
_TENANTS: Final = (
    "CELL", "TENANT", "REQ/S", "REJ/S", "DB MS/S", "SHARE", "SEATS", "P99 MS", "IN KB/S", "OUT KB/S", "THROTTLED",
)  # fmt: skip


@click.command("top")
@click.option("--cell", help="Of this cell only.")
@click.option("--count", type=click.IntRange(1, 100), default=10, show_default=True, help="Tenants per cell.")
@click.option(
    "--window", type=click.FloatRange(5, 900), default=WINDOW_S, show_default=True, help="Seconds to look at."
)
@click.option("--once", is_flag=True, help="Show it once and end.")
@shared
@pass_cli
def top(cli: Cli, cell: str | None, count: int, window: float, once: bool) -> None:
    """The costliest tenants of each cell, live.

    DB MS/S is how long the databases were at work in each second: for tenants, for the platform, for others. SHARE is
    a tenant's part of the time of all tenants of its cell, P99 is of its own served requests, REJ/S what was refused.
    With --json it is shown once.
    """

    def ask() -> UsageView:
        return cli.api.get("/v1/usage", UsageView, cell=cell, top=count, window=round(window))

    first = ask()
    if cli.as_json:
        cli.json(first)
        return
    if once or not cli.live:
        Console(width=None if cli.live else 160).print(_page(first))
        return
    try:
        with Live(_page(first), screen=True, auto_refresh=False) as live:
            while True:
                cli.sleep(REFRESH_S)
                live.update(_after(ask), refresh=True)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _after(ask: Callable[[], UsageView]) -> RenderableType:
    try:
        return _page(ask())
    except UnreachableError as e:
        return Text(f"{e.message}\n{e.advice}", style="red")


def _page(view: UsageView) -> RenderableType:
    if not any(cell.seconds for cell in view.cells):
        return Text(f"No cell has told its usage in the last {view.window:.0f} s.")
    cells, tenants = _table(_CELLS, 1), _table(_TENANTS, 2)
    for cell in view.cells:
        if cell.seconds:
            cells.add_row(*_summary(cell))
        for row in _rows(cell):
            tenants.add_row(*row)
    if not tenants.row_count:
        return Group(cells, Text(), Text(f"No tenant was at work in the last {view.window:.0f} s."))
    return Group(cells, Text(), tenants)


def _table(columns: Sequence[str], words: int) -> Table:
    """The first columns are words, the others figures. A line stays a line: what does not fit is cut."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=True, justify="left" if number < words else "right")
    return table


def _summary(cell: CellUsage) -> tuple[str, ...]:
    per_s = 1 / cell.seconds
    return (
        cell.cell,
        f"{cell.requests * per_s:.0f}",
        f"{cell.rejected * per_s:.1f}",
        f"{cell.p50_ms:.1f}",
        f"{cell.p99_ms:.1f}",
        *(f"{ms * per_s:.0f}" for ms in (cell.active_ms, cell.database_ms, cell.platform_ms, cell.other_ms)),
    )


def _rows(cell: CellUsage) -> Iterator[tuple[str, ...]]:
    for line in cell.tenants:
        yield (cell.cell, *_cells(line, cell.seconds))


def _cells(line: TenantLine, seconds: float) -> tuple[str, ...]:
    per_s = 1 / seconds
    return (
        line.slug or line.tenant,
        f"{line.requests * per_s:.1f}",
        f"{sum(line.refused.values()) * per_s:.1f}",
        f"{line.database_ms * per_s:.1f}",
        f"{line.share:.0%}",
        f"{line.seat_ms * per_s / 1000:.2f}",
        f"{line.p99_ms:.1f}",
        f"{line.bytes_in * per_s / 1000:.1f}",
        f"{line.bytes_out * per_s / 1000:.1f}",
        "" if line.throttled_until is None else f"to {line.throttled_until:%H:%M:%S}",
    )
