"""``cellctl fleet``: loaded by cellctl through the entry point ``cellwall.cellctl``."""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click as plain
import msgspec
import rich_click as click

from control_plane.cli.client import INTERRUPTED, REFUSED, ConfigError
from control_plane.cli.context import Cli, pass_cli
from infra.fleet import show, surroundings
from infra.fleet.drive import Drive
from infra.fleet.errors import FleetError
from infra.fleet.file import FleetFile, read
from infra.fleet.plan import PROGRAMS, StackPlan, chosen, from_backend, from_file, ordered
from infra.fleet.words import FINE, Action, Ended

PARALLEL: Final = 4
_F = TypeVar("_F", bound=Callable[..., Any])


@click.group()
def fleet() -> None:
    """Many stacks at once, by Pulumi: on this machine or on AWS.

    FILE is a fleet file (docs/provisioning.md). Without one: all stacks of the backend.
    """


def _json(ctx: plain.Context, _param: plain.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Cli).as_json = True


def _options(function: _F) -> _F:
    existing = plain.Path(exists=True, path_type=Path)
    for option in (
        click.argument("file", required=False, type=existing),
        click.option("--only", multiple=True, metavar="STACK", help="Only this stack (cell-3, cellwall-cell/cell-3)."),
        click.option(
            "--parallel", type=click.IntRange(1, 64), default=PARALLEL, show_default=True, help="So many at a time."
        ),
        click.option(
            "--programs", type=existing, default=PROGRAMS, help="The folder of the programs. Default: infra/stacks."
        ),
        click.option("--json", is_flag=True, expose_value=False, callback=_json, help="Print JSON instead of text."),
    ):
        function = option(function)
    return function


@fleet.command("up")
@_options
@click.option("--refresh", is_flag=True, help="First look at what there is, and repair what has drifted.")
@pass_cli
def up(cli: Cli, file: Path | None, only: tuple[str, ...], parallel: int, programs: Path, refresh: bool) -> None:
    """Make every stack what its configuration says. After a failure or Ctrl-C: the same again does what is left.

    Exit status: 0 all are; 1 one failed; 2 nothing was begun, because something is wrong; 130 interrupted.
    """
    _run(cli, "up", file, only, parallel, programs, refresh=refresh)


@fleet.command("preview")
@_options
@pass_cli
def preview(cli: Cli, file: Path | None, only: tuple[str, ...], parallel: int, programs: Path) -> None:
    """Say what `up` would do, and do nothing."""
    _run(cli, "preview", file, only, parallel, programs)


@fleet.command("drift")
@_options
@pass_cli
def drift(cli: Cli, file: Path | None, only: tuple[str, ...], parallel: int, programs: Path) -> None:
    """Show what is not as its stack left it; exit status 1 where there is any. Changes nothing.

    `cellctl fleet up --refresh` repairs it.
    """
    ends = _run(cli, "drift", file, only, parallel, programs)
    found = [(key, each.resource, each.what) for key, end in ends.items() for each in end.drift]
    if not cli.as_json:
        cli.table(found, ("STACK", "RESOURCE", "DIFFERENCE"), found, show.calm(ends))
    if found:
        raise SystemExit(REFUSED)


@fleet.command("destroy")
@_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_cli
def destroy(cli: Cli, file: Path | None, only: tuple[str, ...], parallel: int, programs: Path, yes: bool) -> None:
    """Destroy stacks and forget them. A cell that holds tenants stays, and says how to move them out."""
    _run(cli, "destroy", file, only, parallel, programs, agreed=yes)


def _run(
    cli: Cli,
    action: Action,
    file: Path | None,
    only: Sequence[str],
    parallel: int,
    programs: Path,
    *,
    agreed: bool = True,
    refresh: bool = False,
) -> dict[str, Ended]:
    try:
        described = read(file) if file is not None else None
        target, private = (described.target, described.private_state) if described else ("local", False)
        environ = surroundings.environment(os.environ, target, private=private)
        plans = ordered(_plans(described, programs.absolute(), environ, action, only), action)
        buildable = described if action in ("up", "preview") else None
        surroundings.check(plans, programs, os.environ, buildable, private=private)
    except FleetError as e:
        raise ConfigError(str(e), e.advice) from None
    if not plans:
        raise ConfigError("there is no stack", "Name a fleet file (docs/provisioning.md), or make a stack.")
    if not agreed:
        _ask(cli, plans)
    watch = show.Documents() if cli.as_json else show.LiveShow(plans) if cli.live else show.Lines()
    drive = Drive(
        action,
        programs.absolute(),
        surroundings.logs(os.environ),
        environ,
        parallel=parallel,
        watch=watch,
        refresh=refresh,
    )
    with watch:
        ends = asyncio.run(_interruptible(drive, plans))
    _summary(cli, drive, plans, ends)
    return ends


def _plans(
    file: FleetFile | None, programs: Path, environ: dict[str, str], action: Action, only: Sequence[str]
) -> tuple[StackPlan, ...]:
    if file is not None:
        return from_file(file, programs, configured=action in ("up", "preview"), only=only)
    return chosen(from_backend(surroundings.listed(programs, environ)), only)


def _ask(cli: Cli, plans: Sequence[StackPlan]) -> None:
    names = ", ".join(plan.key for plan in plans)
    if not cli.asks():
        raise ConfigError(f"this destroys {names}", "Pass --yes if that is what you want.")
    click.confirm(f"Destroy {names}?", abort=True)


async def _interruptible(drive: Drive, plans: Sequence[StackPlan]) -> dict[str, Ended]:
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        drive.interrupt()
        again = "; once more ends them at once" if drive.interrupts == 1 else ""
        click.echo(f"interrupted: waiting for the engines to write their state{again}", err=True)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    return await drive.run(plans)


def _summary(cli: Cli, drive: Drive, plans: Sequence[StackPlan], ends: dict[str, Ended]) -> None:
    if cli.as_json:
        cli.json({"stacks": {key: msgspec.to_builtins(end) for key, end in ends.items()}})
    else:
        cli.table(ends, ("STACK", "RESULT", "RESOURCES", "SECONDS", "WHY"), show.rows(plans, ends), "")
    if drive.interrupts:
        _exit(cli, INTERRUPTED, "Interrupted. The same command goes on.")
    if failed := [plan for plan in plans if ends[plan.key].result not in FINE]:
        logs = ", ".join(str(drive.log(plan)) for plan in failed if drive.log(plan).exists())
        _exit(cli, REFUSED, f"{len(failed)} of {len(plans)} did not end well; the same command goes on. Logs: {logs}")


def _exit(cli: Cli, status: int, words: str) -> NoReturn:
    if not cli.as_json:
        click.echo(words, err=True)
    raise SystemExit(status)
