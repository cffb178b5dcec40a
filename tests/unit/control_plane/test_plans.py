"""Plans say why, leave nobody out, and never move a tenant that they would move back."""

import random
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.placement import CellFacts, Filter, Placement, Wanted, misfit
from control_plane.plan_views import PlanView
from control_plane.plans import (
    Change,
    Plan,
    Resident,
    evacuate,
    givers,
    load_of,
    rebalance,
    spread,
    what_if,
    where,
)

RNG = random.Random(1)


def cell(name: str, **changes: object) -> CellFacts:
    facts: dict[str, object] = {
        "name": name, "region": "eu", "tier": "shared", "state": "active", "healthy": True, "schema": "0001",
        "capacity": 100, "tenants": 0, "load": 0.0,
    }  # fmt: skip
    return CellFacts(**(facts | changes))  # type: ignore[arg-type]


def resident(number: int, home: str, **changes: object) -> Resident:
    values: dict[str, object] = {
        "number": number, "slug": f"shop-{number}", "cell": home, "weight": 1.0, "region": "eu", "tier": "shared",
    }  # fmt: skip
    return Resident(**(values | changes))  # type: ignore[arg-type]


def counted(fleet: list[CellFacts], tenants: list[Resident]) -> list[CellFacts]:
    """The fleet with its tenants counted in."""
    return [
        cell(
            c.name, region=c.region, tier=c.tier, state=c.state, healthy=c.healthy, schema=c.schema,
            capacity=c.capacity, tenants=sum(t.cell == c.name for t in tenants),
            load=sum(t.weight for t in tenants if t.cell == c.name),
        )
        for c in fleet
    ]  # fmt: skip


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[CellFacts], list[Resident]]:
    names = [f"cell-{n}" for n in range(draw(st.integers(2, 6)))]
    cells = [
        cell(
            name, region=draw(st.sampled_from(["eu", "eu", "us"])),
            tier=draw(st.sampled_from(["shared", "shared", "dedicated"])),
            state=draw(st.sampled_from(["active", "active", "active", "draining"])),
            healthy=draw(st.sampled_from([True, True, True, False])), capacity=draw(st.integers(1, 12)),
        )
        for name in names
    ]  # fmt: skip
    tenants = [
        resident(
            n, home := draw(st.sampled_from(names)), weight=float(draw(st.integers(1, 8))),
            region=next(c.region for c in cells if c.name == home), tier=draw(st.sampled_from(["shared", "dedicated"])),
            busy=draw(st.sampled_from(["", "", "", "its move m1 is not over"])),
            pin=draw(st.sampled_from([None, None, None, *names])),
        )
        for n in range(draw(st.integers(0, 20)))
    ]  # fmt: skip
    return counted(cells, tenants), tenants


def assert_sound(plan: Plan, tenants: list[Resident]) -> None:
    """No tenant twice, nobody busy, every target open to it when its turn comes, and sums that add up."""
    by_number = {t.number: t for t in tenants}
    assert len({m.number for m in plan.moves}) == len(plan.moves)
    fleet = {c.name: c for c in plan.before}
    for move in plan.moves:
        tenant, target = by_number[move.number], fleet[move.target]
        assert not tenant.busy
        assert tenant.pin in (None, move.target)
        home = fleet[tenant.cell]
        wanted = Wanted(target.tier, tenant.weight, tenant.region, home.schema)
        assert misfit(target, wanted) is None
        assert move.reason
        fleet[move.target] = cell(
            target.name, region=target.region, tier=target.tier, capacity=target.capacity,
            tenants=target.tenants + 1, load=target.load + tenant.weight,
        )  # fmt: skip
        fleet[home.name] = cell(
            home.name, region=home.region, tier=home.tier, state=home.state, healthy=home.healthy,
            capacity=home.capacity, tenants=home.tenants - 1, load=home.load - tenant.weight,
        )  # fmt: skip
    assert list(plan.after) == list(fleet.values())
    assert all(b.reason and b.advice for b in plan.blocked)


@given(worlds(), st.integers())
def test_an_evacuation_moves_or_names_every_tenant_of_the_cell(
    world: tuple[list[CellFacts], list[Resident]], seed: int
) -> None:
    fleet, tenants = world
    plan = evacuate(fleet, tenants, "cell-0", random.Random(seed))
    assert_sound(plan, tenants)
    inside = {t.number for t in tenants if t.cell == "cell-0"}
    assert {m.number for m in plan.moves} | {b.number for b in plan.blocked} == inside
    assert {m.number for m in plan.moves}.isdisjoint(b.number for b in plan.blocked)


