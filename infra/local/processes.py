"""Child processes that outlive their parent safely: known by pid *and* start time, against the reuse of pids."""

import asyncio
import contextlib
import os
import pwd
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Final

POLL_S: Final = 0.02
KILL_WAIT_S: Final = 5.0
_PROC: Final = Path("/proc")  # Linux; elsewhere `ps` is asked


@dataclass(frozen=True, slots=True)
class RunAs:
    """An account that a process runs under."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> "RunAs | None":
        """The account of that name, or None where the machine has none."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            return None
        return cls(name, entry.pw_uid, entry.pw_gid)


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. ``log`` receives both output streams, appended. ``env`` replaces the environment where given.

    ``stdout`` is a file of mode 0600 that receives standard output instead, because it is an answer or a secret.
    """

    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str] | None = field(default=None, repr=False)
    run_as: RunAs | None = None
    cwd: Path | None = None
    stdout: Path | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for ever: ``started`` is the kernel's start time, which no other process of this pid has."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        """The process that has this pid now; None where there is none, or only a zombie."""
        stat = _stat(pid)
        return None if stat is None or stat[0] == "Z" else cls(pid, stat[1])


class Process:
    """A handle on a process: one that we started, or one found again by its identity."""

    def __init__(self, identity: Identity, popen: "subprocess.Popen[bytes] | None" = None) -> None:
        self.identity = identity
        self._popen = popen

    @classmethod
    def spawn(cls, command: Command) -> "Process":
        """Start ``command`` in a session of its own, so that a Ctrl-C at our terminal is not sent to it."""
        run_as = command.run_as
        account = {} if run_as is None else {"user": run_as.uid, "group": run_as.gid, "extra_groups": ()}
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as files:
            log = files.enter_context(command.log.open("ab"))
            out = log
            if command.stdout is not None:
                command.stdout.touch(mode=0o600)
                out = files.enter_context(command.stdout.open("wb"))
            popen = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=command.env,
                cwd=command.cwd,
                start_new_session=True,
                **account,  # type: ignore[call-overload]
            )
        stat = _stat(popen.pid)
        return cls(Identity(popen.pid, stat[1] if stat else ""), popen)

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its session and process group."""
        return self.identity.pid

    @property
    def alive(self) -> bool:
        """Whether this very process still runs. Reaps it where it was our child."""
        if self._popen is not None and self._popen.poll() is not None:
            return False
        return Identity.of(self.pid) == self.identity

    @property
    def exit_status(self) -> int | None:
        """The status it ended with (negative: the signal); None while it runs or where it was not our child."""
        return None if self._popen is None else self._popen.poll()

    def signal(self, number: Signals) -> bool:
        """Send a signal to this process alone. False where it has ended."""
        if not self.alive:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False

    async def stop(self, *, first: Signals = SIGTERM, grace_s: float = 10.0) -> bool:
        """Ask with ``first``, kill the whole group after ``grace_s``. True where it went by itself."""
        group = _group_is_ours(self.identity)
        self.signal(first)
        went = await self.wait_ended(grace_s)
        if group:  # children that outlived it, or all of them
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, SIGKILL)
        if not went:
            self.signal(SIGKILL)
            await self.wait_ended(KILL_WAIT_S)
        return went

    async def wait_ended(self, timeout_s: float) -> bool:
        """Wait until it has ended, at most ``timeout_s``."""
        until = time.monotonic() + timeout_s
        while self.alive:
            if time.monotonic() > until:
                return False
            await asyncio.sleep(POLL_S)
        return True


def _group_is_ours(identity: Identity) -> bool:
    """Whether the process lives and leads its own group: only then may the group be signalled by its pid."""
    with contextlib.suppress(ProcessLookupError):
        return Identity.of(identity.pid) == identity and os.getpgid(identity.pid) == identity.pid
    return False


def _stat(pid: int) -> tuple[str, str] | None:
    """State letter and start time of a process, or None."""
    if (_PROC / "self" / "stat").exists():
        try:
            text = (_PROC / str(pid) / "stat").read_text()
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        return fields[0], fields[19]
    found = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = found.stdout.strip().partition(" ")
    return (state[:1], started.strip()) if state else None


def marked(variable: str, prefix: str) -> Iterator[Identity]:
    """Every live process whose ``variable`` starts with ``prefix``: finds orphans that no record names (Linux)."""
    if not (_PROC / "self" / "environ").exists():
        return
    needle = f"{variable}={prefix}".encode()
    for folder in _PROC.iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            environ = (folder / "environ").read_bytes()
        except OSError:
            continue
        if any(entry.startswith(needle) for entry in environ.split(b"\0")):
            identity = Identity.of(int(folder.name))
            if identity is not None:
                yield identity
