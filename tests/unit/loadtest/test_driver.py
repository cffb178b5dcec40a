import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from contracts import problems
from loadtest.driver import ATTEMPT_TIMEOUT_S, Driver
from loadtest.record import Failure, Kill, Record
from loadtest.schedule import Intent, Kind, Traffic, beside, schedule
from loadtest.wire import Answer, ExchangeError
from loadtest.workload import Account
from tests.unit.loadtest.virtual_time import run

ACCOUNT = Account("t1", "one", "one.cellwall.localhost", "cwk_t1_x", ("p1",))
ORDERS = {"t1": ["o0"]}
NO_CPU: Callable[[], float] = lambda: 0.0  # noqa: E731


class FakeFleet:
    """Answers after ``delay(now)`` seconds; ``script`` entries come first, in order: a status, a body or an error."""

    def __init__(self, name: str = "router-1", *, delay: Callable[[float], float] = lambda _: 0.001) -> None:
        self.name = name
        self.delay = delay
        self.script: list[Answer | ExchangeError] = []
        self.payloads: list[bytes] = []
        self.times: list[float] = []

    async def exchange(self, payload: bytes) -> Answer:
        now = asyncio.get_running_loop().time() - 1000.05  # the loop starts at 1000, the driver 50 ms later
        self.payloads.append(payload)
        self.times.append(now)
        await asyncio.sleep(self.delay(now))
        if self.script:
            scripted = self.script.pop(0)
            if isinstance(scripted, ExchangeError):
                raise scripted
            return scripted
        if payload.startswith(b"POST"):
            return Answer(201, b'{"id":"order-%d"}' % len(self.payloads), "cell-1", 3)
        return Answer(200, b"{}", "cell-1", 3)


def drive(intents: list[Intent] | tuple[Intent, ...], *routers: FakeFleet) -> Record:
    record = Record()
    run(Driver(routers, [ACCOUNT], ORDERS, "run", record).run(intents, cpu=NO_CPU))
    return record


def creates(count: int = 1) -> list[Intent]:
    return [Intent(n, 0.1 * (n + 1), 0, Kind.CREATE, 0.5) for n in range(count)]


def test_a_stall_is_hidden_because_latency_counts_from_the_actual_send() -> None:
    """Coordinated omission: everything that was due during a stall of one second waited for its end.

    The fleet stands still from 2.0 s to 3.0 s. Of 10 s at 100 a second, a tenth was due in the stall, so p95 must
    be about half a second and the maximum one second. A closed loop would report one slow request of a thousand.
    """
    fleet = FakeFleet(delay=lambda now: 3.001 - now if 2.0 <= now < 3.0 else 0.001)
    record = drive(schedule(Traffic(tenants=1, rate=100, seconds=10, seed=5, mix={Kind.LIST: 1.0})), fleet)
    latency = record.latency["cell-1", Kind.LIST]
    assert latency.percentile_ms(50) == pytest.approx(1, abs=1)
    assert latency.percentile_ms(95) == pytest.approx(500, abs=150)
    assert latency.max_ms == pytest.approx(1000, rel=0.05)


def test_a_slow_fleet_slows_the_schedule_down() -> None:
    intents = schedule(Traffic(tenants=1, rate=50, seconds=4, seed=5, mix={Kind.LIST: 1.0}))
    fleet = FakeFleet(delay=lambda _: 3.0)
    record = drive(intents, fleet)
    assert fleet.times == pytest.approx([i.at for i in intents], abs=0.001)
    assert record.pace.kept
    assert record.sent == record.succeeded == len(intents)


def test_tenants_who_come_during_a_run_wait_for_its_end_or_use_its_keys_again() -> None:
    fleet, record = FakeFleet(), Record()
    late = Account("t2", "two", "two.cellwall.localhost", "cwk_t2_x", ("p2",))
    intents = creates(3)

    async def grow() -> None:
        driver = Driver([fleet], [ACCOUNT], ORDERS, "run", record)
        async with asyncio.TaskGroup() as group:
            group.create_task(driver.run(intents, cpu=NO_CPU))
            await asyncio.sleep(0.15)
            first = driver.admit([late], {"t2": ["o9"]})
            group.create_task(driver.also(beside(creates(2), number=len(intents), at=0.1, tenant=first)))

    run(grow())
    assert fleet.times == pytest.approx([0.1, 0.2, 0.2, 0.3, 0.3], abs=0.01)
    assert {(a.tenant, a.key) for a in record.acknowledged} == {
        *(("t1", f"run-{n}") for n in range(3)),
        *(("t2", f"run-{n}") for n in (3, 4)),
    }
    assert record.intended == record.sent == record.succeeded == 5
    assert record.seconds >= 0.3


