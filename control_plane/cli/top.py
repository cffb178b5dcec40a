"""cellctl top."""

from collections.abc import Callable, Iterator
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
_COLUMNS: Final = (
    "CELL", "TENANT", "REQ/S", "DB MS/S", "SHARE", "SEATS", "REJECTED/S", "P99 MS", "IN KB/S", "OUT KB/S", "",
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

    SHARE is a tenant's part of the database time of all tenants of its cell; P99 is of its own served requests. With
    --json it is shown once.
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
    table = Table(*_COLUMNS, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[2:10]:
        column.justify = "right"
    for cell in view.cells:
        for row in _rows(cell):
            table.add_row(*row)
    return Group(*(_summary(cell) for cell in view.cells if cell.seconds), Text(), table)


def _summary(cell: CellUsage) -> Text:
    per_s = 1 / cell.seconds
    return Text.assemble(
        (f"{cell.cell}: ", "bold"),
        f"{cell.requests * per_s:.0f} requests/s, {cell.rejected * per_s:.1f} rejected/s, "
        f"p50 {cell.p50_ms:.1f} ms, p99 {cell.p99_ms:.1f} ms, databases busy {cell.active_ms * per_s:.0f} ms/s "
        f"(tenants {cell.database_ms * per_s:.0f}, platform {cell.platform_ms * per_s:.0f}, "
        f"others {cell.other_ms * per_s:.0f})",
    )


def _rows(cell: CellUsage) -> Iterator[tuple[str, ...]]:
    for line in cell.tenants:
        yield (cell.cell, *_cells(line, cell.seconds))


def _cells(line: TenantLine, seconds: float) -> tuple[str, ...]:
    per_s = 1 / seconds
    return (
        line.slug or line.tenant,
        f"{line.requests * per_s:.1f}",
        f"{line.database_ms * per_s:.1f}",
        f"{line.share:.0%}",
        f"{line.seat_ms * per_s / 1000:.2f}",
        f"{sum(line.refused.values()) * per_s:.1f}",
        f"{line.p99_ms:.1f}",
        f"{line.bytes_in * per_s / 1000:.1f}",
        f"{line.bytes_out * per_s / 1000:.1f}",
        "" if line.throttled_until is None else f"throttled until {line.throttled_until:%H:%M:%S}",
    )
