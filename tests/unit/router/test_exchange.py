"""The request path, event by event: what is replayed, what is never replayed, what a client is told."""

import pytest

from contracts.envelope import FIELDS, SIGNATURE, signer, verify
from contracts.keys import Purpose, derive
from contracts.routes import RouteHint
from router.client import Client
from router.hold import PROBE_FIRST_S, SILENCE_S
from router.settings import AddressLimits, Budgets
from router.table import RouteState
from router.upstream import Upstream
from tests.unit.router.wire import HINT_KEY, ROOT, MemoryTransport, World, requests_in, sent, statuses

GET = b"GET /a HTTP/1.1\r\nHost: t1.example.test\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: t1.example.test\r\nContent-Length: 5\r\n\r\nhello"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FROZEN = b"HTTP/1.1 503 Unavailable\r\nCell-Refused: tenant-frozen\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


def misdirected(hint: str = "") -> bytes:
    route = f"Cell-Route: {hint}\r\n" if hint else ""
    return f"HTTP/1.1 421 Misdirected\r\nCell-Refused: misdirected\r\n{route}Content-Length: 0\r\n\r\n".encode()


def last(world: World, cell: str = "cell-1") -> Upstream:
    return world.pool(cell).made[-1]


def fields_of(head: bytes) -> dict[bytes, bytes]:
    pairs = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line]
    return {name.lower(): value for name, value in pairs}


def ask(world: World, data: bytes = GET) -> tuple[Client, MemoryTransport]:
    client, transport = world.client()
    client.data_received(data)
    return client, transport


def test_the_cell_gets_a_signed_envelope_and_true_forwarding_fields() -> None:
    world = World()
    ask(world, GET.replace(b"\r\n\r\n", b"\r\nCell-Tenant: t2\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n"))
    head, _ = requests_in(sent(last(world)).take())[0]
    fields = fields_of(head)
    sign = signer(derive(ROOT, Purpose.ENVELOPE, "cell-1"))
    found = verify(sign, fields, b"GET", b"/a")
    assert (found.tenant, found.epoch, found.timeout_ms, found.plan) == ("t1", 1, 30000, "standard")
    assert fields[b"x-forwarded-for"] == b"192.0.2.7"
    assert fields[b"forwarded"] == b'for=192.0.2.7;host="t1.example.test";proto=http'
    assert all(head.lower().count(b"\n" + name + b":") == 1 for name in FIELDS)
    assert SIGNATURE in fields


def test_the_front_door_needs_no_tenant_and_no_table_and_has_a_key_and_a_pool_of_its_own() -> None:
    world = World()
    world.table.routes.clear()
    world.table.complete = False
    _, transport = ask(world, GET.replace(b"t1.example.test", b"start.example.test"))
    upstream = last(world, "front-door")
    head, _ = requests_in(sent(upstream).take())[0]
    sign = signer(derive(ROOT, Purpose.ENVELOPE, "front-door"))
    found = verify(sign, fields_of(head), b"GET", b"/a")
    assert (found.tenant, found.epoch) == ("-", 1)
    upstream.data_received(OK)
    assert statuses(transport.take()) == [200]
    assert world.pool("front-door").in_flight == 0


def test_a_trace_is_continued_with_a_span_of_our_own() -> None:
    world = World()
    trace = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    ask(world, GET.replace(b"\r\n\r\n", b"\r\ntraceparent: " + trace + b"\r\n\r\n"))
    fields = fields_of(requests_in(sent(last(world)).take())[0][0])
    request_id = fields[b"cell-request-id"]
    assert fields[b"traceparent"] == b"00-" + b"a" * 32 + b"-" + request_id[16:] + b"-01"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Host: nobody.example.test\r\n", 404),
        (b"Host: t1.example.test\r\nAuthorization: Bearer cwk_t2_" + b"x" * 30 + b"\r\n", 400),
        (b"Host: t1.example.test\r\nX-Tenant-ID: t2\r\n", 400),
        (b"Host: t1.example.test\r\nX-Tenant-ID: t1\r\nX-Tenant-ID: t2\r\n", 400),
    ],
)
def test_a_request_without_one_tenant_reaches_no_cell(head: bytes, status: int) -> None:
    world = World(trust=True)
    _, transport = ask(world, b"GET / HTTP/1.1\r\n" + head + b"\r\n")
    assert statuses(transport.take()) == [status]
    assert not world.pool().made


