"""From samples to figures: phases, seconds, tenants and causes add up, and a driver that fell behind is found out."""

import array

import pytest

from loadtest.books import Audit, Finding, Wrong
from loadtest.history.judge import Judgement
from loadtest.lab.collect import Collector, books_of
from loadtest.lab.job import FAILED, REFUSED, Cause, Job, Samples, Tally
from loadtest.lab.machine import Reading, judge, shares
from loadtest.lab.plan import Tenant
from loadtest.lab.result import (
    NONE_MS,
    Books,
    Case,
    FailureExample,
    Histogram,
    Meta,
    Phase,
    PhaseKind,
    Result,
    Role,
    Validity,
)
from loadtest.lab.samples import KINDS, SampleRecord
from loadtest.lab.scenario import DriverLimits
from loadtest.record import Failure
from loadtest.schedule import Intent, Kind
from loadtest.workload import Account

PHASES = [
    Phase(name="alone", kind=PhaseKind.ALONE, begin=0.0, end=2.0, rate=2.0),
    Phase(name="with", kind=PhaseKind.LOAD, begin=2.0, end=4.0, rate=2.0),
]
TENANTS = [Tenant(n, Account(f"t{n}", f"t{n}", "h", "k", ("p",)), f"cell-{n}", Role.VICTIM, ("o",)) for n in (1, 2)]
META = Meta(scenario="x", kind="soak", case=Case(), repeat=1, seed=1, started="")
VALID = Validity(valid=True, reasons=[], drivers=[], steal_share=0, pressure_share=0)
SECOND = 1_000_000


def job(process: int = 1) -> Job:
    return Job(process, "run", 1, [], 1, [tenant.account for tenant in TENANTS], {}, [], [])


def tally(*rows: tuple[int, Kind, float, int], process: int = 1, **other: object) -> Tally:
    samples = Samples(
        array.array("I", [row[0] for row in rows]).tobytes(),
        array.array("B", [KINDS.index(row[1]) for row in rows]).tobytes(),
        array.array("d", [row[2] for row in rows]).tobytes(),
        array.array("i", [row[3] for row in rows]).tobytes(),
    )
    given: dict[str, object] = {
        "causes": [],
        "examples": [],
        "lag": Histogram.of([1000]),
        "lag_max_ms": 1.0,
        "cpu_share": 0.1,
        "waited_share": 0.0,
    }
    return Tally(
        process=process, samples=samples, acknowledged=[], unacknowledged={}, stale=[], requests=len(rows),
        **(given | other),  # type: ignore[arg-type]
    )  # fmt: skip


def collected(*tallies: Tally, offset: float = 0.0) -> Result:
    collector = Collector(PHASES, TENANTS)
    collector.add([job(each.process) for each in tallies], tallies, offset=offset)
    return collector.result(META, events=[], books=Books(checked=False), validity=VALID)


def test_a_request_is_counted_in_the_phase_in_which_it_ended() -> None:
    """It was due at 1.9 s, alone, and took two seconds: that belongs to `alone`."""
    result = collected(tally((0, Kind.READ, 1.9, 2 * SECOND), (1, Kind.READ, 2.0, SECOND)))
    assert [(g.phase, g.cell, g.sent) for g in result.groups] == [("alone", "cell-1", 1), ("with", "cell-2", 1)]
    assert result.latency("alone", Role.VICTIM).percentile_ms(50) == pytest.approx(2000, rel=0.01)
    assert [(s.at, s.cell, s.sent) for s in result.seconds] == [(1, "cell-1", 1), (2, "cell-2", 1)]


def test_what_was_refused_or_failed_is_taken_for_an_answer() -> None:
    result = collected(
        tally((0, Kind.CREATE, 0.5, 5000), (0, Kind.CREATE, 0.6, REFUSED), (0, Kind.CREATE, 0.7, FAILED))
    )
    (group,) = result.groups
    assert (group.sent, group.succeeded, group.refused, group.failed, group.errors) == (3, 1, 1, 1, 2)
    assert group.latency.count == 1
    (timeline,) = result.timelines
    assert (timeline.max_ms, timeline.errors) == ([5.0, NONE_MS, NONE_MS, NONE_MS], [2, 0, 0, 0])


def test_a_second_without_an_answer_shows_a_latency() -> None:
    (second,) = collected(tally((0, Kind.READ, 0.5, FAILED))).seconds
    assert (second.sent, second.p50_ms, second.p99_ms, second.max_ms) == (1, NONE_MS, NONE_MS, NONE_MS)


