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

import msgspec

from loadtest.lab import machine
from loadtest.lab.acts import Act, Nothing, act_of
from loadtest.lab.bisection import Bisection
from loadtest.lab.collect import Collector
from loadtest.lab.drivers import Crew, crew
from loadtest.lab.job import Job, Progress, Tally
from loadtest.lab.local import LocalSystem
from loadtest.lab.plan import Drive, Tenant, cells_of, jobs, phases
from loadtest.lab.quiet import WITHIN_S, quiet
from loadtest.lab.result import FILE, Case, Counts, Event, Meta, Phase, PhaseKind, Result, Role
from loadtest.lab.scenario import Scenario, ScenarioKind
from loadtest.lab.system import Need, System, pick
from loadtest.operator import AskedError, LabError
from loadtest.record import Stale

WATCH_EVERY_S: Final = 1.0
_TRAFFIC_ONLY: Final = {ScenarioKind.NOISY, ScenarioKind.FLOOD, ScenarioKind.SOAK, ScenarioKind.RAMP}


@dataclass(frozen=True)
class Moment:
    """How far a run is, about once a second. Seconds are of its traffic; ``eta_s`` is until the end of the scenario."""

    scenario: str
    case: str
    run: int  # from 1
    runs: int
    phase: str
    second: float
    seconds: float
    eta_s: float
    seen: Progress

    def words(self) -> str:
        """In one line."""
        seen = self.seen
        return (
            f"run {self.run} of {self.runs}, {self.phase}, {self.second:.0f} of {self.seconds:.0f} s: {seen.sent} sent,"
            f" {seen.succeeded} answered, {seen.refused} refused, {seen.failed} failed; about {self.eta_s:.0f} s to go"
        )


@dataclass(frozen=True)
class Asked:
    """What was asked for beside the scenario. ``say`` hears of steps, ``watch`` of every second."""

    out: Path
    repeat: int
    say: Callable[[str], None]
    watch: Callable[[Moment], None] = lambda _: None
    only: str = ""  # part of a case's slug
    resume: bool = False  # keep the valid results that are there, and do what is missing
    time_left: Callable[[], bool] = lambda: True  # whether one more run may begin
    rest_s: float = WITHIN_S  # how long a run waits until the run before it has left nothing to do


@dataclass(frozen=True)
class Planned:
    """One run that was asked for, and its result where that is kept from before."""

    case: Case
    repeat: int
    folder: Path
    kept: Result | None


def planned(scenario: Scenario, asked: Asked) -> list[Planned]:
    """The runs in their order: every case once, then every case again. `AskedError` where no case was meant."""
    cases = [case for case in scenario.cases() if asked.only in case.slug]
    if not cases:
        known = ", ".join(case.slug for case in scenario.cases())
        raise AskedError(f"{scenario.name} has no case {asked.only!r}; it has {known}")
    found = []
    for repeat in range(1, asked.repeat + 1):
        for case in cases:
            folder = asked.out / scenario.name / case.slug / str(repeat)
            found.append(Planned(case, repeat, folder, _kept(folder) if asked.resume else None))
    return found


def _kept(folder: Path) -> Result | None:
    if not (folder / FILE).exists():
        return None
    result = Result.read(folder)
    return result if result.validity.valid else None


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


@dataclass(frozen=True)
class Seen:
    """What came of one stretch of traffic."""

    parts: list[Job]
    tallies: list[Tally]
    events: list[Event]
    measures: dict[str, float]
    before: machine.Reading
    after: machine.Reading


