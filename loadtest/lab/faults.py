"""Faults on the local fleet: what is killed or made to hang, and how it comes back."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals
from typing import Final

from infra.local.fleet import Fleet
from infra.local.processes import Identity
from infra.local.spec import CONTROL_PLANE
from loadtest.lab.scenario import Fault
from loadtest.operator import LabError

WORKER: Final = "-worker"
_PROC: Final = Path("/proc")
_PPID: Final = 1  # of /proc/PID/stat, after the name


def descendants(pid: int, proc: Path = _PROC) -> list[int]:
    """All children of a process and theirs: a database server's backends have sessions of their own."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[_PPID])
            children.setdefault(parent, []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


class Broken:
    """One fault that is in force."""

    def __init__(self, fleet: Fleet, fault: Fault) -> None:
        self._fleet = fleet
        self._fault = fault
        self._stopped: list[Identity] = []

    @property
    def hit(self) -> list[str]:
        """The cells whose tenants it may harm. A router's worker and the control plane belong to none."""
        target = self._fault.target
        return [cell.name for cell in self._fleet.spec.cells if target == cell.name or target in cell.processes]

    async def strike(self) -> None:
        """Do it; a process that was killed has ended when this returns."""
        pids = list(self._pids())
        if not pids:
            raise LabError(f"nothing of {self._fault.target} runs: it cannot be made to {self._fault.action}")
        if self._fault.action == "hang":
            whole = [below for pid in pids for below in (pid, *descendants(pid))]
            self._stopped = [found for pid in whole if (found := Identity.of(pid)) is not None]
            self._signal(self._stopped, SIGSTOP)
        elif self._router is not None:
            self._signal([found for pid in pids if (found := Identity.of(pid)) is not None], SIGKILL)
        else:
            await self._fleet.kill(self._fault.target)

    async def mend(self) -> None:
        """Bring it back; it is ready when this returns. A killed worker of a router comes back by itself."""
        self._signal(self._stopped, SIGCONT)
        if self._fault.action == "kill" and self._router is None:
            await self._fleet.revive(self._fault.target)

    @property
    def _router(self) -> str | None:
        name = self._fault.target.removesuffix(WORKER)
        return name if name in self._fleet.spec.router_names else None

    def _pids(self) -> Iterator[int]:
        if self._router is not None:
            yield from self._fleet.worker_pids(self._router)[:1]
        elif self._fault.target == CONTROL_PLANE or self._fault.target in self._fleet.names or self.hit:
            for name in self._fleet.expand(self._fault.target):
                process = self._fleet.runner.process(name)
                if process is not None and process.alive:
                    yield process.pid

    @staticmethod
    def _signal(processes: Iterable[Identity], number: Signals) -> None:
        for process in processes:
            if Identity.of(process.pid) == process:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
