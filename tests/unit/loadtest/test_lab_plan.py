"""Who sends what, and from where: phases, processes, addresses, and the tenants of a case."""

import pytest

from loadtest.lab.bisection import Bisection
from loadtest.lab.job import Address
from loadtest.lab.plan import CONNECTIONS_A_CLIENT, MIXES, Drive, Tenant, cells_of, jobs, phases, source_address
from loadtest.lab.reading import parse
from loadtest.lab.result import Case, Role
from loadtest.lab.run import need_of, step_phases, tenants_of
from loadtest.lab.scenario import Aggression, Scenario
from loadtest.schedule import Kind
from loadtest.workload import Account

ROUTER = [Address("router-1", "127.0.0.1", 8080)]
CELLS = ["cell-1", "cell-2"]


def scenario(kinds: str = "cheap-flood", extra: str = "") -> Scenario:
    return parse(
        f"kind: noisy-neighbour\nname: x\nvictims: {{per_cell: 3, rate: 2.0}}\n"
        f"aggressors: {{kinds: [{kinds}], counts: [1, 4], where: [same, other], times: 10}}\n{extra}",
        "x",
    )


def tenant(number: int, cell: str, role: Role = Role.VICTIM) -> Tenant:
    name = f"t{number}"
    return Tenant(number, Account(name, name, f"{name}.cellwall.localhost", "cwk_x", ("p",)), cell, role, ("o",))


def cast(victims: int = 3, aggressors: int = 4) -> list[Tenant]:
    found: list[Tenant] = []
    for cell in CELLS:
        for role, count in ((Role.VICTIM, victims), (Role.AGGRESSOR, aggressors)):
            found += [tenant(len(found) + n, cell, role) for n in range(count)]
    return found


def drive(case: Case) -> Drive:
    return Drive("run", 1, ROUTER, 2.0, 25.0, (12.0, 22.0) if case.aggressor else None, case)


def test_phases_leave_gaps_or_keep_one_of_no_length() -> None:
    plan = phases(scenario(extra="phases: {warmup: 0, alone: 5, load: 6, after: 7}"), victims=6)
    assert [(p.name, p.begin, p.end, p.rate) for p in plan] == [
        ("alone", 0, 5, 12),
        ("with", 5, 11, 12),
        ("after", 11, 18, 12),
    ]


def test_an_attack_is_sent_by_the_process_that_measures_its_victims() -> None:
    case = Case(aggressor="cheap-flood", count=4, times=10, where="same")
    parts = jobs(scenario(extra="driver: {processes: 2}"), drive(case), tenants_of(scenario(), case, cast(), CELLS))
    assert [sorted(account.tenant for account in part.accounts) for part in parts] == [
        ["t0", "t2", "t8"],
        ["t1", "t7", "t9"],
        ["t3", "t4", "t5", "t6"],
    ]
    victims, attack = parts[0].sources, parts[2].sources
    assert [(s.rate, s.begin, s.end) for s in victims[0].streams] == [(2.0, 0.0, 25.0)] * 3
    assert [(s.rate, s.begin, s.end) for source in attack for s in source.streams] == [(20.0, 12.0, 22.0)] * 4
    assert len({source.local for source in attack}) == 4
    assert victims[0].local == ""


def test_aggressors_of_another_cell_share_it_with_victims() -> None:
    case = Case(aggressor="cheap-flood", count=1, times=10, where="other")
    chosen = tenants_of(scenario(), case, cast(), CELLS)
    assert {t.cell for t in chosen if t.role is Role.VICTIM} == {"cell-1"}
    assert {t.cell for t in chosen if t.role is Role.AGGRESSOR} == {"cell-2"}
    assert cells_of(Case(), CELLS) == (CELLS, [])
    assert need_of(scenario(), CELLS).aggressors == {"cell-1": 4, "cell-2": 4}


@pytest.mark.parametrize("kind", list(Aggression))
def test_a_kind_of_aggressor_does_nothing(kind: Aggression) -> None:
    case = Case(aggressor=kind.value, count=1, times=10, where="same")
    attack = jobs(scenario(kind.value), drive(case), tenants_of(scenario(), case, cast(), CELLS))[-1]
    if kind in MIXES:
        assert [dict(s.mix) for source in attack.sources for s in source.streams] == [dict(MIXES[kind])]
    else:
        assert [hold.connections for hold in attack.holds] == [10 * CONNECTIONS_A_CLIENT]
        assert attack.holds[0].slow is (kind is Aggression.SLOW_CLIENT)


def test_nothing_attacks_where_nobody_was_asked_to() -> None:
    parts = jobs(scenario(), drive(Case()), tenants_of(scenario(), Case(), cast(), CELLS))
    assert len(parts) == 1
    assert all(kind in (Kind.CREATE, Kind.READ, Kind.LIST, Kind.PRODUCT) for kind in scenario().victims.kinds)


def test_a_source_address_is_made_up_where_the_target_is_another_machine() -> None:
    assert source_address(ROUTER, 0) != source_address(ROUTER, 1) != ""
    assert source_address([Address("x", "192.0.2.1", 80)], 0) == ""
    assert source_address([Address("x", "shop.example.com", 80)], 0) == ""
    assert source_address([Address("x", "::1", 80)], 0) == ""


@pytest.mark.parametrize("knee", [5.0, 20.0, 333.0, 999.0, 5000.0])
def test_the_bisection_misses_the_knee_or_never_ends(knee: float) -> None:
    search = Bisection(20.0, 1000.0, 0.05)
    tries = 0
    while (rate := search.next()) is not None:
        search.tell(rate, rate <= knee)
        tries += 1
        assert tries < 30
    if knee < 20:
        assert (search.good, search.bad) == (0.0, 20.0)
    elif knee >= 1000:
        assert (search.good, search.bad) == (1000.0, None)
    else:
        assert search.bad is not None
        assert search.good <= knee < search.bad
        assert search.bad - search.good <= 0.05 * search.bad


def test_a_step_of_the_ramp_is_judged_by_its_warm_up() -> None:
    ramp = parse("kind: ramp\nname: x\nramp: {low: 1, high: 2, step: 5}\nphases: {warmup: 2}", "x")
    warm, step = step_phases(ramp, "step-1", 40.0)
    assert (warm.kind, warm.end, step.begin, step.end, step.rate) == ("warmup", 2.0, 2.0, 7.0, 40.0)
