"""What benchmarks write, and how they run the programs that they measure."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from infra.local.spec import CHECKOUT

OUT: Final = Path("build/bench")
_SAID_MAX: Final = 800


class BenchError(Exception):
    """The benchmark could not be run; the message says why."""


class Figure(msgspec.Struct):
    """One number of the report. ``goal`` is in words; without one, ``holds`` is true."""

    name: str
    value: float
    unit: str
    goal: str = ""
    holds: bool = True

    @classmethod
    def at_most(cls, name: str, value: float, unit: str, goal: float) -> "Figure":
        """One with a limit."""
        return cls(name, round(value, 3), unit, f"<= {goal:g}", value <= goal)


class Report(msgspec.Struct):
    """What is written."""

    figures: list[Figure]

    @property
    def holds(self) -> bool:
        """Whether every goal was reached."""
        return all(figure.holds for figure in self.figures)

    def write(self, console: Console, name: str) -> None:
        """To ``build/bench/NAME.json``."""
        out = OUT / f"{name}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2))
        console.print(f"figures: {out}", highlight=False, soft_wrap=True)

    def show(self, console: Console, title: str = "") -> None:
        """As a table: what was measured, and whether it holds."""
        table = Table("figure", "value", "goal", title=title or None, box=None, header_style="bold", pad_edge=False)
        for figure in self.figures:
            verdict = f"{figure.goal} {'holds' if figure.holds else 'DOES NOT HOLD'}" if figure.goal else ""
            style = None if figure.holds else "bold red"
            table.add_row(figure.name, f"{figure.value:g} {figure.unit}", verdict, style=style)
        console.print(table)


@dataclass(frozen=True)
class Programs:
    """A copy of the stacks' programs, whose configuration must not land in the checkout, and how to run them."""

    folder: Path
    environ: Mapping[str, str]

    @classmethod
    def copied(cls, folder: Path, environ: Mapping[str, str]) -> "Programs":
        """In ``folder``, whose stacks are in a backend of their own."""
        ignored = shutil.ignore_patterns("Pulumi.*.yaml", "__pycache__")
        shutil.copytree(CHECKOUT / "infra" / "stacks", folder / "programs", ignore=ignored)
        (folder / "backend").mkdir()
        backend = {"PULUMI_BACKEND_URL": f"file://{folder / 'backend'}"}
        return cls(folder / "programs", {**environ, **backend, "NO_COLOR": "1"})

    def pulumi(self, program: str, *arguments: str) -> float:
        """Run the CLI in a program's folder; the seconds that it took."""
        return self._run(["pulumi", *arguments, "--non-interactive"], self.folder / program)[1]

    def fleet(self, action: str, file: Path, *arguments: str) -> tuple[dict[str, dict[str, Any]], float]:
        """``cellctl fleet``: how each stack ended, by its key, and the seconds that it took."""
        options = ("--programs", str(self.folder), "--json", *arguments)
        said, seconds = self._run([str(Path(sys.executable).parent / "cellctl"), "fleet", action, str(file), *options])
        summary: dict[str, dict[str, Any]] = json.loads(said.strip().splitlines()[-1])["stacks"]
        return summary, seconds

    def module(self, name: str, *arguments: str) -> None:
        """``python -m``."""
        self._run([sys.executable, "-m", name, *arguments])

    def _run(self, command: list[str], cwd: Path = CHECKOUT) -> tuple[str, float]:
        began = time.monotonic()
        done = subprocess.run(command, cwd=cwd, env=dict(self.environ), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"{' '.join(command[:4])}: {(done.stdout + done.stderr).strip()[-_SAID_MAX:]}")
        return done.stdout, time.monotonic() - began
