"""One stack, driven by the real CLI as a person does it."""

import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.local.spec import CHECKOUT

PROGRAMS = CHECKOUT / "infra" / "stacks"
PATIENCE_S = 120.0  # a safety net on busy machines; nothing waits for it


@dataclass(frozen=True)
class Ran:
    """What a command said, and how long it took."""

    status: int
    said: str
    seconds: float

    def ok(self) -> "Ran":
        assert self.status == 0, self.said
        return self

    def refused(self, words: str) -> "Ran":
        assert self.status != 0, self.said
        assert words in self.said, self.said
        return self


class Stack:
    """A copy of a program, most of infra/stacks, so that its configuration does not land in the checkout."""

    def __init__(
        self, program: str, name: str, folder: Path, environ: Mapping[str, str], programs: Path = PROGRAMS
    ) -> None:
        self.name = name
        self.folder = folder / f"{program}-{name}"
        self.environ = dict(environ)
        shutil.copytree(programs / program, self.folder, ignore=shutil.ignore_patterns("Pulumi.*.yaml"))
        self.run("stack", "init", name).ok()

    def run(self, *arguments: str) -> Ran:
        began = time.monotonic()
        done = subprocess.run(
            ["pulumi", *arguments, "--non-interactive"],
            cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout + done.stderr, time.monotonic() - began)

    def configure(self, **values: object) -> None:
        """Set fields of the cell's spec."""
        for name, value in values.items():
            self.run("config", "set", "--path", f"cellwall:cell.{name}", str(value)).ok()

    def do(self, operation: str) -> Ran:
        return self.run(operation, "--yes", "--skip-preview")

    def start(self, operation: str) -> "subprocess.Popen[str]":
        """The same in the background, in a process group of its own, as a shell starts it."""
        return subprocess.Popen(
            ["pulumi", operation, "--yes", "--skip-preview", "--non-interactive"],
            cwd=self.folder, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            process_group=0,
        )  # fmt: skip

    def outputs(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("stack", "output", "--json").ok().said)
        return found
