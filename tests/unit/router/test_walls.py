"""Each wall of the router by itself: what it refuses, what it only counts, and what it never costs a fair client."""

import contextlib
from dataclasses import dataclass

import pytest

from contracts import problems
from contracts.envelope import LARGE_BODY
from router import admission
from router.admission import REST_S, Admission
from router.board import Board
from router.breaker import OPEN_FIRST_S, SILENT_REQUESTS, SILENT_TENANTS, Silence
from router.client import LARGE_ANSWER, LEAVING
from router.pool import KEPT, NoRoomError, Pool
from router.settings import AddressLimits, Budgets
from router.table import Caps
from router.timers import Wheel
from router.turns import Turns
from router.walls import ALL_ON, Mode, Modes, Wall, Walls, parse
from tests.unit.router.test_admission import route
from tests.unit.router.test_exchange import GET, OK, POST, ask, last
from tests.unit.router.wire import Clock, MemoryTransport, World, requests_in, seeded, sent, statuses

ADDRESS = b"192.0.2.1"
BODY = b"POST /a HTTP/1.1\r\nHost: t1.example.test\r\nContent-Length: %d\r\n\r\n"
WINDOW_S = Budgets().client_window_s
LEAST = int(Budgets().client_bytes_per_s * WINDOW_S)


class Told:
    """What a wall counted: (wall, refused)."""

    def __init__(self, modes: Modes = ALL_ON) -> None:
        self.events: list[tuple[str, bool]] = []
        self.walls = Walls(modes, lambda wall, refused: self.events.append((wall, refused)))


def all_in(mode: Mode) -> dict[Wall, Mode]:
    return dict.fromkeys(Wall, mode)


@pytest.mark.parametrize("text", ["plans", "plans=", "plans=maybe", "plan=on", "=on", ""])
def test_a_misspelt_wall_is_not_a_wall_that_is_off(text: str) -> None:
    with pytest.raises(ValueError, match=r"on\|off\|observe.*addresses, plans, connections, slow-clients, bulkheads"):
        parse(text)


@pytest.mark.parametrize(
    ("mode", "admitted", "events"), [(Mode.ON, 2, [True] * 3), (Mode.OBSERVE, 5, [False] * 3), (Mode.OFF, 5, [])]
)
def test_a_plan_is_enforced_observed_or_not_looked_at_and_nothing_stays_counted(
    mode: Mode, admitted: int, events: list[bool]
) -> None:
    board, told = Board.create(1), Told(all_in(mode))
    one = Admission(Clock(), board, 0, AddressLimits(), told.walls)
    wanted = route(rate=1000, burst=1000, in_flight=2)
    entered = [one.enter_tenant(wanted, ADDRESS) is None for _ in range(5)]
    assert sum(entered) == admitted
    assert told.events == [("plans", refused) for refused in events]
    for _ in range(admitted):
        one.leave_tenant(wanted, ADDRESS)
    assert one.enter_tenant(wanted, ADDRESS) is None


def posted(world: World, tenant: str, size: int) -> MemoryTransport:
    """The connection of a client that sends a body of this size, whole."""
    _, transport = ask(world, (BODY % size).replace(b"t1", tenant.encode()) + b"x" * size)
    return transport


@pytest.mark.parametrize("refusal", [b"429 Busy\r\nCell-Refused: tenant-busy", b"503 Busy\r\nCell-Refused: overloaded"])
def test_who_is_told_that_the_cell_has_no_room_for_its_large_body_sends_the_next_one_to_nobody(refusal: bytes) -> None:
    world = World()
    first = posted(world, "t1", LARGE_BODY + 1)
    last(world).data_received(b"HTTP/1.1 %b\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n" % refusal)
    assert statuses(first.take()) == [int(refusal[:3])]
    carried = len(world.pool().made)
    again = posted(world, "t1", LARGE_BODY + 1).take()
    assert statuses(again) == [429]
    assert b"retry-after: 1" in again
    assert len(world.pool().made) == carried
    for tenant, size in (("t1", LARGE_BODY), ("t2", LARGE_BODY + 1)):  # its small ones, and another's large ones
        other = posted(world, tenant, size)
        last(world).data_received(OK)
        assert statuses(other.take()) == [200]
    world.pass_time(REST_S)
    later = posted(world, "t1", LARGE_BODY + 1)
    last(world).data_received(OK)
    assert statuses(later.take()) == [200]


