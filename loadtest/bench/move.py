"""``python -m loadtest.bench.move``: what a move costs those who use a fleet, and how fast rows travel.

On a fleet of its own (two routers of two workers, two cells of two shards) under steady load, also to the tenant that
moves: the write gap of moves forth and back, a tenant of 1,000 rows from end to end, the copy of a large tenant beside
PostgreSQL's own initial sync of the same rows on the same servers, and a cell that is emptied. ``--quick`` does little
of each. Writes ``build/bench/move.json`` (one part alone: ``move-PART.json``), and exits with 1 where a figure does
not hold, with 2 where it could not run. Figures of others were measured elsewhere, on other machines.
"""

import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from infra.local.errors import LocalFleetError
from infra.local.fleet import Fleet
from infra.local.spec import FleetSpec, LocalCellSpec
from loadtest.bench.copying import copied
from loadtest.bench.emptying import emptied
from loadtest.bench.figures import BenchError, Figure, Report
from loadtest.bench.gaps import gaps
from loadtest.operator import LabError

SPEC: Final = FleetSpec(cells=tuple(LocalCellSpec(f"cell-{n}", capacity=2000) for n in (1, 2)))
PARTS: Final = ("gap", "copy", "cell")
_ELSEWHERE: Final = "measured elsewhere, on another machine"
PUBLISHED: Final = (
    Figure(f"Vitess, write gap, as it comes ({_ELSEWHERE})", 2300, "ms"),
    Figure(f"Vitess, write gap, tuned: 380 to 440 ({_ELSEWHERE})", 440, "ms"),
    Figure(f"Vitess, copy: 118,000 to 120,000 ({_ELSEWHERE})", 120_000, "rows/s"),
    Figure(f"Atlassian, moves of tenants ({_ELSEWHERE})", 1000, "a day"),
    Figure(f"Slack, drain of an availability zone: less than ({_ELSEWHERE})", 5, "min"),
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How much of everything: ``pairs`` of moves forth and back, ``rows`` of a large tenant, tenants of a cell."""

    pairs: int
    large_pairs: int
    rows: int
    tenants: int


FULL: Final = Size(100, 5, 2_000_000, 1000)
QUICK: Final = Size(10, 1, 200_000, 50)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Little of each: two minutes.")
@click.option("--part", type=click.Choice(PARTS), help="Only one part; it is written to a file of its own.")
@click.option("--tenants", type=click.IntRange(2, 1500), help="How many tenants the emptied cell has.")
@click.option("--pairs", type=click.IntRange(1, 1000), help="How many moves forth and back are measured.")
def main(quick: bool, part: str | None, tenants: int | None, pairs: int | None) -> None:
    """Run, print a table, write the figures."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the fleet is stopped
    console = Console()
    size = QUICK if quick else FULL
    size = replace(size, tenants=tenants or size.tenants, pairs=pairs or size.pairs)
    try:
        figures = asyncio.run(_figures(size, (part,) if part else PARTS, console))
    except (BenchError, LocalFleetError, LabError) as e:
        console.print(f"bench-move: {e}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    report = Report([*figures, *PUBLISHED])
    report.show(console, f"moves{' (quick)' if quick else ''}")
    report.write(console, f"move-{part}" if part else "move")
    sys.exit(0 if report.holds else 1)


async def _figures(size: Size, parts: tuple[str, ...], console: Console) -> list[Figure]:
    def say(words: str) -> None:
        console.print(words, style="dim", markup=False, soft_wrap=True)

    jobs: dict[str, Callable[[Fleet], Awaitable[list[Figure]]]] = {
        "gap": lambda fleet: gaps(fleet, size.pairs, size.large_pairs, say),
        "copy": lambda fleet: copied(fleet, size.rows, say),
        "cell": lambda fleet: emptied(fleet, "cell-1", size.tenants, say),
    }
    found: list[Figure] = []
    for part in parts:  # each on a fresh fleet: what one left in tables and logs would weigh on the next
        with _folder() as folder:
            async with Fleet.start(SPEC, folder / "fleet", say) as fleet:
                found += await jobs[part](fleet)
    return found


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Which the account of the databases can pass through."""
    with tempfile.TemporaryDirectory(prefix="cellwall-bench-") as text:
        folder = Path(text)
        folder.chmod(0o711)
        yield folder


if __name__ == "__main__":
    main()
