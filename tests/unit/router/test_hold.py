"""A hold never waits for ever, never for nothing, and never takes more than its room."""

from collections import deque

import pytest

from contracts.envelope import TIMEOUT_MS
from router.hold import PROBE_FIRST_S, SILENCE_S, Holds
from router.settings import Budgets
from router.table import RouteState
from router.timers import TICK_S, Wheel
from tests.unit.router.test_exchange import FROZEN, OK, POST, ask, fields_of, last
from tests.unit.router.wire import World, requests_in, sent, statuses

POST_BODY = 5  # bytes of body in POST


class Waiting:
    """A request that only waits, and remembers how it was released."""

    def __init__(self, kept_bytes: int = 0) -> None:
        self.kept_bytes = kept_bytes
        self.releases: deque[bool] = deque()

    def released(self, probe: bool) -> None:
        self.releases.append(probe)


def turn(wheel: Wheel, seconds: float) -> None:
    wheel.turn(int(seconds / TICK_S) + 2)


def held_world(budgets: Budgets | None = None) -> World:
    world = World(budgets=budgets or Budgets())
    world.table.put("t1", state=RouteState.HELD)
    return world


def test_a_cell_is_told_what_is_left_of_the_budget_after_a_hold() -> None:
    world = held_world()
    began = world.clock.now
    ask(world)
    world.pass_time(2.0)
    world.table.put("t1", "cell-2", epoch=2)
    world.path.holds.wake()
    head, _ = requests_in(sent(last(world, "cell-2")).take())[0]
    left_ms = 30_000 - (world.clock.now - began) * 1000
    assert int(fields_of(head)[TIMEOUT_MS]) == pytest.approx(left_ms, abs=1)
    assert left_ms < 28_001


def test_a_hold_is_bounded_in_bytes_of_kept_bodies() -> None:
    world = held_world(Budgets(held_bytes=2 * POST_BODY))
    clients = [ask(world, POST) for _ in range(3)]
    assert [statuses(transport.take()) for _, transport in clients] == [[], [], [503]]
    clients[0][0].connection_lost(None)
    assert statuses(ask(world, POST)[1].take()) == [], "who left makes room"
    assert statuses(ask(world, POST)[1].take()) == [503]


def test_bytes_that_come_during_a_hold_count_and_leave_with_their_request() -> None:
    world = held_world(Budgets(held_bytes=2 * POST_BODY))
    part = POST.replace(b"Length: 5", b"Length: 90000")
    growing, transport = ask(world, part)
    growing.data_received(b"x" * POST_BODY)
    assert statuses(transport.take()) == []
    growing.data_received(b"x")
    assert statuses(transport.take()) == [503]
    clients = [ask(world, POST) for _ in range(3)]
    assert [statuses(transport.take()) for _, transport in clients] == [[], [], [503]]


def test_a_probe_that_finds_no_room_leaves_the_queue_to_another_probe() -> None:
    wheel = Wheel()
    holds = Holds(wheel, lambda _: True, requests=1, max_bytes=100)
    first, second = Waiting(), Waiting()
    assert holds.add(b"t1", first, frozen=True)
    turn(wheel, PROBE_FIRST_S)
    assert list(first.releases) == [True]
    assert holds.add(b"t1", second, frozen=False), "the probe is under way and takes no room"
    assert not holds.add(b"t1", first, frozen=True)
    turn(wheel, 2 * PROBE_FIRST_S)
    assert list(second.releases) == [True], "it would wait until its time is up"


def test_a_probe_that_finds_no_room_is_told_so_and_the_next_one_gets_through() -> None:
    world = World(budgets=Budgets(held_requests=1))
    _, first = ask(world)
    last(world).data_received(FROZEN)
    world.pass_time(PROBE_FIRST_S)
    _, second = ask(world)
    assert world.path.holds.waiting == 1
    last(world).data_received(FROZEN)
    assert statuses(first.take()) == [503]
    world.pass_time(2 * PROBE_FIRST_S)
    last(world).data_received(OK)
    assert statuses(second.take()) == [200]


def test_a_request_whose_hold_is_used_up_is_refused_when_its_probe_comes_back() -> None:
    """A probe runs on the budget of the request; it must not start to wait again after the time to wait."""
    world = World(budgets=Budgets(hold_s=1.0))
    _, transport = ask(world)
    last(world).data_received(FROZEN)
    world.pass_time(PROBE_FIRST_S)
    assert world.path.holds.waiting == 0, "it is on its way as a probe"
    world.pass_time(1.1)
    assert not transport.sent
    last(world).data_received(FROZEN)
    assert statuses(transport.take()) == [503]
    assert world.path.holds.waiting == 0


def test_a_silent_hold_is_probed_later_than_a_frozen_one_and_by_one_request() -> None:
    world = held_world()
    for _ in range(3):
        ask(world)
    world.pass_time(SILENCE_S - 1.0)
    assert not world.pool().made
    world.pass_time(1.0)
    assert len(world.pool().made) == 1
    assert world.path.holds.waiting == 2
