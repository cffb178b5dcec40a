"""The mapped table must never answer anything but the last route that was stored, through every kind of change."""

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.routes import Cell, CellGone, Gone, Header, Plan, Record, Route
from router.board import Board
from router.book import Book, RefusedTableError
from router.publisher import Publisher
from router.table import SUPERSEDED, Located, RouteState, RouteTable, TableError, tenant_key
from router.table_writer import NoRoomError, TableWriter

TENANTS = tuple(f"t{n}" for n in range(1, 16))
HOSTS = tuple(f"h{n}.example.test" for n in range(40)) + TENANTS[:2]  # a host may look like a tenant id
CELLS = ("cell-1", "cell-2", "cell-3")


def seed(size: int) -> bytes:
    return bytes(range(size))


def small_book(*records: Record) -> Book:
    base = [Cell("cell-1", "127.0.0.1:9001"), Cell("cell-2", "127.0.0.1:9002"), Plan("free")]
    return Book.from_snapshot(Header("log", 1), [*base, *records])


@pytest.fixture
def table_path(tmp_path: Path) -> Path:
    return tmp_path / "routes.bin"


def build(path: Path, *records: Record) -> tuple[TableWriter, RouteTable]:
    writer = TableWriter.build(path, small_book(*records).table(), generation=1, random=seed)
    return writer, RouteTable.open(path)


def where(found: Located | None) -> tuple[bytes, str, int, RouteState] | None:
    return (found.tenant, found.cell.name, found.epoch, found.state) if found else None


def test_every_key_of_a_tenant_leads_to_its_one_route(table_path: Path) -> None:
    _, table = build(table_path, Route("t1", ("a.test", "b.test"), "cell-1", 3, "free"))
    expected = (b"t1", "cell-1", 3, RouteState.ACTIVE)
    assert [where(table.lookup(key)) for key in (b"a.test", b"b.test", tenant_key(b"t1"))] == [expected] * 3
    assert table.lookup(b"t1") is None  # a tenant id is no host


def test_a_change_is_seen_under_all_keys_at_the_next_lookup(table_path: Path) -> None:
    writer, table = build(table_path, Route("t1", ("a.test", "b.test"), "cell-1", 3, "free"))
    assert table.lookup(b"a.test") is not None  # also fills the cache
    writer.set_route(Route("t1", ("a.test", "c.test"), "cell-2", 4, "free", "held"), ("a.test", "b.test"))
    expected = (b"t1", "cell-2", 4, RouteState.HELD)
    assert where(table.lookup(b"a.test")) == where(table.lookup(b"c.test")) == expected
    assert table.lookup(b"b.test") is None


def test_a_host_that_a_removed_tenant_had_does_not_come_back_with_the_tenant(table_path: Path) -> None:
    writer, table = build(table_path, Route("t1", ("a.test", "b.test"), "cell-1", 3, "free"))
    writer.remove("t1", ("a.test", "b.test"))
    assert table.lookup(b"a.test") is None
    writer.set_route(Route("t1", ("a.test",), "cell-1", 4, "free"))
    assert table.lookup(b"a.test") is not None
    assert table.lookup(b"b.test") is None


def test_a_reader_follows_to_a_rebuilt_table(table_path: Path) -> None:
    old, table = build(table_path, Route("t1", ("a.test",), "cell-1", 3, "free"))
    assert table.lookup(b"a.test") is not None
    moved = small_book(Route("t1", ("a.test",), "cell-2", 4, "free"))
    TableWriter.build(table_path, moved.table(), generation=2, random=seed)
    old.supersede()
    assert where(table.lookup(b"a.test")) == (b"t1", "cell-2", 4, RouteState.ACTIVE)
    assert table.generation == 2


def test_refresh_finds_a_table_whose_writer_died_before_it_marked_the_old_one(table_path: Path) -> None:
    _, table = build(table_path, Route("t1", ("a.test",), "cell-1", 3, "free"))
    TableWriter.build(table_path, small_book().table(), generation=2, random=seed)
    assert table.lookup(b"a.test") is not None
    table.refresh()
    assert table.lookup(b"a.test") is None


def test_a_mapped_table_outlives_its_path(table_path: Path) -> None:
    _, table = build(table_path, Route("t1", ("a.test",), "cell-1", 3, "free"))
    table_path.unlink()
    table.refresh()
    assert table.lookup(b"a.test") is not None


def test_a_cell_keeps_its_number_and_may_change_its_address(table_path: Path) -> None:
    writer, table = build(table_path, Route("t1", ("a.test",), "cell-1", 3, "free"))
    book = small_book(Cell("cell-1", "127.0.0.1:7"), Cell("cell-0", "127.0.0.1:8"))
    writer.set_directory(*book.directory(()))
    found = table.lookup(b"a.test")
    assert found is not None
    assert (found.cell.name, found.cell.address) == ("cell-1", "127.0.0.1:7")


