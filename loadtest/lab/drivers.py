"""The processes of the driver, from the outside: starts them, lets them go at one moment, gathers what they saw."""

import asyncio
import contextlib
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from infra.local.plan import base_environment
from loadtest.lab.job import LENGTH_BYTES, READY, Go, Job, Progress, Report, Tally, send
from loadtest.operator import LabError

LEAD_S: Final = 0.3  # from the word to second 0: every process has heard it by then
END_S: Final = 1.0
CHECKOUT: Final = Path(__file__).resolve().parents[2]
_STDERR_SHOWN: Final = 400


class Crew:
    """Processes that are ready to go."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes
        self._latest: dict[int, Progress] = {}
        self.start = 0.0

    def seconds_in(self) -> float:
        """Seconds of the run, below zero before its start."""
        return time.monotonic() - self.start

    @property
    def progress(self) -> Progress:
        """The sum of what all of them said last."""
        every = list(self._latest.values())
        names = Progress.__struct_fields__
        return Progress(*(sum(getattr(each, name) for each in every) for name in names))

    @property
    def pids(self) -> list[int]:
        """Of all of them, in the order of their jobs."""
        return [process.pid for process in self._processes]

    async def ready(self) -> None:
        """Wait until every one is."""
        for process in self._processes:
            if await _receive(process) != READY:
                raise LabError("a process of the driver speaks another language: is it of this checkout?")

    def go(self) -> None:
        """Fix second 0, a moment from now. Returns at once; `tallies` waits for the end."""
        self.start = time.monotonic() + LEAD_S
        for process in self._processes:
            assert process.stdin is not None
            send(process.stdin.write, msgspec.msgpack.encode(Go(self.start)))

    async def tallies(self) -> list[Tally]:
        """What they saw, when all have ended."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._tally(place, process)) for place, process in enumerate(self._processes)]
        return [task.result() for task in tasks]

    async def _tally(self, place: int, process: Process) -> Tally:
        while True:
            report = msgspec.msgpack.decode(await _receive(process), type=Report)
            if isinstance(report, Tally):
                return report
            self._latest[place] = report


@asynccontextmanager
async def crew(jobs: Sequence[Job]) -> AsyncIterator[Crew]:
    """Processes for these jobs, ready to go; none of them is left when this ends."""
    processes: list[Process] = []
    try:
        for job in jobs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "loadtest.lab.worker",
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                cwd=CHECKOUT,
                env=base_environment(),
                start_new_session=True,
            )
            processes.append(process)
            assert process.stdin is not None
            send(process.stdin.write, msgspec.msgpack.encode(job))
            await process.stdin.drain()
        ready = Crew(processes)
        await ready.ready()
        yield ready
    finally:
        await asyncio.shield(asyncio.gather(*map(_end, processes)))


async def _receive(process: Process) -> bytes:
    assert process.stdout is not None
    try:
        length = await process.stdout.readexactly(LENGTH_BYTES)
        return await process.stdout.readexactly(int.from_bytes(length, "big"))
    except asyncio.IncompleteReadError as e:
        assert process.stderr is not None
        said = (await process.stderr.read())[-_STDERR_SHOWN:].decode("utf-8", "replace").strip()
        last = said.splitlines()[-1] if said else "it said nothing"
        raise LabError(f"a process of the driver has ended before its work was done: {last}") from e


async def _end(process: Process) -> None:
    """One that has told all it saw ends by itself; any other is ended."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), END_S)
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
