"""Runs scenarios: every case of a scenario so many times, each to a result on disk."""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from loadtest.lab import machine
from loadtest.lab.acts import Act, Nothing, act_of
from loadtest.lab.collect import Collector
from loadtest.lab.drivers import Crew, crew
from loadtest.lab.job import Tally
from loadtest.lab.local import LocalSystem
from loadtest.lab.plan import Drive, Tenant, cells_of, jobs, phases
from loadtest.lab.result import Case, Meta, Phase, PhaseKind, Result, Role
from loadtest.lab.scenario import Scenario, ScenarioKind
from loadtest.lab.system import Need, System, pick
from loadtest.operator import LabError
from loadtest.record import Stale

TELL_EVERY_S: Final = 1.0
_TRAFFIC_ONLY: Final = {ScenarioKind.NOISY, ScenarioKind.FLOOD, ScenarioKind.SOAK, ScenarioKind.RAMP}


@dataclass(frozen=True)
class Asked:
    """What was asked for beside the scenario. ``tell`` is called with what goes on, about once a second."""

    out: Path
    repeat: int
    tell: Callable[[str], None]
    only: str = ""  # part of a case's slug


def need_of(scenario: Scenario, cells: Sequence[str]) -> Need:
    """The tenants that all cases of the scenario need together."""
    aggressors: dict[str, int] = {}
    for case in scenario.cases():
        for cell in cells_of(case, cells)[1]:
            aggressors[cell] = max(aggressors.get(cell, 0), case.count)
    orders = scenario.aggressors.orders if scenario.aggressors else 0
    return Need(scenario.plan, scenario.victims.per_cell, scenario.victims.orders, aggressors, orders)


def require(scenario: Scenario, system: System) -> None:
    """`LabError` where this system cannot do what the scenario asks for."""
    if scenario.kind not in _TRAFFIC_ONLY and not isinstance(system, LocalSystem):
        raise LabError(f"{scenario.kind} breaks or moves things, which needs a fleet of the lab's own: --fleet local")
    wanted = 2 if any(case.where == "other" for case in scenario.cases()) else 1
    if len(system.cells) < wanted:
        raise LabError(
            f"{scenario.name} needs {wanted} cells and {system.target} has {len(system.cells)}: take 'other' out of"
            " aggressors.where, or use a larger fleet"
        )


