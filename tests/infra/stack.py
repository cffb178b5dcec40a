"""One stack, driven by the real CLI as a person does it."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.local.processes import marked
from infra.local.spec import CHECKOUT

PROGRAMS = CHECKOUT / "infra" / "stacks"
PATIENCE_S = 300.0  # a safety net on busy machines; nothing waits for it
MARK = "CELLWALL_TEST_COMMAND"


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    status: int
    said: str

    def ok(self) -> "Ran":
        assert self.status == 0, self.said
        return self

    def refused(self, words: str) -> "Ran":
        assert self.status != 0, self.said
        assert words in self.said, self.said
        return self


@contextlib.contextmanager
def started(
    arguments: Sequence[str | Path], environ: Mapping[str, str], cwd: Path | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """A command that drives Pulumi, in a process group of its own, as a shell starts it.

    At the end nothing of it runs: the language host looks only every five minutes whether its engine lives, so an
    engine that was killed, or gave up on a program, leaves it behind. What it began in a fleet is no part of it.
    """
    mark = secrets.token_hex(8)
    with subprocess.Popen(
        arguments,
        cwd=cwd, env={**environ, MARK: mark}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        process_group=0,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()  # nothing where it has ended
            while left := list(_of_pulumi(mark)):
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def finish(arguments: Sequence[str | Path], environ: Mapping[str, str], cwd: Path | None = None) -> Ran:
    """Run such a command to its end."""
    with started(arguments, environ, cwd) as process:
        said, _ = process.communicate(timeout=2 * PATIENCE_S)
        return Ran(process.returncode, said)


def _of_pulumi(mark: str) -> Iterator[int]:
    """The engine, its language hosts, providers and programs, as far as they carry the mark."""
    for identity in marked(MARK, mark):
        with contextlib.suppress(OSError):
            if b"pulumi" in (Path("/proc") / str(identity.pid) / "cmdline").read_bytes():
                yield identity.pid


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
        return finish(["pulumi", *arguments, "--non-interactive"], self.environ, self.folder)

    def configure(self, **values: object) -> None:
        """Set fields of the cell's spec."""
        for name, value in values.items():
            self.run("config", "set", "--path", f"cellwall:cell.{name}", str(value)).ok()

    def do(self, operation: str) -> Ran:
        return self.run(operation, "--yes", "--skip-preview")

    def start(self, operation: str) -> "contextlib.AbstractContextManager[subprocess.Popen[str]]":
        """The same in the background."""
        return started(["pulumi", operation, "--yes", "--skip-preview", "--non-interactive"], self.environ, self.folder)

    def outputs(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("stack", "output", "--json").ok().said)
        return found
