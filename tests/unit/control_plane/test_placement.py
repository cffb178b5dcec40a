"""Placement: no hard filter is ever traded for load, and every choice says why."""

import random

from hypothesis import given
from hypothesis import strategies as st

from control_plane.placement import (
    TIE,
    CellFacts,
    Filter,
    NoPlacement,
    Placement,
    Wanted,
    misfit,
    place,
    projected_load,
)

ANY = Wanted(tier="shared", weight=1)


def cell(name: str, **changes: object) -> CellFacts:
    facts: dict[str, object] = {
        "name": name, "region": "eu", "tier": "shared", "state": "active", "healthy": True, "schema": "0001",
        "capacity": 100, "tenants": 0, "load": 0.0,
    }  # fmt: skip
    return CellFacts(**(facts | changes))  # type: ignore[arg-type]


fleets = st.lists(
    st.builds(
        CellFacts,
        name=st.integers(1, 10**6).map("cell-{}".format),
        region=st.sampled_from(["eu", "us"]),
        tier=st.sampled_from(["shared", "dedicated", "canary"]),
        state=st.sampled_from(["active", "draining", "closed"]),
        healthy=st.booleans(),
        schema=st.sampled_from(["0001", "0002"]),
        capacity=st.integers(0, 5),
        tenants=st.integers(0, 6),
        load=st.floats(0, 100),
    ),
    max_size=8,
    unique_by=lambda c: c.name,
)
needs = st.builds(
    Wanted,
    tier=st.sampled_from(["shared", "dedicated", "canary"]),
    weight=st.integers(1, 10),
    region=st.sampled_from([None, "eu", "us"]),
    schema=st.sampled_from([None, "0001", "0002"]),
)


@given(fleets, needs, st.integers())
def test_no_tenant_is_placed_past_a_hard_filter(fleet: list[CellFacts], wanted: Wanted, seed: int) -> None:
    placed = place(fleet, wanted, random.Random(seed))
    fitting = [c for c in fleet if misfit(c, wanted) is None]
    if isinstance(placed, NoPlacement):
        assert not fitting
        return
    chosen = next(c for c in fleet if c.name == placed.cell)
    assert (chosen.state, chosen.healthy, chosen.tier) == ("active", True, wanted.tier)
    assert wanted.region in (None, chosen.region)
    assert wanted.schema in (None, chosen.schema)
    assert chosen.tenants < chosen.capacity
    best = min(projected_load(c, wanted) for c in fitting)
    assert projected_load(chosen, wanted) - best <= TIE
    assert placed.cell in placed.reason


@given(fleets, needs, st.integers())
def test_the_same_snapshot_and_seed_never_give_two_answers(fleet: list[CellFacts], wanted: Wanted, seed: int) -> None:
    assert place(fleet, wanted, random.Random(seed)) == place(fleet, wanted, random.Random(seed))


def test_the_emptier_cell_is_not_passed_over() -> None:
    placed = place([cell("cell-1", load=50.0), cell("cell-2", load=9.0)], ANY, random.Random(1))
    assert placed == Placement(
        "cell-2",
        "cell-2 has the least projected load of 2 cells that fit (0.100; next is cell-1 with 0.510)",
    )


def test_a_small_cell_is_not_mistaken_for_an_empty_one() -> None:
    placed = place(
        [cell("big", capacity=1000, load=100.0), cell("small", capacity=10, load=5.0)], ANY, random.Random(1)
    )
    assert isinstance(placed, Placement)
    assert placed.cell == "big"


def test_equal_cells_do_not_all_get_the_same_tenant() -> None:
    fleet = [cell("cell-1"), cell("cell-2"), cell("cell-3")]
    placed = [place(fleet, ANY, random.Random(seed)) for seed in range(40)]
    assert {p.cell for p in placed if isinstance(p, Placement)} == {"cell-1", "cell-2"}
    reasons = {p.reason.rpartition("; ")[2] for p in placed}
    assert reasons == {"chance chose cell-1", "chance chose cell-2"}


def test_two_different_loads_are_not_called_equal() -> None:
    placed = place([cell("cell-1", load=1.0), cell("cell-2")], ANY, random.Random(1))
    assert isinstance(placed, Placement)
    assert placed.reason == (
        "cell-2 and cell-1 are the best of 2 cells that fit, their projected loads (0.010 and 0.020) "
        f"within 0.01 of each other; chance chose {placed.cell}"
    )


def test_the_only_cell_that_fits_says_so() -> None:
    placed = place([cell("cell-1"), cell("cell-2", state="draining")], ANY, random.Random(1))
    assert placed == Placement("cell-1", "cell-1 is the only cell that fits (projected load 0.010)")


def test_an_operator_learns_of_every_cell_why_it_did_not_fit() -> None:
    fleet = [
        cell("a", state="draining"), cell("b", healthy=False), cell("c", region="us"), cell("d", tier="canary"),
        cell("e", schema="0002"), cell("f", tenants=100), cell("g"),
    ]  # fmt: skip
    wanted = Wanted("shared", 1, "eu", "0001", frozenset({"g"}))
    assert place(fleet, wanted, random.Random(1)) == NoPlacement(
        "no cell fits: a is draining; b is not healthy; c is in region us, not eu; d is of tier canary, not shared; "
        "e has schema 0002, not 0001; f is full (100 of 100 tenants); g is not a choice for this tenant"
    )
    assert [misfit(c, wanted).filter for c in fleet] == [  # type: ignore[union-attr]
        Filter.STATE, Filter.HEALTH, Filter.REGION, Filter.TIER, Filter.SCHEMA, Filter.CAPACITY, Filter.AVOID,
    ]  # fmt: skip


def test_an_empty_fleet_is_not_a_crash() -> None:
    assert place([], ANY, random.Random(1)) == NoPlacement("no cell is registered")
