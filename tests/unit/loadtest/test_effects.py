"""The books of the outside miss nothing: each thing that can be wrong with a charge or a webhook is found and named."""

from dataclasses import replace

import pytest

from loadtest.effects import Amiss, Charge, Effects, Paid, Told, audit

PAID = Paid("t1", "o1", "confirmed", 250, "EUR")
CHARGE = Charge("t1:o1", "o1", 250, "EUR", standing=True)
TOLD = Told("t1", "evt_1", "order.confirmed", "o1", 1)


def books(paid: Paid = PAID, charges: tuple[Charge, ...] = (CHARGE,), told: tuple[Told, ...] = (TOLD,)) -> Effects:
    return audit([paid], charges, told, ["t1"])


def only(result: Effects, amiss: Amiss) -> None:
    assert [finding.amiss for finding in result.findings] == [amiss]
    assert not result.balanced
    assert f"1 {amiss}" in f"{result.charges()}, {result.webhooks()}"
    assert result.examples()[0].startswith(f"{amiss}: ")


def test_books_that_balance_are_called_wrong() -> None:
    result = books()
    assert result.balanced
    assert (result.orders, result.confirmed, result.cancelled, result.refunded, result.told) == (1, 1, 0, 0, 1)
    assert result.charges().startswith("1 of 1 paid orders confirmed and charged once")


def test_a_customer_who_was_charged_twice_is_missed() -> None:
    only(books(charges=(CHARGE, replace(CHARGE, key="t1:o1-again"))), Amiss.OVERCHARGED)


def test_a_customer_who_was_charged_too_much_is_missed() -> None:
    only(books(charges=(replace(CHARGE, cents=251),)), Amiss.OVERCHARGED)
    only(books(charges=(replace(CHARGE, currency="USD"),)), Amiss.OVERCHARGED)


@pytest.mark.parametrize("charges", [(), (replace(CHARGE, standing=False),)])
def test_an_order_that_was_confirmed_and_not_paid_is_missed(charges: tuple[Charge, ...]) -> None:
    only(books(charges=charges), Amiss.UNCHARGED)


def test_a_charge_of_a_cancelled_order_that_stands_is_missed() -> None:
    cancelled, told = replace(PAID, status="cancelled"), (replace(TOLD, type="order.cancelled"),)
    only(books(cancelled, told=told), Amiss.OVERCHARGED)
    for charges in ((), (replace(CHARGE, standing=False),)):
        assert books(cancelled, charges, told).balanced


def test_a_charge_for_an_order_that_was_lost_is_missed() -> None:
    result = audit([], [CHARGE], [], ["t1"])
    only(result, Amiss.OVERCHARGED)
    assert "which no cell has" in result.examples()[0]


def test_an_order_that_never_ended_is_missed() -> None:
    only(books(replace(PAID, status="pending"), told=()), Amiss.UNSETTLED)


def test_a_merchant_who_was_never_told_is_missed() -> None:
    only(books(told=()), Amiss.UNTOLD)
    only(books(told=(replace(TOLD, type="order.cancelled"),)), Amiss.UNTOLD)
    assert audit([PAID], [CHARGE], [], []).balanced, "nobody listens"


def test_an_event_under_two_ids_is_taken_for_a_repeat() -> None:
    only(books(told=(TOLD, replace(TOLD, event="evt_2"))), Amiss.TOLD_TWICE)
    repeated = books(told=(replace(TOLD, times=3),))
    assert (repeated.balanced, repeated.repeats) == (True, 2)


def test_an_order_that_was_to_be_paid_and_that_no_cell_has_is_missed() -> None:
    assert audit([PAID], [CHARGE], [TOLD], ["t1"], {"o1": "t1"}).balanced
    only(audit([PAID], [CHARGE], [TOLD], ["t1"], {"o1": "t1", "o2": "t1"}), Amiss.MISSING)
    only(audit([PAID], [CHARGE], [TOLD], ["t1"], {"o1": "t2"}), Amiss.MISSING)


def test_a_merchant_who_hears_of_an_order_that_never_was_is_missed() -> None:
    only(books(told=(TOLD, replace(TOLD, event="evt_2", order="o2"))), Amiss.MADE_UP)
    only(books(told=(TOLD, replace(TOLD, event="evt_2", tenant="t2"))), Amiss.MADE_UP)


def test_an_order_for_nothing_needs_no_charge() -> None:
    assert books(replace(PAID, cents=0), charges=()).balanced


def test_many_findings_bury_the_first() -> None:
    orders = [replace(PAID, order=f"o{n}") for n in range(20)]
    lines = audit(orders, [], [], []).examples()
    assert len(lines) == 6
    assert lines[-1] == "and 15 more"
