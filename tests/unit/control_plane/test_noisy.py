"""Who is called noisy and what follows: nobody without harm, nothing for ever, nothing that an operator forbade."""

import random
from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import replace as replace_line

from contracts.usage import ShardUsage, TenantUsage, Window, added
from control_plane.noisy import (
    THROTTLE_MAX_S,
    Act,
    Action,
    Finding,
    Mode,
    Policy,
    Standing,
    baseline_ms,
    decide,
    find,
    shares,
    still,
    target_for,
)
from control_plane.placement import CellFacts, NoPlacement, Placement, Wanted

POLICY = Policy()
NOBODY = NoPlacement("no cell fits")
THERE = Placement("cell-2", "cell-2 is the only cell that fits")
FOUND = Finding("t1", "cell-1", 0.8, 100.0, 10.0)


def window(share: float = 0.1, p99_ms: float = 10.0, *, others: int = 100, busy: float = 0.5, **more: Any) -> Window:
    """Five seconds of a cell in which t1 has this share of the database time, and its neighbours this p99."""
    spent = busy * 5000
    lines = (
        TenantUsage("t1", 50, database_ms=spent * share, others_requests=others, others_p99_ms=p99_ms),
        TenantUsage("t2", others, database_ms=spent * (1 - share), others_requests=50, others_p99_ms=5.0),
    )
    shard = ShardUsage("shard-1", spent, spent, 0.0, 0.0)
    fields = {"tenants": lines, "rest": added("rest", ()), "shards": (shard,)} | more
    return Window("0" * 16, "cell-1", 0.0, 5.0, ("api",), 50 + others, 1.0, p99_ms, **fields)


CALM = [window()] * 10
LOUD = [window(0.8, 100.0)] * 3


def test_a_tenant_that_takes_most_and_slows_the_others_is_found_with_the_reason() -> None:
    (found,) = find([*CALM, *LOUD], POLICY)
    assert found.reason == (
        "it takes 80% of what cell-1 spends, and its neighbours' p99 is 100 ms against 10 ms without it"
    )


@pytest.mark.parametrize(
    ("newest", "why"),
    [
        (LOUD[:2], "one window too few"),
        ([*LOUD[:2], window()], "quiet again"),
        ([window(0.8, 15.0)] * 3, "the neighbours are well"),
        ([window(0.4, 100.0)] * 3, "others take more than it"),
        ([window(0.8, 100.0, others=5)] * 3, "hardly any neighbour to be harmed"),
        ([window(0.8, 100.0, busy=0.01)] * 3, "an idle cell"),
    ],
)
def test_nobody_is_noisy_without_lasting_harm(newest: list[Window], why: str) -> None:
    assert find([*CALM, *newest], POLICY) == [], why


def test_several_noisy_tenants_do_not_hide_behind_each_other() -> None:
    lines = [TenantUsage(f"t{n}", database_ms=10.0, others_requests=50, others_p99_ms=10.0) for n in range(40)]
    loud = [TenantUsage(f"t{n}", database_ms=300.0, others_requests=50, others_p99_ms=90.0) for n in range(4)]
    windows = [window(tenants=tuple(lines))] * 10 + [window(tenants=(*loud, *lines[4:]))] * 3
    assert [f.tenant for f in find(windows, POLICY)] == ["t0", "t1", "t2", "t3"]


def test_a_slow_cell_is_not_blamed_on_its_largest_tenant() -> None:
    slow = [window(p99_ms=90.0)] * 10
    assert find([*slow, *LOUD], POLICY) == []


def test_seats_count_as_cost_where_the_database_is_idle() -> None:
    lines = (TenantUsage("t1", seat_ms=90.0), TenantUsage("t2", seat_ms=10.0, database_ms=1.0))
    assert shares(window(tenants=lines)) == {"t1": 0.9, "t2": 1.0}


def test_a_flood_that_costs_seats_and_no_database_time_is_found_too() -> None:
    quiet = window(busy=0.01)
    loud = tuple(replace_line(line, seat_ms=9000.0 if line.tenant == "t1" else 10.0) for line in LOUD[0].tenants)
    assert [f.tenant for f in find([quiet] * 10 + [window(tenants=loud, busy=0.01)] * 3, POLICY)] == ["t1"]


def test_the_tenants_own_loud_windows_do_not_raise_the_baseline() -> None:
    assert baseline_ms([*CALM, *LOUD * 20], "t1", POLICY) == 10.0


def test_without_a_history_the_floor_stands_in_for_the_baseline() -> None:
    assert baseline_ms(CALM[:2], "t1", POLICY) == POLICY.floor_ms
    assert find(LOUD, POLICY)
    assert not find([window(0.8, 1.5 * POLICY.floor_ms)] * 3, POLICY)