def test_a_suspended_tenant_is_refused_and_an_unfinished_table_is_not_an_unknown_tenant() -> None:
    world = World()
    world.table.put("t1", state=RouteState.SUSPENDED)
    _, transport = ask(world)
    assert statuses(transport.take()) == [403]
    world.table.routes.clear()
    world.table.complete = False
    _, transport = ask(world)
    assert statuses(transport.take()) == [503]


def test_misdirected_is_replayed_along_signed_routes_as_long_as_each_is_newer() -> None:
    world = World()
    _, transport = ask(world, POST)
    last(world).data_received(misdirected(RouteHint("t1", "cell-2", 2).signed(HINT_KEY)))
    head, body = requests_in(sent(last(world, "cell-2")).take())[0]
    assert (fields_of(head)[b"cell-epoch"], body) == (b"2", b"hello")
    last(world, "cell-2").data_received(misdirected(RouteHint("t1", "cell-1", 1).signed(HINT_KEY)))
    assert world.path.holds.waiting == 1, "an older route is no news: it must not send the request round in a circle"
    assert not transport.take()


def test_misdirected_is_replayed_with_its_body_in_the_cell_that_the_table_names_by_now() -> None:
    world = World()
    ask(world, POST)
    world.table.put("t1", "cell-2", epoch=2)
    last(world).data_received(misdirected())
    head, body = requests_in(sent(last(world, "cell-2")).take())[0]
    assert body == b"hello"
    assert fields_of(head)[b"cell-epoch"] == b"2"


def test_misdirected_twice_without_news_waits_for_the_move_instead_of_failing() -> None:
    """A source that took its tenant back is ahead of the table until the control plane has published that."""
    world = World()
    _, transport = ask(world, POST)
    for _ in range(3):
        last(world).data_received(misdirected())
        assert world.path.holds.waiting == 1
        world.pass_time(0.5)
    world.table.put("t1", "cell-1", epoch=3)
    world.path.holds.wake()
    last(world).data_received(OK)
    assert statuses(transport.take()) == [200]


def test_a_forged_route_hint_is_not_followed() -> None:
    world = World()
    ask(world)
    last(world).data_received(misdirected(RouteHint("t1", "cell-9", 9).signed(b"x" * 32)))
    assert "cell-9" not in world.pools.pools


def test_frozen_holds_and_is_sent_again_with_its_body_when_the_table_changes() -> None:
    world = World()
    _, transport = ask(world, POST)
    last(world).data_received(FROZEN)
    assert world.path.holds.waiting == 1
    world.table.put("t1", "cell-2", epoch=2)
    world.path.holds.wake()
    assert requests_in(sent(last(world, "cell-2")).take())[0][1] == b"hello"
    last(world, "cell-2").data_received(OK)
    assert statuses(transport.take()) == [200]
    assert world.path.holds.waiting == 0


def test_frozen_without_any_news_is_probed_by_one_request_and_releases_all() -> None:
    world = World()
    transports = [ask(world)[1] for _ in range(3)]
    for upstream in list(world.pool().made):
        upstream.data_received(FROZEN)
    assert world.path.holds.waiting == 3
    world.pass_time(PROBE_FIRST_S)
    assert world.path.holds.waiting == 2, "one probe at a time"
    busy = [u for u in world.pool().made if u.user is not None]
    busy[0].data_received(OK)
    for upstream in world.pool().made:
        if upstream.user is not None:
            upstream.data_received(OK)
    assert [statuses(t.take()) for t in transports] == [[200]] * 3


def test_a_held_route_waits_and_new_requests_wait_behind_it() -> None:
    world = World()
    world.table.put("t1", state=RouteState.HELD)
    _, first = ask(world)
    assert not world.pool().made
    world.table.put("t1", "cell-2", epoch=2)
    world.path.holds.wake()
    last(world, "cell-2").data_received(OK)
    assert statuses(first.take()) == [200]


