import asyncio
import io
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from contracts import envelope, problems
from loadtest.books import Audit, Finding, Wrong
from loadtest.history.judge import Judgement, Violation
from loadtest.history.operation import Kind as Kinds
from loadtest.history.operation import Operation, State
from loadtest.history.operation import Outcome as Told
from loadtest.incidents import Happened, Timetable, worker_pids
from loadtest.negative import StaleRouter, Verdict
from loadtest.newcell import Joined
from loadtest.operator import Move
from loadtest.outcome import Outcome
from loadtest.record import Acknowledged, Failure, Kill, Record, Write
from loadtest.schedule import Intent, Kind
from loadtest.show import Teller
from loadtest.tenants import Cast
from loadtest.wire import Answer
from loadtest.workload import Account

MOVE = Move("m1", "t1", "cell-1", "cell-2", "done", rows=400, hold_ms=87.4)
BALANCED = Audit(10, 10, 0, 0, ())
ORDERED = Judgement(2, 1234, 1, 3, (), ())
LIVES = Operation("t9/p1", 0, Kinds.READ, 0.0, 1.0, Told.OK, told=State(1, 1))
TWO_LIVES = Judgement(1, 4, 0, 0, (Violation("t9/p1", 4, (LIVES,), LIVES, None),), ())
LOST_WRITES = tuple(Finding(Wrong.LOST, "t9", "x") for _ in range(25))
CAUGHT = Verdict(Audit(26, 1, 0, 0, LOST_WRITES), MOVE, 25, 421, TWO_LIVES)
HAPPENED = Happened(MOVE, (4.0, 5.0), Kill("router-1", 9.0, 4242, frozenset({4711})), 12.0, 15.2)
LOST = Failure(9.01, 8.99, "t1", Kind.READ, "router-1", "connection lost", local_port=4711, retried=True)


def joined(*cells: str) -> Joined:
    """A cell-3 that was added, and newcomers whose first orders were answered by these cells."""
    accounts = tuple(Account(f"t{n}", f"new-{n}", "host", "key", ("p",)) for n in range(len(cells)))
    orders = tuple(Acknowledged(f"t{n}", f"o{n}", f"k{n}", 0.0, cell, 1) for n, cell in enumerate(cells))
    return Joined("cell-3", "pulumi up", 7.25, 7.96, Cast(accounts, orders))


def outcome(*failures: Failure, **change: object) -> Outcome:
    record = Record()
    record.intended = record.sent = 10
    record.seconds = 20.0
    for _ in range(10):
        record.answered(Intent(0, 0.0, 0, Kind.CREATE, 0.5), "cell-1", 0.01)
    record.wrote("t1", Write(1.0, 1.25, True))
    record.wrote("t1", Write(4.5, 4.6, True))
    record.failures = list(failures)
    record.retried_well = sum(f.retried for f in failures)
    made = Outcome(20.0, record, BALANCED, CAUGHT, HAPPENED, "t1", "shop-01")
    return replace(made, **change)  # type: ignore[arg-type]


def table(made: Outcome) -> dict[str, str]:
    return {line.what: line.value for line in made.lines()}


def test_a_good_run_is_called_bad() -> None:
    made = outcome(LOST)
    assert made.good
    assert not any(line.bad for line in made.lines())
    found = table(made)
    assert found["failed requests"] == "0"
    assert found["in flight in the killed worker"] == "1, of which 1 were sent again; 1 then got their answer"
    assert found["hold time of the move"] == "87 ms (goal: 250 ms)"
    assert found["longest write gap of the moved tenant"] == (
        "250 ms, 1.00 s into the run; while it moved 100 ms (from 4.00 s to 5.00 s)"
    )
    assert found["cell-1 writes"].startswith("10: p50 10.0 ms")
    assert found["requests"] == "10 in 20 s: 0.5/s offered, 0.5/s achieved"


@pytest.mark.parametrize(
    "bad",
    [
        outcome(replace(LOST, local_port=1)),
        outcome(replace(LOST, at=3.0)),
        outcome(replace(LOST, cause="unexpected status", status=503, retried=False)),
        outcome(audit=Audit(10, 9, 0, 0, (Finding(Wrong.LOST, "t1", "order o1 is gone"),))),
        outcome(control=replace(CAUGHT, audit=BALANCED)),
        outcome(control=replace(CAUGHT, refused_with=201)),
        outcome(control=replace(CAUGHT, judged=ORDERED)),
        outcome(control=replace(CAUGHT, acknowledged_stale=0)),
        outcome(happened=replace(HAPPENED, move=Move("m1", "t1", "cell-1", "cell-2", "failed", "checksums differ"))),
        outcome(joined=joined("cell-1", "cell-2")),
        outcome(judged=replace(ORDERED, too_hard=("t1/p1",))),
    ],
)
def test_a_bad_run_is_called_good(bad: Outcome) -> None:
    assert not bad.good
    assert any(line.bad for line in bad.lines())


def test_registers_that_were_watched_are_not_in_the_table() -> None:
    made = outcome(judged=ORDERED)
    assert made.good
    told = "1,234 reads and writes of 2 keys, and 1 without a known end: linearizable"
    assert table(made)["registers"] == told


