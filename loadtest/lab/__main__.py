"""``python -m loadtest.lab``: runs scenarios against a local fleet or a base URL, and writes a result for each run.

Exit status 0: all runs were done and the books balance. 1: a run could not be done, or the books do not balance. 2:
what was asked for makes no sense. 3: done, but a run is marked invalid: its figures mean nothing. 130: interrupted.
"""

import asyncio
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg
import click
import httpx

from infra.local import commandline
from infra.local.errors import LocalFleetError, StartFailedError
from infra.local.spec import default_folder
from loadtest.alone import only_one
from loadtest.lab import reading
from loadtest.lab.local import local_system
from loadtest.lab.reading import ScenarioError
from loadtest.lab.result import PhaseKind, Result, Role
from loadtest.lab.run import Asked, Lab
from loadtest.lab.scenario import Scenario
from loadtest.operator import LabError
from loadtest.show import Line, Teller, console

INVALID: Final = 3


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The load lab."""


@main.command("list")
def list_scenarios() -> None:
    """The scenarios that come with the lab."""
    for path in sorted(reading.SHIPPED.glob("*.yaml")):
        scenario = reading.read(path)
        click.echo(f"{path.stem:24} {scenario.about}")


@main.command()
@click.argument("scenarios", nargs=-1, required=True)
def check(scenarios: tuple[str, ...]) -> None:
    """Read scenario files and say what they would run."""
    for scenario in _read(scenarios):
        seconds = sum((scenario.phases.warmup, scenario.phases.alone, scenario.phases.load, scenario.phases.after))
        cases = scenario.cases()
        click.echo(f"{scenario.name}: {len(cases)} cases of {seconds:.0f} s, {scenario.repeat} times")
        for case in cases:
            click.echo(f"  {case.slug}")


@main.command()
@click.argument("scenarios", nargs=-1, required=True)
@click.option("--repeat", type=click.IntRange(1, 100), help="Runs of each case, instead of what the file says.")
@click.option("--case", "only", default="", help="Only cases whose name contains this.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results [default: build/lab/TIME].")
@click.option("--state", type=click.Path(path_type=Path), help="Folder of the lab's fleet.")
def run(scenarios: tuple[str, ...], repeat: int | None, only: str, out: Path | None, state: Path | None) -> None:
    """Run scenarios: files of your own, or names of those that come with the lab."""
    default = default_folder()
    folder = state.absolute() if state else default.with_name(f"{default.name}-lab")
    out = (out or Path("build") / "lab" / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")).absolute()
    with Teller(console()) as teller:
        try:
            found = _read(scenarios)
            with only_one(folder, "lab"):
                status = asyncio.run(_interruptible(found, repeat, only, out, folder, teller))
        except LocalFleetError as e:
            teller.verdict(False, str(e))
            status = commandline.MISUSED
    sys.exit(status)


def _read(names: Sequence[str]) -> list[Scenario]:
    try:
        return [reading.read(reading.find(name)) for name in names]
    except ScenarioError as e:
        raise click.UsageError(str(e)) from None


async def _interruptible(
    scenarios: Sequence[Scenario], repeat: int | None, only: str, out: Path, folder: Path, teller: Teller
) -> int:
    task = asyncio.ensure_future(_all(scenarios, repeat, only, out, folder, teller))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        teller.say("interrupted: everything is stopped")
        return commandline.INTERRUPTED
    except (LabError, LocalFleetError, httpx.HTTPError, asyncpg.PostgresError, OSError, BaseExceptionGroup) as e:
        teller.verdict(False, _words(e))
        return 1 if not isinstance(e, LocalFleetError) or isinstance(e, StartFailedError) else commandline.MISUSED


async def _all(
    scenarios: Sequence[Scenario], repeat: int | None, only: str, out: Path, folder: Path, teller: Teller
) -> int:
    results: list[Result] = []
    for scenario in scenarios:
        asked = Asked(out, repeat or scenario.repeat, teller.say, only)
        async with local_system(
            scenario.fleet, folder, f"lab-{scenario.seed}", lambda line: teller.say(f"  {line}")
        ) as system:
            teller.say(system.cpu_walls)
            results += await Lab(system, asked).run(scenario)
    for result in results:
        teller.table(f"{result.meta.scenario}, {result.meta.case.slug}, run {result.meta.repeat}", lines(result))
    teller.say(f"results are in {out}")
    if not all(result.books.balanced for result in results):
        return 1
    return 0 if all(result.validity.valid for result in results) else INVALID


def lines(result: Result) -> list[Line]:
    """A run in a few lines."""
    found = []
    for phase in result.phases:
        if phase.kind is PhaseKind.WARMUP:
            continue
        for cell in result.meta.cells:
            groups = [g for g in result.groups if (g.phase, g.role, g.cell) == (phase.name, Role.VICTIM, cell)]
            latency = result.latency(phase.name, Role.VICTIM, cells=[cell])
            sent, errors = sum(g.sent for g in groups), sum(g.errors for g in groups)
            if sent:
                figures = f"p50 {latency.percentile_ms(50):.1f} ms, p99 {latency.percentile_ms(99):.1f} ms"
                found.append(
                    Line(f"victims in {cell}, {phase.name}", f"{sent} sent, {errors} errors, {figures}", errors > 0)
                )
    for name, value in result.measures.items():
        found.append(Line(name, f"{value:.4g}"))
    found.append(Line("books", "; ".join(result.books.words[:1]), not result.books.balanced))
    words = (
        "the driver kept its schedule" if result.validity.valid else f"INVALID: {'; '.join(result.validity.reasons)}"
    )
    found.append(Line("driver", words, not result.validity.valid))
    return found


def _words(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, (LabError, LocalFleetError)) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    commandline.run(main, "loadtest.lab")
