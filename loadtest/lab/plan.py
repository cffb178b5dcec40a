"""From a scenario and a case to phases and jobs: who sends what, when, and from which process. Pure."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.lab.job import Address, Hold, Job, Source
from loadtest.lab.result import Case, Phase, PhaseKind, Role
from loadtest.lab.scenario import Aggression, Scenario, Where
from loadtest.schedule import Kind, Stream
from loadtest.workload import Account

MIXES: Final[Mapping[Aggression, Mapping[Kind, float]]] = {
    Aggression.CHEAP_FLOOD: {Kind.PRODUCT: 1.0},
    Aggression.HEAVY_QUERY: {Kind.SUMMARY: 0.9, Kind.REPORT: 0.1},
    Aggression.BIG_BODY: {Kind.BIG_BODY: 1.0},
    Aggression.BIG_TRANSACTIONS: {Kind.BIG_ORDER: 0.5, Kind.BIG_LIST: 0.5},
    Aggression.UNKNOWN_HOST: {Kind.UNKNOWN_HOST: 1.0},
    Aggression.WRONG_KEY: {Kind.BAD_KEY: 1.0},
}
CONNECTIONS_A_CLIENT: Final = 8  # what a client of modest rate keeps open: a hog holds a multiple of it
FIRST_SOURCE: Final = 10  # aggressors connect from 127.0.0.10 upwards, where the target is on loopback
SOURCES_MAX: Final = 240


@dataclass(frozen=True)
class Tenant:
    """One of the cast. ``number`` is its own in the whole run; ``cell`` its home as the run begins."""

    number: int
    account: Account
    cell: str
    role: Role
    orders: tuple[str, ...]  # acknowledged, to be read; at least one


def phases(scenario: Scenario, victims: int) -> list[Phase]:
    """One after the other, from second 0. A phase of no length is left out."""
    lengths = (
        ("warmup", PhaseKind.WARMUP, scenario.phases.warmup),
        ("alone", PhaseKind.ALONE, scenario.phases.alone),
        ("with", PhaseKind.LOAD, scenario.phases.load),
        ("after", PhaseKind.AFTER, scenario.phases.after),
    )
    found: list[Phase] = []
    at = 0.0
    for name, kind, length in lengths:
        if length > 0:
            rate = scenario.victims.rate * victims
            found.append(Phase(name=name, kind=kind, begin=at, end=at + length, rate=rate))
            at += length
    return found


def cells_of(case: Case, cells: Sequence[str]) -> tuple[list[str], list[str]]:
    """The cells of the victims, and those of the aggressors."""
    if case.where == Where.OTHER:
        return list(cells[:-1]), [cells[-1]]
    return list(cells), [cells[0]] if case.aggressor else []


@dataclass(frozen=True)
class Drive:
    """What one stretch of traffic needs beside its tenants. ``rate`` is one victim's, ``end`` the last second."""

    run: str
    seed: int
    targets: Sequence[Address]
    rate: float
    end: float
    attack: tuple[float, float] | None  # from and to
    case: Case


def jobs(scenario: Scenario, drive: Drive, tenants: Sequence[Tenant]) -> list[Job]:
    """One for each process: victims and aggressors never share one, so that no attack slows the measurement."""
    victims = [tenant for tenant in tenants if tenant.role is Role.VICTIM]
    aggressors = [tenant for tenant in tenants if tenant.role is Role.AGGRESSOR]
    limits = scenario.driver
    found: list[Job] = []
    for place in range(min(limits.processes, len(victims))):
        part = victims[place :: limits.processes]
        streams = [
            Stream(tenant.number, index, drive.rate, 0.0, drive.end, scenario.victims.kinds)
            for index, tenant in enumerate(part)
        ]
        found.append(_job(scenario, drive, len(found) + 1, part, [Source("", streams)], []))
    if drive.attack is None:
        return found
    for place in range(min(limits.aggressor_processes, len(aggressors))):
        part = aggressors[place :: limits.aggressor_processes]
        sources, holds = _attack(scenario, drive, part, drive.attack)
        found.append(_job(scenario, drive, len(found) + 1, part, sources, holds))
    return found


def _job(
    scenario: Scenario, drive: Drive, process: int, part: Sequence[Tenant], sources: list[Source], holds: list[Hold]
) -> Job:
    return Job(
        process=process,
        run=drive.run,
        seed=drive.seed,
        targets=list(drive.targets),
        connections=scenario.driver.connections,
        accounts=[tenant.account for tenant in part],
        orders={tenant.account.tenant: list(tenant.orders) for tenant in part},
        sources=sources,
        holds=holds,
    )


def _attack(
    scenario: Scenario, drive: Drive, part: Sequence[Tenant], period: tuple[float, float]
) -> tuple[list[Source], list[Hold]]:
    """Every aggressor has an address of its own, where the machine has them: limits by address are a wall too."""
    sources: list[Source] = []
    holds: list[Hold] = []
    aggression, (begin, end) = Aggression(drive.case.aggressor), period
    for index, tenant in enumerate(part):
        local = source_address(drive.targets, tenant.number)
        if aggression in MIXES:
            rate = scenario.victims.rate * drive.case.times
            sources.append(Source(local, [Stream(tenant.number, index, rate, begin, end, MIXES[aggression])]))
        else:
            count = max(1, round(CONNECTIONS_A_CLIENT * drive.case.times))
            holds.append(Hold(index, count, begin, end, aggression is Aggression.SLOW_CLIENT, local))
    return sources, holds


def source_address(targets: Sequence[Address], number: int) -> str:
    """A loopback address for client ``number``, where all targets are on loopback; else the machine's own."""
    try:
        loopback = all(ipaddress.ip_address(target.host).is_loopback for target in targets)
    except ValueError:
        return ""
    v4 = all(":" not in target.host for target in targets)
    return f"127.0.0.{FIRST_SOURCE + number % SOURCES_MAX}" if loopback and v4 else ""
