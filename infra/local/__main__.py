"""``python -m infra.local up | down | status | env``."""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from click.core import ParameterSource
from rich.console import Console

from infra.local import commandline, growth
from infra.local.errors import LocalFleetError, StartFailedError
from infra.local.fleet import Fleet
from infra.local.report import environment, text, view
from infra.local.spec import FLEET_DIR, FleetSpec, LocalCellSpec, ZeroSpec, default_folder
from infra.local.state import Folder

_SHAPE: Final = ("cells", "shards", "routers", "workers", "cpu_walls", "zero", "given")
GIVEN: Final = "CELLWALL_LOCAL_GIVEN"
_err = Console(stderr=True, highlight=False)

state_option = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Folder of the fleet. Default: {FLEET_DIR}, or one for this checkout in the system's temporary folder.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A whole fleet on this machine: real PostgreSQL and Redis, control plane, cells, routers, on loopback."""


@main.command()
@state_option
@click.option("--cells", default=2, show_default=True, type=click.IntRange(1, 9), help="How many cells.")
@click.option("--shards", default=2, show_default=True, type=click.IntRange(1, 9), help="PostgreSQL servers a cell.")
@click.option("--routers", default=2, show_default=True, type=click.IntRange(1, 9), help="How many routers.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 64), help="Worker processes a router.")
@click.option("--cpu-walls", is_flag=True, help="Give each cell one processor by a control group, where possible.")
@click.option("--zero", is_flag=True, help="With cell zero: an old shop, whose customers can leave it.")
@click.option(
    "--given",
    multiple=True,
    metavar="SERVER=DSN",
    help=f"A server of somebody else's to use, by fleet name. Others see this line: better {GIVEN}, a JSON object.",
)
@click.pass_context
def up(
    context: click.Context,
    state: Path | None,
    cells: int,
    shards: int,
    routers: int,
    workers: int,
    cpu_walls: bool,
    zero: bool,
    given: tuple[str, ...],
) -> None:
    """Start the fleet, or what of it does not run, and say where everything listens. Safe to repeat.

    Without options a fleet that is there keeps its shape, whatever it was started with.
    """
    servers = _given_by_environment() | dict(_pair(text) for text in given)
    try:
        spec = FleetSpec(
            cells=tuple(LocalCellSpec(f"cell-{n}", shards=shards) for n in range(1, cells + 1)),
            routers=routers,
            workers=workers,
            cpu_walls=cpu_walls,
            given=servers,
            zero=ZeroSpec() if zero else None,
        )
    except ValueError as e:
        raise click.UsageError(str(e)) from None
    asked = any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in _SHAPE)
    fleet = _fleet(state, spec if asked or servers else _recorded(state) or spec)
    _run(fleet.up(), logs=fleet.folder.logs)
    click.echo(text(fleet))


@main.command()
@state_option
@click.option("--keep", is_flag=True, help="Keep the data: the next `up` finds every tenant again.")
def down(state: Path | None, keep: bool) -> None:
    """Stop the fleet, also after a crash, and remove its data. Safe to repeat."""
    fleet = _fleet(state)
    there = fleet.folder.lock.exists()
    _run(fleet.down(keep=keep))
    what = "stopped the fleet" if keep else "stopped the fleet and removed its data"
    _err.print(f"{what} in {fleet.folder.path}" if there else f"no fleet in {fleet.folder.path}")


@main.command()
@state_option
@click.option("--json", "as_json", is_flag=True, help="For programs. Holds no secret.")
def status(state: Path | None, as_json: bool) -> None:
    """Say what runs and where. Exit status 1 where something of the fleet does not run."""
    fleet = _attached(state)
    found = view(fleet)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)))
    else:
        click.echo(text(fleet))
    sys.exit(0 if found.healthy else 1)


@main.command()
@state_option
@click.argument("server")
def give_up(state: Path | None, server: str) -> None:
    """Accept that the data of SERVER, such as cell-3-shard-1, is gone: its next start makes it anew, empty."""
    _run(_attached(state).give_up(server))
    _err.print(f"the next start makes {server} anew, empty")


@main.command("add-shard")
@state_option
@click.argument("cell")
def add_shard(state: Path | None, cell: str) -> None:
    """Give CELL one PostgreSQL server more while it serves. It holds nothing until `cellctl shards add`."""
    fleet = _attached(state)

    async def grow() -> None:
        shard = await growth.add_shard(fleet, cell)
        _err.print(f"{cell} has {shard} now; to give it its part: cellctl shards add {cell} {shard} --follow")

    _run(grow(), logs=fleet.folder.logs)


@main.command()
@state_option
def env(state: Path | None) -> None:
    """Print `export` lines for cellctl."""
    for key, value in environment(_attached(state)).items():
        click.echo(f"export {key}={shlex.quote(value)}")


def _recorded(state: Path | None) -> FleetSpec | None:
    """The shape of the fleet that is there."""
    try:
        found = Folder((state or default_folder()).absolute()).load()
    except LocalFleetError:
        return None  # `Fleet.up` meets it again, and says so
    return found.spec if found is not None and found.complete else None


def _fleet(state: Path | None, spec: FleetSpec | None = None) -> Fleet:
    began = time.monotonic()

    def say(words: str) -> None:
        _err.print(f"{time.monotonic() - began:5.1f} s  {words}", markup=False, soft_wrap=True)

    return Fleet(spec or FleetSpec(), (state or default_folder()).resolve(), say)


def _attached(state: Path | None) -> Fleet:
    fleet = _fleet(state)
    try:
        fleet.attach()
    except LocalFleetError as e:
        _fail(e)
    return fleet


def _pair(text: str) -> tuple[str, str]:
    name, equals, dsn = text.partition("=")
    if not name or not equals or "://" not in dsn:
        raise click.BadParameter("it is not SERVER=DSN", param_hint="--given")  # never shown: it may hold a password
    return name, dsn


def _given_by_environment() -> dict[str, str]:
    """The servers in `GIVEN`. It is taken out of the environment: no process of the fleet shall inherit it."""
    text = os.environ.pop(GIVEN, "")
    try:
        servers = msgspec.json.decode(text or "{}", type=dict[str, str])
    except msgspec.DecodeError:
        servers = {"": ""}
    if not all(name and "://" in dsn for name, dsn in servers.items()):
        raise click.UsageError(f'{GIVEN} is not a JSON object such as {{"SERVER": "DSN"}}')
    return servers


def _run(work: Coroutine[Any, Any, None], *, logs: Path | None = None) -> None:
    """Run it; the first Ctrl-C or TERM cancels it, and further ones do not disturb the cleaning up.

    Where a process did not start, ``logs`` is named.
    """

    async def cancellable() -> None:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()

        def once() -> None:
            if not task.cancelling():
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, once)
        await task

    try:
        asyncio.run(cancellable())
    except LocalFleetError as e:
        if logs is not None and isinstance(e, StartFailedError):
            _err.print(f"all logs are in {logs}", markup=False, soft_wrap=True)
        _fail(e)
    except asyncio.CancelledError:
        _err.print("interrupted")
        sys.exit(commandline.INTERRUPTED)


def _fail(error: LocalFleetError) -> None:
    _err.print(str(error), style="red", markup=False, soft_wrap=True)
    sys.exit(1 if isinstance(error, StartFailedError) else commandline.MISUSED)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        commandline.run(main, "infra.local")
