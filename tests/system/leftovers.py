"""What a fleet must not leave behind: processes, listening ports, files."""

from dataclasses import dataclass
from pathlib import Path

from infra.local.fleet import Fleet
from infra.local.plan import MARK
from infra.local.ports import is_free
from infra.local.processes import Identity, marked


@dataclass(frozen=True)
class Snapshot:
    """What a fleet consisted of while it ran."""

    folder: Path
    ports: dict[str, int]
    processes: dict[str, Identity]

    @classmethod
    def of(cls, fleet: Fleet) -> "Snapshot":
        return cls(fleet.folder.path, dict(fleet.state.ports), dict(fleet.state.processes))

    def left(self) -> list[str]:
        """Everything of it that is still there."""
        found = [f"process {name}" for name, known in self.processes.items() if Identity.of(known.pid) == known]
        found += [f"child process {identity.pid}" for identity in marked(MARK, f"{self.folder}:")]
        found += [f"port {port} of {name}" for name, port in self.ports.items() if not is_free(port)]
        if self.folder.exists():
            found.append(f"folder {self.folder}: {[path.name for path in self.folder.iterdir()]}")
        return found