def test_a_driver_that_fell_behind_calls_its_figures_good() -> None:
    """Something holds the loop for 200 ms again and again; the schedule is kept by nobody, and the run says so."""

    def blocks(_: float) -> float:
        asyncio.get_running_loop().now += 0.2  # type: ignore[attr-defined]
        return 0.001

    record = drive(
        schedule(Traffic(tenants=1, rate=50, seconds=2, seed=5, mix={Kind.LIST: 1.0})), FakeFleet(delay=blocks)
    )
    assert not record.pace.kept
    assert record.pace.words().startswith("INVALID")


def test_requests_all_go_through_one_router() -> None:
    routers = FakeFleet("router-1"), FakeFleet("router-2")
    drive(creates(10), *routers)
    assert [len(r.payloads) for r in routers] == [5, 5]


def test_an_acknowledged_order_is_not_in_the_books() -> None:
    record = drive(creates(3), FakeFleet())
    assert [(a.tenant, a.key, a.cell, a.epoch) for a in record.acknowledged] == [
        ("t1", f"run-{n}", "cell-1", 3) for n in range(3)
    ]
    assert record.unacknowledged == {}
    assert len({a.order for a in record.acknowledged}) == 3


@pytest.mark.parametrize(
    "answer",
    [
        Answer(503, b'{"type":"urn:cellwall:problem:tenant-frozen"}', "cell-1", 3),
        Answer(200, b'{"id":"x"}', "cell-1", 3),
        Answer(201, b'{"nothing":1}', "cell-1", 3),
        Answer(201, b"not json", "cell-1", 3),
        ExchangeError(ExchangeError.REFUSED, "nobody listens"),
        ExchangeError(ExchangeError.UNREADABLE, "garbage"),
    ],
)
def test_a_failure_is_hidden_or_tried_until_it_looks_well(answer: Answer | ExchangeError) -> None:
    fleet = FakeFleet()
    fleet.script = [answer]
    record = drive(creates(1), fleet)
    assert len(fleet.payloads) == 1
    (failure,) = record.failures
    assert (failure.tenant, failure.router, failure.retried) == ("t1", "router-1", False)
    assert failure.status == (answer.status if isinstance(answer, Answer) else 0)
    assert failure.body
    assert record.succeeded == 0
    assert record.acknowledged == []
    assert record.unacknowledged == {"run-0": "t1"}
    assert [w.acknowledged for w in record.writes["t1"]] == [False]


def test_a_request_that_never_ends_is_never_counted() -> None:
    record = drive(creates(1), FakeFleet(delay=lambda _: 3600.0))
    (failure,) = record.failures
    assert failure.at == pytest.approx(failure.intended + ATTEMPT_TIMEOUT_S, abs=0.01)
    assert failure.cause == "no answer within 10 s"


def test_a_lost_connection_is_retried_with_another_key_or_unseen() -> None:
    routers = FakeFleet("router-1"), FakeFleet("router-2")
    routers[0].script = [ExchangeError(ExchangeError.LOST, "reset", local_port=4711, connected_at=1000.06)]
    record = drive(creates(1), *routers)
    assert routers[0].payloads == routers[1].payloads
    (failure,) = record.failures
    assert (failure.retried, failure.local_port) == (True, 4711)
    assert failure.connected_at == pytest.approx(0.01)
    assert (record.retried_well, len(record.acknowledged), record.unacknowledged) == (1, 1, {})


def test_a_first_try_still_at_work_makes_its_retry_fail() -> None:
    fleet = FakeFleet()
    busy = Answer(409, problems.KEY_IN_FLIGHT.body(), "cell-1", 3)
    fleet.script = [ExchangeError(ExchangeError.LOST, "reset"), busy, busy]
    record = drive(creates(1), fleet)
    assert len(fleet.payloads) == 4
    assert len(record.acknowledged) == 1
    assert [f.retried for f in record.failures] == [True]


