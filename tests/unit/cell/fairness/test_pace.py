"""The pace of long work: its share of the time, its rests, and the size of its parts."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell.fairness.pace import PART_S, QUIET_S, REST_MAX_S, SHARE_QUIET, Pace, PartSize


class Time:
    """A clock whose sleepers are the only ones that move it."""

    def __init__(self) -> None:
        self.now = 50.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@given(st.floats(0.05, 1), st.lists(st.floats(0.001, 0.1), min_size=5, max_size=50))
def test_long_work_would_take_more_than_its_share(share: float, parts: list[float]) -> None:
    pace, now, busy = Pace(share), 10.0, 0.0
    for part in parts:
        now += pace.rest_s(now)
        now, busy = now + part, busy + part
        pace.spent(part, now, now)
    took = now + pace.rest_s(now) - 10.0
    assert busy <= share * took * (1 + 1e-9) or any(part * (1 / share - 1) > REST_MAX_S for part in parts)


def test_two_that_work_at_once_would_have_two_shares() -> None:
    pace = Pace(0.25)
    pace.spent(0.01, 5.0, 5.0)
    pace.spent(0.01, 5.0, 5.0)
    assert pace.rest_s(5.0) == pytest.approx(0.06)


def test_work_on_a_shard_that_nobody_else_wants_would_crawl() -> None:
    pace = Pace(0.1)
    pace.spent(0.01, 5.0, 5.0 + QUIET_S)
    assert pace.rest_s(5.0 + QUIET_S) == pytest.approx(0.01 * (1 / SHARE_QUIET - 1))


def test_one_slow_part_would_stop_everything_for_long() -> None:
    pace = Pace(0.01)
    pace.spent(30.0, 5.0, 5.0)
    assert pace.rest_s(5.0) == REST_MAX_S


async def test_of_several_that_wait_all_would_begin_at_once() -> None:
    time, pace = Time(), Pace(0.5)
    pace.spent(0.01, time.now, time.now)
    began: list[float] = []

    async def work() -> None:
        await pace.rest(lambda: time.now, time.sleep)
        began.append(time.now)
        time.now += 0.01
        pace.spent(0.01, time.now, time.now)

    await asyncio.gather(work(), work(), work())
    assert [later - earlier for earlier, later in itertools.pairwise(began)] == [pytest.approx(0.02)] * 2


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1])
def test_a_share_that_is_none_would_be_taken(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Pace(share)


@given(st.floats(1e-6, 1e-3))
def test_parts_would_not_come_to_take_what_they_should(each_s: float) -> None:
    size = PartSize(200, least=1, most=10**6)
    for _ in range(30):
        size.took(size.count * each_s)
    assert size.count * each_s == pytest.approx(PART_S, rel=0.25, abs=each_s)


def test_a_part_would_be_empty_or_grow_without_end() -> None:
    size = PartSize(200, least=20, most=1000)
    for _ in range(20):
        size.took(60.0)
    assert size.count == 20
    for _ in range(20):
        size.took(0.0)
    assert size.count == 1000