def test_a_cell_that_was_added_is_not_in_the_table() -> None:
    made = outcome(joined=joined("cell-3", "cell-1", "cell-3"))
    assert made.good
    assert table(made)["cell-3, added under traffic"] == (
        "pulumi up: ready after 7.2 s, first orders after 8.0 s; 2 of 3 tenants who signed up then live there"
    )


@pytest.mark.parametrize(("hold_ms", "bad"), [(250.0, False), (251.0, True), (None, True)])
def test_a_long_hold_looks_fine_or_fails_a_run_that_was_right(hold_ms: float | None, bad: bool) -> None:
    made = outcome(happened=replace(HAPPENED, move=msgspec.structs.replace(MOVE, hold_ms=hold_ms)))
    assert [line.what for line in made.lines() if line.bad] == (["hold time of the move"] if bad else [])
    assert made.good


def test_failures_are_counted_but_not_shown() -> None:
    made = outcome(*(replace(LOST, router="router-2", retried=False) for _ in range(12)))
    assert table(made)["failed requests"] == "12: 12 connection lost"
    assert len(made.examples()) == 2
    assert made.examples()[0] == "12 x connection lost, of t1; for example:"


REFUSED = replace(
    LOST, cause="unexpected status", status=429, retried=False, body=problems.CALLER_LIMITED.body().decode()
)


def busy(made: Outcome) -> Outcome:
    """The same run by a driver that did not keep up."""
    made.record.lag.add(1.0)
    return made


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (outcome(LOST), "nothing lost, doubled or misplaced; no request failed"),
        (busy(outcome(LOST)), "the times mean nothing"),
        (outcome(REFUSED), "1 requests failed (row: failed requests): refused by their tenant's own limits"),
        (busy(outcome(REFUSED)), "the measurement is not valid: the driver fell behind"),
        (outcome(replace(REFUSED, status=500, body="")), "the product failed: 1 requests failed"),
        (
            busy(outcome(REFUSED, judged=replace(ORDERED, too_hard=("t1/p1",)))),
            "the product failed; see the rows: failed requests, registers; the times mean nothing",
        ),
    ],
)
def test_a_busy_machine_and_a_broken_product_are_told_alike(made: Outcome, words: str) -> None:
    assert words in made.verdict()


def test_failures_of_one_kind_are_told_one_by_one() -> None:
    made = outcome(*(replace(REFUSED, at=float(n)) for n in range(223)), replace(REFUSED, status=500, body=""))
    told = made.examples()
    assert told[0] == f"223 x unexpected status (429): {problems.CALLER_LIMITED.title}, of t1; for example:"
    assert "own limit" in told[2]
    assert told[3] == "1 x unexpected status (500), of t1; for example:"


def test_offered_and_achieved_are_of_different_times() -> None:
    made = outcome()
    made.record.seconds = 40.0
    assert table(made)["requests"] == "10 in 40 s: 0.2/s offered, 0.2/s achieved"


def test_incidents_do_not_fit_into_a_short_run() -> None:
    when = Timetable.over(5.0)
    assert 0 < when.move < when.kill < when.control_plane_off < when.control_plane_on < 5.0


def test_plain_output_wraps_or_decorates_lines_to_copy() -> None:
    out = io.StringIO()
    now = [0.0]
    teller = Teller(Console(file=out, width=40, force_terminal=False), lambda: now[0])
    line = "curl -i http://shop-01.cellwall.localhost:15000/v1/orders?limit=2 -H 'Authorization: Bearer [x]'"
    teller.lines("Look", [line])
    assert line in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_plain_output_drowns_in_progress_lines() -> None:
    out = io.StringIO()
    now = [0.0]
    teller = Teller(Console(file=out, width=80, force_terminal=False), lambda: now[0])
    with teller.step("traffic"):
        for tick in range(41):
            now[0] = tick * 0.5
            teller.detail(f"tick {tick}")
    assert out.getvalue().count("tick") == 4


def test_the_stale_router_is_refused_for_its_signature_instead_of_its_epoch() -> None:
    sent: list[bytes] = []

    class Cell:
        name = "cell-1"

        async def exchange(self, payload: bytes) -> Answer:
            sent.append(payload)
            return Answer(421, b"", "", 0)

    key = b"k" * 32
    stale = StaleRouter(Cell(), key, "t7", 3)
    request = b"POST /v1/orders HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
    asyncio.run(stale.exchange(request))
    head, _, body = sent[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    fields = {name.lower(): value for name, value in (line.split(b": ") for line in lines[1:])}
    verified = envelope.verify(envelope.signer(key), fields, b"POST", b"/v1/orders")
    assert (verified.tenant, verified.epoch) == ("t7", 3)
    assert (lines[0], body, fields[b"host"]) == (b"POST /v1/orders HTTP/1.1", b"{}", b"a")


def test_a_worker_that_died_long_ago_is_killed_again(tmp_path: Path) -> None:
    log = tmp_path / "router-1.log"
    log.write_text(
        '{"event":"process_started","process":"keeper","pid":10}\n'
        "Traceback (most recent call last):\n"
        '{"event":"process_started","process":"worker-0","pid":11}\n'
        '{"event":"process_started","process":"worker-1","pid":12}\n'
        '{"event":"process_died","process":"worker-0","pid":11}\n'
        '{"event":"process_started","process":"worker-0","pid":13,"restarts":1}\n'
    )
    assert worker_pids(log) == [13, 12]
