"""Inside a tenant: one caller leaves room for the others, and what is remembered of callers is bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell.fairness.limits import CallerLimits, Limits
from cell.fairness.station import RefusedError
from contracts.names import Refusal


def test_a_caller_would_send_faster_than_its_rate() -> None:
    limits = CallerLimits(Limits(per_s=10.0, burst=3, under_way=100))
    for _ in range(3):
        limits.enter(1, "a", 0.0)
    with pytest.raises(RefusedError) as refused:
        limits.enter(1, "a", 0.0)
    assert (refused.value.refusal, refused.value.retry_after_s) == (Refusal.CALLER, 1)
    limits.enter(1, "b", 0.0)
    limits.enter(2, "a", 0.0)
    limits.enter(1, "a", 0.1)
    with pytest.raises(RefusedError):
        limits.enter(1, "a", 0.1)


def test_a_caller_would_fill_the_whole_room_of_its_tenant() -> None:
    limits = CallerLimits(Limits(per_s=0.0, burst=1, under_way=2))
    limits.enter(1, "a", 0.0)
    limits.enter(1, "a", 0.0)
    with pytest.raises(RefusedError):
        limits.enter(1, "a", 0.0)
    limits.leave(1, "a")
    limits.enter(1, "a", 0.0)


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=300))
def test_callers_would_be_remembered_without_bound(steps: list[tuple[int, bool]]) -> None:
    limits, under_way = CallerLimits(Limits(per_s=1e6, burst=5, under_way=3), known_max=8), list[int]()
    for number, (caller, enters) in enumerate(steps):
        if enters:
            try:
                limits.enter(1, caller, float(number))
            except RefusedError:
                assert under_way.count(caller) == 3
            else:
                under_way.append(caller)
                assert under_way.count(caller) <= 3
        elif under_way:
            limits.leave(1, under_way.pop())
        assert len(limits) <= 8 + len(set(under_way))
