"""One tenant cannot take more than its plan, whichever workers its connections land on."""

from dataclasses import dataclass

import pytest

from contracts import problems
from router.admission import Admission, Limiter
from router.board import USAGE_SLOTS, Board, Phase
from router.settings import AddressLimits
from router.table import Caps, CellEntry, Located, PlanEntry, RouteState

ADDRESS = b"192.0.2.1"


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def admissions(clock: Clock, workers: int, limits: AddressLimits = AddressLimits(0, 1, 10_000)) -> list[Admission]:  # noqa: B008
    board = Board.create(workers)
    return [Admission(clock, board, index, limits) for index in range(workers)]


def route(tenant: bytes = b"t1", rate: float = 10.0, burst: int = 5, in_flight: int = 100, cell: str = "c") -> Located:
    entry = CellEntry(cell, "127.0.0.1:1", Caps(1, 1, 1))
    return Located(tenant, entry, 1, RouteState.ACTIVE, PlanEntry("p", rate, burst, in_flight))


def admitted(admission: Admission, wanted: Located, tries: int) -> int:
    count = 0
    for _ in range(tries):
        if admission.enter_tenant(wanted, ADDRESS) is None:
            admission.leave_tenant(wanted, ADDRESS)
            count += 1
    return count


def test_a_burst_passes_and_then_only_the_rate(clock: Clock) -> None:
    (one,) = admissions(clock, 1)
    assert admitted(one, route(), 20) == 5
    clock.now += 1.0
    assert admitted(one, route(), 20) == 5  # ten would fit by rate, but never more than a burst at once
    for _ in range(10):
        clock.now += 0.1
        assert admitted(one, route(), 3) == 1


def test_a_refusal_says_when_to_come_again(clock: Clock) -> None:
    (one,) = admissions(clock, 1)
    slow = route(rate=0.2, burst=1)
    assert one.enter_tenant(slow, ADDRESS) is None
    refused = one.enter_tenant(slow, ADDRESS)
    assert refused is not None
    assert (refused.problem, refused.retry_after) == (problems.RATE_LIMITED, 5)


def test_the_rate_holds_for_all_workers_together(clock: Clock) -> None:
    workers = admissions(clock, 3)
    assert sum(admitted(worker, route(), 1) for worker in workers) == 3  # everyone knows the tenant
    total = 0
    for _ in range(400):
        clock.now += 0.025
        total += sum(admitted(worker, route(), 1) for worker in workers)
    assert 95 <= total <= 110  # 10 s at 10 a second, and what the burst left


def test_one_tenant_is_never_charged_for_another(clock: Clock) -> None:
    one, two = admissions(clock, 2)
    assert admitted(one, route(b"t1"), 50) == 5
    assert admitted(two, route(b"t2"), 50) == 5
    assert admitted(one, route(b"t3"), 50) == 5


def test_requests_in_flight_are_counted_over_all_workers(clock: Clock) -> None:
    one, two = admissions(clock, 2)
    busy = route(rate=1000, burst=1000, in_flight=3)
    assert [one.enter_tenant(busy, ADDRESS), two.enter_tenant(busy, ADDRESS), one.enter_tenant(busy, ADDRESS)] == [
        None
    ] * 3
    assert two.enter_tenant(busy, ADDRESS) is not None
    one.leave_tenant(busy, ADDRESS)
    assert two.enter_tenant(busy, ADDRESS) is None


def test_the_requests_of_a_dead_worker_are_no_longer_in_flight(clock: Clock) -> None:
    board = Board.create(2)
    dead, alive = (Admission(clock, board, index) for index in range(2))
    busy = route(rate=1000, burst=1000, in_flight=2)
    board.slot(0).enter(4711, Phase.SERVING)
    for _ in range(2):
        assert dead.enter_tenant(busy, ADDRESS) is None
    assert alive.enter_tenant(busy, ADDRESS) is not None
    board.slot(0).wipe()
    assert alive.enter_tenant(busy, ADDRESS) is None


def test_an_address_has_a_limit_of_its_own(clock: Clock) -> None:
    (one,) = admissions(clock, 1, AddressLimits(10, 2, 100))
    assert [one.enter_address(ADDRESS) is None for _ in range(3)] == [True, True, False]
    assert one.enter_address(b"192.0.2.2") is None
    one.leave_address(ADDRESS)


def test_a_rate_of_zero_turns_the_rate_off_and_keeps_the_cap(clock: Clock) -> None:
    (one,) = admissions(clock, 1, AddressLimits(0, 1, 3))
    assert [one.enter_address(ADDRESS) is None for _ in range(4)] == [True, True, True, False]


def test_one_address_cannot_use_up_the_front_door(clock: Clock) -> None:
    (one,) = admissions(clock, 1)
    front = route(b"-", rate=1000, burst=1000, in_flight=1000, cell="front-door")
    for _ in range(300):
        if one.enter_tenant(front, ADDRESS) is None:
            one.leave_tenant(front, ADDRESS)
    assert one.enter_tenant(front, ADDRESS) is not None
    assert one.enter_tenant(front, b"192.0.2.2") is None


def test_meters_of_many_strangers_are_forgotten_but_never_a_busy_one(clock: Clock) -> None:
    board = Board.create(1)
    limiter = Limiter(board.slot(0).address_usage, [], limit=50)
    assert limiter.enter(b"busy", clock.now, 1, 1, 1) == 0.0
    for number in range(500):
        clock.now += 0.001
        assert limiter.enter(b"%d" % number, clock.now, 1000, 1, 1) == 0.0
        limiter.leave(b"%d" % number)
    assert limiter.enter(b"busy", clock.now, 1, 1, 1) > 0
    limiter.leave(b"busy")


def test_colliding_keys_lose_sight_of_other_workers_but_charge_nobody(clock: Clock) -> None:
    board = Board.create(2)
    limiter = Limiter(board.slot(0).tenant_usage, [board.slot(1).tenant_usage])
    foreign = board.slot(1).tenant_usage
    for at in range(USAGE_SLOTS):
        foreign[at] = foreign[USAGE_SLOTS + at] = 0xFFFFFF << 40 | 1_000_000
    if hash(b"t1") >> 16 & 0xFFFFFF != 0xFFFFFF:
        assert limiter.enter(b"t1", clock.now, 10, 5, 10) == 0.0
