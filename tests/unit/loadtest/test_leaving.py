"""What the demo says of customers who leave the old shop: it must not call a lost order, or a failure, good."""

from dataclasses import replace
from typing import Any

import pytest

from loadtest.books import Audit, Finding, Home, Row, Wrong
from loadtest.leaving import Left, miscounted
from loadtest.oldshop import Customer, Seen
from loadtest.record import Acknowledged

CUSTOMERS = [
    Customer(n, f"kunde-{n}", f"t{n}", f"kunde-{n}.test", n, 2, "SITZUNG=x", ("1",), b"page") for n in (1, 2, 3, 4)
]
HOMES = {"t1": Home("cell-1", 2), "t2": Home("cell-2", 2), "t3": Home("cell-1", 2), "t4": Home("cell-zero", 1)}
STATUS: dict[str, Any] = {"moved": 3, "customers": 4, "blockers": [{"slug": "kunde-4", "reason": "art artnr 33"}]}


@pytest.fixture
def left() -> Left:
    return Left(CUSTOMERS, HOMES, Seen(sent=9, answered=9), Audit(9, 9, 0, 0, ()), STATUS)


def rows(count: int, cell: str = "cell-1", tenant: str = "t1") -> list[Row]:
    return [Row(cell, "shard-1", tenant, f"r{n}", f"r{n}", "active", 2) for n in range(count)]


def test_all_but_one_have_left_and_the_burn_down_names_who_stays(left: Left) -> None:
    assert left.good
    assert left.moved == 3
    assert left.burn_down() == "cell-zero [###############.....] 3 of 4 moved; kunde-4 stays: art artnr 33"


def test_a_failed_request_makes_it_bad(left: Left) -> None:
    left.seen.failures.append("kunde-1: 503")
    assert not left.good
    assert "kunde-1: 503" in left.books()


def test_a_customer_who_stays_behind_unasked_makes_it_bad(left: Left) -> None:
    assert not replace(left, homes=HOMES | {"t3": Home("cell-zero", 1)}).good


def test_a_lost_order_makes_it_bad(left: Left) -> None:
    lost = Audit(9, 8, 0, 0, (Finding(Wrong.LOST, "t1", "order r1"),))
    assert not replace(left, audit=lost).good


@pytest.mark.parametrize(("there", "wrong"), [(2, Wrong.LOST), (3, None), (4, Wrong.DOUBLED)])
def test_the_orders_from_before_are_counted_where_the_customer_lives(there: int, wrong: Wrong | None) -> None:
    seen = Seen(acknowledged=[Acknowledged("t1", "r2", "r2", 0.0, "cell-1", 2)])
    resting = rows(3, cell="cell-zero")
    found = miscounted(CUSTOMERS[:1], seen, [*resting, *rows(there)], HOMES, silent=0)
    assert [each.wrong for each in found] == ([] if wrong is None else [wrong])


def test_an_order_whose_answer_never_came_may_be_there_or_not() -> None:
    for there in (2, 3):
        assert miscounted(CUSTOMERS[:1], Seen(), rows(there), HOMES, silent=1) == []
