"""cellctl simulate."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import rich_click as click

from control_plane.cli.client import ConfigError
from control_plane.cli.context import Cli, pass_cli, shared

if TYPE_CHECKING:  # numpy is not in the images of the fleet, and other commands need not wait for it
    from control_plane.simulate import Month, Scenario

CELLS_MAX: Final = 16_384  # that a router's table names
TENANTS_MAX: Final = 100_000_000
SHOWN: Final = 12  # months in the table
HOURS: Final = 730.5  # of a month
_MIB: Final = 1 << 20


class Simulated(msgspec.Struct, frozen=True):
    """What --json prints. ``seconds``: how long it took."""

    seconds: float
    capacity: int
    months: list[dict[str, float]]


@click.command("simulate")
@click.option("--cells", type=click.IntRange(3, CELLS_MAX), default=10_000, show_default=True, help="In the end.")
@click.option(
    "--tenants", type=click.IntRange(100, TENANTS_MAX), default=10_000_000, show_default=True, help="In the end."
)
@click.option("--months", type=click.IntRange(1, 240), default=36, show_default=True, help="That it takes.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="The same seed, the same fleet.")
@click.option("--sigma", type=click.FloatRange(0, 3), default=1.0, show_default=True, help="How unequal tenants are.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the curves into a .png or .svg.")
@shared
@pass_cli
def simulate(cli: Cli, cells: int, tenants: int, months: int, seed: int, sigma: float, plot: Path | None) -> None:
    """Grow a fleet that does not exist, by the rules of placement, forecast and rebalance; no control plane is asked.

    Prints how level it is with placement alone and rebalanced, the moves that takes, and the route table's memory.
    """
    if tenants < cells * 10:
        raise ConfigError(f"{tenants} tenants in {cells} cells", "Give at least ten tenants a cell.")
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise ConfigError(f"--plot {plot}: neither .png nor .svg", "The ending says the format.")
    try:
        from control_plane.simulate import Scenario
        from control_plane.simulate import simulate as years
        from control_plane.simulate_plot import curve, write
    except ModuleNotFoundError as e:
        raise ConfigError(f"simulating needs {e.name}", "Install the group load: uv sync --group load") from None
    scenario = Scenario(cells=cells, tenants=tenants, months=months, seed=seed, sigma=sigma)
    begun = time.perf_counter()
    found = years(scenario)
    seconds = time.perf_counter() - begun
    if plot is not None:
        try:
            write(plot, scenario, found)
        except (ModuleNotFoundError, OSError) as e:
            raise ConfigError(f"--plot {plot}: {e}", "Drawing needs matplotlib and a folder to write to.") from None
    if cli.as_json:
        rows = [msgspec.to_builtins(month) for month in found]
        cli.json(Simulated(seconds, scenario.capacity, rows))
        return
    _table(cli, found)
    cli.say("")
    cli.say(curve("tenants", [month.tenants for month in found]))
    cli.say(curve("moves a month", [month.moves for month in found]))
    _summary(cli, scenario, found, seconds, plot)


def _table(cli: Cli, found: "list[Month]") -> None:
    step = max(1, -(-len(found) // SHOWN))
    chosen = [month for month in found if month.month % step == 0 or month is found[-1]]
    rows = [
        (
            m.month, f"{m.tenants:,}", f"{m.cells:,}", f"{m.used:.0%}", f"{m.fullest_before:.2f}", f"{m.fullest:.2f}",
            f"{m.p99:.2f}", f"{m.moves:,}", f"{m.table_bytes / _MIB:,.0f} MiB",
        )
        for m in chosen
    ]  # fmt: skip
    columns = ("MONTH", "TENANTS", "CELLS", "FULL", "FULLEST", "REBALANCED", "P99", "MOVES", "ROUTE TABLE")
    cli.table(found, columns, rows, "")


def _summary(cli: Cli, scenario: "Scenario", found: "list[Month]", seconds: float, plot: Path | None) -> None:
    last, most = found[-1], max(found, key=lambda month: month.moves)
    a_tenant = last.table_bytes / last.tenants
    cli.say(
        f"{last.tenants:,} tenants in {last.cells:,} cells of {scenario.capacity:,} places, {len(found)} months, "
        f"simulated in {seconds:.1f} s."
    )
    cli.say(
        f"Balance: the fullest cell has {last.fullest_before:.2f} times its region's mean by placement alone, "
        f"{last.fullest:.2f} rebalanced ({1 + scenario.tolerance:.2f} is level)."
    )
    cli.say(
        f"Moves: {sum(month.moves for month in found):,} in all, at most {most.moves:,} in a month "
        f"({most.moves / HOURS:.1f} an hour); {last.tenants / last.cells:,.0f} to empty a cell."
    )
    table = f"{last.table_bytes / _MIB:,.0f} MiB a router ({a_tenant:.0f} bytes a tenant)"
    cli.say(f"Route table: {table}, shared by its workers.")
    if plot is not None:
        cli.say(f"Curves: {plot}")
