"""``python -m infra.local.work``: one change of a fleet's cells, asked for on stdin's first line, in its own process.

Pulumi's dynamic providers run beside gRPC threads, which no process that starts others may have: a child that is forked
there can die before it runs.

The work is cancelled by SIGTERM, SIGHUP and SIGINT, for which last it joins the process group that a terminal's Ctrl-C
reaches, and, where the job is a line with its end, by the end of stdin: then nobody waits for it any more. What runs by
then stays; the next `pulumi up` goes on.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal

import msgspec

from infra.local.commandline import INTERRUPTED
from infra.local.errors import LocalFleetError
from infra.local.fleet import Fleet
from infra.local.spec import CHECKOUT, FleetSpec, LocalCellSpec
from infra.local.stamp import Stamps

REFUSED = 2
_INTERRUPTED = "interrupted; the next `up` goes on"


class Job(msgspec.Struct, frozen=True):
    """What to do to the fleet in the folder ``fleet``, in the name of ``owner`` and its ``claim``.

    ``incarnation`` is the one that the cell has from now on (ensure), or the only one that is removed; None: any.
    """

    action: Literal["ensure", "remove"]
    fleet: str
    owner: str
    cell: LocalCellSpec
    claim: str = ""
    incarnation: str | None = None

    def run(self) -> None:
        """Do it in another process and wait for it; `LocalFleetError` with its one line where it fails."""
        with subprocess.Popen(
            [sys.executable, "-m", "infra.local.work"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            cwd=CHECKOUT, process_group=_group_of_caller(), bufsize=0,  # nothing is left for its end to flush
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stderr is not None
            with contextlib.suppress(BrokenPipeError):  # it says why on stderr
                process.stdin.write(msgspec.json.encode(self) + b"\n")
            lines = process.stderr.read().decode(errors="replace").strip().splitlines()
            status = process.wait()
        if status == INTERRUPTED:
            raise LocalFleetError(_INTERRUPTED)
        if status < 0:
            name = signal.Signals(-status).name
            raise LocalFleetError(f"the work on {self.cell.name} was ended by {name}; repeat the command to go on")
        if status != 0:
            raise LocalFleetError(lines[-1] if lines else f"the work on {self.cell.name} ended with {status}")


def _group_of_caller() -> int:
    """The process group of the command that the user began: the engine gives its plugins groups of their own.

    0, a new group, where it cannot be found out, or where it is in another session.
    """
    try:
        pid, own = os.getpid(), os.getpgrp()
        while os.getpgid(pid) == own:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return os.getpgid(pid) if os.getsid(pid) == os.getsid(0) else 0
    except OSError:
        return 0


async def _cancellable(job: Job, *, awaited: bool) -> None:
    """`_do`, until a signal, or until nobody waits for it any more."""
    task, loop = asyncio.ensure_future(_do(job)), asyncio.get_running_loop()

    def once() -> None:
        if not task.cancelling():  # the cleaning up is not disturbed
            task.cancel()

    def follow() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        with contextlib.suppress(RuntimeError):  # the loop is closed: the work has ended
            loop.call_soon_threadsafe(once)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, once)
    if awaited:
        threading.Thread(target=follow, daemon=True).start()
    await task


async def _do(job: Job) -> None:
    fleet = Fleet(FleetSpec(), Path(job.fleet), lambda _words: None)
    fleet.attach()
    stamps = Stamps(fleet, job.owner, job.claim)
    if job.action == "ensure":
        await stamps.ensure(job.cell, incarnation=job.incarnation)
    else:
        await stamps.remove(job.cell.name, incarnation=job.incarnation)


def main() -> int:
    """The job of stdin; exit status 2 and one line on stderr where it cannot be done."""
    try:
        line = sys.stdin.buffer.readline()
        job = msgspec.json.decode(line, type=Job)
        asyncio.run(_cancellable(job, awaited=line.endswith(b"\n")))
    except asyncio.CancelledError:
        return INTERRUPTED
    except msgspec.DecodeError as e:
        sys.stderr.write(f"the first line of stdin is no job ({e}); run `pulumi up`, which sends one\n")
        return REFUSED
    except (LocalFleetError, OSError) as e:
        sys.stderr.write(f"{e}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
