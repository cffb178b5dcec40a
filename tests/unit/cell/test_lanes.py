"""Which lane of a snapshot takes which part of which table."""

from hypothesis import given
from hypothesis import strategies as st

from cell.transfer import lanes
from cell.transfer.catalogue import TenantTable
from cell.transfer.lanes import Course, Part


def parts(table: str, count: int) -> list[Part]:
    made = TenantTable("product", table, table, ("tenant_id",), "tenant_id")
    return [Part(made, f"{table} {number}") for number in range(count)]


def test_a_lane_stays_with_its_table_and_helps_the_other_only_when_none_is_left() -> None:
    course = Course([parts("orders", 4), parts("lines", 2), parts("users", 1)])
    taken = [course.next(lane) for lane in (0, 1, 0, 1, 1, 1, 0)]
    assert [part and part.query for part in taken] == [
        "orders 0", "lines 0", "orders 1", "lines 1", "users 0", "orders 2", "orders 3",
    ]  # fmt: skip
    assert course.next(0) is None
    assert course.next(1) is None


@given(counts=st.lists(st.integers(1, 5), max_size=6), order=st.lists(st.integers(0, 2), min_size=40, max_size=40))
def test_every_part_is_taken_once_whatever_lane_is_quicker(counts: list[int], order: list[int]) -> None:
    tables = [parts(f"t{number}", count) for number, count in enumerate(counts)]
    course = Course(tables)
    taken = [part for lane in order if (part := course.next(lane)) is not None]
    assert sorted(part.query for part in taken) == sorted(part.query for table in tables for part in table)


@given(pages=st.integers(lanes.PART_PAGES + 1, 50 * lanes.PART_PAGES))
def test_ranges_of_pages_leave_no_page_out_and_have_no_end(pages: int) -> None:
    ranges = lanes._ranges(pages)
    ends = [each.rpartition("ctid < ")[2] for each in ranges[:-1]]
    assert [each.partition(" AND ")[0] for each in ranges[1:]] == [f"ctid >= {end}" for end in ends]
    assert ranges[0].startswith("ctid >= '(0,0)'")
    assert "<" not in ranges[-1]
