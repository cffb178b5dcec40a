"""Waves: limits hold at every moment, one bad target costs one tenant, and a batch always comes to an end."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from control_plane.waves import (
    OPEN,
    OVER,
    BatchState,
    Decision,
    Item,
    ItemState,
    Limits,
    Snapshot,
    cut,
    decide,
)

WAITING, RUNNING, DONE, FAILED = ItemState.WAITING, ItemState.RUNNING, ItemState.DONE, ItemState.FAILED


def item(tenant: int, state: ItemState = WAITING, **changes: object) -> Item:
    values: dict[str, object] = {
        "tenant": tenant, "wave": 0, "source": "cell-1", "target": "cell-2", "shard": f"shard-{tenant}", "state": state,
    }  # fmt: skip
    return Item(**(values | changes))  # type: ignore[arg-type]


def started(snapshot: Snapshot) -> list[int]:
    return [i.tenant for i in decide(snapshot).start]


@given(st.integers(0, 500), st.integers(1, 20), st.integers(1, 5), st.integers(1, 100))
def test_waves_grow_to_their_limit_and_hold_every_item(count: int, first: int, growth: int, top: int) -> None:
    waves = cut(count, Limits(first_wave=first, growth=growth, wave_max=top))
    assert len(waves) == count
    assert waves == sorted(waves)
    sizes = [waves.count(n) for n in sorted(set(waves))]
    assert all(b <= max(top, first) for b in sizes)
    assert all(b >= a for a, b in pairwise(sizes[:-1])) or top < first


def test_the_first_wave_is_one_tenant_and_the_others_wait_for_it() -> None:
    waves = cut(6, Limits())
    items = [item(n, wave=w) for n, w in enumerate(waves)]
    assert started(Snapshot(BatchState.RUNNING, items, Limits())) == [0]
    items[0] = replace(items[0], state=RUNNING)
    assert started(Snapshot(BatchState.RUNNING, items, Limits())) == []
    items[0] = replace(items[0], state=DONE)
    decision = decide(Snapshot(BatchState.RUNNING, items, Limits()))
    assert (decision.wave, [i.tenant for i in decision.start]) == (1, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("limits", "others", "expected"),
    [
        (Limits(at_once=2), {}, 2),
        (Limits(per_source=1), {}, 1),
        (Limits(per_target=3), {}, 3),
        (Limits(per_target=3), {"cell-2": 2}, 1),
        (Limits(per_source=3), {"cell-1": 3}, 0),
    ],
)
def test_no_limit_is_passed_also_with_moves_of_others(limits: Limits, others: dict[str, int], expected: int) -> None:
    items = [item(n) for n in range(9)]
    assert len(started(Snapshot(BatchState.RUNNING, items, limits, elsewhere=others))) == expected


def test_one_shard_is_not_asked_for_more_than_its_limit_while_others_go_on() -> None:
    items = [item(n, shard="shard-1") for n in range(5)] + [item(9, shard="shard-2")]
    assert started(Snapshot(BatchState.RUNNING, items, Limits(per_shard=2))) == [0, 1, 9]


def test_what_touches_a_sick_cell_waits_and_says_so() -> None:
    decision = decide(Snapshot(BatchState.RUNNING, [item(1)], Limits(), unhealthy=frozenset({"cell-2"})))
    assert decision.start == ()
    assert "cell-2 is not healthy" in decision.reason


def test_what_failed_waits_before_it_is_tried_again() -> None:
    assert started(Snapshot(BatchState.RUNNING, [item(1, ready=False), item(2)], Limits())) == [2]


def test_a_wave_is_watched_before_the_next_one_begins() -> None:
    items = [item(0, DONE), item(1, wave=1)]
    limits = Limits(bake_s=60)
    seen = decide(Snapshot(BatchState.RUNNING, items, limits))
    assert (seen.bake, seen.start) == (True, ())
    watched = decide(Snapshot(BatchState.RUNNING, items, limits, baked_s=59.0))
    assert (watched.bake, watched.start, watched.wave) == (False, (), 0)
    assert decide(Snapshot(BatchState.RUNNING, items, limits, baked_s=60.0)).wave == 1


def test_the_first_failure_stops_a_batch_whose_first_wave_is_one_tenant() -> None:
    items = [item(0, FAILED), item(1, wave=1)]
    decision = decide(Snapshot(BatchState.RUNNING, items, Limits()))
    assert (decision.state, decision.start) == (BatchState.STOPPED, ())
    assert "1 of the 1 moves" in decision.reason


def test_few_failures_of_many_moves_do_not_stop_it() -> None:
    items = [item(n, DONE) for n in range(95)] + [item(n, FAILED) for n in range(95, 100)] + [item(100)]
    assert decide(Snapshot(BatchState.RUNNING, items, Limits())).state is BatchState.RUNNING


@pytest.mark.parametrize("state", [BatchState.PAUSED, BatchState.STOPPED, BatchState.CANCELLING, *sorted(OVER)])
def test_nothing_starts_in_any_other_state(state: BatchState) -> None:
    assert decide(Snapshot(state, [item(1), item(2, RUNNING)], Limits())).start == ()


def test_a_cancelled_batch_is_over_when_nothing_is_under_way() -> None:
    going = decide(Snapshot(BatchState.CANCELLING, [item(1, RUNNING)], Limits()))
    assert going.state is BatchState.CANCELLING
    assert decide(Snapshot(BatchState.CANCELLING, [item(1, DONE)], Limits())).state is BatchState.CANCELLED


@pytest.mark.parametrize(("last", "state"), [(DONE, BatchState.DONE), (FAILED, BatchState.INCOMPLETE)])
def test_the_end_says_whether_every_tenant_moved(last: ItemState, state: BatchState) -> None:
    items = [item(n, DONE) for n in range(20)] + [item(20, last)]
    assert decide(Snapshot(BatchState.RUNNING, items, Limits())).state is state


class Batch(RuleBasedStateMachine):
    """A batch under moves that end well or badly, orders at any time, and a driver that may be late."""

    @initialize(
        count=st.integers(1, 25),
        limits=st.builds(
            Limits,
            at_once=st.integers(1, 5), per_source=st.integers(1, 5), per_target=st.integers(1, 5),
            per_shard=st.integers(1, 3), max_errors=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
            first_wave=st.integers(1, 3), growth=st.integers(1, 3), wave_max=st.integers(1, 10),
        ),
    )  # fmt: skip
    def begin(self, count: int, limits: Limits) -> None:
        self.limits, self.state, self.wave = limits, BatchState.RUNNING, 0
        waves = cut(count, limits)
        self.items = [
            item(n, wave=waves[n], source=f"cell-{n % 2}", target=f"cell-{2 + n % 3}", shard=f"shard-{n % 2}")
            for n in range(count)
        ]

    def look(self) -> Decision:
        return decide(Snapshot(self.state, self.items, self.limits, self.wave))

    def set(self, tenant: int, state: ItemState) -> None:
        self.items[tenant] = replace(self.items[tenant], state=state)

    @rule()
    def drive(self) -> None:
        decision = self.look()
        assert decision.wave >= self.wave
        self.state, self.wave = decision.state, decision.wave
        for each in decision.start:
            assert self.items[each.tenant].state is WAITING
            self.set(each.tenant, RUNNING)

    @precondition(lambda self: any(i.state is RUNNING for i in self.items))
    @rule(data=st.data(), state=st.sampled_from([DONE, DONE, DONE, FAILED, WAITING]))
    def end_a_move(self, data: st.DataObject, state: ItemState) -> None:
        running = [i.tenant for i in self.items if i.state is RUNNING]
        self.set(data.draw(st.sampled_from(running)), state)

    @precondition(lambda self: self.state is BatchState.RUNNING)
    @rule()
    def pause(self) -> None:
        self.state = BatchState.PAUSED

    @precondition(lambda self: self.state in (BatchState.PAUSED, BatchState.STOPPED))
    @rule()
    def resume(self) -> None:
        self.state = BatchState.RUNNING
        for each in self.items:
            if each.state is FAILED:
                self.set(each.tenant, WAITING)

    @invariant()
    def limits_hold(self) -> None:
        running = [i for i in self.items if i.state is RUNNING]
        assert len(running) <= self.limits.at_once
        for name in {i.source for i in running} | {i.target for i in running}:
            touching = sum(name in (i.source, i.target) for i in running)
            assert touching <= max(self.limits.per_source, self.limits.per_target)
        for place in {(i.source, i.shard) for i in running}:
            assert sum((i.source, i.shard) == place for i in running) <= self.limits.per_shard

    @invariant()
    def no_wave_begins_before_the_last_one_is_over(self) -> None:
        begun = {i.wave for i in self.items if i.state is not WAITING}
        assert all(wave <= self.wave for wave in begun)

    def teardown(self) -> None:
        """Driven on with moves that succeed, it ends with nobody left out."""
        if not hasattr(self, "items"):
            return
        if self.state in (BatchState.PAUSED, BatchState.STOPPED):
            self.resume()
        for _ in range(200):
            self.drive()
            if self.state is BatchState.STOPPED:
                self.resume()
            for each in self.items:
                if each.state is RUNNING:
                    self.set(each.tenant, DONE)
        assert self.state in OVER
        assert not any(i.state in OPEN for i in self.items)


TestBatch = Batch.TestCase
