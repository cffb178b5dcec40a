"""A third cell while traffic runs: by ``pulumi up`` where the CLI is there, else by the same functions without it."""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from infra.local.fleet import Fleet
from infra.local.spec import CHECKOUT, LocalCellSpec
from infra.local.stamp import Stamps
from infra.pulumi_cli.cli import Cli, find
from infra.spec import CellSpec
from loadtest.operator import LabError

STOP_S: Final = 10.0
_PROGRAM: Final = CHECKOUT / "infra" / "stacks" / "local"


async def add_cell(fleet: Fleet, name: str, say: Callable[[str], None]) -> str:
    """The cell runs and is registered when this returns; returns how it was made, in words."""
    cli = await asyncio.to_thread(find, os.environ)
    if cli is None:
        say(f"adding {name} by the functions that Pulumi would call: the CLI is not on this machine (make pulumi)")
        await Stamps(fleet, "the demo").ensure(LocalCellSpec.of(CellSpec(name)))
        return "without Pulumi"
    say(f"adding {name}: pulumi up")
    with tempfile.TemporaryDirectory(prefix="cellwall-stack-") as folder:
        await _up(cli, fleet, name, Path(folder))
    async with fleet.locked():
        fleet.reload()
    return "pulumi up"


async def _up(cli: Cli, fleet: Fleet, name: str, folder: Path) -> None:
    """A stack that lives as long as the demo: its state goes with the fleet."""
    program = folder / "program"
    shutil.copytree(_PROGRAM, program, ignore=shutil.ignore_patterns("Pulumi.*.yaml", "__pycache__"))
    environ = cli.environment(
        {key: value for key, value in os.environ.items() if not key.startswith("PULUMI_")}
        | {"XDG_STATE_HOME": str(folder / "state")}
    )
    for arguments in (
        ("stack", "init", name),
        ("config", "set", "cellwall:fleet", str(fleet.folder.path)),
        ("up", "--yes", "--skip-preview"),
    ):
        await _pulumi(program, environ, *arguments)


async def _pulumi(program: Path, environ: dict[str, str], *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "pulumi", *arguments, "--non-interactive", cwd=program, env=environ, start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = await process.communicate()
    except asyncio.CancelledError:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_S)
        raise
    if process.returncode != 0:
        lines = [line.strip() for line in said.decode(errors="replace").splitlines() if "rror" in line]
        raise LabError(f"pulumi {arguments[0]} failed: {lines[-1] if lines else process.returncode}")