def test_a_router_that_lost_its_control_plane_during_a_hold_finds_out_by_itself() -> None:
    world = World()
    world.table.put("t1", state=RouteState.HELD)
    _, transport = ask(world)
    world.pass_time(SILENCE_S)
    last(world).data_received(OK)
    assert statuses(transport.take()) == [200]
    _, transport = ask(world)
    last(world).data_received(OK)
    assert statuses(transport.take()) == [200], "once a probe got through, nobody waits for the table"


def test_a_hold_ends_in_time_and_says_so() -> None:
    world = World(budgets=Budgets(hold_s=1.0))
    world.table.put("t1", state=RouteState.HELD)
    _, transport = ask(world)
    world.pass_time(1.1)
    answer = transport.take()
    assert statuses(answer) == [503]
    assert b"tenant-frozen" in answer
    assert b"retry-after: 1" in answer
    assert world.path.holds.waiting == 0


def test_a_full_hold_refuses_instead_of_growing() -> None:
    world = World(budgets=Budgets(held_requests=2))
    world.table.put("t1", state=RouteState.HELD)
    transports = [ask(world)[1] for _ in range(3)]
    assert [statuses(t.take()) for t in transports] == [[], [], [503]]


def test_a_client_that_leaves_a_hold_leaves_nothing_behind() -> None:
    world = World()
    world.table.put("t1", state=RouteState.HELD)
    client, _ = ask(world)
    client.connection_lost(None)
    assert world.path.holds.waiting == 0
    assert not world.path.clients


def test_a_body_too_large_to_keep_is_not_replayed() -> None:
    world = World(budgets=Budgets(replay_bytes=10))
    body = b"x" * 50
    _, transport = ask(world, b"POST /a HTTP/1.1\r\nHost: t1.example.test\r\nContent-Length: 60\r\n\r\n" + body)
    last(world).data_received(FROZEN)
    assert statuses(transport.take()) == [503]
    assert len(requests_in(sent(last(world)).take())) == 0


def test_interrupted_is_never_replayed() -> None:
    world = World()
    _, transport = ask(world, POST)
    last(world).data_received(FROZEN.replace(b"tenant-frozen", b"interrupted"))
    answer = transport.take()
    assert statuses(answer) == [503]
    assert b"ell-Refused" not in answer
    assert len(world.pool().made) == 1


@pytest.mark.parametrize(("request_bytes", "again"), [(GET, True), (POST, False)])
def test_only_an_idempotent_request_is_sent_again_after_its_connection_was_lost(
    request_bytes: bytes, again: bool
) -> None:
    world = World()
    _, transport = ask(world, request_bytes)
    last(world).connection_lost(None)
    assert len(world.pool().made) == (2 if again else 1)
    if again:
        last(world).connection_lost(None)
    assert statuses(transport.take()) == [503 if again else 502]


def test_the_retry_after_a_dead_connection_does_not_meet_another_dead_one() -> None:
    world = World()
    _, first = ask(world)
    one = last(world)
    ask(world)
    last(world).data_received(OK)
    one.data_received(OK)
    assert len(world.pool().made) == 2
    assert statuses(first.take()) == [200]
    _, transport = ask(world)
    used = next(upstream for upstream in world.pool().made if upstream.user is not None)
    used.connection_lost(None)
    assert len(world.pool().made) == 3
    last(world).data_received(OK)
    assert statuses(transport.take()) == [200]


def test_nothing_is_sent_again_once_a_byte_of_an_answer_came() -> None:
    world = World()
    _, transport = ask(world)
    last(world).data_received(b"HTTP/1.1 2")
    last(world).connection_lost(None)
    assert len(world.pool().made) == 1
    assert statuses(transport.take()) == [502]


def test_retries_stop_when_their_budget_is_spent() -> None:
    world = World()
    for _ in range(30):
        _, transport = ask(world)
        last(world).connection_lost(None)
        if last(world).user is not None:
            last(world).data_received(OK)
    _, transport = ask(world)
    made = len(world.pool().made)
    last(world).connection_lost(None)
    assert len(world.pool().made) == made
    assert statuses(transport.take()) == [503]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX",
    ],
)
def test_an_answer_that_breaks_off_never_looks_whole(answer: bytes) -> None:
    world = World()
    _, transport = ask(world)
    last(world).data_received(answer)
    last(world).connection_lost(None)
    assert transport.aborted or statuses(transport.take()) == [502]
    assert not transport.take().endswith(b"0\r\n\r\n")


