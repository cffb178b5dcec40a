"""What happens beside the traffic of a run: faults, moves, an evacuation. Each leaves events on the run's time axis."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from loadtest.history.clients import recorded
from loadtest.lab.faults import Broken, descendants
from loadtest.lab.local import LocalSystem
from loadtest.lab.plan import Tenant
from loadtest.lab.result import Event, Phase, Role
from loadtest.lab.scenario import Scenario, ScenarioKind
from loadtest.operator import LabError, Move
from loadtest.record import Latency

MOVE_TIMEOUT_S: Final = 120.0
WATCHED: Final = 2  # of the tenants that move: a register of each is read and written all the while
WATCHERS: Final = 4
WATCH_PAUSE_S: Final = 0.4
Now = Callable[[], float]


class Act(Protocol):
    """Something that is done during the phase `load`."""

    @property
    def hit(self) -> list[str]:
        """The cells that it is aimed at."""

    async def perform(self, phase: Phase, now: Now) -> tuple[list[Event], dict[str, float]]:
        """Do it; ``now`` is in seconds of the run. Returns what happened, and figures by name with their units."""


class Nothing:
    """Only traffic. Aggressors act by themselves; their begin and end are events."""

    def __init__(self, hit: Sequence[str], words: str) -> None:
        self.hit = list(hit)
        self._words = words

    async def perform(self, phase: Phase, now: Now) -> tuple[list[Event], dict[str, float]]:
        """Nothing to do."""
        if not self._words:
            return [], {}
        target = ", ".join(self.hit)
        begin = Event(at=phase.begin, name="aggressors-start", target=target, words=f"{self._words} begin")
        return [begin, Event(at=phase.end, name="aggressors-stop", target=target, words=f"{self._words} end")], {}


class Breaking:
    """A fault from the begin of the phase to its end."""

    def __init__(self, broken: Broken, action: str, target: str) -> None:
        self._broken = broken
        self._action = action
        self._target = target

    @property
    def hit(self) -> list[str]:
        """The cells that it is aimed at."""
        return self._broken.hit

    async def perform(self, phase: Phase, now: Now) -> tuple[list[Event], dict[str, float]]:
        """Break, wait, mend; mended in any case."""
        await wait_until(phase.begin, now)
        try:
            at = now()
            await self._broken.strike()
            events = [Event(at=at, name=self._action, target=self._target, words=f"{self._action} {self._target}")]
            await wait_until(phase.end, now)
        finally:
            mending = now()
            await self._broken.mend()
        took = now() - mending
        words = f"{self._target} is back after {took:.1f} s"
        events.append(
            Event(at=mending, name="mend", target=self._target, words=f"{self._target} is being brought back")
        )
        events.append(Event(at=now(), name="mended", target=self._target, words=words))
        return events, {"mend_s": took}


class Moving:
    """Tenants of the first cell move to others, ``at_once`` at a time, from the begin of the phase on.

    Registers of some of them are read and written by a few clients meanwhile; their history goes to the books.
    """

    def __init__(self, system: LocalSystem, tenants: Sequence[Tenant], at_once: int, what: str) -> None:
        self._system = system
        self._tenants = tenants
        self._at_once = at_once
        self._what = what
        self.hit = [system.cells[0]]

    async def perform(self, phase: Phase, now: Now) -> tuple[list[Event], dict[str, float]]:
        """Every one of them, to the end, however long it takes."""
        routers = {at.name: (at.host, at.port) for at in self._system.targets}
        watched = [tenant.account for tenant in self._tenants[:WATCHED]]
        async with recorded(routers, watched, clients=WATCHERS, pause_s=WATCH_PAUSE_S) as history:
            found = await self._move(phase, now)
            await wait_until(phase.end, now)
        self._system.written.histories.append(history)
        return found

    async def _move(self, phase: Phase, now: Now) -> tuple[list[Event], dict[str, float]]:
        await wait_until(phase.begin, now)
        began, source = now(), self._system.cells[0]
        gate = asyncio.Semaphore(self._at_once)
        events: list[Event] = []
        others = self._system.cells[1:]

        async def one(place: int, tenant: Tenant) -> Move:
            async with gate:
                to, slug = others[place % len(others)], tenant.account.slug
                events.append(Event(at=now(), name="move-start", target=slug, words=f"{slug} moves to {to}"))
                move = await self._system.control_plane.start_move(tenant.account.tenant, to)
                move = await self._system.control_plane.wait_move(move, timeout_s=MOVE_TIMEOUT_S)
                words = f"the move of {slug} is {move.state}{f' ({move.reason})' if move.reason else ''}"
                events.append(Event(at=now(), name="move-end", target=slug, words=words))
                return move

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(place, tenant)) for place, tenant in enumerate(self._tenants)]
        moves = [task.result() for task in tasks]
        events.append(Event(at=began, name=f"{self._what}-start", target=source, words=f"{self._what} begins"))
        events.append(Event(at=now(), name=f"{self._what}-end", target=source, words=f"{self._what} has ended"))
        return events, _of_moves(moves, now() - began)


class Soaking:
    """A long run: does anything grow, and does anything die?"""

    def __init__(self, system: LocalSystem) -> None:
        self._system = system
        self.hit: list[str] = []

    async def perform(self, phase: Phase, now: Now) -> tuple[list[Event], dict[str, float]]:
        """Memory of every process with its children as the phase begins and ends; those that are not the same then."""
        await wait_until(phase.begin, now)
        before = self._pids()
        measures = {f"{name}_rss_mb_begin": resident_mb(pid) for name, pid in before.items()}
        await wait_until(phase.end, now)
        after = self._pids()
        measures |= {f"{name}_rss_mb_end": resident_mb(pid) for name, pid in after.items()}
        gone = [name for name, pid in before.items() if after.get(name) != pid]
        words = "it is not the process any more that it was"
        return [Event(at=now(), name="died", target=name, words=words) for name in gone], measures

    def _pids(self) -> dict[str, int]:
        runner = self._system.fleet.runner
        found = {name: runner.process(name) for name in self._system.fleet.names}
        return {name: process.pid for name, process in found.items() if process is not None and process.alive}


def resident_mb(pid: int, proc: Path = Path("/proc")) -> float:
    """Resident memory of a process and its children, shared pages counted once for each; 0 where it is not told."""
    total = 0
    for each in (pid, *descendants(pid, proc)):
        with contextlib.suppress(OSError, StopIteration, ValueError):
            lines = (proc / str(each) / "status").read_text().splitlines()
            total += int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))
    return total / 1024


def _of_moves(moves: Sequence[Move], took: float) -> dict[str, float]:
    holds = Latency()
    for move in moves:
        if move.hold_ms is not None:
            holds.add(move.hold_ms / 1000)
    return {
        "moves": float(len(moves)),
        "moves_done": float(sum(move.state == "done" for move in moves)),
        "moves_s": took,
        "hold_ms_p50": holds.percentile_ms(50),
        "hold_ms_max": holds.max_ms,
    }


async def wait_until(second: float, now: Now) -> None:
    """Wait for a second of the run."""
    await asyncio.sleep(max(0.0, second - now()))


def act_of(scenario: Scenario, fault: str, system: LocalSystem, tenants: Sequence[Tenant]) -> Act:
    """What a case of a scenario does to a fleet beside its traffic, its aggressors left out."""
    for each in scenario.faults or []:
        if each.words == fault:
            return Breaking(Broken(system.fleet, each), each.action, each.target)
    if scenario.kind is ScenarioKind.SOAK:
        return Soaking(system)
    home = [t for t in tenants if t.cell == system.cells[0] and t.role is Role.VICTIM]
    if not home and (scenario.moves is not None or scenario.evacuation is not None):
        raise LabError(f"nobody lives in {system.cells[0]}, so nobody can leave it")
    if scenario.moves is not None:
        return Moving(system, home[: scenario.moves.count], 1, "moves")
    if scenario.evacuation is not None:
        return Moving(system, home, scenario.evacuation.at_once, "evacuation")
    raise LabError(f"{scenario.name} does nothing to a fleet")