class Lab:
    """Runs on one system."""

    def __init__(self, system: System, asked: Asked) -> None:
        self._system = system
        self._asked = asked
        self._stale: list[Stale] = []

    async def run(self, scenario: Scenario) -> list[Result]:
        """Every case, as often as asked for; results are on disk as soon as each ends."""
        require(scenario, self._system)
        cases = [case for case in scenario.cases() if self._asked.only in case.slug]
        if not cases:
            known = ", ".join(case.slug for case in scenario.cases())
            raise LabError(f"{scenario.name} has no case {self._asked.only!r}; it has {known}")
        self._asked.tell(f"signing up tenants for {scenario.name}")
        cast = await self._system.cast(need_of(scenario, self._system.cells))
        found: list[Result] = []
        total = len(cases) * self._asked.repeat
        for repeat in range(1, self._asked.repeat + 1):
            for case in cases:
                self._asked.tell(f"run {len(found) + 1} of {total}: {scenario.name}, {case.slug}")
                await self._system.set_walls(case.walls)
                result = await self.one(scenario, case, repeat, cast)
                result.write(self._asked.out / scenario.name / case.slug / str(repeat))
                found.append(result)
        return found

    async def one(self, scenario: Scenario, case: Case, repeat: int, cast: Sequence[Tenant]) -> Result:
        """One case, once."""
        tenants = tenants_of(scenario, case, cast, self._system.cells)
        victims = sum(tenant.role is Role.VICTIM for tenant in tenants)
        plan = phases(scenario, victims)
        load = next(phase for phase in plan if phase.kind is PhaseKind.LOAD)
        act = self._act(scenario, case, tenants)
        attack = (load.begin, load.end) if case.aggressor else None
        drive = self._drive(scenario, case, repeat, scenario.victims.rate, plan[-1].end, attack)
        parts = jobs(scenario, drive, tenants)
        started = datetime.now(UTC)
        async with crew(parts) as ready:
            before = machine.Reading.now(time.monotonic())
            ready.go()
            async with asyncio.TaskGroup() as group:
                acting = group.create_task(act.perform(load, ready.seconds_in))
                driving = group.create_task(ready.tallies())
                await self._watch(ready, plan, driving, acting)
            after = machine.Reading.now(time.monotonic())
        tallies, (events, measures) = driving.result(), acting.result()
        collector = Collector(plan, tenants)
        collector.add(parts, tallies)
        stale = self.keep(tallies)
        books = await self._system.books(tenants, stale)
        meta = self.meta(scenario, case, repeat, started, tenants, act.hit)
        validity = machine.judge(scenario.driver, tallies, before, after)
        return collector.result(meta, events=events, books=books, validity=validity, measures=measures)

    def keep(self, tallies: Sequence[Tally]) -> list[Stale]:
        """Enter what clients were told into the books; returns the stale reads that they saw."""
        written = self._system.written
        for tally in tallies:
            written.acknowledged += tally.acknowledged
            written.unacknowledged |= tally.unacknowledged
        return [seen for tally in tallies for seen in tally.stale]

    def meta(
        self,
        scenario: Scenario,
        case: Case,
        repeat: int,
        started: datetime,
        tenants: Sequence[Tenant],
        hit: Sequence[str],
    ) -> Meta:
        """What was run, where and when."""
        system = self._system
        victims = sum(tenant.role is Role.VICTIM for tenant in tenants)
        return Meta(
            scenario=scenario.name,
            kind=scenario.kind.value,
            case=case,
            repeat=repeat,
            seed=scenario.seed + repeat - 1,
            started=started.isoformat(timespec="seconds"),
            system=system.name,
            target=system.target,
            cells=list(system.cells),
            hit=list(hit),
            victims=victims,
            aggressors=len(tenants) - victims,
            machine=machine.words(),
            cpu_walls=system.cpu_walls,
            software=version("cellwall"),
        )

    def _act(self, scenario: Scenario, case: Case, tenants: Sequence[Tenant]) -> Act:
        if scenario.kind in _TRAFFIC_ONLY:
            hit = cells_of(case, self._system.cells)[1]
            words = f"{case.count} aggressors ({case.aggressor}, {case.times:g} times)" if case.aggressor else ""
            return Nothing(hit, words)
        assert isinstance(self._system, LocalSystem)
        return act_of(scenario, case.fault, self._system, tenants)

    def _drive(
        self,
        scenario: Scenario,
        case: Case,
        repeat: int,
        rate: float,
        end: float,
        attack: tuple[float, float] | None,
    ) -> Drive:
        run = f"lab-{secrets.token_hex(5)}"  # idempotency keys must be new, the schedule must not
        return Drive(run, scenario.seed + repeat - 1, self._system.targets, rate, end, attack, case)

    async def _watch(
        self, ready: Crew, plan: Sequence[Phase], driving: "asyncio.Task[list[Tally]]", acting: "asyncio.Task[object]"
    ) -> None:
        end = plan[-1].end
        while not (driving.done() and acting.done()):
            await asyncio.wait([driving, acting], timeout=TELL_EVERY_S, return_when=asyncio.FIRST_EXCEPTION)
            at, seen = ready.seconds_in(), ready.progress
            phase = next((phase.name for phase in plan if phase.begin <= at < phase.end), "end")
            left = max(0.0, end - at)
            self._asked.tell(
                f"  {max(at, 0):.0f} of {end:.0f} s, {phase} ({left:.0f} s left): {seen.sent} sent, {seen.succeeded}"
                f" answered, {seen.refused} refused, {seen.failed} failed"
            )
            if any(task.done() and task.exception() for task in (driving, acting)):
                return


def tenants_of(scenario: Scenario, case: Case, cast: Sequence[Tenant], cells: Sequence[str]) -> list[Tenant]:
    """Who takes part in a case."""
    victims, aggressors = cells_of(case, cells)
    counts: Mapping[str, int] = dict.fromkeys(victims, scenario.victims.per_cell)
    return pick(cast, counts, dict.fromkeys(aggressors, case.count))
