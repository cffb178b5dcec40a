"""What a scenario file may say: the fields, their bounds, and what belongs together. Pure; `reading` reads the file.

Durations are seconds, rates requests a second. `docs/scenarios.md` explains every field to people.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from infra.local.spec import CONTROL_PLANE, LocalCellSpec
from loadtest.lab.result import Case
from loadtest.schedule import DEFAULT_MIX, Kind

Positive = Annotated[float, Meta(gt=0)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=100_000)]
Share = Annotated[float, Meta(gt=0, le=1)]
PLANS: Final = ("free", "standard", "business")  # that every control plane is seeded with
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
PlanName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


class ScenarioKind(StrEnum):
    """What the lab does."""

    NOISY = "noisy-neighbour"
    BLAST = "blast-radius"
    FLOOD = "router-flood"
    MOVE = "move-under-load"
    EVACUATE = "evacuate"
    RAMP = "ramp"
    SOAK = "soak"


class Aggression(StrEnum):
    """What an aggressor does."""

    CHEAP_FLOOD = "cheap-flood"
    HEAVY_QUERY = "heavy-query"
    BIG_BODY = "big-body"
    SLOW_CLIENT = "slow-client"
    CONNECTION_HOG = "connection-hog"
    BIG_TRANSACTIONS = "big-transactions"
    UNKNOWN_HOST = "unknown-host"
    WRONG_KEY = "wrong-key"


class Walls(StrEnum):
    """Whether what should protect victims works, is off, or only counts what it would have refused."""

    ON = "on"
    OFF = "off"
    OBSERVE = "observe"


class Where(StrEnum):
    """Where aggressors live: in the first cell, beside victims, or in the last, which has no victims then."""

    SAME = "same"
    OTHER = "other"


class Closed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A section of the file: a misspelt field is an error."""


