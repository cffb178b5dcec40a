"""``python -m loadtest.bench.provision``: how long cells take to come, what they cost in memory, what they consist of.

On this machine: one cell from ``pulumi up`` to its first served request, an ``up`` that has nothing to do, and many
cells by ``cellctl fleet up``. For AWS, against the double of its provider: a cell's preview, and how many resources
each stack has. Needs the Pulumi CLI (``make pulumi``). Writes ``build/bench/provision.json``, and exits with 1 where a
figure does not hold, with 2 where it could not run.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from infra.local.errors import LocalFleetError
from infra.pulumi_cli.cli import PulumiError, needed
from loadtest.bench.aws_stacks import aws_figures
from loadtest.bench.figures import BenchError, Figure, Report
from loadtest.bench.local_cells import local_figures
from loadtest.operator import LabError


@click.command()
@click.option("--cells", default=10, show_default=True, type=click.IntRange(1, 50), help="At most so many at once.")
@click.option("--part", type=click.Choice(["local", "aws"]), help="Only one part; then nothing is written.")
def main(cells: int, part: str | None) -> None:
    """Run, print a table, write the figures."""
    console = Console()
    try:
        figures = _figures(cells, part, console)
    except (BenchError, PulumiError, LocalFleetError, LabError) as e:
        console.print(f"bench-provision: {e}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    report = Report(figures)
    report.show(console)
    if part is None:
        report.write(console, "provision")
    sys.exit(0 if report.holds else 1)


def _figures(cells: int, part: str | None, console: Console) -> list[Figure]:
    def say(words: str) -> None:
        console.print(words, style="dim", markup=False, soft_wrap=True)

    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="cellwall-bench-") as text:
        folder = Path(text)
        for part_of in (folder, folder / "local"):  # the database account passes through both
            part_of.mkdir(exist_ok=True)
            part_of.chmod(0o711)
        mine = {key: value for key, value in os.environ.items() if not key.startswith("PULUMI_")}
        mine["XDG_STATE_HOME"] = str(folder / "state")
        environ = needed(mine).environment(mine, home=folder / "home")
        if part != "aws":
            figures += asyncio.run(local_figures(folder / "local", environ, cells, say))
        if part != "local":
            figures += aws_figures(folder / "aws", environ, say)
    return figures


if __name__ == "__main__":
    main()
