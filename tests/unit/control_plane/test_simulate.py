"""The simulated fleet keeps the rules of the real one: nobody is lost, no cell overflows, and the sizes are true."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from contracts import routes
from contracts.ids import tenant_of
from control_plane.placement import CellFacts, Placement, Wanted, place
from control_plane.simulate import Scenario, _spread, _World, simulate, table_bytes
from control_plane.simulate_plot import curve, write
from router.table_writer import Snapshot, TableWriter, cell_entry, plan_entry

SMALL = Scenario(cells=60, tenants=30_000, months=12)


def test_the_same_seed_gives_the_same_years_and_another_one_others() -> None:
    assert simulate(SMALL) == simulate(SMALL)
    other = Scenario(cells=60, tenants=30_000, months=12, seed=2)
    assert [m.moves for m in simulate(other)] != [m.moves for m in simulate(SMALL)]


def test_the_fleet_ends_as_large_as_was_asked_and_no_fuller_than_the_forecast_allows() -> None:
    last = simulate(SMALL)[-1]
    assert last.tenants == 30_000
    assert last.cells == pytest.approx(60, abs=3)
    assert last.used <= 0.8


def test_a_rebalance_brings_every_month_to_the_tolerance() -> None:
    for month in simulate(SMALL):
        assert month.fullest <= max(month.fullest_before, 1 + SMALL.tolerance) + 1e-9
        assert month.fullest <= 1 + 1.5 * SMALL.tolerance


def test_who_leaves_makes_room_and_nobody_else_is_lost() -> None:
    months = simulate(SMALL)
    assert months[0].came == months[0].tenants
    for before, after in pairwise(months):
        assert after.tenants == before.tenants - after.left + after.came


def test_removing_tenants_keeps_exactly_the_others() -> None:
    world = _World(SMALL)
    world.add(np.arange(10), np.arange(10, dtype=np.float64))
    world.remove(np.array([0, 3, 8, 9]))
    assert sorted(world.cell.tolist()) == [1, 2, 4, 5, 6, 7]
    assert sorted(world.load.tolist()) == [1, 2, 4, 5, 6, 7]


def test_placing_in_turns_ends_as_level_as_placing_one_by_one() -> None:
    """The control plane's own placement, tenant by tenant, against the simulation's turns."""
    loads = np.random.default_rng(3).lognormal(0.0, 1.0, 400)
    world, rng = _World(Scenario(cells=8, tenants=4000, months=1)), random.Random(3)
    world.fleet.region = np.zeros(8, np.int8)
    world.fleet.count, world.fleet.load = np.zeros(8, np.intp), np.zeros(8)
    _spread(world, 0, loads)
    fleet = {f"cell-{n}": CellFacts(f"cell-{n}", "eu", "shared", "active", True, "1", 500, 0, 0.0) for n in range(8)}
    for load in loads:
        chosen = place(list(fleet.values()), Wanted("shared", float(load)), rng)
        assert isinstance(chosen, Placement)
        old = fleet[chosen.cell]
        fleet[chosen.cell] = CellFacts(
            old.name, "eu", "shared", "active", True, "1", 500, old.tenants + 1, old.load + float(load)
        )
    real = [cell.load for cell in fleet.values()]
    assert sum(real) == pytest.approx(world.fleet.load.sum())
    assert world.fleet.load.max() / np.mean(real) <= max(real) / np.mean(real) + 0.1


@pytest.mark.parametrize("tenants", [0, 1, 700, 3000])
def test_the_route_tables_size_is_that_of_the_real_one(tmp_path: Path, tenants: int) -> None:
    cells = [cell_entry(routes.Cell(f"cell-{n}", f"10.0.{n}.7:8080")) for n in range(3)]
    plans = [plan_entry(routes.Plan("free", 100.0, 200, 64))]
    made = (
        routes.Route(tenant_of(10**11 + n), (f"shop-{n:011}.test",), "cell-1", 1, "free", "active")
        for n in range(tenants)
    )
    path = tmp_path / "routes.bin"
    TableWriter.build(path, Snapshot("log", 1, True, cells, plans, made), generation=1, random=lambda n: bytes(n))
    host_bytes = len("shop-00000000000.test")
    assert table_bytes(tenants, 1, host_bytes, 3) == pytest.approx(path.stat().st_size, rel=0.01)


def test_a_curve_has_a_bar_for_each_value_and_names_the_largest() -> None:
    drawn = curve("moves", [0, 5, 10]).splitlines()
    assert drawn[0] == "moves"
    assert drawn[1].endswith("10")
    assert len(drawn) == 9


@pytest.mark.parametrize(("name", "begins"), [("years.svg", b"<?xml"), ("years.png", b"\x89PNG")])
def test_the_curves_are_drawn_in_the_format_of_the_files_name(tmp_path: Path, name: str, begins: bytes) -> None:
    scenario = Scenario(cells=6, tenants=600, months=4)
    write(tmp_path / name, scenario, simulate(scenario))
    assert (tmp_path / name).read_bytes().startswith(begins)
