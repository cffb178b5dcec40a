"""``python -m infra.fleet.work``: one `Job` of stdin's first line, done by Pulumi's Automation API; says how on stdout.

The Automation API mixes gRPC threads with starting processes, so each stack has a process of its own. SIGINT to its
process group asks the engine to cancel: what is under way ends, the state is written, and the next action goes on. The
end of stdin means the same: whoever drove this process is gone.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec
from pulumi import automation
from pulumi.automation import CommandError, ConcurrentUpdateError, EngineEvent, LocalWorkspace, Stack

from infra.aws.configuration import NAMESPACE
from infra.fleet.plan import LOCAL
from infra.fleet.reading import Reader, one_line
from infra.fleet.words import FINE, Action, Ended, Job, Result, Said, Step
from infra.local.errors import LocalFleetError
from infra.local.provider import remove
from infra.local.spec import default_folder
from infra.local.stamp import owner

_WELL: Final[dict[Action, Result]] = {
    "up": "changed", "preview": "planned", "drift": "drifted", "destroy": "changed",
}  # fmt: skip
_LOCKED: Final = "another command works on this stack; if one was killed, `pulumi cancel` in {folder} removes its lock"


class Work:
    """One job. ``say`` gets every step and, last, how it ended."""

    def __init__(self, job: Job, say: Callable[[Said], None]) -> None:
        self._job, self._say = job, say
        self._reader = Reader(planning=job.action == "preview")
        self._interrupted = threading.Event()

    def interrupt(self) -> None:
        """The engine was asked to cancel: from now on a failure is an interruption."""
        self._interrupted.set()

    def run(self, log: TextIO) -> None:
        """Do it. Never raises what Pulumi says: that is said in `Ended`. All output of the CLI goes to ``log``."""
        began = time.monotonic()
        try:
            result = self._done(log)
        except (CommandError, automation.errors.InvalidVersionError, LocalFleetError) as e:
            log.write(f"{e}\n")
            if not self._reader.errors:
                self._reader.errors.append(self._reason(e))
            result = "interrupted" if self._interrupted.is_set() else "failed"
        self._say(self._reader.ended(result, time.monotonic() - began))

    def _done(self, log: TextIO) -> Result:
        self._say(Step("starting"))
        if self._job.action != "preview":
            return self._on_stack(log)
        with unchanged(Path(self._job.folder) / f"Pulumi.{self._job.stack}.yaml"):
            return self._on_stack(log)

    def _on_stack(self, log: TextIO) -> Result:
        workspace, name = LocalWorkspace(work_dir=self._job.folder), self._job.stack
        needed, made = self._job.action in ("up", "preview"), False
        try:
            stack = Stack.select(name, workspace)
        except automation.StackNotFoundError:
            if not needed:
                return "pending" if self._job.action == "drift" else "absent"
            stack, made = Stack.create(name, workspace), True
        try:
            if needed and self._job.config:
                stack.set_all_config_json(json.dumps({k: _setting(v) for k, v in self._job.config.items()}))
            if self._interrupted.is_set():  # while no command ran that could have heard of it
                return "interrupted"
            self._act(stack, log)
        finally:
            if made and self._job.action == "preview":
                workspace.remove_stack(name, preserve_config=True)
        if self._job.action == "drift" and not self._reader.holds_something:
            return "pending"
        return _WELL[self._job.action]

    def _act(self, stack: Stack, log: TextIO) -> None:
        def event(happened: EngineEvent) -> None:
            if (step := self._reader.read(happened)) is not None:
                self._say(step)

        def output(line: str) -> None:
            log.write(f"{line}\n")

        match self._job.action:
            case "up":
                stack.up(refresh=self._job.refresh, on_event=event, on_output=output, on_error=output)
            case "preview":
                stack.preview(on_event=event, on_output=output, on_error=output)
            case "drift":
                stack.preview_refresh(on_event=event, on_output=output, on_error=output)
            case "destroy":
                stack.destroy(on_event=event, on_output=output, on_error=output)
                self._forget(stack)

    def _forget(self, stack: Stack) -> None:
        """Remove the stack. The configuration of one on AWS stays: it may hold a root of the fleet's keys.

        Of a cell on this machine whose first `up` failed, the engine knows nothing, but its servers may run.
        """
        project = stack.workspace.project_settings().name
        if project == LOCAL:
            told = stack.get_all_config().get(f"{NAMESPACE}:fleet")
            folder = told.value if told is not None else str(default_folder())
            remove(stack.name, fleet=folder, owner=owner(project, stack.name))
        stack.workspace.remove_stack(stack.name, preserve_config=project != LOCAL)

    def _reason(self, error: Exception) -> str:
        """One line where the engine itself said nothing: the CLI ended before it began."""
        if isinstance(error, ConcurrentUpdateError):
            return _LOCKED.format(folder=self._job.folder)
        if isinstance(error, LocalFleetError):
            return str(error)
        lines = [line for line in str(error).splitlines() if line.strip().removeprefix("stderr: ").startswith("error:")]
        return one_line(lines[0].strip().removeprefix("stderr: ")) if lines else one_line(str(error))


@contextmanager
def unchanged(file: Path) -> Iterator[None]:
    """Whatever happens to the file meanwhile, it is as before afterwards; gone where it was not there."""
    before = file.read_bytes() if file.exists() else None
    try:
        yield
    finally:
        if before is None:
            file.unlink(missing_ok=True)
        elif file.read_bytes() != before:
            file.write_bytes(before)


def main() -> int:
    """The job of stdin; exit status 1 where it did not end well."""
    job = msgspec.json.decode(sys.stdin.readline(), type=Job)
    lock, fine = threading.Lock(), True
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is for the log

    def say(said: Said) -> None:
        nonlocal fine
        if isinstance(said, Ended):
            fine = said.result in FINE
        with lock:
            answers.write(f"{msgspec.json.encode(said).decode()}\n")
            answers.flush()

    work = Work(job, say)
    signal.signal(signal.SIGINT, lambda _number, _frame: work.interrupt())
    threading.Thread(target=_follow, args=(work,), daemon=True).start()
    Path(job.log).parent.mkdir(parents=True, exist_ok=True)
    with Path(job.log).open("a", buffering=1) as log:
        work.run(log)
    return 0 if fine else 1


def _setting(value: Any) -> dict[str, Any]:
    """One value as ``pulumi config set-all --json`` takes it: objects stay objects, which people can edit."""
    if isinstance(value, str):
        return {"value": value, "secret": False}
    return {"value": json.dumps(value), "objectValue": value, "secret": False}


def _follow(work: Work) -> None:
    """Wait for the end of stdin, and ask the engine to cancel then."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    work.interrupt()
    os.killpg(os.getpgid(0), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