@given(worlds())
def test_a_rebalance_never_makes_it_worse_and_a_second_one_moves_nobody_back(
    world: tuple[list[CellFacts], list[Resident]],
) -> None:
    fleet, tenants = world
    plan = rebalance(fleet, tenants)
    assert_sound(plan, tenants)
    if not any(t.pin for t in tenants):  # a pin is an order, level or not
        assert spread(plan.after) <= spread(plan.before) + 1e-9
    went = {m.number: m for m in plan.moves}
    later = [
        resident(t.number, went[t.number].target, weight=t.weight, region=t.region, tier=t.tier, pin=t.pin)
        if t.number in went
        else t
        for t in tenants
    ]
    again = rebalance(list(plan.after), later)
    assert not [m for m in again.moves if m.number in went and m.target == went[m.number].source]


@given(worlds())
def test_reading_the_fuller_cells_alone_gives_the_same_rebalance(
    world: tuple[list[CellFacts], list[Resident]],
) -> None:
    fleet, tenants = world
    fuller = givers(fleet)
    unpinned = [t for t in tenants if t.pin is None]
    assert rebalance(fleet, unpinned).moves == rebalance(fleet, [t for t in unpinned if t.cell in fuller]).moves


def test_the_heaviest_leave_first_so_that_targets_end_level() -> None:
    tenants = [resident(n, "old", weight=w) for n, w in enumerate([1.0, 1.0, 5.0, 5.0, 2.0, 2.0])]
    plan = evacuate(counted([cell("old"), cell("a"), cell("b")], tenants), tenants, "old", RNG)
    loads = {c.name: c.load for c in plan.after}
    assert loads == {"old": 0.0, "a": 8.0, "b": 8.0}
    assert [m.number for m in plan.moves][:2] == [2, 3]


def test_nothing_is_moved_into_a_cell_that_a_batch_empties() -> None:
    tenants = [resident(1, "old")]
    fleet = counted([cell("old"), cell("emptying")], tenants)
    plan = evacuate(fleet, tenants, "old", RNG, emptying=frozenset({"emptying"}))
    assert (plan.moves, len(plan.blocked)) == ((), 1)
    crowd = [resident(n, "old") for n in range(50)]
    level = rebalance(counted(list(fleet), crowd), crowd, emptying=frozenset({"emptying"}))
    assert level.moves == ()


@pytest.mark.parametrize(
    ("other", "advice"),
    [
        ({"capacity": 0}, "raise a capacity"),
        ({"schema": "0002"}, "Migrate"),
        ({"tier": "canary"}, "of the tier shared in the region eu"),
        ({"region": "us"}, "in the region eu"),
        ({"healthy": False}, "health"),
        ({"state": "draining"}, "cellctl cells activate"),
    ],
)
def test_who_fits_nowhere_is_told_what_would_help(other: dict[str, object], advice: str) -> None:
    tenants = [resident(1, "old")]
    plan = evacuate(counted([cell("old"), cell("other", **other)], tenants), tenants, "old", RNG)
    assert advice in plan.blocked[0].advice


def test_a_filter_that_has_no_advice_is_noticed() -> None:
    from control_plane.plans import _HELP

    assert set(_HELP) == set(Filter)


def test_a_tenant_in_a_dedicated_cell_goes_to_another_one_and_only_then_to_a_shared_one() -> None:
    tenants = [resident(1, "own"), resident(2, "own")]
    fleet = [cell("own", tier="dedicated"), cell("own-2", tier="dedicated", capacity=1), cell("shared")]
    plan = evacuate(counted(fleet, tenants), tenants, "own", RNG)
    assert [m.target for m in plan.moves] == ["own-2", "shared"]


def test_a_rebalance_takes_nobody_out_of_a_dedicated_cell_into_a_shared_one() -> None:
    tenants = [resident(n, "own", weight=9.0) for n in range(5)]
    fleet = counted([cell("own", tier="dedicated"), cell("shared")], tenants)
    assert rebalance(fleet, tenants).moves == ()


