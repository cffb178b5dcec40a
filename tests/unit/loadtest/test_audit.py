from dataclasses import replace

import pytest

from loadtest.books import Audit, Home, Row, Wrong, audit
from loadtest.record import Acknowledged, Stale

ACK = Acknowledged("t1", "o1", "run-1", 1.0, "cell-1", 3)
ROW = Row("cell-1", "shard-2", "t1", "o1", "run-1", "active", 3)
HOMES = {"t1": Home("cell-1", 3), "t2": Home("cell-2", 1)}


def books(*rows: Row, unacknowledged: dict[str, str] | None = None, homes: dict[str, Home] | None = None) -> Audit:
    return audit([ACK], unacknowledged or {}, rows, HOMES if homes is None else homes)


def only(result: Audit, wrong: Wrong) -> None:
    assert [f.wrong for f in result.findings] == [wrong]
    assert not result.balanced
    text = "\n".join(result.words())
    assert f"1 {wrong}" in text
    assert f"{wrong}: " in text


def test_books_that_balance_are_called_wrong() -> None:
    result = books(ROW)
    assert (result.balanced, result.found, result.findings) == (True, 1, ())
    assert result.words() == ["all 1 acknowledged orders exist exactly once, each in its tenant's owning cell"]


def test_a_lost_write_is_missed() -> None:
    only(books(), Wrong.LOST)


def test_a_write_under_another_number_than_the_client_was_told_is_missed() -> None:
    only(books(replace(ROW, order="o9")), Wrong.LOST)


def test_a_write_of_a_tenant_that_vanished_is_missed() -> None:
    only(books(ROW, homes={}), Wrong.LOST)


def test_a_doubled_write_is_missed() -> None:
    only(books(ROW, replace(ROW, order="o2")), Wrong.DOUBLED)
    only(books(ROW, replace(ROW, shard="shard-1")), Wrong.DOUBLED)


def test_a_tenant_that_two_cells_serve_is_missed() -> None:
    only(books(ROW, replace(ROW, cell="cell-2")), Wrong.DOUBLED)


def test_a_write_that_the_source_took_after_the_copy_is_missed() -> None:
    """The fence failed: the row is only where the tenant no longer lives."""
    homes = {"t1": Home("cell-2", 4)}
    only(books(replace(ROW, state="moved"), homes=homes), Wrong.MISPLACED)
    only(books(replace(ROW, state=None, epoch=0), homes=homes), Wrong.MISPLACED)
    only(books(ROW, homes=homes), Wrong.MISPLACED)


def test_an_owner_at_another_epoch_than_the_control_plane_says_is_missed() -> None:
    only(books(replace(ROW, epoch=2)), Wrong.MISPLACED)


def test_an_order_on_a_shard_that_does_not_hold_its_tenant_is_missed() -> None:
    only(books(replace(ROW, state=None, epoch=0)), Wrong.MISPLACED)


def test_a_copy_that_waits_for_its_purge_is_called_doubled() -> None:
    result = books(ROW, replace(ROW, cell="cell-2", state="moved", epoch=2))
    assert (result.balanced, result.resting) == (True, 1)
    assert "1 rows in copies awaiting purge" in result.words()[0]


def test_an_order_in_another_tenant_is_missed() -> None:
    only(books(ROW, replace(ROW, tenant="t2", cell="cell-2", epoch=1)), Wrong.FOREIGN)


def test_an_order_that_nobody_sent_is_missed() -> None:
    only(books(ROW, replace(ROW, order="o7", reference="who-knows")), Wrong.FOREIGN)


def test_orders_of_others_are_counted_in() -> None:
    assert books(ROW, replace(ROW, tenant="t77", order="o7", reference="theirs")).balanced


@pytest.mark.parametrize(("effects", "balanced"), [(0, True), (1, True), (2, False)])
def test_an_unacknowledged_write_must_be_there_or_may_be_twice(effects: int, balanced: bool) -> None:
    rows = [replace(ROW, order=f"x{n}", reference="run-2") for n in range(effects)]
    result = books(ROW, *rows, unacknowledged={"run-2": "t1"})
    assert result.balanced is balanced
    if balanced:
        assert result.silent == effects
    else:
        only(result, Wrong.DOUBLED)


def test_a_thousand_findings_bury_the_verdict() -> None:
    acks = [replace(ACK, order=f"o{n}", key=f"run-{n}") for n in range(1000)]
    lines = audit(acks, {}, [], HOMES).words()
    assert lines[0] == "of 1000 acknowledged orders 0 are right; 1000 lost"
    assert lines[-1] == "lost: and 995 more"
    assert len(lines) == 7


def test_a_read_that_missed_an_acknowledged_write_is_missed() -> None:
    stale = Stale("t1", "o1", 2.0, "order o1 of t1 was acknowledged, and a read that was sent after that got 404")
    only(audit([ACK], {}, [ROW], HOMES, stale=[stale]), Wrong.STALE)