def test_an_answer_that_stalls_is_cut_and_one_that_goes_on_may_outlast_the_budget() -> None:
    world = World(budgets=Budgets(request_s=30.0, client_stall_s=20.0))
    _, stalled = ask(world)
    last(world).data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")
    world.pass_time(19.0)
    assert not stalled.aborted
    world.pass_time(1.1)
    assert stalled.aborted, "from its head on an answer has the patience for a stall, not the rest of the budget"
    assert sent(last(world)).aborted

    _, slow = ask(world)
    upstream = last(world)
    world.pass_time(19.0)
    upstream.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    world.pass_time(19.0)
    upstream.data_received(b"hell")
    world.pass_time(19.0)
    assert not slow.aborted
    upstream.data_received(b"o you")
    assert slow.take().endswith(b"\r\n\r\nhello you")


def test_an_answer_that_ends_with_its_connection_ends_as_chunks() -> None:
    world = World()
    _, transport = ask(world)
    last(world).data_received(b"HTTP/1.1 200 OK\r\n\r\nhello")
    last(world).eof_received()
    assert transport.take().endswith(b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert not transport.ended


def test_surplus_behind_an_answer_never_becomes_the_next_one() -> None:
    world = World()
    client, transport = ask(world)
    last(world).data_received(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON")
    assert sent(last(world)).aborted
    client.data_received(GET)
    last(world).data_received(OK)
    assert b"POISON" not in transport.take()


def test_an_unasked_answer_on_an_idle_connection_closes_it() -> None:
    world = World()
    ask(world)
    upstream = last(world)
    upstream.data_received(OK)
    upstream.data_received(OK)
    assert sent(upstream).aborted
    assert not world.pool().idle


def test_a_connection_is_reused_only_after_the_whole_request_was_sent() -> None:
    world = World()
    _, transport = ask(world, b"POST /a HTTP/1.1\r\nHost: t1.example.test\r\nContent-Length: 70000\r\n\r\npart")
    last(world).data_received(OK)
    assert sent(last(world)).aborted
    answer = transport.take()
    assert statuses(answer) == [200]
    assert b"connection: close" in answer
    assert transport.ended


def test_interim_answers_reach_only_who_can_read_them_and_are_bounded() -> None:
    world = World()
    _, transport = ask(world)
    last(world).data_received(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)
    assert statuses(transport.take()) == [103, 200]
    _, transport = ask(world)
    last(world).data_received(b"HTTP/1.1 102 Processing\r\n\r\n" * 20)
    assert statuses(transport.take())[-1] == 502


def test_a_websocket_tunnels_both_ways_only_after_101_and_its_connection_is_never_reused() -> None:
    world = World()
    upgrade = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n")
    client, transport = ask(world, upgrade + b"early")
    upstream = last(world)
    assert b"early" not in sent(upstream).take()
    upstream.data_received(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
    assert transport.take().endswith(b"\r\n\r\nfirst")
    assert sent(upstream).take() == b"early"
    client.data_received(b"up")
    upstream.data_received(b"down")
    assert (sent(upstream).take(), transport.take()) == (b"up", b"down")
    client.connection_lost(None)
    assert sent(upstream).closed
    assert not world.pool().idle
    assert world.pool().in_flight == 0


def test_101_that_nobody_asked_for_is_broken() -> None:
    world = World()
    _, transport = ask(world)
    last(world).data_received(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert statuses(transport.take()) == [502]
    assert sent(last(world)).closed


def test_a_slow_reader_stops_the_cell_and_a_slow_cell_stops_the_client() -> None:
    world = World()
    client, transport = ask(world, b"POST /a HTTP/1.1\r\nHost: t1.example.test\r\nContent-Length: 99000\r\n\r\npart")
    upstream = last(world)
    upstream.pause_writing()
    assert transport.paused
    upstream.resume_writing()
    assert not transport.paused
    upstream.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\npart")
    client.pause_writing()
    assert sent(upstream).paused
    client.resume_writing()
    assert not sent(upstream).paused


def test_the_time_budget_ends_a_request_and_frees_its_connection() -> None:
    world = World(budgets=Budgets(request_s=1.0))
    _, transport = ask(world)
    world.pass_time(1.1)
    assert statuses(transport.take()) == [504]
    assert sent(last(world)).aborted
    assert world.pool().in_flight == 0


@pytest.mark.invariant(7)
def test_a_request_whose_client_left_stops_costing_at_once() -> None:
    world = World()
    client, _ = ask(world)
    client.connection_lost(None)
    assert sent(last(world)).aborted
    assert world.pool().in_flight == 0


def test_a_client_that_leaves_while_it_waits_for_a_connection_is_forgotten() -> None:
    world = World()
    world.pool().connect = False
    client, _ = ask(world)
    client.connection_lost(None)
    assert not world.pool().waiting
    assert world.pool().in_flight == 0


def test_a_full_cell_and_a_cell_that_is_down_are_503_with_retry_after() -> None:
    world = World()
    world.pool().full = True
    _, transport = ask(world)
    answer = transport.take()
    assert statuses(answer) == [503]
    assert b"retry-after: 1" in answer
    world.pool().full, world.pool().connect = False, False
    _, transport = ask(world)
    world.pool().waiting[0].unconnected("refused")
    answer = transport.take()
    assert statuses(answer) == [503]
    assert b"retry-after: 1" in answer


def test_too_many_requests_of_one_address_are_429() -> None:
    world = World(addresses=AddressLimits(requests_per_s=1.0, burst=1, in_flight=10))
    _, first = ask(world)
    _, second = ask(world)
    assert statuses(second.take()) == [429]
    last(world).data_received(OK)
    assert statuses(first.take()) == [200]


def test_head_slowness_is_408_and_an_idle_connection_is_closed_silently() -> None:
    world = World()
    _, transport = ask(world, b"GET / HT")
    world.pass_time(world.budgets.client_head_s)
    assert statuses(transport.take()) == [408]
    _, transport = world.client()
    world.pass_time(world.budgets.client_idle_s)
    assert transport.take() == b""
    assert transport.closed


def test_a_pipelining_client_cannot_make_the_router_buffer_without_bound() -> None:
    world = World()
    client, transport = ask(world, GET)
    while not transport.paused:
        client.data_received(GET * 100)
        assert len(client._buf) < 200_000
    last(world).data_received(OK)
    assert len(requests_in(sent(last(world)).take())) == 2, "one at a time"


def test_a_malformed_request_is_answered_and_the_connection_ends() -> None:
    world = World()
    client, transport = ask(world, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n" + GET)
    answer = transport.take()
    assert statuses(answer) == [400]
    assert b"application/problem+json" in answer
    assert transport.ended
    client.data_received(GET)
    assert not world.pool().made


def test_http_1_0_gets_no_chunks() -> None:
    world = World()
    _, transport = ask(world, b"GET /a HTTP/1.0\r\nHost: t1.example.test\r\n\r\n")
    last(world).data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    answer = transport.take()
    assert b"chunked" not in answer
    assert answer.endswith(b"connection: close\r\n\r\nhello")
    assert transport.ended


def test_head_keeps_its_length_and_gets_no_body() -> None:
    world = World()
    client, transport = ask(world, GET.replace(b"GET", b"HEAD"))
    last(world).data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    assert transport.take() == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
    client.data_received(GET)
    last(world).data_received(OK)
    assert transport.take().endswith(b"ok")
    assert len(world.pool().made) == 1


def test_draining_closes_idle_clients_and_tells_the_others() -> None:
    world = World()
    idle, idle_transport = world.client()
    _, busy_transport = ask(world)
    world.path.draining = True
    for client in list(world.path.clients):
        client.drain()
    assert idle_transport.closed
    last(world).data_received(OK)
    assert b"connection: close" in busy_transport.take()
    assert busy_transport.ended
    idle.connection_lost(None)
