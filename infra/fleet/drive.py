"""Runs an action on many stacks: a cap on how many at a time, in the order in which they need each other."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from infra.fleet.plan import StackPlan
from infra.fleet.words import FINE, Action, Ended, Job, Said
from infra.local.spec import CHECKOUT

WORKER: Final = (sys.executable, "-m", "infra.fleet.work")
LINE_MAX: Final = 1 << 20  # bytes; a fault of a big resource is long
ASKED: Final = 2  # interrupts that the engine understands: to cancel, then to end at once
Watch = Callable[[StackPlan, Said], None]


class Drive:
    """One action. ``environ`` is what the CLI runs with; ``logs`` gets a file of the engine's output for each stack."""

    def __init__(
        self,
        action: Action,
        programs: Path,
        logs: Path,
        environ: Mapping[str, str],
        *,
        parallel: int,
        watch: Watch,
        refresh: bool = False,
        worker: Sequence[str] = WORKER,
    ) -> None:
        self._action, self._programs, self._logs, self._environ = action, programs, logs, dict(environ)
        self._slots = asyncio.Semaphore(parallel)
        self._watch, self._refresh, self._worker = watch, refresh, worker
        self._running: list[asyncio.subprocess.Process] = []
        self.interrupts = 0

    async def run(self, plans: Sequence[StackPlan]) -> dict[str, Ended]:
        """How each stack ended, by its key. One that fails stops only those that need it. Never raises for a stack."""
        loop = asyncio.get_running_loop()
        ends = {plan.key: loop.create_future() for plan in plans}
        await asyncio.gather(*(self._one(plan, ends) for plan in plans))
        return {key: end.result() for key, end in ends.items()}

    def interrupt(self) -> None:
        """Start no further stack and ask the engines to cancel; the second time to end at once, then kill them."""
        self.interrupts += 1
        for process in self._running:
            self._signal(process)

    def log(self, plan: StackPlan) -> Path:
        """Where the engine's output of a stack is."""
        return self._logs / f"{plan.project}-{plan.name}.log"

    def _signal(self, process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT if self.interrupts <= ASKED else signal.SIGKILL)

    async def _one(self, plan: StackPlan, ends: "Mapping[str, asyncio.Future[Ended]]") -> None:
        before = {key: await asyncio.shield(ends[key]) for key in plan.after}
        lame = [key for key, end in before.items() if end.result not in FINE]
        if lame:
            ended = Ended("skipped", errors=[f"not begun, because {', '.join(lame)} did not end well"])
        else:
            async with self._slots:
                ended = Ended("skipped", errors=["not begun"]) if self.interrupts else await self._work(plan)
        self._watch(plan, ended)
        ends[plan.key].set_result(ended)

    async def _work(self, plan: StackPlan) -> Ended:
        """In a session of its own, so that a terminal's Ctrl-C reaches it by `interrupt` alone, once."""
        began = time.monotonic()
        folder, log_file = str(plan.folder(self._programs)), str(self.log(plan))
        job = Job(self._action, folder, plan.name, dict(plan.config), log_file, self._refresh)
        self._logs.mkdir(parents=True, exist_ok=True)
        self.log(plan).write_bytes(b"")
        with self.log(plan).open("a") as log:
            process = await asyncio.create_subprocess_exec(
                *self._worker,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                cwd=CHECKOUT, env=self._environ, start_new_session=True, limit=LINE_MAX,
            )  # fmt: skip
        self._running.append(process)
        if self.interrupts:  # it came while the process started
            self._signal(process)
        try:
            ended = await self._listen(plan, process, job)
        finally:
            status = await process.wait()
            self._running.remove(process)
        if ended is None:
            words = f"its process ended with {status}; see {self.log(plan)}"
            ended = Ended("interrupted" if self.interrupts else "failed", errors=[words])
        return msgspec.structs.replace(ended, seconds=time.monotonic() - began)

    async def _listen(self, plan: StackPlan, process: asyncio.subprocess.Process, job: Job) -> Ended | None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        ended = None
        async for line in process.stdout:
            said = msgspec.json.decode(line, type=Said)
            if isinstance(said, Ended):
                ended = said
            else:
                self._watch(plan, said)
        process.stdin.close()
        return ended
