"""Bodies, pages and cursors: what a client sends wrong is named, and what it holds works anywhere."""

from uuid import UUID

import msgspec
import pytest

from cell import wire
from cell.ids import uuid7
from contracts.problems import ProblemError


class Line(msgspec.Struct, forbid_unknown_fields=True):
    quantity: int


class Body(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    lines: list[Line] = []


read = wire.Reader(Body)


def refusal_of(body: bytes) -> tuple[str, str]:
    with pytest.raises(ProblemError) as caught:
        read(body)
    assert caught.value.problem.slug == "invalid-input"
    (error,) = caught.value.extra["errors"]
    assert error["field"] in caught.value.detail
    return error["field"], error["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "name"),
        (b'{"name": 1}', "name"),
        (b'{"name": "x", "lines": [{}]}', "lines[0].quantity"),
        (b'{"name": "x", "lines": [{"quantity": 1}, {"quantity": "2"}]}', "lines[1].quantity"),
        (b'{"name": "x", "lines": [{"quantity": true}]}', "lines[0].quantity"),
        (b'{"name": "x", "nmae": "y"}', "nmae"),
        (b"[]", ""),
        (b"{", ""),
        (b"", ""),
        (b'{"name": "\xff"}', ""),
    ],
)
def test_a_wrong_body_names_the_field_that_is_wrong(body: bytes, field: str) -> None:
    assert refusal_of(body)[0] == field


def test_a_body_without_end_is_not_parsed() -> None:
    with pytest.raises(ProblemError) as caught:
        read(b" " * (wire.BODY_BYTES_MAX + 1))
    assert caught.value.problem.status == 413


def test_a_cursor_holds_the_key_and_no_state_of_a_cell() -> None:
    id_ = uuid7()
    assert wire.id_of_cursor(wire.cursor_of_id(id_)) == id_
    assert wire.number_of_cursor(wire.cursor_of_number(2**40)) == 2**40
    assert wire.id_of_cursor(None) is None
    assert wire.number_of_cursor(None) is None


@pytest.mark.parametrize("cursor", ["", "AAAA", "not base64!", "%00", "A" * 5000, "äöü"])
def test_a_made_up_cursor_is_the_callers_mistake(cursor: str) -> None:
    for read_cursor in (wire.id_of_cursor, wire.number_of_cursor):
        with pytest.raises(ProblemError) as caught:
            read_cursor(cursor)
        assert caught.value.extra["errors"][0]["field"] == "cursor"


@pytest.mark.parametrize("limit", [0, -1, wire.PAGE_ITEMS_MAX + 1])
def test_a_page_without_bounds_is_refused(limit: int) -> None:
    with pytest.raises(ProblemError):
        wire.page_size(limit)


def test_only_a_page_with_more_behind_it_has_a_next() -> None:
    def page(rows: list[int]) -> wire.Page[int]:
        return wire.page(rows, 2, wire.cursor_of_number)

    assert page([]) == wire.Page([], None)
    assert page([1, 2]) == wire.Page([1, 2], None)
    assert page([1, 2, 3]) == wire.Page([1, 2], wire.cursor_of_number(2))


def test_ids_sort_by_time_and_are_of_version_7() -> None:
    early = uuid7(lambda: 1_000_000_000_000_000_000, lambda bits: (1 << bits) - 1)
    late = uuid7(lambda: 1_000_000_000_001_000_000, lambda bits: 0)
    assert early < late
    assert {early.version, late.version} == {7}
    assert early.variant == "specified in RFC 4122"
    assert isinstance(early, UUID)
