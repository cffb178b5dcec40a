"""The breaker, the retry budget, the idle sweep and the timer wheel, under a clock that the test owns."""

import asyncio
from collections.abc import Callable

import pytest

from router.breaker import BUDGET_RESERVE, FAILURES_TO_OPEN, OPEN_FIRST_S, Breaker, BreakerState, RetryBudget
from router.http1 import AnswerHead
from router.pool import Pool
from router.settings import Budgets
from router.timers import TICK_S, Timer, Wheel
from router.upstream import LostError, Upstream
from router.walls import ALL_ON, Walls
from tests.unit.router.wire import CAPS, Clock, MemoryTransport, seeded, sent


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock, seeded(1))
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.allows()
        breaker.failed()
    return breaker


def test_a_dead_cell_is_not_hammered() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert not breaker.allows()
    assert OPEN_FIRST_S <= breaker.retry_after_s <= OPEN_FIRST_S * 1.25


def test_a_half_open_breaker_lets_one_trial_pass() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += OPEN_FIRST_S * 1.25
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.failed()
    assert breaker.retry_after_s >= OPEN_FIRST_S * 2
    clock.now += breaker.retry_after_s
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED
    assert all(breaker.allows() for _ in range(3))


def test_single_failures_do_not_open_it() -> None:
    breaker = Breaker(Clock(), seeded(1))
    for _ in range(20):
        breaker.failed()
        breaker.succeeded()
    assert breaker.allows()


def test_retries_are_a_fifth_of_requests_beyond_the_reserve() -> None:
    budget = RetryBudget()
    assert sum(budget.take() for _ in range(100)) == BUDGET_RESERVE
    for _ in range(10):
        budget.request()
    assert sum(budget.take() for _ in range(100)) in (1, 2)


class Asker:
    """A request that only wants its connection."""

    method = b"GET"
    tenant = b"t1"
    request_sent = True

    def __init__(self) -> None:
        self.got: asyncio.Future[Upstream] = asyncio.get_running_loop().create_future()

    def connected(self, upstream: Upstream) -> None:
        self.got.set_result(upstream)

    def unconnected(self, reason: str) -> None:
        self.got.set_exception(ConnectionError(reason))

    def interim(self, head: AnswerHead) -> None: ...
    def answer(self, head: AnswerHead, payload: bytes, complete: bool) -> None: ...
    def payload(self, data: bytes, complete: bool) -> None: ...
    def lost(self, error: LostError) -> None: ...
    def upstream_full(self) -> None: ...
    def upstream_ready(self) -> None: ...


async def test_an_idle_connection_is_closed_before_its_cell_would_close_it_under_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def connect(make: Callable[[], Upstream], host: str, port: int) -> tuple[MemoryTransport, Upstream]:
        transport, upstream = MemoryTransport(), make()
        upstream.connection_made(transport)  # type: ignore[arg-type]
        return transport, upstream

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    clock, wheel, budgets = Clock(), Wheel(), Budgets()
    assert budgets.upstream_idle_s == 55.0
    pool = Pool("cell-1", "127.0.0.1:1", CAPS, budgets, wheel, clock, seeded(1), Walls(ALL_ON, lambda *_: None))

    def pass_time(seconds: float) -> None:
        for _ in range(int(seconds / TICK_S)):
            clock.now += TICK_S
            wheel.turn()

    askers = [Asker(), Asker()]
    for asker in askers:
        pool.acquire(asker)
    early, late = [await asker.got for asker in askers]
    pool.put_back(early)
    pass_time(30)
    pool.put_back(late)
    pass_time(24)
    assert pool.idle == 2
    pass_time(2)
    assert (pool.idle, sent(early).closed, sent(late).closed) == (1, True, False)
    pass_time(28)
    assert (pool.idle, pool.size) == (1, 1)
    pass_time(2)
    assert (pool.idle, pool.size, sent(late).closed) == (0, 0, True)


def test_a_timer_never_fires_early_and_fires_once() -> None:
    wheel, fired = Wheel(), list[float]()
    timer = Timer(wheel, lambda: fired.append(wheel.now * TICK_S))
    for delay in (0.0, 0.1, 1.0, 80.0):
        fired.clear()
        began = wheel.now * TICK_S
        timer.start(delay)
        wheel.turn(int(delay / TICK_S) + 5)
        assert len(fired) == 1
        assert delay <= fired[0] - began <= delay + 3 * TICK_S


def test_a_deadline_that_has_passed_fires_at_the_next_tick_and_not_after_a_turn_of_the_wheel() -> None:
    wheel, fired = Wheel(), list[int]()
    wheel.turn(100)
    timer = Timer(wheel, lambda: fired.append(wheel.now))
    timer.start(30.0)
    timer.start(-1.0)  # the loop was stalled while the budget ran out
    wheel.turn(2)
    assert fired == [101]


def test_the_last_deadline_of_a_timer_counts() -> None:
    wheel, fired = Wheel(), list[int]()
    timer = Timer(wheel, lambda: fired.append(wheel.now))
    timer.start(10.0)
    timer.start(1.0)
    wheel.turn(int(1.0 / TICK_S) + 2)
    assert len(fired) == 1
    timer.start(1.0)
    timer.start(10.0)
    wheel.turn(int(5.0 / TICK_S))
    assert len(fired) == 1
    timer.stop()
    wheel.turn(int(20.0 / TICK_S))
    assert len(fired) == 1


def test_a_closed_timer_is_forgotten_by_the_wheel() -> None:
    wheel = Wheel()
    timer = Timer(wheel, lambda: None)
    timer.start(30.0)
    timer.close()
    assert not any(wheel._slots)
