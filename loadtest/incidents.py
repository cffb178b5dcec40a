"""What happens to the fleet while the traffic runs: a move, whatever follows it, a killed router worker, a control
plane that goes away."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from loadtest.operator import ControlPlane, LabError, Move
from loadtest.record import Kill

MOVE_TIMEOUT_S = 60.0
CONTROL_PLANE = "control-plane"
_ESTABLISHED = "01"


class Machine(Protocol):
    """The part of a fleet on this machine that incidents act on."""

    async def stop(self, name: str) -> None:
        """Stop the process of that name; it has ended when this returns."""

    async def revive(self, name: str) -> None:
        """Start a stopped process again; it is ready when this returns."""


@dataclass(frozen=True, slots=True)
class Timetable:
    """When what happens, in seconds since the start of the traffic."""

    move: float
    kill: float
    control_plane_off: float
    control_plane_on: float

    @classmethod
    def over(cls, seconds: float) -> "Timetable":
        """Spread over a run of ``seconds``, with room after the last one to see its effects."""
        return cls(seconds * 0.12, seconds * 0.45, seconds * 0.6, seconds * 0.75)


@dataclass(frozen=True, slots=True)
class Happened:
    """What was done, and when. Seconds since the start of the traffic."""

    move: Move
    moving: tuple[float, float]
    kill: Kill
    away_from: float
    away_until: float


class Incidents:
    """Carries the timetable out. ``now`` is the driver's clock, ``say`` tells people."""

    def __init__(
        self, machine: Machine, control_plane: ControlPlane, now: Callable[[], float], say: Callable[[str], None]
    ) -> None:
        self._machine = machine
        self._control_plane = control_plane
        self._now = now
        self._say = say

    async def run(
        self, when: Timetable, tenant: str, victim: "Victim", after_move: Callable[[], Awaitable[None]]
    ) -> Happened:
        """All of them; returns when the control plane is back. ``victim`` loses a worker.

        The control plane goes away only when ``after_move`` has returned, which may need it.
        """
        await self._at(when.move)
        async with asyncio.TaskGroup() as group:
            moving = group.create_task(self._move(tenant, after_move))
            await self._at(when.kill)
            kill = self._kill_worker(victim)
            await self._at(when.control_plane_off)
            move, period = await moving
            away_from = self._now()
            self._say("stopping the control plane: the data plane must not notice")
            await self._machine.stop(CONTROL_PLANE)
            await self._at(away_from + when.control_plane_on - when.control_plane_off)
            self._say("starting the control plane again")
            await self._machine.revive(CONTROL_PLANE)
            away_until = self._now()
            self._say(f"the control plane is back after {away_until - away_from:.1f} s")
        return Happened(move, period, kill, away_from, away_until)

    async def _at(self, second: float) -> None:
        await asyncio.sleep(max(0.0, second - self._now()))

    async def _move(self, name: str, then: Callable[[], Awaitable[None]]) -> tuple[Move, tuple[float, float]]:
        tenant = await self._control_plane.tenant(name)
        target = next(cell for cell in await self._control_plane.cells() if cell != tenant.cell)
        began = self._now()
        move = await self._control_plane.start_move(tenant.id, target)
        self._say(f"moving the busiest tenant, {tenant.slug}, from {tenant.cell} to {target} under its own writes")
        move = await self._control_plane.wait_move(move, timeout_s=MOVE_TIMEOUT_S)
        hold = f"{move.hold_ms:.0f} ms" if move.hold_ms is not None else "no time"
        ended = self._now()
        self._say(f"the move is {move.state}: {move.rows} rows, requests were held for {hold}")
        await then()
        return move, (began, ended)

    def _kill_worker(self, victim: "Victim") -> Kill:
        pids = worker_pids(victim.log)
        if not pids:
            raise LabError(f"the log of {victim.router} names no worker to kill: {victim.log}")
        pid = pids[0]
        os.kill(pid, signal.SIGSTOP)  # it takes no connection between our look at them and its death
        ports = peers(pid, victim.port)
        at = self._now()
        os.kill(pid, signal.SIGKILL)
        known = "" if ports is None else f", which had {len(ports)} of our connections"
        self._say(f"killed worker {pid} of {victim.router} with SIGKILL{known}")
        return Kill(victim.router, at, pid, ports)


@dataclass(frozen=True, slots=True)
class Victim:
    """The router that loses a worker: its name, its port, and the log in which its supervisor names its children."""

    router: str
    port: int
    log: Path


class _Started(msgspec.Struct):
    event: str = ""
    process: str = ""
    pid: int = 0


def worker_pids(log: Path) -> list[int]:
    """The workers of a router that run now, by its supervisor's log: the last one started in each place."""
    pids: dict[str, int] = {}
    for line in log.read_bytes().splitlines():
        try:
            started = msgspec.json.decode(line, type=_Started)
        except msgspec.DecodeError:
            continue
        if started.event == "process_started" and started.process.startswith("worker-"):
            pids[started.process] = started.pid
    return list(pids.values())


def peers(pid: int, port: int, proc: Path = Path("/proc")) -> frozenset[int] | None:
    """The other end's ports of all connections that the process has at ``port``; None where it cannot be known."""
    try:
        links = [str(entry.readlink()) for entry in (proc / str(pid) / "fd").iterdir()]
        table = (proc / str(pid) / "net" / "tcp").read_text().splitlines()[1:]
    except OSError:
        return None
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for fields in map(str.split, table):
        local, remote, state, inode = fields[1], fields[2], fields[3], fields[9]
        if state == _ESTABLISHED and inode in inodes and int(local.rpartition(":")[2], 16) == port:
            found.add(int(remote.rpartition(":")[2], 16))
    return frozenset(found)