def test_routes_of_a_cell_that_is_gone_never_mean_another_cell(table_path: Path) -> None:
    writer, table = build(table_path, Route("t1", ("a.test",), "cell-1", 3, "free"))
    book = small_book()
    del book.cells["cell-1"]
    writer.set_directory(*book.directory(()))
    found = table.lookup(b"a.test")
    assert found is not None
    assert (found.cell.name, found.cell.address) == ("cell-1", "")


def test_a_full_table_says_so_and_leaves_readers_what_they_had(table_path: Path) -> None:
    writer, table = build(table_path, Route("t1", ("a.test",), "cell-1", 3, "free"))
    stored = 0

    def fill() -> None:
        nonlocal stored
        for number in range(1000):
            writer.set_route(Route(f"n{number}", (f"n{number}.test",), "cell-1", 1, "free"))
            stored += 1

    with pytest.raises(NoRoomError):
        fill()
    assert stored > 10
    assert table.lookup(f"n{stored}.test".encode()) is None
    assert table.lookup(tenant_key(f"n{stored}".encode())) is None
    assert all(table.lookup(f"n{number}.test".encode()) for number in range(stored))


def test_a_key_that_is_too_long_for_any_name_is_unknown(table_path: Path) -> None:
    _, table = build(table_path)
    assert table.lookup(b"x" * 300) is None
    assert table.lookup(b"") is None


def test_a_directory_caught_in_the_middle_of_a_change_is_not_used(table_path: Path) -> None:
    _, table = build(table_path, Route("t1", ("a.test",), "cell-1", 3, "free"))
    with table_path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        words = memoryview(memory).cast("Q")
        at = words[14]  # where the directory stands
        words[at // 8 + 1] ^= 1  # its checksum
        words[2] += 1  # the stamp
        assert where(table.lookup(b"a.test")) == (b"t1", "cell-1", 3, RouteState.ACTIVE)
        words[at // 8 + 1] ^= 1
        assert where(table.lookup(b"a.test")) == (b"t1", "cell-1", 3, RouteState.ACTIVE)
        assert not words[2] & SUPERSEDED
        words.release()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"something else" * 100)
    with pytest.raises(TableError, match="not a route table"):
        RouteTable.open(tmp_path / "x")


routes_strategy = st.builds(
    Route,
    st.sampled_from(TENANTS),
    st.lists(st.sampled_from(HOSTS), max_size=6, unique=True).map(tuple),
    st.sampled_from(CELLS),
    st.integers(1, 2**40 - 1),
    st.sampled_from(("free", "pro")),
    st.sampled_from(("active", "held", "suspended")),
)
record_strategy = st.one_of(
    routes_strategy,
    routes_strategy,
    st.builds(Gone, st.sampled_from(TENANTS)),
    st.builds(Cell, st.sampled_from(CELLS), st.sampled_from(("127.0.0.1:1", "127.0.0.1:2"))),
    st.builds(CellGone, st.sampled_from(CELLS)),
    st.builds(Plan, st.sampled_from(("free", "pro")), st.floats(1, 100)),
)


def expected_routes(book: Book) -> Iterator[tuple[bytes, tuple[object, ...] | None]]:
    """What each key of the world must lead to, said from the book alone."""
    by_key: dict[bytes, Route] = {}
    for route in book.routes.values():
        for key in (tenant_key(route.tenant.encode()), *(host.encode() for host in route.hosts)):
            by_key[key] = route
    for key in (*(tenant_key(t.encode()) for t in TENANTS), *(h.encode() for h in HOSTS)):
        route = by_key.get(key)
        if route is None:
            yield key, None
            continue
        cell, plan = book.cells.get(route.cell), book.plans.get(route.plan, Plan(route.plan))
        yield (
            key,
            (
                route.tenant.encode(),
                (route.cell, cell.address if cell else ""),
                route.epoch,
                route.state,
                (plan.plan, plan.requests_per_s),
            ),
        )


def seen(table: RouteTable, key: bytes) -> tuple[object, ...] | None:
    found = table.lookup(key)
    if found is None:
        return None
    cell, plan = found.cell, found.plan
    state = found.state.name.lower()
    return (found.tenant, (cell.name, cell.address), found.epoch, state, (plan.name, plan.requests_per_s))


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.lists(record_strategy, max_size=8), max_size=12))
def test_after_any_changes_readers_see_exactly_the_book(
    tmp_path_factory: pytest.TempPathFactory, changes: list[list[Record]]
) -> None:
    path = tmp_path_factory.mktemp("table") / "routes.bin"
    book = Book("log", 1, complete=True)
    publisher = Publisher(path, Board.create(1), (), seed, generation=0)
    publisher.show(book)
    table = RouteTable.open(path)
    for revision, records in enumerate(changes, 2):
        before = dict(expected_routes(book))
        try:
            change = book.propose(Header("log", revision, "changes", book.revision), records)
        except RefusedTableError:
            assert dict(expected_routes(book)) == before
            continue
        publisher.change(book, change)
        for key, expected in expected_routes(book):
            assert seen(table, key) == expected
        assert table.revision == revision
    table.close()
