"""CPU walls: one control group a cell, with a quota, where the machine lets us write to one (cgroup v1 or v2)."""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.local.errors import LocalFleetError
from infra.local.processes import Identity

# Short: who has used a period's share up waits for its end, and a request of a neighbour in the cell waits with it.
# What a quiet period leaves of its share may be used in the next (`Documentation/scheduler/sched-bwc.rst`, burst): the
# average is the same, and the few milliseconds of a request do not meet the end of a period.
PERIOD_US: Final = 20_000
_ROOT: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Walls:
    """The control groups of one fleet. ``base`` is None where there can be none, and ``reason`` says why."""

    base: Path | None
    version: int
    reason: str

    @classmethod
    def off(cls) -> "Walls":
        """No walls, because nobody asked for them."""
        return cls(None, 0, "CPU walls are off (not asked for): a busy cell may slow its neighbour down")

    @classmethod
    def of(cls, folder: Path, root: Path = _ROOT) -> "Walls":
        """The walls of the fleet in ``folder``."""
        name = f"cellwall-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
        if (root / "cgroup.controllers").exists():
            version, parent = 2, root
        elif (root / "cpu" / "cpu.shares").exists() or (root / "cpu" / "tasks").exists():
            version, parent = 1, root / "cpu"
        else:
            return cls(None, 0, "CPU walls are off: this machine has no cpu controller")
        if not os.access(parent, os.W_OK):
            return cls(None, 0, f"CPU walls are off: this user may not write to {parent}")
        return cls(parent / name, version, f"CPU walls stand: cgroup v{version}, {parent / name}")

    def build(self, cell: str, cpus: float) -> None:
        """Give the cell's group ``cpus`` processors."""
        if self.base is None:
            return
        group = self.base / cell
        quota = int(cpus * PERIOD_US)
        try:
            if self.version == 2:
                (self.base.parent / "cgroup.subtree_control").write_text("+cpu")
                self.base.mkdir(exist_ok=True)
                (self.base / "cgroup.subtree_control").write_text("+cpu")
            group.mkdir(parents=True, exist_ok=True)
            burst = group / ("cpu.max.burst" if self.version == 2 else "cpu.cfs_burst_us")
            if burst.exists():  # since Linux 5.14
                burst.write_text("0")  # it may never be more than the quota, and that may be about to fall
            if self.version == 2:
                (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
            if burst.exists():
                burst.write_text(str(quota))
        except OSError as e:
            raise LocalFleetError(f"the CPU wall of {cell} cannot be built ({e}); start without --cpu-walls") from e

    def enclose(self, cell: str, process: Identity) -> None:
        """Put a process that has just started, and all that it will start, behind the cell's wall."""
        if self.base is not None:
            with contextlib.suppress(ProcessLookupError):
                (self.base / cell / "cgroup.procs").write_text(str(process.pid))

    def remove(self, cell: str | None = None) -> None:
        """Remove the groups, or that of one cell. Their processes must have ended."""
        if self.base is None or not self.base.exists():
            return
        every = (*(found for found in self.base.iterdir() if found.is_dir()), self.base)
        for group in every if cell is None else (self.base / cell,):
            with contextlib.suppress(OSError):
                group.rmdir()
