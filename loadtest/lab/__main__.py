"""``python -m loadtest.lab``: runs scenarios against a local fleet or a base URL, and writes a result for each run.

Exit status 0: all runs were done and the books balance. 1: a run could not be done, or the books do not balance. 2:
what was asked for makes no sense. 3: done, but a run is marked invalid: its figures mean nothing. 4: the time was over
before all were done. 130: interrupted.
"""

import asyncio
import itertools
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Final

import asyncpg
import click
import httpx
from msgspec.structs import replace

from infra.local import commandline
from infra.local.cgroups import Walls
from infra.local.errors import LocalFleetError, StartFailedError
from infra.local.spec import default_folder
from loadtest.alone import only_one
from loadtest.lab import commands, reading, tables
from loadtest.lab.local import local_system
from loadtest.lab.peer import NAME as PEER
from loadtest.lab.peer import peer_system
from loadtest.lab.reading import ScenarioError
from loadtest.lab.remote import Remote, RemoteSystem
from loadtest.lab.result import PhaseKind, Result, Role
from loadtest.lab.run import Asked, Lab, planned
from loadtest.lab.scenario import FleetShape, Scenario, ScenarioKind
from loadtest.lab.scenario import Walls as Mode
from loadtest.lab.system import System
from loadtest.operator import AskedError, LabError
from loadtest.show import Line, Teller, console

INVALID: Final = 3
INCOMPLETE: Final = 4


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
        cases = scenario.cases()
        click.echo(f"{scenario.name}: {_length(scenario)}")
        for case in cases:
            click.echo(f"  {case.slug}")


def _length(scenario: Scenario) -> str:
    """How many runs, and how long their traffic is: the fleet's start and the tenants' come on top."""
    phases, runs = scenario.phases, len(scenario.cases()) * scenario.repeat
    told = f"{runs} {'run' if runs == 1 else 'runs'} ({len(scenario.cases())} x {scenario.repeat})"
    if scenario.ramp is not None:
        return f"{told} in steps of {phases.warmup + scenario.ramp.step:.0f} s"
    seconds = phases.warmup + phases.alone + phases.load + phases.after
    told += f" of {seconds:.0f} s, {runs * seconds / 60:.1f} minutes of traffic in all"
    if scenario.kind is ScenarioKind.NOISY:
        told += f"; with --peer {len(replace(scenario, walls=[Mode.ON]).cases()) * scenario.repeat} runs more"
    return told


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    repeat: int | None
    only: str
    out: Path
    folder: Path
    remote: Remote | None
    peer: bool
    resume: bool
    until: float  # of the monotonic clock, seconds