def test_a_large_body_that_the_cell_refuses_for_what_it_says_is_no_reason_to_wait() -> None:
    world = World()
    for _ in range(3):
        transport = posted(world, "t1", LARGE_BODY + 1)
        last(world).data_received(b"HTTP/1.1 422 No\r\nContent-Length: 0\r\n\r\n")
        assert statuses(transport.take()) == [422]


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.OFF])
def test_who_shall_wait_with_its_large_bodies_passes_a_wall_that_does_not_refuse(mode: Mode) -> None:
    told = Told(all_in(mode))
    one = Admission(Clock(), Board.create(1), 0, AddressLimits(), told.walls)
    one.rest(route())
    assert one.rests(route()) is None
    assert told.events == ([("plans", False)] if mode is Mode.OBSERVE else [])


def test_a_body_that_is_only_announced_makes_nobody_wait() -> None:
    world = World()
    ask(world, BODY % (LARGE_BODY + 1) + b"x")
    last(world).data_received(b"HTTP/1.1 429 Busy\r\nCell-Refused: tenant-busy\r\nContent-Length: 0\r\n\r\n")
    transport = posted(world, "t1", LARGE_BODY + 1)
    last(world).data_received(OK)
    assert statuses(transport.take()) == [200]


def test_memory_of_who_shall_wait_is_bounded_and_forgets_who_has_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_RESTING_LIMIT", 10)
    clock = Clock()
    one = Admission(clock, Board.create(1), 0)
    for number in range(25):
        one.rest(route(b"t%d" % number))
    assert [one.rests(route(b"t%d" % number)) is None for number in (9, 10)] == [False, True]
    clock.now += REST_S
    one.rest(route(b"t99"))
    assert one.rests(route(b"t99")) is not None


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.OFF])
def test_an_address_beyond_its_limits_passes_a_wall_that_does_not_refuse(mode: Mode) -> None:
    board, told = Board.create(1), Told(all_in(mode))
    one = Admission(Clock(), board, 0, AddressLimits(1, 1, 1, 1), told.walls)
    front = route(b"-", rate=1000, burst=1000, in_flight=1000, cell="front-door")
    for _ in range(3):
        assert one.connect(ADDRESS)
        assert one.enter_address(ADDRESS) is None
        assert one.enter_tenant(front, ADDRESS) is None
    for _ in range(3):
        one.leave_tenant(front, ADDRESS)
        one.leave_address(ADDRESS)
        one.disconnect(ADDRESS)
    assert [wall for wall, _ in told.events] == (["connections", "addresses"] * 2 if mode is Mode.OBSERVE else [])


def test_the_connections_of_an_address_are_counted_over_all_workers_and_apart_from_its_requests() -> None:
    board = Board.create(2)
    one, two = (Admission(Clock(), board, index, AddressLimits(0, 1, 1, 2)) for index in range(2))
    assert [one.connect(ADDRESS), two.connect(ADDRESS), one.connect(ADDRESS)] == [True, True, False]
    assert one.connect(b"192.0.2.2")
    assert one.enter_address(ADDRESS) is None
    two.disconnect(ADDRESS)
    assert one.connect(ADDRESS)


def test_an_address_with_too_many_connections_is_told_so_and_gets_room_when_it_closes_one() -> None:
    world = World(addresses=AddressLimits(connections=1))
    first, _ = world.client()
    second, transport = world.client()
    answer = transport.take()
    assert statuses(answer) == [429]
    assert b"connections-limited" in answer
    assert transport.ended
    second.data_received(GET)
    assert not world.pool().made, "a refused connection carries no request"
    second.connection_lost(None)
    first.connection_lost(None)
    _, transport = ask(world)
    assert len(world.pool().made) == 1


def test_a_full_worker_says_503_and_refused_connections_cannot_fill_it() -> None:
    world = World()
    world.path.connections = 2
    kept = [world.client() for _ in range(2)]
    refused = [world.client() for _ in range(LEAVING + 3)]
    assert [statuses(transport.take()) for _, transport in refused[:LEAVING]] == [[503]] * LEAVING
    assert all(transport.aborted for _, transport in refused[LEAVING:]), "more than can be told are cut"
    for client, _ in refused:
        client.connection_lost(None)
    assert world.path.leaving == 0
    kept[0][0].connection_lost(None)
    _, transport = world.client()
    assert transport.take() == b""


def test_a_small_body_that_trickles_takes_no_connection_of_a_cell() -> None:
    world = World()
    client, transport = ask(world, POST[:-3])
    assert not world.pool().made
    assert world.path.gathered == 5
    client.data_received(POST[-3:])
    assert requests_in(sent(last(world)).take())[0][1] == b"hello"
    last(world).data_received(OK)
    assert statuses(transport.take()) == [200]
    assert world.path.gathered == 0