class Lab:
    """Runs on one system."""

    def __init__(self, system: System, asked: Asked) -> None:
        self.system = system
        self._asked = asked
        self._run = self._runs = 0
        self._took = Latest()

    async def run(self, scenario: Scenario) -> list[Result]:
        """Every case, as often as asked for; results are on disk as soon as each ends."""
        require(scenario, self.system)
        runs = planned(scenario, self._asked)
        found = [each.kept for each in runs if each.kept is not None]
        missing = [each for each in runs if each.kept is None]
        self._run, self._runs = len(found), len(runs)
        if missing:
            self._asked.say(f"signing up tenants for {scenario.name}")
            await self.system.cast(need_of(scenario, self.system.cells))
        for each in missing:
            if not self._asked.time_left():
                break
            self._run += 1
            self._asked.say(f"run {self._run} of {self._runs}: {scenario.name}, {each.case.slug}")
            began = time.monotonic()
            found.append(await self._one(scenario, each))
            self._took.seconds = time.monotonic() - began
        return found

    async def _one(self, scenario: Scenario, asked: Planned) -> Result:
        await self.system.set_walls(asked.case.walls)
        cast = await self.system.cast(need_of(scenario, self.system.cells))  # where they live by now
        one = ramp if scenario.kind is ScenarioKind.RAMP else single
        restless = await quiet(self.system.targets[0], cast, self._asked.rest_s)
        if restless:
            self._asked.say(f"{restless}; the run begins all the same, and says so in its result")
        result = await one(self, scenario, asked.case, asked.repeat, cast)
        if restless:
            result.events.insert(0, Event(at=0.0, name="not-quiet", target="", words=restless))
        result.write(asked.folder)
        return result

    async def traffic(
        self, scenario: Scenario, drive: Drive, plan: Sequence[Phase], act: Act, tenants: Sequence[Tenant]
    ) -> Seen:
        """One stretch of traffic, with what is done beside it; what clients were told is entered into the books."""
        parts = jobs(scenario, drive, tenants)
        load = next(phase for phase in plan if phase.kind is PhaseKind.LOAD)
        async with crew(parts) as ready:
            before = machine.Reading.now(time.monotonic())
            ready.go()
            async with asyncio.TaskGroup() as group:
                acting = group.create_task(act.perform(load, ready.seconds_in))
                driving = group.create_task(ready.tallies())
                watching = group.create_task(self._watch(ready, scenario, drive.case, plan))
                await asyncio.wait([acting, driving])
                watching.cancel()
            after = machine.Reading.now(time.monotonic())
        tallies, (events, measures) = driving.result(), acting.result()
        for tally in tallies:
            self.system.written.acknowledged += tally.acknowledged
            self.system.written.unacknowledged |= tally.unacknowledged
        return Seen(parts, tallies, events, measures, before, after)

    def drive(self, case: Case, *, seed: int, rate: float, end: float, attack: tuple[float, float] | None) -> Drive:
        """Idempotency keys have to be new with every run; the schedule must not."""
        return Drive(f"lab-{secrets.token_hex(5)}", seed, self.system.targets, rate, end, attack, case)

    def act(self, scenario: Scenario, case: Case, tenants: Sequence[Tenant]) -> Act:
        """What is done beside the traffic."""
        soaking = scenario.kind is ScenarioKind.SOAK and isinstance(self.system, LocalSystem)
        if scenario.kind in _TRAFFIC_ONLY and not soaking:
            hit = cells_of(case, self.system.cells)[1]
            words = f"{case.count} aggressors ({case.aggressor}, {case.times:g} times)" if case.aggressor else ""
            return Nothing(hit, words)
        assert isinstance(self.system, LocalSystem)
        return act_of(scenario, case.fault, self.system, tenants)

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
        system = self.system
        victims = sum(tenant.role is Role.VICTIM for tenant in tenants)
        return Meta(
            scenario=scenario.name,
            kind=scenario.kind.value,
            case=case,
            repeat=repeat,
            seed=seed_of(scenario, repeat),
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

    async def _watch(self, ready: Crew, scenario: Scenario, case: Case, plan: Sequence[Phase]) -> None:
        end = plan[-1].end
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            at = min(max(ready.seconds_in(), 0.0), end)
            phase = next((phase.name for phase in plan if phase.begin <= at < phase.end), "the last answers")
            later = (self._runs - self._run) * (self._took.seconds or end)
            moment = Moment(
                scenario.name, case.slug, self._run, self._runs, phase, at, end, end - at + later, ready.progress
            )
            self._asked.watch(moment)


@dataclass
class Latest:
    """How long the last run took, books and all; 0 before there was one."""

    seconds: float = 0.0


def seed_of(scenario: Scenario, repeat: int) -> int:
    """Each repeat has a schedule of its own, the same in every case."""
    return scenario.seed + repeat - 1


async def single(lab: Lab, scenario: Scenario, case: Case, repeat: int, cast: Sequence[Tenant]) -> Result:
    """One case, once: its phases one after the other in one stretch of traffic."""
    tenants = tenants_of(scenario, case, cast, lab.system.cells)
    plan = phases(scenario, sum(tenant.role is Role.VICTIM for tenant in tenants))
    load = next(phase for phase in plan if phase.kind is PhaseKind.LOAD)
    act, started = lab.act(scenario, case, tenants), datetime.now(UTC)
    attack = (load.begin, load.end) if case.aggressor else None
    drive = lab.drive(case, seed=seed_of(scenario, repeat), rate=scenario.victims.rate, end=plan[-1].end, attack=attack)
    seen = await lab.traffic(scenario, drive, plan, act, tenants)
    collector = Collector(plan, tenants)
    collector.add(seen.parts, seen.tallies)
    return collector.result(
        lab.meta(scenario, case, repeat, started, tenants, act.hit),
        events=seen.events,
        books=await lab.system.books(tenants, stale_of(seen.tallies)),
        validity=machine.judge(scenario.driver, seen.tallies, seen.before, seen.after),
        measures=seen.measures,
    )


async def ramp(lab: Lab, scenario: Scenario, case: Case, repeat: int, cast: Sequence[Tenant]) -> Result:
    """Bisection: each step is a stretch of traffic of its own, and a phase of the one result.

    A rate at which the driver did not keep its schedule counts as too high, with an event that says why. Where the knee
    lies right below such a one, ``driver_limited`` is 1: what was found is the end of the instrument. The run is as
    valid as its step at the knee.
    """
    limits = scenario.ramp
    assert limits is not None
    tenants = tenants_of(scenario, case, cast, lab.system.cells)
    search, started = Bisection(limits.low, limits.high, limits.precision), datetime.now(UTC)
    steps: list[tuple[list[Phase], Seen]] = []
    beyond: set[float] = set()
    knee: Seen | None = None
    events: list[Event] = []
    measures: dict[str, float] = {}
    offset = 0.0
    while (rate := search.next()) is not None:
        plan = step_phases(scenario, f"step-{len(steps) + 1}", rate)
        drive = lab.drive(case, seed=seed_of(scenario, repeat), rate=rate / len(tenants), end=plan[-1].end, attack=None)
        seen = await lab.traffic(scenario, drive, plan, Nothing([], ""), tenants)
        counts, p99 = judged(plan, tenants, seen)
        good = counts.succeeded > 0 and p99 <= limits.p99_ms and counts.errors <= limits.errors * counts.sent
        validity = machine.judge(scenario.driver, seen.tallies, seen.before, seen.after)
        if not validity.valid:
            beyond.add(rate)
            words = f"{rate:.0f} a second is beyond the driver: {'; '.join(validity.reasons)}"
            events.append(Event(at=offset, name="driver-limited", target="", words=words))
        elif good:
            knee = seen
            measures |= {"knee_p99_ms": p99, "knee_goodput_rps": counts.succeeded / limits.step}
        search.tell(rate, good and validity.valid)
        steps.append(([shifted(phase, offset) for phase in plan], seen))
        offset += plan[-1].end
    whole = Collector([phase for plan, _ in steps for phase in plan], tenants)
    for plan, seen in steps:
        whole.add(seen.parts, seen.tallies, offset=plan[0].begin)
    at_knee = knee or steps[-1][1]
    measures |= {"knee_rps": search.good, "bad_rps": search.bad or 0.0, "driver_limited": float(search.bad in beyond)}
    return whole.result(
        lab.meta(scenario, case, repeat, started, tenants, []),
        events=events,
        books=await lab.system.books(tenants, [each for _, seen in steps for each in stale_of(seen.tallies)]),
        validity=machine.judge(scenario.driver, at_knee.tallies, at_knee.before, at_knee.after),
        measures=measures,
    )


def judged(plan: Sequence[Phase], tenants: Sequence[Tenant], seen: Seen) -> tuple[Counts, float]:
    """The counts of a step, and its p99 in milliseconds."""
    collector = Collector(plan, tenants)
    collector.add(seen.parts, seen.tallies)
    return collector.pile(plan[-1].name, Role.VICTIM)


def step_phases(scenario: Scenario, name: str, rate: float) -> list[Phase]:
    """A step of the ramp: its warm-up, and what is judged."""
    assert scenario.ramp is not None
    warm, end = scenario.phases.warmup, scenario.phases.warmup + scenario.ramp.step
    found = [Phase(name=f"{name}-warmup", kind=PhaseKind.WARMUP, begin=0.0, end=warm, rate=rate)] if warm else []
    return [*found, Phase(name=name, kind=PhaseKind.LOAD, begin=warm, end=end, rate=rate)]


def shifted(phase: Phase, offset: float) -> Phase:
    """The phase later by ``offset``."""
    return msgspec.structs.replace(phase, begin=phase.begin + offset, end=phase.end + offset)


def stale_of(tallies: Sequence[Tally]) -> list[Stale]:
    """The stale reads of all processes."""
    return [seen for tally in tallies for seen in tally.stale]


def tenants_of(scenario: Scenario, case: Case, cast: Sequence[Tenant], cells: Sequence[str]) -> list[Tenant]:
    """Who takes part in a case."""
    victims, aggressors = cells_of(case, cells)
    counts: Mapping[str, int] = dict.fromkeys(victims, scenario.victims.per_cell)
    return pick(cast, counts, dict.fromkeys(aggressors, case.count))
