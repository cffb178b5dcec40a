"""What a running fleet must not forget: ports, secrets and processes, in one file that only its owner can read."""

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec

from contracts.keys import KEY_BYTES, Purpose, bearer, derive, parse_root, text_of
from infra.local.errors import LocalFleetError
from infra.local.processes import Identity
from infra.local.spec import FleetSpec

VERSION: Final = 1
WAY_OUT: Final = "put it back, move the whole folder away, or remove everything that is left of the fleet (make down)"
_LOCK_POLL_S: Final = 0.05
_REMOVE_TRIES: Final = 100  # so far apart as the polls of the lock


class Stamp(msgspec.Struct, frozen=True):
    """A cell that was added to a running fleet: by whom, and whether that has ended well once."""

    owner: str
    complete: bool = False
    claim: str = ""  # which of those that bear the owner's name; empty in the stamps of earlier versions
    incarnation: str = ""  # of the cell: what was made under another one was another cell


class State(msgspec.Struct):
    """Everything that `Fleet` writes down before it acts on it."""

    spec: FleetSpec
    envelope_root: str
    fleet_root: str
    router_admin_token: str
    passwords: dict[str, str] = {}
    ports: dict[str, int] = {}
    processes: dict[str, Identity] = {}
    operator_key: str = ""
    router_keys: dict[str, str] = {}
    stamps: dict[str, Stamp] = {}  # the cells that the fleet did not begin with
    filled: set[str] = set()  # the PostgreSQL servers whose data folder was made: it is never made twice
    complete: bool = False  # an `up` has ended well once: from then on nothing is removed when a repair fails
    version: int = VERSION

    @classmethod
    def fresh(cls, spec: FleetSpec) -> "State":
        """A state with new secrets and nothing running."""
        return cls(
            spec=spec,
            envelope_root=text_of(secrets.token_bytes(KEY_BYTES)),
            fleet_root=text_of(secrets.token_bytes(KEY_BYTES)),
            router_admin_token=secrets.token_urlsafe(24),
        )

    def password(self, name: str) -> str:
        """The password of that name, made on first use."""
        return self.passwords.setdefault(name, secrets.token_urlsafe(18))

    def envelope_key(self, cell: str) -> str:
        """What a cell verifies envelopes with."""
        return text_of(derive(parse_root(self.envelope_root), Purpose.ENVELOPE, cell))

    def transfer_token(self, cell: str) -> str:
        """What the control plane shows to the cell's internal listener."""
        return bearer(parse_root(self.fleet_root), Purpose.TRANSFER, cell)

    def agent_token(self, cell: str) -> str:
        """What the cell shows to the control plane."""
        return bearer(parse_root(self.fleet_root), Purpose.AGENT, cell)

    def secrets_key(self, cell: str) -> str:
        """What the cell wraps its tenants' keys with: derived from nothing, made on first use."""
        return self.passwords.setdefault(f"{cell}.secrets", text_of(secrets.token_bytes(KEY_BYTES)))

    def gateway_token(self) -> str:
        """What opens the sandbox gateway, made on first use."""
        return self.passwords.setdefault("gateway", secrets.token_urlsafe(32))

    def route_hint_key(self) -> str:
        """What routers verify the route in a 421 with."""
        return text_of(derive(parse_root(self.fleet_root), Purpose.ROUTE_HINT, "fleet"))


class Folder:
    """The folder of a fleet: ``fleet.json``, ``data/``, ``logs/`` and the lock that serialises commands."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def data(self) -> Path:
        """Data folders of the servers; the database account passes through."""
        return self.path / "data"

    @property
    def logs(self) -> Path:
        """One log file a process."""
        return self.path / "logs"

    @property
    def file(self) -> Path:
        """The state, with secrets: mode 0600."""
        return self.path / "fleet.json"

    @property
    def lock(self) -> Path:
        """The file whose lock serialises commands; it also says that the folder is a fleet's."""
        return self.path / "lock"

    def make(self) -> None:
        """Create the folders. `LocalFleetError` where the place is somebody else's, or holds something else."""
        self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
        entry = self.path.lstat()
        if stat.S_ISLNK(entry.st_mode) or entry.st_uid != os.geteuid() or entry.st_mode & 0o022:
            raise LocalFleetError(f"{self.path} is not a folder that only this user can write to; choose another")
        if not self.lock.exists() and any(self.path.iterdir()):
            raise LocalFleetError(f"{self.path} holds something else than a fleet; choose another folder")
        self.lock.touch(mode=0o600)
        self.path.chmod(0o711)  # whatever the umask: the database account must pass through
        self.data.mkdir(mode=0o711, exist_ok=True)
        self.data.chmod(0o711)
        self.logs.mkdir(mode=0o700, exist_ok=True)

    def clear(self) -> None:
        """Remove the logs of a start that failed."""
        shutil.rmtree(self.logs, ignore_errors=True)
        self.make()

    def load(self) -> State | None:
        """The state, or None where there is no fleet. `LocalFleetError` where the file is damaged."""
        try:
            raw = self.file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise LocalFleetError(f"{self.file} cannot be read ({e.strerror}); {WAY_OUT}") from e
        try:
            state = msgspec.json.decode(raw, type=State)
        except msgspec.DecodeError as e:
            raise LocalFleetError(f"{self.file} cannot be read ({e}); {WAY_OUT}") from e
        if state.version != VERSION:
            raise LocalFleetError(f"{self.file} has version {state.version}, this program writes {VERSION}; run `down`")
        return state

    def save(self, state: State) -> None:
        """Replace the state file at once: a reader never sees half of it."""
        fresh = self.file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        fresh.replace(self.file)

    def remove(self, *, keep_logs: bool = False) -> None:
        """Remove what a fleet made here, the lock last, and the folder where nothing else is in it.

        With ``keep_logs`` they stay where there are any, to find out what went wrong; the next command clears them.
        """
        self._remove_data()
        for path in (*self.path.glob("*.out"), self.file.with_suffix(".new"), self.file):
            if not path.is_dir():  # else it is nothing that a fleet made
                path.unlink(missing_ok=True)
        if keep_logs and any(self.logs.glob("*.log")):
            return
        shutil.rmtree(self.logs, ignore_errors=True)
        self.lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _remove_data(self) -> None:
        """Remove the data folder; `LocalFleetError` where it comes back. A server that is just ending may still add a
        file behind the deletion's back."""
        for _ in range(_REMOVE_TRIES):
            shutil.rmtree(self.data, ignore_errors=True)
            if not self.data.exists():
                return
            time.sleep(_LOCK_POLL_S)
        raise LocalFleetError(f"{self.data} cannot be removed: something still writes to it, or it is another user's")

    @contextlib.asynccontextmanager
    async def locked(self, waiting: Callable[[], None]) -> AsyncIterator[None]:
        """Hold the fleet's lock; calls ``waiting`` once where another command has it. Dies with the process."""
        told = False
        while True:
            self.make()
            handle = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                while not _try_lock(handle):
                    if not told:
                        waiting()
                        told = True
                    await asyncio.sleep(_LOCK_POLL_S)
                if _same_file(handle, self.lock):  # else the folder was removed while we waited
                    yield
                    return
            finally:
                os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(handle: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(handle).st_ino
    return False
