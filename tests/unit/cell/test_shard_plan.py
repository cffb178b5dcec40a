"""Plans between shards: the least number of buckets, nothing among the others, pins respected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell.rebucketing import plan
from cell.rebucketing.plan import Layout, PlanError, Step
from contracts import ids

SHARDS = ("shard-1", "shard-2", "shard-3", "shard-4")


@st.composite
def layouts(draw: st.DrawFn, empty: str = "") -> Layout:
    used = draw(st.lists(st.sampled_from([s for s in SHARDS if s != empty]), min_size=1, max_size=4, unique=True))
    return Layout(SHARDS, draw(st.lists(st.sampled_from(used), min_size=ids.BUCKETS, max_size=ids.BUCKETS)), {})


def after(layout: Layout, steps: list[Step]) -> Layout:
    buckets = list(layout.buckets)
    for step in steps:
        assert buckets[step.bucket] == step.source
        buckets[step.bucket] = step.target
    return Layout(layout.shards, buckets, layout.pins)


@given(layouts())
def test_an_added_shard_gets_its_equal_part_and_not_one_bucket_more(layout: Layout) -> None:
    shard = "shard-4"
    steps = plan.add(layout, shard)
    had, has = layout.load()[shard], after(layout, steps).load()[shard]
    used = sum(1 for name, n in layout.load().items() if n or name == shard)
    assert has == max(had, ids.BUCKETS // used)
    assert len(steps) == has - had == len({s.bucket for s in steps})
    assert {s.target for s in steps} <= {shard}
    assert plan.add(after(layout, steps), shard) == []


@given(layouts())
def test_a_drained_shard_is_empty_and_only_its_buckets_moved(layout: Layout) -> None:
    steps = plan.drain(layout, "shard-1")
    assert len(steps) == layout.load()["shard-1"]
    assert after(layout, steps).load()["shard-1"] == 0
    assert all(s.source == "shard-1" for s in steps)


@given(layouts(empty="shard-4"), st.integers(1, 10**12))
def test_a_tenant_that_is_isolated_goes_alone_and_nobody_joins_it(layout: Layout, tenant: int) -> None:
    [step] = plan.isolate(layout, tenant, "shard-4")
    assert (step.tenant, step.bucket, step.target) == (tenant, ids.bucket_of(f"t{tenant}"), "shard-4")
    pinned = Layout(layout.shards, layout.buckets, {tenant: "shard-4"})
    assert plan.isolate(pinned, tenant, "shard-4") == []
    with pytest.raises(PlanError, match="alone"):
        plan.isolate(pinned, tenant + 1, "shard-4")
    with pytest.raises(PlanError, match="alone"):
        plan.add(pinned, "shard-4")
    with pytest.raises(PlanError, match="alone"):
        plan.drain(pinned, "shard-4")
    drained = plan.drain(pinned, "shard-1") if set(layout.buckets) != {"shard-1"} else []
    assert all(s.target != "shard-4" for s in drained)


def test_what_cannot_be_planned_says_what_would_help() -> None:
    layout = Layout(("shard-1",), ("shard-1",) * ids.BUCKETS, {})
    with pytest.raises(PlanError, match="this cell has shard-1"):
        plan.add(layout, "shard-9")
    with pytest.raises(PlanError, match="add one first"):
        plan.drain(layout, "shard-1")
    with pytest.raises(PlanError, match="drain it first"):
        plan.isolate(layout, 7, "shard-1")
