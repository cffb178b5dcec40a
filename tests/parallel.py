"""Tests side by side (pytest-xdist): who runs what, how a run is ended, and what its workers left behind.

Tests of servers and stacks wait a good part of their time: two at a time take little longer than one.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

FOLDERS = "worker-"  # of workers, in the run's temporary folder
_PIDS = "worker.*.pid"
_LEFT = "left"
# What takes long begins first, so that no worker is at it alone in the end.
_ORDER = ("tests/system", "tests/infra", "tests/integration", "tests/architecture", "tests/unit")
# These share the session's fleet, and break and mend it: one worker, one after the other.
_ONE_FLEET = frozenset(f"tests/system/test_{name}.py" for name in ("books", "lab", "moves", "routing"))


def rank(nodeid: str) -> int:
    """Where a test stands in the order of the whole run."""
    return next((place for place, folder in enumerate(_ORDER) if nodeid.startswith(f"{folder}/")), len(_ORDER))


def worker(config: pytest.Config) -> str | None:
    """The name of this worker; None in a run of one process and in the process that leads workers."""
    told: dict[str, str] | None = getattr(config, "workerinput", None)
    return None if told is None else told["workerid"]


def leads(config: pytest.Config) -> bool:
    """Whether this process runs no test itself."""
    return worker(config) is None and bool(config.getoption("tx", default=None))


def announce(folder: Path) -> None:
    """A worker says whom to end. Ctrl-C of a terminal reaches the leader alone, which tells each worker once."""
    os.setpgid(0, 0)
    (folder / f"worker.{os.getpid()}.pid").touch()


def tell(config: pytest.Config, left: list[str]) -> None:
    """A worker tells its leader what it left behind."""
    output: dict[str, Any] = config.workeroutput  # type: ignore[attr-defined]
    output[_LEFT] = left


def told(config: pytest.Config) -> list[str]:
    """What the workers told; nothing in a run of one process."""
    leader = config.pluginmanager.get_plugin("leader")
    return leader.left if isinstance(leader, Leader) else []


class Files(LoadScopeScheduling):
    """A file is run by one worker, because its fixtures are; and what shares a fleet is run by one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "one fleet" if file in _ONE_FLEET else file


class Leader:
    """Of the workers: ends them when it is asked to, and hears what they left."""

    def __init__(self, folder: Path) -> None:
        self.left: list[str] = []
        self._folder = folder
        self._asked: set[int] = set()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> Files:
        return Files(config, log)

    def pytest_testnodedown(self, node: Any) -> None:
        self.left += getattr(node, "workeroutput", {}).get(_LEFT, [])

    def _end(self, number: int, _frame: FrameType | None) -> None:
        """Once: the workers end their fixtures, and the session ends with them. An impatient Ctrl-C ends it at once."""
        first, again = not self._asked, number in self._asked
        self._asked.add(number)
        told = [self._tell(pid) for pid in self._workers()] if first else []
        if (first and not any(told)) or (again and number == signal.SIGINT):
            raise KeyboardInterrupt

    def _workers(self) -> Iterator[int]:
        for file in self._folder.glob(_PIDS):
            yield int(file.suffixes[-2].removeprefix("."))

    def _tell(self, pid: int) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            return True
        return False