def test_what_is_gathered_is_bounded_and_left_behind_by_no_client() -> None:
    world = World(budgets=Budgets(gathered_bytes=1000))
    leaver, _ = ask(world, BODY % 600)
    assert not world.pool().made
    ask(world, BODY % 600)
    assert len(world.pool().made) == 1, "no room: it is sent as it comes"
    leaver.connection_lost(None)
    assert world.path.gathered == 0
    assert world.pool().in_flight == 1


def test_a_client_that_waits_for_the_word_of_the_cell_or_sends_chunks_is_not_waited_for() -> None:
    world = World()
    ask(world, (BODY % 5).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    assert len(world.pool().made) == 1
    ask(world, b"POST /a HTTP/1.1\r\nHost: t1.example.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    assert len(world.pool().made) == 2


def trickle(world: World, client: object, step: bytes, every_s: float, times: int) -> None:
    for _ in range(times):
        world.pass_time(every_s)
        client.data_received(step)  # type: ignore[attr-defined]


@pytest.mark.parametrize("start", [b"POST /a HTTP/1.1\r\nHost: t1", BODY % 4000, BODY % 400_000])
def test_a_request_that_trickles_is_ended_with_408_although_it_never_stalls(start: bytes) -> None:
    world = World()
    client, transport = ask(world, start)
    trickle(world, client, b"x", 0.5, int(WINDOW_S / 0.5) + 1)
    assert statuses(transport.take()) == [408]
    assert transport.ended
    assert world.pool().in_flight == 0


def test_a_request_just_fast_enough_is_left_alone() -> None:
    world = World()
    client, transport = ask(world, BODY % 60_000)
    trickle(world, client, b"x" * (LEAST // 5 + 10), 0.9, 20)
    assert transport.take() == b""
    assert not transport.ended


def test_a_client_is_not_slow_while_the_cell_or_the_router_keeps_it_from_sending() -> None:
    world = World()
    _, transport = ask(world, BODY % 400_000)
    last(world).pause_writing()
    world.pass_time(3 * WINDOW_S)
    assert transport.take() == b""
    _, waiting = ask(world, (BODY % 5).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    world.pass_time(2 * WINDOW_S)
    assert waiting.take() == b"", "it waits for 100 Continue"


@pytest.mark.parametrize(("mode", "ends"), [(Mode.ON, True), (Mode.OBSERVE, False), (Mode.OFF, False)])
def test_a_client_that_does_not_take_its_answer_is_cut_also_after_the_answer_is_complete(
    mode: Mode, ends: bool
) -> None:
    world = World(modes=all_in(mode))
    _, transport = ask(world)
    transport.untaken = LARGE_ANSWER
    last(world).data_received(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE_ANSWER + b"x" * LARGE_ANSWER)
    world.pass_time(WINDOW_S)
    assert transport.aborted is ends


def test_a_client_that_takes_its_answer_slowly_but_fast_enough_gets_all_of_it() -> None:
    world = World()
    close = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    _, transport = ask(world, close)
    transport.untaken = 20 * LEAST
    last(world).data_received(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE_ANSWER + b"x" * LARGE_ANSWER)
    while transport.untaken:
        world.pass_time(WINDOW_S / 10)
        assert not transport.aborted
        transport.untaken = max(0, transport.untaken - LEAST // 5)


def test_unread_answers_to_pipelined_requests_do_not_pile_up() -> None:
    world = World()
    client, transport = ask(world)
    last(world).data_received(OK)
    client.pause_writing()
    client.data_received(GET * 3)
    sent(last(world)).take()
    assert requests_in(sent(last(world)).take()) == [], "nothing is begun that it would not read"
    transport.take()
    client.resume_writing()
    assert len(requests_in(sent(last(world)).take())) == 1
    for _ in range(3):
        last(world).data_received(OK)
    assert statuses(transport.take()) == [200] * 3


@pytest.mark.parametrize("pieces", [[OK], [OK[:-1], OK[-1:]]])
def test_a_client_that_is_full_at_the_end_of_its_answer_pauses_no_connection_of_the_next_user(
    pieces: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    client, transport = ask(world)
    for piece in pieces[:-1]:
        last(world).data_received(piece)

    def fill(data: bytes) -> None:
        client.pause_writing()

    monkeypatch.setattr(transport, "write", fill)
    last(world).data_received(pieces[-1])
    _, neighbour = ask(world)
    assert len(world.pool().made) == 1
    assert not sent(last(world)).paused, "its answer would never be read"
    last(world).data_received(OK)
    assert statuses(neighbour.take()) == [200]


def pool(told: Told, clock: Clock, in_flight: int = 2) -> Pool:
    return Pool("cell-1", "127.0.0.1:1", Caps(1, 1, in_flight), Budgets(), Wheel(), clock, seeded(1), told.walls)


@dataclass(frozen=True)
class Waiter:
    tenant: bytes
    number: int


def test_tenants_take_turns_and_who_leaves_is_forgotten() -> None:
    turns = Turns[Waiter]()
    flood = [Waiter(b"t1", number) for number in range(5)]
    for waiter in flood:
        turns.append(waiter)
    neighbour = Waiter(b"t2", 0)
    turns.append(neighbour)
    assert turns.popleft() is flood[0]
    turns.discard(flood[1])
    turns.discard(flood[1])
    turns.discard(Waiter(b"t3", 0))
    assert len(turns) == 4
    assert [turns.popleft() for _ in range(4)] == [neighbour, *flood[2:]]
    assert len(turns) == 0
    with pytest.raises(IndexError):
        turns.popleft()


def test_tenants_with_much_in_flight_leave_room_in_the_bulkhead_for_one_with_little() -> None:
    told = Told()
    one = pool(told, Clock(), in_flight=80)
    floods = (b"t1", b"t2", b"t3")
    entered = 0
    for number in range(300):
        with contextlib.suppress(NoRoomError):
            one.enter(floods[number % 3])
            entered += 1
    assert entered == 80 - 80 // KEPT
    one.enter(b"t4")
    one.leave(b"t4")
    for number in range(entered):
        one.leave(floods[number % 3])
    assert one.in_flight == 0


def test_many_floods_together_would_fill_a_bulkhead_to_its_last_place() -> None:
    one = pool(Told(), Clock(), in_flight=160)
    floods = [b"t%d" % number for number in range(16)]
    entered = 0
    for number in range(400):
        with contextlib.suppress(NoRoomError):
            one.enter(floods[number % 16])
            entered += 1
    assert entered == 160 - 160 // KEPT
    one.enter(b"quiet")


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.OFF])
def test_a_bulkhead_that_does_not_refuse_takes_everybody(mode: Mode) -> None:
    told = Told(all_in(mode))
    one = pool(told, Clock())
    for _ in range(5):
        one.enter(b"t1")
    assert told.events == ([("bulkheads", False)] * 3 if mode is Mode.OBSERVE else [])
    for _ in range(5):
        one.leave(b"t1")
    assert one.in_flight == 0


def test_a_cell_that_answers_nobody_is_set_aside_and_tried_again_until_it_answers() -> None:
    clock, told = Clock(), Told()
    one = pool(told, clock)
    for number in range(SILENT_REQUESTS):
        one.enter(b"t1")
        one.leave(b"t1")
        assert one.silence.silent(b"t%d" % (number % SILENT_TENANTS)) is (number == SILENT_REQUESTS - 1)
    with pytest.raises(NoRoomError) as refused:
        one.enter(b"t1")
    assert refused.value.problem is problems.CELL_UNAVAILABLE
    assert OPEN_FIRST_S <= refused.value.retry_after_s <= OPEN_FIRST_S * 1.25
    clock.now += OPEN_FIRST_S * 1.25
    one.enter(b"t1")  # the trial
    with pytest.raises(NoRoomError):
        one.enter(b"t1")
    one.silence.answered()
    one.enter(b"t1")
    assert told.events == [("bulkheads", True)] * 2


def test_one_tenant_without_answers_does_not_close_its_cell_to_the_others() -> None:
    silence = Silence(Clock(), seeded(1))
    assert not any(silence.silent(b"t1") for _ in range(100))
    assert silence.allows()


def test_a_hanging_cell_is_noticed_by_the_requests_it_leaves_unanswered_and_taken_back_by_one_answer() -> None:
    world = World(budgets=Budgets(request_s=1.0))
    world.table.put("t3")
    for number in range(SILENT_REQUESTS):
        ask(world, GET.replace(b"t1", b"t%d" % (number % 3 + 1)))
    world.pass_time(1.1)
    assert not world.pool().silence.allows()
    _, transport = ask(world)
    last(world).data_received(OK)
    assert statuses(transport.take()) == [200]
    assert world.pool().silence.allows()
