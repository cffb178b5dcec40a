"""A third cell while traffic runs: by ``pulumi up`` where the CLI is there, else by the same functions without it."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from infra.local.concurrency import finished, together
from infra.local.fleet import Fleet
from infra.local.plan import MARK
from infra.local.processes import Identity, Process, marked
from infra.local.spec import CHECKOUT, LocalCellSpec
from infra.local.work import Job
from infra.pulumi_cli.cli import Cli, find
from infra.spec import CellSpec
from loadtest.operator import LabError
from loadtest.tenants import Cast

CAPACITY: Final = 10_000  # far more than the other cells have: for placement it is the emptiest
NEWCOMERS: Final = 4  # chance may still prefer a nearly empty cell for the first three, never for all four
STOP_S: Final = 2.0
WITH_PULUMI: Final = "pulumi up"
WITHOUT: Final = "without Pulumi"
_PROGRAM: Final = CHECKOUT / "infra" / "stacks" / "local"
_GIVE: Final = "5"  # the nice value: a third of another session's share. With much more a busy machine starves it
_OWNER: Final = "the demo"


@dataclass(frozen=True)
class Joined:
    """A cell that was added under traffic, and the tenants that signed up after it came.

    Both times count from when the cell was asked for: ``ready_s`` until it took tenants, ``served_s`` until each
    newcomer had an order.
    """

    cell: str
    how: str
    ready_s: float
    served_s: float
    cast: Cast

    @property
    def housed(self) -> int:
        """How many of the newcomers live in the new cell, by its own word."""
        return sum(order.cell == self.cell for order in self.cast.first_orders)

    @property
    def good(self) -> bool:
        """Whether it served any of them."""
        return self.housed > 0

    def words(self) -> str:
        """One sentence."""
        lived = f"{self.housed} of {len(self.cast.accounts)} tenants who signed up then live there"
        return f"{self.how}: ready after {self.ready_s:.1f} s, first orders after {self.served_s:.1f} s; {lived}"


async def add_cell(fleet: Fleet, name: str, say: Callable[[str], None]) -> str:
    """The cell runs and takes tenants when this returns; returns how it was made, in words.

    `LabError` where it could not be made. Of the stack nothing is left: the cell goes with its fleet. Cancelled, it
    leaves no process of its own; what was started of the cell is the fleet's to stop.
    """
    cli = await asyncio.to_thread(find, os.environ)
    if cli is None:
        say(f"adding {name} by the functions that Pulumi would call: its CLI is not on this machine (make pulumi)")
        await _work(fleet, name)
    else:
        say(f"adding {name}: pulumi up")
        with tempfile.TemporaryDirectory(prefix="cellwall-stack-") as folder:
            await _up(cli, fleet, name, Path(folder))
    async with fleet.locked():
        fleet.reload()
    return WITHOUT if cli is None else WITH_PULUMI


async def _up(cli: Cli, fleet: Fleet, name: str, folder: Path) -> None:
    """A stack whose state, home and configuration are in ``folder``, with nothing of the user's."""
    program = folder / "program"
    shutil.copytree(_PROGRAM, program, ignore=shutil.ignore_patterns("Pulumi.*.yaml", "__pycache__"))
    mark = fleet.plan.mark(f"{name}-up")
    mine = {key: value for key, value in os.environ.items() if not key.startswith("PULUMI_")}
    environ = cli.environment(mine | {"XDG_STATE_HOME": str(folder / "state"), MARK: mark}, home=folder / "home")
    told = {"cellwall:fleet": fleet.folder.path, "cellwall:cell.capacity": CAPACITY}
    settings = [word for key, value in told.items() for word in ("--config", f"{key}={value}")]
    for arguments in (["stack", "init", name], ["up", "--yes", "--skip-preview", "--config-path", *settings]):
        await _ended(["pulumi", *arguments, "--non-interactive"], mark, environ, program)


async def _work(fleet: Fleet, name: str) -> None:
    """What the provider does, in the process that it does it in."""
    mark = fleet.plan.mark(f"{name}-up")
    cell = LocalCellSpec.of(CellSpec(name, capacity=CAPACITY))
    job = msgspec.json.encode(Job("ensure", str(fleet.folder.path), _OWNER, cell))
    await _ended([sys.executable, "-m", "infra.local.work"], mark, {**os.environ, MARK: mark}, CHECKOUT, job)


async def _ended(
    command: Sequence[str], mark: str, environ: Mapping[str, str], cwd: Path, told: bytes | None = None
) -> None:
    """Run it to its end; `LabError` with its last words where it fails. Cancelled, it takes all that it started along:
    what carries ``mark``.
    """
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=environ, start_new_session=True,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    give_way(process.pid)
    try:
        said, _ = await process.communicate(told)
    except asyncio.CancelledError:
        await finished(_stopped(process.pid, mark))
        raise
    if process.returncode != 0:
        lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "error:" in line] or lines
        raise LabError(f"{' '.join(command[:3])} failed: {errors[-1] if errors else process.returncode}")


async def _stopped(pid: int, mark: str) -> None:
    leader = Identity.of(pid)
    remains = [] if leader is None else [leader]
    while remains:
        await together(*(Process(each).stop(grace_s=STOP_S) for each in remains))
        remains = list(marked(MARK, mark))


def give_way(pid: int, proc: Path = Path("/proc")) -> None:
    """Let the session of that process give way to all others, where the kernel schedules by sessions (Linux).

    There nice(2) counts for nothing between sessions. Where it counts it would be inherited by the new cell, and only
    root could take it back: there nothing is done.
    """
    with contextlib.suppress(OSError):
        (proc / str(pid) / "autogroup").write_text(_GIVE)