def test_a_pinned_tenant_is_brought_home_and_is_not_levelled_away() -> None:
    tenants = [resident(1, "a", pin="b"), *(resident(n, "b", pin="b") for n in range(2, 40))]
    plan = rebalance(counted([cell("a"), cell("b")], tenants), tenants)
    assert [(m.number, m.target) for m in plan.moves] == [(1, "b")]


def test_few_heavy_tenants_move_rather_than_many_light_ones() -> None:
    tenants = [resident(n, "a", weight=1.0) for n in range(20)] + [resident(99, "a", weight=20.0)]
    plan = rebalance(counted([cell("a"), cell("b")], tenants), tenants)
    assert [m.number for m in plan.moves] == [99]


def test_a_rebalance_keeps_to_the_moves_it_may_make_and_says_so() -> None:
    tenants = [resident(n, "a") for n in range(80)]
    plan = rebalance(counted([cell("a"), cell("b")], tenants), tenants, max_moves=3)
    assert len(plan.moves) == 3
    assert "the first 3 moves" in plan.reason


def test_a_what_if_empties_cells_fills_new_ones_and_warns_of_those_that_overflow() -> None:
    tenants = [resident(n, "a") for n in range(60)] + [resident(n, "b") for n in range(60, 140)]
    fleet = counted([cell("a"), cell("b")], tenants)
    plan, warnings = what_if(fleet, tenants, Change((cell("new"),), frozenset({"a"}), 1.5), RNG)
    targets = {m.target for m in plan.moves if m.source == "a"}
    assert "new" in targets
    assert "a" not in {m.target for m in plan.moves}
    assert len({m.number for m in plan.moves}) == len(plan.moves)
    assert next(c for c in plan.after if c.name == "a").load == pytest.approx(0.0)
    assert any("b would hold" in text for text in warnings)


@pytest.mark.parametrize("growth", [0.4, 1.5, 3.0])
def test_a_cell_that_goes_keeps_tenants_where_they_are_said_to_grow(growth: float) -> None:
    tenants = [resident(n, "a") for n in range(4)] + [resident(n, "b") for n in range(4, 10)]
    fleet = counted([cell("a"), cell("b")], tenants)
    plan, _ = what_if(fleet, tenants, Change((), frozenset({"a"}), growth), RNG)
    before, after = ({c.name: c.tenants for c in each} for each in (plan.before, plan.after))
    assert (before, after) == ({"a": round(4 * growth), "b": round(6 * growth)}, {"a": 0, "b": round(10 * growth)})
    assert plan.reason.startswith(f"each move stands for {growth:g} tenants")


def test_a_plan_that_empties_cell_zero_cannot_be_read_by_the_client() -> None:
    tenants = [resident(1, "zero"), resident(2, "zero")]
    fleet = counted([cell("zero", capacity=0, state="draining"), cell("b")], tenants)
    view = PlanView.of(evacuate(fleet, tenants, "zero", RNG))
    read = msgspec.json.decode(msgspec.json.encode(view), type=PlanView)
    assert [(c.name, c.load_before) for c in read.cells] == [("zero", None), ("b", 0.0)]


def test_a_cell_without_places_is_as_full_as_can_be() -> None:
    assert load_of(cell("a", capacity=0)) == float("inf")


@given(worlds(), st.integers())
def test_asking_only_the_emptiest_cells_changes_no_plan(
    world: tuple[list[CellFacts], list[Resident]], seed: int
) -> None:
    """Against placing each tenant among all cells, as the planner would without that shortcut."""
    fleet, tenants = world
    plan = evacuate(fleet, tenants, "cell-0", random.Random(seed))
    rng, now = random.Random(seed), {c.name: c for c in fleet}
    expected = []
    for tenant in sorted((t for t in tenants if t.cell == "cell-0"), key=lambda t: (-t.weight, t.number)):
        if tenant.busy or tenant.pin == "cell-0":
            continue
        placed, _ = where(list(now.values()), now["cell-0"], tenant, frozenset({"cell-0"}), rng)
        if isinstance(placed, Placement):
            to = now[placed.cell]
            now[to.name] = replace(to, tenants=to.tenants + 1, load=to.load + tenant.weight)
            expected.append((tenant.number, to.name))
    assert [(m.number, m.target) for m in plan.moves] == expected