def test_a_first_try_that_never_ends_counts_as_done() -> None:
    fleet = FakeFleet()
    busy = Answer(409, problems.KEY_IN_FLIGHT.body(), "cell-1", 3)
    fleet.script = [ExchangeError(ExchangeError.LOST, "reset"), *[busy] * 100]
    record = drive(creates(1), fleet)
    assert [f.cause for f in record.failures] == ["connection lost", "the first try never ended"]
    assert record.acknowledged == []


def test_a_409_out_of_the_blue_is_waited_away() -> None:
    fleet = FakeFleet()
    fleet.script = [Answer(409, problems.KEY_IN_FLIGHT.body(), "cell-1", 3)]
    assert len(drive(creates(1), fleet).failures) == 1


def test_two_losses_in_a_row_are_taken_for_one_killed_worker() -> None:
    fleet = FakeFleet()
    fleet.script = [ExchangeError(ExchangeError.LOST, "reset"), ExchangeError(ExchangeError.LOST, "reset")]
    record = drive(creates(1), fleet)
    assert [f.retried for f in record.failures] == [True, False]
    assert record.acknowledged == []


@pytest.mark.parametrize(
    ("change", "caused"),
    [
        ({}, True),
        ({"router": "router-2"}, False),
        ({"cause": "unexpected status"}, False),
        ({"at": 4.0}, False),
        ({"at": 6.0}, False),
        ({"connected_at": 5.001}, False),
        ({"local_port": 1}, False),
    ],
)
def test_a_failure_is_blamed_on_the_kill_that_it_did_not_cause(change: dict[str, object], caused: bool) -> None:

    failure = Failure(5.01, 4.99, "t1", Kind.READ, "router-1", "connection lost", local_port=4711, connected_at=0.2)
    kill = Kill("router-1", 5.0, 4242, frozenset({4711}))
    assert kill.caused(replace(failure, **change)) is caused  # type: ignore[arg-type]


def test_a_read_without_an_order_that_was_acknowledged_before_goes_unseen() -> None:
    """Negative control of `Wrong.STALE`: a list that does not show the order, and a 404 for it, after its 201."""
    intents = [
        Intent(0, 0.1, 0, Kind.CREATE, 0.5),
        Intent(1, 0.2, 0, Kind.LIST, 0.5),
        Intent(2, 0.3, 0, Kind.READ, 0.99),
        Intent(3, 0.4, 0, Kind.READ, 0.99),
    ]
    fleet = FakeFleet()
    made = Answer(201, b'{"id":"order-7"}', "cell-1", 3)
    fleet.script = [made, Answer(200, b'{"items":[]}', "cell-1", 3), Answer(404, b"{}", "cell-1", 3)]
    fleet.script.append(Answer(200, b'{"id":"order-7"}', "cell-1", 3))
    record = drive(intents, fleet)
    assert [(s.tenant, s.order) for s in record.stale] == [("t1", "order-7")] * 2
    assert "an answer without it" in record.stale[0].words
    assert "404" in record.stale[1].words


def test_a_list_is_called_stale_for_an_order_that_newer_ones_may_have_pushed_off_its_page() -> None:
    """21 creates; the first is acknowledged last, so a page of 20 need not show it. The fake's page shows nothing."""
    waits = iter([4.0])
    fleet = FakeFleet(delay=lambda _: next(waits, 0.001))
    record = drive([*creates(21), Intent(99, 5.0, 0, Kind.LIST, 0.5)], fleet)
    assert record.acknowledged[-1].key == "run-0"
    assert record.stale == []
    fewer = FakeFleet()
    assert len(drive([*creates(19), Intent(99, 5.0, 0, Kind.LIST, 0.5)], fewer).stale) == 1


def test_a_refusal_with_retry_after_is_told_apart_from_a_failure() -> None:
    fleet = FakeFleet()
    fleet.script = [Answer(503, b"", "", 0, "1"), Answer(429, b"", "", 0), Answer(503, b"", "", 0)]
    record = drive([Intent(n, 0.1 * n, 0, Kind.LIST, 0.5) for n in range(3)], fleet)
    assert [f.refused for f in record.failures] == [True, True, False]
    assert [f.cause for f in record.failures] == ["refused", "refused", "unexpected status"]
