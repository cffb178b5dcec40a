"""A change set is taken whole or refused whole, and holds never reach the disk."""

import pytest

from contracts.routes import Cell, Gone, Header, Plan, Record, Route, RoutesFormatError, encode
from router.book import Book, OtherLogError, RefusedTableError, read_static

BASE = (Cell("cell-1", "127.0.0.1:9001"), Plan("free"), Route("t1", ("a.test",), "cell-1", 1, "free"))


def book(*records: Record) -> Book:
    return Book.from_snapshot(Header("log", 5), [*BASE, *records])


def changes(revision: int = 6, after: int = 5, log: str = "log") -> Header:
    return Header(log, revision, "changes", after)


@pytest.mark.parametrize("header", [changes(log="other"), changes(after=4), Header("log", 6), changes(4, 5)])
def test_a_change_set_that_does_not_continue_the_book_is_refused(header: Header) -> None:
    with pytest.raises(OtherLogError):
        book().propose(header, [])


def test_a_refused_change_set_leaves_nothing_behind() -> None:
    it = book()
    records = [Route("t2", ("b.test",), "cell-1", 1, "free"), Route("t3", ("a.test",), "cell-1", 1, "free")]
    with pytest.raises(RefusedTableError, match=r"a\.test belongs to t1 and to t3"):
        it.propose(changes(), records)
    assert set(it.routes) == {"t1"}
    it.commit(it.propose(changes(), records[:1]))
    assert set(it.routes) == {"t1", "t2"}


def test_a_host_may_pass_from_one_tenant_to_another_in_one_change_set() -> None:
    it = book()
    it.commit(
        it.propose(changes(), [Route("t1", (), "cell-1", 1, "free"), Route("t2", ("a.test",), "cell-1", 1, "free")])
    )
    with pytest.raises(RefusedTableError):
        it.propose(changes(7, 6), [Route("t1", ("a.test",), "cell-1", 1, "free")])
    it.commit(it.propose(changes(7, 6), [Gone("t2"), Route("t1", ("a.test",), "cell-1", 1, "free")]))
    assert set(it.routes) == {"t1"}


def test_a_hold_is_never_written_to_disk() -> None:
    it = book(Route("t2", (), "cell-1", 3, "free", "held"), Route("t4", (), "cell-1", 3, "free", "suspended"))
    states = {record.tenant: record.state for record in it.records() if isinstance(record, Route)}
    assert states == {"t1": "active", "t2": "active", "t4": "suspended"}
    assert it.routes["t2"].state == "held"


def test_names_without_a_record_are_in_the_directory_without_an_address() -> None:
    it = book(Route("t2", (), "cell-9", 3, "gold"))
    cells, plans = it.directory(it.routes.values())
    assert {cell.name: cell.address for cell in cells} == {"cell-1": "127.0.0.1:9001", "cell-9": ""}
    assert {plan.name for plan in plans} == {"free", "gold"}
    assert it.undescribed() == ["cell cell-9", "plan gold"]


def text(*records: Record) -> list[bytes]:
    return [b"# a comment", b"", *encode(Header("static", 1), [*BASE, *records])]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ((Route("t2", (), "cell-9", 1, "free"),), "line 7: the route of t2 names the cell cell-9"),
        ((Plan("x"), Route("t2", (), "cell-1", 1, "gold")), "line 8: the route of t2 names the plan gold"),
        ((Route("t2", ("a.test",), "cell-1", 1, "free"),), "line 7: the host a.test belongs to t1 and to t2"),
        ((Route("t1", ("b.test",), "cell-1", 1, "free"),), "line 7: a second route of t1"),
        ((Cell("cell-1", "127.0.0.1:9009"),), "line 7: a second record of the cell cell-1"),
        ((Plan("free", burst=9),), "line 7: a second record of the plan free"),
    ],
)
def test_a_static_file_that_contradicts_itself_names_the_line(records: tuple[Record, ...], message: str) -> None:
    with pytest.raises(RoutesFormatError) as caught:
        read_static(text(*records))
    assert str(caught.value).startswith(message)


def test_a_static_file_of_changes_is_refused() -> None:
    lines = list(encode(changes(), BASE))
    with pytest.raises(RoutesFormatError, match="line 1: a routes file must be a snapshot"):
        read_static(lines)


def test_a_good_static_file_is_complete() -> None:
    it = read_static(text())
    assert it.complete
    assert set(it.routes) == {"t1"}
