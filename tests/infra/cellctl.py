"""``cellctl fleet`` as a person runs it."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.infra.stack import Ran, finish


@dataclass(frozen=True)
class Cellctl:
    """``cellctl fleet`` with a fleet file, programs, backend and logs of its own."""

    folder: Path
    environ: Mapping[str, str]

    @property
    def file(self) -> Path:
        return self.folder / "fleet.yaml"

    @property
    def programs(self) -> Path:
        return self.folder / "programs"

    def command(self, action: str, *arguments: str) -> list[str]:
        own = [str(self.file), "--programs", str(self.programs)]
        return [str(Path(sys.executable).parent / "cellctl"), "fleet", action, *own, *arguments]

    def run(self, action: str, *arguments: str) -> Ran:
        return finish(self.command(action, *arguments), self.environ)

    def pulumi(self, *arguments: str) -> Ran:
        """The CLI itself, where the program of the local stacks is."""
        return finish(["pulumi", *arguments, "--non-interactive"], self.environ, self.programs / "local")

    def ends(self, ran: Ran) -> dict[str, dict[str, Any]]:
        """The summary: how each stack ended, by its key."""
        summary = next(line for line in ran.said.splitlines() if line.startswith('{"stacks"'))
        found: dict[str, dict[str, Any]] = json.loads(summary)["stacks"]
        return found

    def results(self, ran: Ran) -> dict[str, str]:
        """In one word each, by the stack's key; a local cell's by its name."""
        return {key.removeprefix("cellwall-local/"): end["result"] for key, end in self.ends(ran).items()}