class FleetShape(Closed, frozen=True):
    """The local fleet. ``cpus`` is each cell's share of processors, which holds where the machine has cgroups;
    ``connections`` what each process of a cell opens to each shard, from which its seats follow (None: the default)."""

    cells: Annotated[int, Meta(ge=1, le=16)] = 2
    shards: Annotated[int, Meta(ge=1, le=8)] = 1
    cpus: Annotated[float, Meta(ge=0.05, le=64)] = 0.5
    connections: Annotated[int, Meta(ge=1, le=200)] | None = None
    routers: Annotated[int, Meta(ge=1, le=4)] = 1
    workers: Annotated[int, Meta(ge=1, le=16)] = 1
    cpu_walls: bool = True

    @property
    def cell_specs(self) -> tuple[LocalCellSpec, ...]:
        """The cells, ``cell-1`` first."""
        return tuple(
            LocalCellSpec(
                f"cell-{n}", shards=self.shards, cpus=self.cpus, capacity=100_000, connections=self.connections
            )
            for n in range(1, self.cells + 1)
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """What a fault can be aimed at: cells, their processes, the workers of a router, the control plane."""
        cells = (name for cell in self.cell_specs for name in (cell.name, *cell.processes))
        return (*cells, *(f"router-{n}-worker" for n in range(1, self.routers + 1)), CONTROL_PLANE)


class Victims(Closed, frozen=True):
    """Tenants with modest work. ``rate`` is one tenant's; ``orders`` is how many each has before the run begins."""

    per_cell: Count = 10
    rate: Positive = 1.0
    mix: dict[str, Annotated[float, Meta(ge=0)]] = msgspec.field(
        default_factory=lambda: {kind.value: weight for kind, weight in DEFAULT_MIX.items()}
    )
    orders: Annotated[int, Meta(ge=0, le=1_000_000)] = 20

    @property
    def kinds(self) -> dict[Kind, float]:
        """The mix."""
        return {Kind(name): weight for name, weight in self.mix.items()}


class Aggressors(Closed, frozen=True):
    """Each kind, count and place is a case of its own. Each aggressor offers ``times`` a victim's rate, or holds
    ``times`` a client's connections."""

    kinds: Annotated[list[Aggression], Meta(min_length=1)]
    counts: Annotated[list[Annotated[int, Meta(ge=1, le=1000)]], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: [1]
    )
    times: Annotated[float, Meta(gt=0, le=10_000)] = 10.0
    where: Annotated[list[Where], Meta(min_length=1)] = msgspec.field(default_factory=lambda: [Where.SAME])
    orders: Annotated[int, Meta(ge=0, le=1_000_000)] = 2000


class Phases(Closed, frozen=True):
    """How long each phase is."""

    warmup: Seconds = 2.0
    alone: Annotated[float, Meta(ge=1, le=86_400)] = 10.0
    load: Annotated[float, Meta(ge=1, le=86_400)] = 10.0
    after: Seconds = 5.0


class Fault(Closed, frozen=True):
    """One thing that is killed (SIGKILL) or made to hang (SIGSTOP) for the phase ``load``, then brought back."""

    action: Literal["kill", "hang"]
    target: str

    @property
    def words(self) -> str:
        """``kill cell-1-api``"""
        return f"{self.action} {self.target}"


class Moves(Closed, frozen=True):
    """Victims of the first cell that move to another, one after the other."""

    count: Count = 4


class Evacuation(Closed, frozen=True):
    """All tenants of the first cell move out; ``at_once`` at a time."""

    at_once: Annotated[int, Meta(ge=1, le=64)] = 2


class Ramp(Closed, frozen=True):
    """Bisection for the highest offered rate, over all victims, at which the service is still good."""

    low: Positive
    high: Positive
    step: Annotated[float, Meta(ge=1, le=600)] = 5.0
    p99_ms: Positive = 100.0
    errors: Annotated[float, Meta(ge=0, le=1)] = 0.001  # share of all requests
    precision: Annotated[float, Meta(ge=0.01, le=0.5)] = 0.05  # share of the rate


class DriverLimits(Closed, frozen=True):
    """The driver's processes, and beyond what a run is marked invalid. Shares are of a process' or machine's time."""

    processes: Annotated[int, Meta(ge=1, le=64)] = 1  # for victims
    aggressor_processes: Annotated[int, Meta(ge=1, le=64)] = 1
    connections: Annotated[int, Meta(ge=1, le=1024)] = 8  # of each process to each router
    lag_ms: Positive = 50.0
    cpu: Share = 0.8
    waited: Share = 0.1
    steal: Share = 0.05


class Scenario(Closed, frozen=True, kw_only=True):
    """A scenario file."""

    kind: ScenarioKind
    name: Name
    about: str = ""
    seed: int = 1
    repeat: Annotated[int, Meta(ge=1, le=100)] = 1
    walls: Annotated[list[Walls], Meta(min_length=1)] = msgspec.field(default_factory=lambda: [Walls.ON])
    plan: PlanName = "business"  # of every tenant: its limits at the router are a wall too
    fleet: FleetShape = FleetShape()
    victims: Victims = Victims()
    phases: Phases = Phases()
    driver: DriverLimits = DriverLimits()
    aggressors: Aggressors | None = None
    faults: Annotated[list[Fault], Meta(min_length=1)] | None = None
    moves: Moves | None = None
    evacuation: Evacuation | None = None
    ramp: Ramp | None = None

    def cases(self) -> list[Case]:
        """Every combination that is a run of its own, in the order of the file."""
        return [case for walls in self.walls for case in self._cases(walls.value)]

    def _cases(self, walls: str) -> Iterator[Case]:
        if self.aggressors is not None:
            for kind in self.aggressors.kinds:
                for count in self.aggressors.counts:
                    for where in self.aggressors.where:
                        yield Case(
                            walls=walls,
                            aggressor=kind.value,
                            count=count,
                            times=self.aggressors.times,
                            where=where.value,
                        )
        elif self.faults is not None:
            for fault in self.faults:
                yield Case(walls=walls, fault=fault.words)
        else:
            yield Case(walls=walls)


_SECTION: Final = {
    ScenarioKind.NOISY: "aggressors",
    ScenarioKind.FLOOD: "aggressors",
    ScenarioKind.BLAST: "faults",
    ScenarioKind.MOVE: "moves",
    ScenarioKind.EVACUATE: "evacuation",
    ScenarioKind.RAMP: "ramp",
    ScenarioKind.SOAK: None,
}
_ANONYMOUS: Final = {Aggression.UNKNOWN_HOST, Aggression.WRONG_KEY, Aggression.CONNECTION_HOG, Aggression.SLOW_CLIENT}


def objections(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """What does not belong together: the field, as a path, and why in words."""
    yield from _sections(scenario)
    if scenario.plan not in PLANS:
        yield "plan", f"there is no plan {scenario.plan!r}; there are {', '.join(PLANS)}"
    known = ", ".join(DEFAULT_MIX)
    for name in scenario.victims.mix:
        if name not in [kind.value for kind in DEFAULT_MIX]:
            yield f"victims.mix.{name}", f"victims send {known}"
    if sum(scenario.victims.mix.values()) <= 0:
        yield "victims.mix", "needs one weight above zero"
    if scenario.aggressors is not None:
        yield from _of_aggressors(scenario, scenario.aggressors)
    for index, fault in enumerate(scenario.faults or []):
        if fault.target not in scenario.fleet.targets:
            yield f"faults[{index}].target", f"this fleet has {', '.join(scenario.fleet.targets)}"
    if scenario.kind in (ScenarioKind.MOVE, ScenarioKind.EVACUATE) and scenario.fleet.cells < 2:
        yield "fleet.cells", f"{scenario.kind} needs 2 cells or more: tenants have to go somewhere"
    if scenario.moves is not None and scenario.moves.count > scenario.victims.per_cell:
        yield "moves.count", f"the first cell has only {scenario.victims.per_cell} victims (victims.per_cell)"
    if scenario.ramp is not None and scenario.ramp.high <= scenario.ramp.low:
        yield "ramp.high", "has to be above ramp.low"


def _sections(scenario: Scenario) -> Iterator[tuple[str, str]]:
    wanted = _SECTION[scenario.kind]
    for section in sorted({name for name in _SECTION.values() if name}):
        there = getattr(scenario, section) is not None
        if there and section != wanted:
            kinds = [kind.value for kind, name in _SECTION.items() if name == section]
            yield section, f"belongs to scenarios of the kind {' or '.join(kinds)}, and this is {scenario.kind}"
        elif section == wanted and not there:
            yield "kind", f"{scenario.kind} needs a section {section!r}"


def _of_aggressors(scenario: Scenario, aggressors: Aggressors) -> Iterator[tuple[str, str]]:
    if Where.OTHER in aggressors.where and scenario.fleet.cells < 2:
        yield "fleet.cells", "aggressors in another cell (aggressors.where: other) need 2 cells or more"
    if scenario.kind is ScenarioKind.FLOOD:
        for index, kind in enumerate(aggressors.kinds):
            if kind not in _ANONYMOUS:
                known = ", ".join(sorted(_ANONYMOUS))
                yield f"aggressors.kinds[{index}]", f"{kind} is no flood of the router; there are {known}"