def test_coming_down_takes_less_than_it_took_to_go_up() -> None:
    between = [*CALM, *[window(0.4, 30.0)] * 3]
    assert find(between, POLICY) == []
    assert [f.tenant for f in still(between, POLICY)] == ["t1"]
    assert still([*CALM, *CALM], POLICY) == []


def acts(*arguments: Any) -> list[Act]:
    return [action.act for action in decide(*arguments)]


@pytest.mark.parametrize(
    ("mode", "target", "expected"),
    [
        (Mode.OFF, THERE, []),
        (Mode.OBSERVE, THERE, [Act.OBSERVED]),
        (Mode.THROTTLE, THERE, [Act.THROTTLED, Act.MOVE_PROPOSED]),
        (Mode.THROTTLE, NOBODY, [Act.THROTTLED]),
        (Mode.MOVE, THERE, [Act.THROTTLED, Act.MOVE_STARTED]),
        (Mode.MOVE, NOBODY, [Act.THROTTLED]),
    ],
)
def test_the_policy_says_how_far_it_goes(mode: Mode, target: Placement | NoPlacement, expected: list[Act]) -> None:
    assert acts(replace(POLICY, mode=mode), Standing("cell-1"), FOUND, FOUND, target) == expected


def test_every_action_has_a_reason() -> None:
    for action in decide(replace(POLICY, mode=Mode.MOVE), Standing("cell-1"), FOUND, FOUND, THERE):
        assert FOUND.reason in action.reason
    assert decide(POLICY, Standing("cell-1"), FOUND, FOUND, THERE)[1].target == "cell-2"


def test_observing_notes_a_tenant_once() -> None:
    assert acts(replace(POLICY, mode=Mode.OBSERVE), Standing("cell-1", noted=True), FOUND, FOUND, THERE) == []


@pytest.mark.parametrize("change", [{"vetoed": True}, {"moving": True}])
def test_a_vetoed_or_moving_tenant_is_left_alone(change: dict[str, Any]) -> None:
    assert acts(POLICY, Standing("cell-1", **change), FOUND, FOUND, THERE) == []


def throttled(left_s: float = -1.0, **more: Any) -> Standing:
    return replace(Standing("cell-1", left_s, "cell-1", 1), **more)


@pytest.mark.parametrize(
    ("standing", "lasting", "expected"),
    [
        (throttled(10.0), FOUND, []),
        (throttled(10.0), None, []),
        (throttled(), FOUND, [Act.PROLONGED]),
        (throttled(), None, [Act.LIFTED]),
        (throttled(10.0, vetoed=True), FOUND, [Act.LIFTED]),
        (throttled(10.0, cell="cell-2"), FOUND, [Act.LIFTED]),
        (throttled(moving=True), None, []),
    ],
)
def test_a_throttle_ends_when_it_should(standing: Standing, lasting: Finding | None, expected: list[Act]) -> None:
    assert acts(POLICY, standing, FOUND, lasting, NOBODY) == expected


def test_a_policy_that_is_switched_off_lifts_what_it_had_done() -> None:
    off = replace(POLICY, mode=Mode.OFF)
    assert decide(off, throttled(10.0), FOUND, FOUND, NOBODY) == [Action(Act.LIFTED, "the policy is off")]


def test_repeating_it_takes_longer_each_time_and_no_throttle_is_for_ever() -> None:
    seconds = [decide(POLICY, Standing("cell-1", times=n), FOUND, FOUND, NOBODY)[0].seconds for n in range(12)]
    assert seconds[:3] == [120.0, 240.0, 480.0]
    assert seconds[-1] == THROTTLE_MAX_S


def cell(name: str, tier: str = "shared", **more: Any) -> CellFacts:
    facts = CellFacts(name, "eu", tier, "active", True, "s1", 100, 10, 10.0)
    return replace(facts, **more)


WANTED = Wanted("shared", 1.0, "eu", "s1")


def target(fleet: list[CellFacts], loads: dict[str, float]) -> Placement | NoPlacement:
    return target_for(fleet, loads, "cell-1", WANTED, random.Random(1))


def test_a_move_goes_to_a_roomier_cell_and_never_to_one_that_is_as_busy() -> None:
    fleet = [cell("cell-1"), cell("cell-2"), cell("cell-3")]
    chosen = target(fleet, {"cell-1": 0.8, "cell-2": 0.7, "cell-3": 0.1})
    assert isinstance(chosen, Placement)
    assert chosen.cell == "cell-3"
    assert isinstance(target(fleet, {"cell-1": 0.8, "cell-2": 0.7, "cell-3": 0.7}), NoPlacement)


def test_where_no_shared_cell_has_room_a_dedicated_one_takes_it() -> None:
    chosen = target([cell("cell-1"), cell("cell-2", "dedicated")], {"cell-1": 0.8})
    assert isinstance(chosen, Placement)
    assert chosen.cell == "cell-2"


def test_the_data_stays_in_its_region() -> None:
    assert isinstance(target([cell("cell-1"), cell("cell-2", region="us")], {}), NoPlacement)
