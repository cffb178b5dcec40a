"""The load lab on a real fleet: a scenario with an aggressor, a fault and moves, each to a result on disk."""

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from infra.local.fleet import Fleet
from loadtest.lab.local import LocalSystem
from loadtest.lab.reading import parse
from loadtest.lab.remote import Remote, RemoteSystem
from loadtest.lab.result import PhaseKind, Result, Role, results
from loadtest.lab.run import Asked, Lab
from loadtest.operator import LabError

VICTIMS = "victims: {per_cell: 2, rate: 4, orders: 30}\nphases: {warmup: 0, alone: 2, load: 4, after: 2}\n"


@pytest_asyncio.fixture
async def lab(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Lab]:
    """The lab on the session's fleet, which has no CPU walls; results go to the test's own folder."""
    async with AsyncExitStack() as stack:
        system = LocalSystem(fleet, stack, f"lab-{secrets.token_hex(3)}", cpus=1.0)
        yield Lab(system, Asked(tmp_path, 1, lambda _: None, rest_s=2.5))


async def only(lab: Lab, text: str, folder: Path) -> Result:
    (result,) = await lab.run(parse(text + VICTIMS, "x"))
    assert [found.meta.case for found in results(folder)] == [result.meta.case]
    assert result.books.balanced, result.books.words
    assert {group.phase for group in result.groups} == {phase.name for phase in result.phases}
    return result


def happened(result: Result) -> list[str]:
    """Its events; whether the machine rested before is not the product's matter."""
    return [event.name for event in result.events if event.name != "not-quiet"]


async def test_a_noisy_neighbour_leaves_no_trace_in_the_result(lab: Lab, tmp_path: Path) -> None:
    text = """
kind: noisy-neighbour
name: noisy
aggressors: {kinds: [big-transactions], counts: [1], times: 3, orders: 300}
"""
    result = await only(lab, text, tmp_path)
    attack = [group for group in result.groups if group.role is Role.AGGRESSOR]
    assert sum(group.sent for group in attack) > 0
    assert {group.cell for group in attack} == set(result.meta.hit) == {"cell-1"}
    assert {group.phase for group in attack} == {"with"}
    assert {group.cell for group in result.groups if group.role is Role.VICTIM} == {"cell-1", "cell-2"}
    assert happened(result) == ["aggressors-start", "aggressors-stop"]
    assert result.books.acknowledged == result.books.found > 0


async def test_a_cell_that_hangs_fails_nobody_or_everybody(lab: Lab, tmp_path: Path) -> None:
    text = "kind: blast-radius\nname: hang\nfaults: [{action: hang, target: cell-1-api}]\n"
    result = await only(lab, text, tmp_path)
    assert result.meta.hit == ["cell-1"]
    (load,) = result.phase_of(PhaseKind.LOAD)
    errors = {group.cell: 0 for group in result.groups}
    for group in result.groups:
        if group.phase == load.name:
            errors[group.cell] += group.errors
    slowest = result.latency(load.name, Role.VICTIM, cells=["cell-1"]).percentile_ms(100)
    assert errors["cell-2"] == 0
    assert errors["cell-1"] > 0 or slowest > 1000
    assert happened(result) == ["hang", "mend", "mended"]


async def test_an_evacuation_leaves_somebody_behind_or_loses_a_write(lab: Lab, fleet: Fleet, tmp_path: Path) -> None:
    text = "kind: evacuate\nname: evacuate\nevacuation: {at_once: 2}\n"
    result = await only(lab, text, tmp_path)
    assert result.measures["moves"] == result.measures["moves_done"] == 2
    assert sum(group.errors for group in result.groups) == 0, result.failures
    system = lab.system
    assert isinstance(system, LocalSystem)
    homes = await system.control_plane.homes()
    moved = [figures.tenant for figures in result.tenants if figures.cell == "cell-1"]
    assert {homes[tenant].cell for tenant in moved} == {"cell-2"}


async def test_a_ramp_does_not_end_or_finds_no_knee(lab: Lab) -> None:
    text = "kind: ramp\nname: ramp\nramp: {low: 4, high: 40, step: 2, p99_ms: 60000, errors: 1}\n"
    limits = "driver: {lag_ms: 60000, cpu: 1, waited: 1, steal: 1}\nphases: {warmup: 0}\nvictims: {per_cell: 2}\n"
    (result,) = await lab.run(parse(text + limits, "x"))
    assert [phase.rate for phase in result.phases] == [4, 40]
    assert result.measures["knee_rps"] == 40
    assert result.books.balanced, result.books.words


async def test_a_case_that_is_not_there_runs_nothing_without_a_word(lab: Lab, tmp_path: Path) -> None:
    asked = Asked(tmp_path, 1, lambda _: None, only="no-such-case")
    with pytest.raises(LabError, match="has no case 'no-such-case'; it has walls-on"):
        await Lab(lab.system, asked).run(parse("kind: soak\nname: x\n", "x"))


async def test_a_fleet_behind_a_base_url_is_a_system_that_cannot_be_measured(fleet: Fleet, tmp_path: Path) -> None:
    text = "kind: noisy-neighbour\nname: remote\naggressors: {kinds: [cheap-flood], counts: [1], times: 3, orders: 3}\n"
    system = RemoteSystem(Remote(fleet.router_urls[0], fleet.spec.front_door_host), f"lab-{secrets.token_hex(3)}")
    try:
        await system.connect("business")
        if len(system.cells) == 1:  # by chance, of which placement leaves none to the next ones
            await system.connect("business")
        assert system.cells == ["cell-1", "cell-2"]
        lab = Lab(system, Asked(tmp_path, 1, lambda _: None, rest_s=2.5))
        result = await only(lab, text, tmp_path)
        assert result.meta.target == fleet.router_urls[0]
        with pytest.raises(LabError, match="--fleet local"):
            await lab.run(parse("kind: evacuate\nname: x\nevacuation: {}\n", "x"))
    finally:
        await system.aclose()
