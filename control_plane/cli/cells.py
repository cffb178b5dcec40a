"""cellctl cells."""

import msgspec
import rich_click as click

from control_plane.cli.context import Cli, pass_cli, shared
from control_plane.cli.plans import evacuate
from control_plane.plan_views import ForecastView
from control_plane.views import CellList, CellView


@click.group()
@shared
def cells() -> None:
    """The cells of the fleet: where tenants live."""


@cells.command("list")
@shared
@pass_cli
def list_cells(cli: Cli) -> None:
    """List all cells."""
    found = cli.api.get("/v1/cells", CellList)
    rows = [
        (c.name, c.state, "yes" if c.healthy else "NO", f"{c.tenants}/{c.capacity}", c.region, c.tier, c.address)
        for c in found.cells
    ]
    columns = ("CELL", "STATE", "HEALTHY", "TENANTS", "REGION", "TIER", "ADDRESS")
    cli.table(found, columns, rows, "There is no cell yet: a cell registers itself when it starts.")


@cells.command("show")
@click.argument("cell")
@shared
@pass_cli
def show_cell(cli: Cli, cell: str) -> None:
    """Show one cell."""
    found = cli.api.get(f"/v1/cells/{cell}", CellView)
    cli.details(found, ((name, _text(value)) for name, value in msgspec.structs.asdict(found).items()))


@cells.command("drain")
@click.argument("cell")
@shared
@pass_cli
def drain_cell(cli: Cli, cell: str) -> None:
    """Let no tenant come to a cell any more; those in it stay and are served."""
    _changed(cli, cell, {"state": "draining"})


cells.add_command(evacuate)


@cells.command("forecast")
@shared
@pass_cli
def forecast(cli: Cli) -> None:
    """When is the next cell due? For each pool of cells, at the growth of the last weeks."""
    found = cli.api.get("/v1/forecast", ForecastView)
    rows = [
        (
            p.region, p.tier, p.cells, f"{p.tenants}/{p.places}", "" if p.busy is None else f"{p.busy:.2f}",
            "" if p.growth_per_day is None else f"{p.growth_per_day:+.1f}",
            "-" if p.due_days is None else "now" if p.due_days == 0 else f"in {p.due_days:.0f} days", p.reason,
        )
        for p in found.pools
    ]  # fmt: skip
    columns = ("REGION", "TIER", "CELLS", "TENANTS", "BUSY", "A DAY", "CELL DUE", "WHY")
    cli.table(found, columns, rows, "There is no cell yet.")


@cells.command("activate")
@click.argument("cell")
@shared
@pass_cli
def activate_cell(cli: Cli, cell: str) -> None:
    """Let tenants come to a cell (again)."""
    _changed(cli, cell, {"state": "active"})


@cells.command("capacity")
@click.argument("cell")
@click.argument("tenants", type=click.IntRange(min=0))
@shared
@pass_cli
def set_capacity(cli: Cli, cell: str, tenants: int) -> None:
    """Set how many tenants a cell takes; from then on the cell's own setting does not count."""
    _changed(cli, cell, {"capacity": tenants})


@cells.command("remove")
@click.argument("cell")
@shared
@pass_cli
def remove_cell(cli: Cli, cell: str) -> None:
    """Sign a dead cell off for good: routers forget it. Refused while it holds tenants or still reports."""
    cli.api.delete(f"/v1/cells/{cell}")
    if cli.as_json:
        cli.json({"removed": cell})
    cli.say(f"{cell} is signed off. Should its processes start again, it registers again.")


def _changed(cli: Cli, cell: str, change: dict[str, object]) -> None:
    after = cli.api.patch(f"/v1/cells/{cell}", CellView, change)
    if cli.as_json:
        cli.json(after)
    cli.say(f"{after.name} is {after.state} and holds {after.tenants} of {after.capacity} tenants.")


def _text(value: object) -> object:
    return ", ".join(value) if isinstance(value, tuple) else value