@main.command()
@click.argument("scenarios", nargs=-1, required=True)
@click.option("--fleet", type=click.Choice(["local"]), help="A fleet of the lab's own on this machine [the default].")
@click.option("--base-url", help="Or whatever answers at http://HOST:PORT.")
@click.option(
    "--front-door", default="start.cellwall.localhost", show_default=True, help="With --base-url: the Host of sign-ups."
)
@click.option("--repeat", type=click.IntRange(1, 100), help="Runs of each case, instead of what the file says.")
@click.option("--case", "only", default="", help="Only cases whose name contains this.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results [default: build/lab/TIME].")
@click.option("--state", type=click.Path(path_type=Path), help="Folder of the lab's fleet.")
@click.option("--peer", is_flag=True, help="The same aggressors on a plain shared stack too, to see what cells buy.")
@click.option("--resume", is_flag=True, help="Keep the valid results that --out has, and do only what is missing.")
@click.option("--minutes", type=click.FloatRange(min=0.1), help="Begin no run after so many minutes; --resume goes on.")
def run(
    scenarios: tuple[str, ...],
    fleet: str | None,
    base_url: str | None,
    front_door: str,
    repeat: int | None,
    only: str,
    out: Path | None,
    state: Path | None,
    peer: bool,
    resume: bool,
    minutes: float | None,
) -> None:
    """Run scenarios: files of your own, or names of those that come with the lab."""
    if fleet and base_url:
        raise click.UsageError("--fleet and --base-url exclude each other")
    if resume and out is None:
        raise click.UsageError("--resume needs --out: the folder with the results that are there")
    default = default_folder()
    options = Options(
        repeat=repeat,
        only=only,
        out=(out or Path("build") / "lab" / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")).absolute(),
        folder=state.absolute() if state else default.with_name(f"{default.name}-lab"),
        remote=Remote(base_url, front_door) if base_url else None,
        peer=peer,
        resume=resume,
        until=inf if minutes is None else time.monotonic() + 60 * minutes,
    )
    found = _read(scenarios)
    with Teller(console()) as teller:
        try:
            with only_one(options.folder, "lab"):
                status = asyncio.run(_interruptible(found, options, teller))
        except LocalFleetError as e:
            teller.verdict(False, str(e))
            status = commandline.MISUSED
    sys.exit(status)


def _read(names: Sequence[str]) -> list[Scenario]:
    try:
        return [reading.read(reading.find(name)) for name in names]
    except ScenarioError as e:
        raise click.UsageError(str(e)) from None


async def _interruptible(scenarios: Sequence[Scenario], options: Options, teller: Teller) -> int:
    task = asyncio.ensure_future(_all(scenarios, options, teller))
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
        misused = isinstance(e, (AskedError, LocalFleetError)) and not isinstance(e, StartFailedError)
        return commandline.MISUSED if misused else 1


async def _all(scenarios: Sequence[Scenario], options: Options, teller: Teller) -> int:
    """Scenarios that follow each other and want the same fleet share it."""
    results: list[Result] = []
    wanted = 0
    for shape, group in itertools.groupby(scenarios, key=lambda scenario: scenario.fleet):
        several = list(group)
        wanted += sum(len(planned(each, _asked(each, options.out, options, teller))) for each in several)
        results += await _on_fleet(shape, several, options, teller)
        on_peer = _for_peer(several, options)
        wanted += sum(len(planned(each, _asked(each, options.out / PEER, options, teller))) for each in on_peer)
        results += await _on_peer(shape, on_peer, options, teller)
    _tell(results, options.out, teller)
    if not all(result.books.balanced for result in results):
        return 1
    if len(results) < wanted:
        teller.say(f"{len(results)} of {wanted} runs are done; the same command with --resume goes on")
        return INCOMPLETE
    return 0 if all(result.validity.valid for result in results) else INVALID


def _nothing_missing(scenarios: Sequence[Scenario], out: Path, options: Options, teller: Teller) -> list[Result] | None:
    """The results where all of them are kept from before; None where one is to be made, and there is time for it."""
    runs = [each for scenario in scenarios for each in planned(scenario, _asked(scenario, out, options, teller))]
    kept = [each.kept for each in runs if each.kept is not None]
    return kept if len(kept) == len(runs) or time.monotonic() >= options.until else None


async def _on_fleet(shape: FleetShape, several: Sequence[Scenario], options: Options, teller: Teller) -> list[Result]:
    """The scenarios on one fleet, which is not started for nothing."""
    if (kept := _nothing_missing(several, options.out, options, teller)) is not None:
        return kept
    results: list[Result] = []
    for words in warnings(shape, remote=options.remote is not None):
        teller.say(words)
    async with _system(shape, several[0].plan, options, teller) as system:
        teller.say(system.cpu_walls)
        for scenario in several:
            results += await Lab(system, _asked(scenario, options.out, options, teller)).run(scenario)
    return results


def _asked(scenario: Scenario, out: Path, options: Options, teller: Teller) -> Asked:
    repeat = options.repeat or scenario.repeat
    return Asked(
        out,
        repeat,
        teller.say,
        lambda moment: teller.detail(moment.words()),
        options.only,
        options.resume,
        lambda: time.monotonic() < options.until,
    )


def _for_peer(scenarios: Sequence[Scenario], options: Options) -> list[Scenario]:
    """What can be run on the peer: the cases with aggressors; it has no walls, so each is run but once."""
    wanted = [each for each in scenarios if options.peer and each.kind is ScenarioKind.NOISY]
    several = [replace(each, walls=[Mode.ON]) for each in wanted]
    return [each for each in several if any(options.only in case.slug for case in each.cases())]


async def _on_peer(shape: FleetShape, several: Sequence[Scenario], options: Options, teller: Teller) -> list[Result]:
    """The same once more on the peer."""
    out = options.out / PEER
    if (kept := _nothing_missing(several, out, options, teller)) is not None:
        return kept
    results: list[Result] = []
    async with peer_system(shape, options.folder.with_name(f"{options.folder.name}-peer"), teller.say) as system:
        for scenario in several:
            results += await Lab(system, _asked(scenario, out, options, teller)).run(scenario)
    return results


def _tell(results: Sequence[Result], out: Path, teller: Teller) -> None:
    """What came of it: measures of single runs, the verdicts of all, and where everything is."""
    from loadtest.lab import report  # the plots take a second to import, and a fleet needs it while it starts

    for result in results:
        if len(results) == 1 or result.measures or not result.books.balanced or not result.validity.valid:
            name = f"{result.meta.scenario}, {result.meta.case.slug}, run {result.meta.repeat}"
            teller.table(name, lines(result))
    if any(result.phase_of(PhaseKind.ALONE) for result in results):
        written = report.write(results, out)
        teller.show(tables.summary(written.verdicts))
        teller.say(f"report: {written.page}")
    teller.say(f"results are in {out}")


@asynccontextmanager
async def _system(shape: FleetShape, plan: str, options: Options, teller: Teller) -> AsyncIterator[System]:
    run = f"lab-{secrets.token_hex(4)}"
    if options.remote is None:
        async with local_system(shape, options.folder, run, lambda line: teller.say(f"  {line}")) as local:
            yield local
        return
    remote = RemoteSystem(options.remote, run)
    try:
        await remote.connect(plan)
        yield remote
    finally:
        await remote.aclose()


def warnings(shape: FleetShape, *, remote: bool, processors: int | None = None) -> Iterator[str]:
    """What this machine cannot give to the scenario, and what can be measured all the same."""
    if remote:
        yield "a base URL: nothing of it can be broken, and the books are read through its API alone"
        return
    have, wanted = processors or os.cpu_count() or 1, shape.cells * shape.cpus
    if shape.cpu_walls and wanted >= have:
        yield (
            f"{shape.cells} cells of {shape.cpus:g} processors want {wanted:g}, and this machine has {have} for them,"
            " the routers and the driver: a busy cell then slows everything down; errors and books are still right"
        )
    found = Walls.of(Path(shape.cell_specs[0].name))
    if shape.cpu_walls and found.base is None:
        yield (
            f"{found.reason}. Latencies then include what cells take from each other; errors, refusals, books and what"
            " a fault reaches are measured as ever"
        )


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
    found.append(Line("books", "; ".join(result.books.words[:2]), not result.books.balanced))
    words = (
        "the driver kept its schedule" if result.validity.valid else f"INVALID: {'; '.join(result.validity.reasons)}"
    )
    found.append(Line("driver", words, not result.validity.valid))
    return found


def _words(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, (LabError, LocalFleetError)) else f"{type(error).__name__}: {error}"


main.add_command(commands.report)
main.add_command(commands.compare)


if __name__ == "__main__":
    commandline.run(main, "loadtest.lab")
