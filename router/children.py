"""Child processes of the supervisor: forked, bound to its life, started again when they die or stand still.

Fork, not exec: children share the board and the loaded modules. The supervisor has one thread and no event loop, so a
fork is a clean copy. No child outlives it: each has a thread that waits for the end of a pipe whose only writer is the
supervisor, on every platform and however it died.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

RESTART_S: Final = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # pauses after each death in a row
STEADY_S: Final = 10.0  # a child that lived as long is not in a row of deaths
LOOK_S: Final = 3.0  # between two looks at what a worker says about itself
LOOKS_TO_HANG: Final = 5  # in a row that saw nothing new: 12 s at least
_ORPHAN_STATUS: Final = 70

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


@dataclass(slots=True)
class Child:
    """One place for a process, and what happened in it. Times are of a monotonic clock."""

    name: str
    entry: Callable[[], int]
    keep: frozenset[int]  # the supervisor's descriptors that the child needs
    grace_s: float  # from the supervisor's death to the child's, at most
    index: int | None = None  # of a worker
    pid: int = 0
    started: float = 0.0
    deaths: int = 0  # in a row
    due: float = 0.0  # when to start it again
    restarts: int = field(default=0)
    beats: int = 0  # at the last look
    silent: int = 0  # looks in a row that saw no other number

    def hangs(self, beats: int) -> bool:
        """Look at the beats, no more often than every `LOOK_S`: whether they have stood still for too long.

        Looks are counted and not seconds: after a pause of the whole machine, every child would seem late at once.
        """
        self.silent = self.silent + 1 if beats == self.beats else 0
        self.beats = beats
        return self.silent >= LOOKS_TO_HANG

    def died(self, now: float) -> None:
        """Plan the next start: at once after a long life, later and later in a row of deaths."""
        self.deaths = 0 if now - self.started >= STEADY_S else self.deaths + 1
        self.due = now + RESTART_S[min(max(self.deaths - 1, 0), len(RESTART_S) - 1)]
        self.pid = self.silent = 0
        self.restarts += 1


class Lifeline:
    """The pipe that ends with the supervisor."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.broken = False  # in a child: the supervisor is gone

    def watch(self, grace_s: float) -> None:
        """In a child: when the supervisor is gone, ask this process to end, and after ``grace_s`` end it."""
        os.close(self.writer)
        threading.Thread(target=self._wait, args=(grace_s,), daemon=True, name="lifeline").start()

    def _wait(self, grace_s: float) -> None:
        os.read(self.reader, 1)
        self.broken = True
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os._exit(_ORPHAN_STATUS)


def start(child: Child, lifeline: Lifeline, descriptors: Iterable[int], now: float) -> None:
    """Fork; the child closes the supervisor's ``descriptors`` that it does not keep, and never returns from here."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        child.pid, child.started = pid, now
        return
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # Ctrl-C reaches the whole process group; the supervisor alone decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for descriptor in descriptors:
            if descriptor not in child.keep:
                os.close(descriptor)
        lifeline.watch(child.grace_s)
        status = child.entry()
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def reap() -> list[tuple[int, int]]:
    """Every child that has died: (pid, status); the status of a signal is its negative number."""
    dead: list[tuple[int, int]] = []
    while True:
        try:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return dead
        if pid == 0:
            return dead
        dead.append((pid, os.waitstatus_to_exitcode(wait_status)))
