"""The supervisor: owns the sockets and the processes of one router, and does nothing else.

One listening socket for each worker, handed to the worker and to its replacement: a worker that dies takes only the
requests it had in flight with it, and the connections that wait in its backlog wait for the next one. No event loop,
no thread, no request ever passes here.
"""

import fcntl
import gc
import os
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import structlog

from contracts.names import Field
from router import admin, children, keeper, worker
from router.board import Board, Phase
from router.children import Child, Lifeline
from router.listeners import listen
from router.settings import Settings, SettingsError, WorkerConfig

READY_S: Final = 300.0  # a keeper that has shown no table by then is broken (a million routes take seconds)
KILL_AFTER_S: Final = 2.0  # beyond the drain budget
HELPERS_S: Final = 5.0  # for the keeper and the admin listener to end

_log = structlog.get_logger("router.supervisor")


class Supervisor:
    """One router. `run` returns its exit status."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._temporary = settings.state_dir is None
        self._state = settings.state_dir or Path(tempfile.mkdtemp(prefix="cellwall-router-"))
        self._lock = -1
        self._board = Board.create(settings.workers)
        self._descriptors: set[int] = set()
        self._children: list[Child] = []
        self._stops = 0  # signals that asked for the end
        self._serving = False
        self._reload = False

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, then drain. `SettingsError` where it cannot start."""
        try:
            self._claim_state()
            self._open()
            self._handle_signals()
            children.start(self._keeper, self._lifeline, self._descriptors, self._clock())
            self._await_table()
            if self._stops == 0:
                self._start_others()
                self._watch()
            self._drain()
        finally:
            self._release()
        return 0

    # -- the start ------------------------------------------------------------------------------------------------

    def _claim_state(self) -> None:
        """One router for each folder: two keepers would write over each other."""
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._state / "router.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise SettingsError(f"the state folder {self._state} is in use by another router") from e
        except OSError as e:
            raise SettingsError(f"cannot use the state folder {self._state}: {e.strerror}") from e
        self._descriptors.add(self._lock)
        # A table of an earlier run may show holds that have long ended.
        (self._state / "routes.bin").unlink(missing_ok=True)

    def _open(self) -> None:
        settings = self._settings
        self._admin_socket = listen(settings.admin, 1, 128)[0]
        self._listeners = listen(settings.listen, settings.workers, settings.backlog)
        self._lifeline = Lifeline()
        self._wakes = [_pipe() for _ in range(settings.workers)]
        self._acks, self._ready = _pipe(), _pipe()
        self._signals = _pipe()
        pairs = [*self._wakes, self._acks, self._ready, self._signals]
        self._descriptors |= {fd for pair in pairs for fd in pair}
        self._descriptors |= {sock.fileno() for sock in (self._admin_socket, *self._listeners)}
        self._keeper = self._keeper_child()
        self._admin = self._admin_child()
        self._workers = [self._worker_child(index) for index in range(settings.workers)]
        self._children = [self._keeper, self._admin, *self._workers]

    def _await_table(self) -> None:
        """Wait for the keeper's word. `SettingsError` with its line where it has no table to show."""
        deadline = self._clock() + READY_S
        text = b""
        while not text.endswith(b"\n") and self._stops == 0:
            self._sleep(deadline - self._clock(), self._ready[0])
            text += _read(self._ready[0])
            self._bury()
            if self._keeper.pid == 0:
                text += _read(self._ready[0])
                if not text.endswith(b"\n"):
                    raise SettingsError("the keeper died before it had a table (its last words are above)")
            if self._clock() >= deadline:
                raise SettingsError(f"the keeper had no table after {READY_S:.0f} s")
        if self._stops == 0 and text != b"ok\n":
            raise SettingsError(text.decode("utf-8", "replace").strip())

    def _start_others(self) -> None:
        gc.collect()
        gc.freeze()  # shared pages stay shared: no later collection writes into them
        now = self._clock()
        for child in (*self._workers, self._admin):
            children.start(child, self._lifeline, self._descriptors, now)
            _log.info("process_started", process=child.name, pid=child.pid)
        _log.info(
            "router_started",
            **{Field.ROUTER: self._settings.name},
            listen=_bound(self._listeners[0]),
            admin=_bound(self._admin_socket),
            signed=self._settings.envelope_root is not None,
        )
        if self._settings.envelope_root is None:
            _log.warning("envelope_left_unsigned", **{Field.REASON: "no envelope root is set; cells refuse this"})

    def _keeper_child(self) -> Child:
        settings = self._settings
        token = settings.control_plane_token
        config = keeper.KeeperConfig(
            name=settings.name,
            table_path=self._state / "routes.bin",
            board=self._board,
            wake_fds=[writer for _, writer in self._wakes],
            ack_fd=self._acks[0],
            ready_fd=self._ready[1],
            routes=settings.routes,
            control_plane=settings.control_plane,
            token=token.get_secret_value() if token else "",
            last_good=self._state / "routes.ndjson",
        )

        def entry() -> int:
            status = keeper.run(config)
            if self._lifeline.broken:
                # Workers that still drain keep the table that they have mapped.
                self._remove_temporary()
            return status

        keep = frozenset({*config.wake_fds, config.ack_fd, config.ready_fd})
        return Child("keeper", entry, keep, HELPERS_S)

    def _admin_child(self) -> Child:
        settings = self._settings
        token = settings.admin_token
        config = admin.AdminConfig(
            name=settings.name,
            listen_fd=self._admin_socket.fileno(),
            table_path=self._state / "routes.bin",
            board=self._board,
            token=token.get_secret_value() if token else None,
            trust_tenant_header=settings.trust_tenant_header,
            unknown_tenants_to=settings.unknown_tenants_to,
            front_door=settings.front(),
        )
        return Child("admin", lambda: admin.run(config), frozenset({config.listen_fd}), HELPERS_S)

    def _worker_child(self, index: int) -> Child:
        settings = self._settings
        config = WorkerConfig(
            index=index,
            workers=settings.workers,
            name=settings.name,
            listen_fd=self._listeners[index].fileno(),
            backlog=settings.backlog,
            table_path=self._state / "routes.bin",
            wake_fd=self._wakes[index][0],
            ack_fd=self._acks[1],
            board=self._board,
            envelope_root=settings.root(),
            hint_key=settings.hint_key(),
            trust_tenant_header=settings.trust_tenant_header,
            unknown_tenants_to=settings.unknown_tenants_to,
            front_door=settings.front(),
            budgets=settings.budgets(),
            address_limits=settings.address_limits(),
            connections=settings.connections,
            walls=settings.walls,
        )

        def entry() -> int:
            worker.run(config)
            return 0

        keep = frozenset({config.listen_fd, config.wake_fd, config.ack_fd})
        return Child(f"worker-{index}", entry, keep, settings.drain_s + KILL_AFTER_S, index)

    # -- the life -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Start again what dies, until a signal asks to stop."""
        self._serving = True
        look = self._clock() + children.LOOK_S
        while self._stops == 0:
            now = self._clock()
            if now >= look:
                look = now + children.LOOK_S
                self._kill_hung()
            for child in self._children:
                if child.pid == 0 and child.due <= now:
                    children.start(child, self._lifeline, self._descriptors, now)
                    _log.info("process_started", process=child.name, pid=child.pid, restarts=child.restarts)
            pauses = [child.due - now for child in self._children if child.pid == 0]
            self._sleep(min([*pauses, look - now]), self._ready[0])
            self._bury()
            self._heed_keeper()

    def _kill_hung(self) -> None:
        """A worker whose loop stands still accepts nothing and answers nobody: its death lets another take over."""
        for child in self._workers:
            assert child.index is not None
            slot = self._board.slot(child.index)
            if child.pid and slot.status().phase is not Phase.ABSENT and child.hangs(slot.beats):
                _log.error("process_hung", process=child.name, pid=child.pid, looks=child.silent)
                os.kill(child.pid, signal.SIGKILL)

    def _bury(self) -> None:
        for pid, status in children.reap():
            child = next((c for c in self._children if c.pid == pid), None)
            if child is None:
                continue
            child.died(self._clock())
            if child.index is not None:
                self._board.slot(child.index).wipe()
            if self._stops == 0 and self._serving:
                _log.error("process_died", process=child.name, pid=pid, status=status, deaths=child.deaths)

    def _heed_keeper(self) -> None:
        text = _read(self._ready[0]).decode("utf-8", "replace").strip()
        if text not in ("", "ok"):
            _log.error("table_refused", **{Field.REASON: text})
        if self._reload:
            self._reload = False
            if self._settings.routes is not None and self._keeper.pid:
                os.kill(self._keeper.pid, signal.SIGHUP)

    # -- the end --------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Workers finish what they have within the budget; the keeper and the admin listener outlive them."""
        _log.info("drain_started", budget_s=self._settings.drain_s)
        for child in self._workers:
            assert child.index is not None
            if child.pid:
                self._board.slot(child.index).enter(child.pid, Phase.DRAINING)
        for sock in self._listeners:
            self._descriptors.discard(sock.fileno())
            sock.close()
        left = self._end(self._workers, self._settings.drain_s + KILL_AFTER_S)
        left += self._end([self._admin, self._keeper], HELPERS_S)
        _log.info("router_stopped", killed=left)

    def _end(self, group: list[Child], budget_s: float) -> int:
        """SIGTERM, then SIGKILL for those that are left after the budget or at a second signal. Returns how many."""
        for child in group:
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)
        deadline = self._clock() + budget_s
        while any(child.pid for child in group) and self._clock() < deadline and self._stops < 2:
            self._sleep(deadline - self._clock())
            self._bury()
        left = [child for child in group if child.pid]
        for child in left:
            _log.warning("process_killed", process=child.name, pid=child.pid)
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            child.pid = 0
        return len(left)

    def _release(self) -> None:
        for child in self._children:
            if child.pid:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        if self._temporary:
            shutil.rmtree(self._state, ignore_errors=True)

    # -- signals --------------------------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        signal.set_wakeup_fd(self._signals[1], warn_on_full_buffer=False)
        for number in children.SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stops += 1
        elif number == signal.SIGHUP:
            self._reload = True

    def _sleep(self, seconds: float, *also: int) -> None:
        """Until a signal comes, ``also`` is readable or the time is over."""
        select.select([self._signals[0], *also], [], [], max(0.0, seconds))
        _read(self._signals[0])


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b""


def _bound(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}"
