"""The breaker, the retry budget and the timer wheel, under a clock that the test owns."""

from router.breaker import BUDGET_RESERVE, FAILURES_TO_OPEN, OPEN_FIRST_S, Breaker, BreakerState, RetryBudget
from router.timers import TICK_S, Timer, Wheel
from tests.unit.router.wire import Clock, seeded


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
