"""``python -m infra.local.work``: one change of a fleet's cells, asked for on stdin, in a process of its own.

Pulumi's dynamic providers run beside gRPC threads, which no process that starts others may have: a child that is forked
there can die before it runs. It also goes on to its end where the engine is interrupted or killed.
"""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec

from infra.local.errors import LocalFleetError
from infra.local.fleet import Fleet
from infra.local.spec import CHECKOUT, FleetSpec, LocalCellSpec
from infra.local.stamp import Stamps

REFUSED = 2


class Job(msgspec.Struct, frozen=True):
    """What to do to the fleet in the folder ``fleet``, in the name of ``owner``."""

    action: Literal["ensure", "remove"]
    fleet: str
    owner: str
    cell: LocalCellSpec

    def run(self) -> None:
        """Do it in another process and wait for it; `LocalFleetError` with its one line where it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "infra.local.work"],
            input=msgspec.json.encode(self),
            capture_output=True,
            cwd=CHECKOUT,
            start_new_session=True,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise LocalFleetError(lines[-1] if lines else f"the work on {self.cell.name} ended with {done.returncode}")


async def _do(job: Job) -> None:
    fleet = Fleet(FleetSpec(), Path(job.fleet), lambda _words: None)
    fleet.attach()
    stamps = Stamps(fleet, job.owner)
    if job.action == "ensure":
        await stamps.ensure(job.cell)
    else:
        await stamps.remove(job.cell.name)


def main() -> int:
    """The job of stdin; exit status 2 and one line on stderr where it cannot be done."""
    try:
        asyncio.run(_do(msgspec.json.decode(sys.stdin.buffer.read(), type=Job)))
    except (LocalFleetError, OSError) as e:
        sys.stderr.write(f"{e}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