def test_requests_of_two_processes_or_two_steps_do_not_add_up() -> None:
    result = collected(tally((0, Kind.READ, 0.5, 1000)), tally((0, Kind.READ, 0.6, 3000), process=2))
    assert [g.sent for g in result.groups] == [2]
    later = collected(tally((0, Kind.READ, 0.5, 1000)), offset=2.0)
    assert [g.phase for g in later.groups] == ["with"]


def test_causes_and_examples_lose_their_tenants_role_cell_and_phase() -> None:
    example = FailureExample(
        at=0.9, intended=0.5, phase="", tenant="t2", role=Role.AGGRESSOR, cell="", kind="order read",
        cause="connection lost", status=0, body="",
    )  # fmt: skip
    result = collected(
        tally((1, Kind.READ, 0.5, FAILED), causes=[Cause(1, 0, "connection lost", 0, 3)], examples=[example]),
        offset=2.0,
    )
    (count,), (shown,) = result.failure_counts, result.failures
    assert (count.phase, count.role, count.cell, count.count) == ("with", Role.VICTIM, "cell-2", 3)
    assert (shown.phase, shown.role, shown.cell, shown.at) == ("with", Role.VICTIM, "cell-2", 2.9)


def test_the_record_of_a_process_forgets_requests_or_keeps_every_failure() -> None:
    record = SampleRecord()
    record.answered(Intent(1, 0.5, 0, Kind.READ, 0.5), "cell-1", 0.51)
    for n in range(100):
        intent = Intent(n, 1.0, 1, Kind.CREATE, 0.5)
        failure = Failure(1.1, 1.0, "t2", Kind.CREATE, "router-1", "refused", 429, refused=True)
        record.failed(failure)
        record.gave_up(intent, failure)
    told = record.tally(3, cpu_share=0.1, waited_share=0.0)
    assert len(told.samples.columns()[0]) == 101
    assert [(c.tenant, c.second, c.cause, c.status, c.count) for c in told.causes] == [(1, 1, "refused", 429, 100)]
    assert len(told.examples) == 5
    assert (record.progress.succeeded, record.progress.refused, record.progress.failed) == (1, 100, 0)


def test_books_that_do_not_balance_become_a_clean_result() -> None:
    findings = tuple(Finding(wrong, "t1", "words") for wrong in Wrong)
    books = books_of(Audit(10, 6, 0, 0, findings))
    assert not books.balanced
    assert (books.lost, books.doubled, books.misplaced, books.foreign, books.stale) == (1, 1, 1, 1, 1)
    assert books_of(Audit(10, 10, 0, 0, ())).balanced
    assert not Books(checked=False).balanced


def test_registers_whose_operations_have_no_order_become_a_clean_result() -> None:
    balanced = Audit(10, 10, 0, 0, ())
    right = books_of(balanced, Judgement(2, 40, 0, 0, (), ()))
    assert (right.balanced, right.words[1]) == (True, "40 reads and writes of 2 keys: linearizable")
    assert books_of(balanced, Judgement(0, 0, 0, 0, (), ())).words == balanced.words(), "nobody watched"
    wrong = books_of(balanced, Judgement(2, 40, 0, 0, (), ("t1/p1",)))
    assert (wrong.balanced, wrong.disordered, wrong.wrong) == (False, 1, 1)


QUIET = Reading(0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("other", "after", "words"),
    [
        ({"lag": Histogram.of([60_000])}, Reading(20, 0, 0, 10), "sent late: lag p99 60.0 ms, limit 50 ms"),
        ({"cpu_share": 0.9}, Reading(20, 0, 0, 10), "used 90% of one processor, limit 80%"),
        ({"waited_share": 0.3}, Reading(20, 0, 0, 10), "waited for a processor in 30% of its time, limit 10%"),
        ({}, Reading(20, 2, 0, 10), "the hypervisor took 10% of the processors' time, limit 5%"),
    ],
)
def test_a_run_that_measured_the_driver_or_the_machine_is_called_valid(
    other: dict[str, object], after: Reading, words: str
) -> None:
    found = judge(DriverLimits(), [tally(**other)], QUIET, after)
    assert not found.valid
    assert words in found.reasons[0]
    assert judge(DriverLimits(), [tally()], QUIET, Reading(20, 0, 0, 10)).valid


def test_a_kernel_that_tells_nothing_makes_a_run_fail(tmp_path: object) -> None:
    assert shares(QUIET, QUIET) == (0.0, 0.0)
    assert shares(QUIET, Reading(20, 1, 5, 10)) == (0.05, 0.5)
