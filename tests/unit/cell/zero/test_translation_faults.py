"""What cannot be said on the other side is named with its key and reason; nothing arrives as something else."""

from datetime import UTC, datetime

import msgspec
import pytest

from cell.zero.translation import fields, rows
from cell.zero.translation.backward import backward
from cell.zero.translation.fields import UntranslatableError
from cell.zero.translation.forward import forward
from cell.zero.translation.rows import KeyMap, NewTenant, OldTenant

BEN = rows.Ben(11, "Ann@Example.test", "ab$cd", "Smith|Ann|Road 1|1234|Town", 3, "01.02.2010 10:00:00")
ART = rows.Art(21, "A-1", "A thing", "12,50", "E", 0, "01.02.2010 10:00:00", "01.02.2010 10:00:00")
AUFK = rows.Aufk(31, 1, "ref", "N", "25,00", "E", 11, "02.02.2010 10:00:00", 0)
AUFP = rows.Aufp(41, 31, 1, 21, 2, "12,50")
SESS = rows.Sess("a-secret-cookie", 11, "02.02.2010 22:00:00")
OLD = OldTenant((BEN,), (ART,), (AUFK,), (AUFP,), (SESS,))
replace = msgspec.structs.replace


def faults(**tables: tuple[object, ...]) -> list[str]:
    values = {name: getattr(OLD, name) for name in ("ben", "art", "aufk", "aufp", "sess")} | tables
    return [str(fault) for fault in forward(7, OldTenant(**values), NewTenant(), KeyMap()).faults]


def test_a_whole_customer_translates() -> None:
    done = forward(7, OLD, NewTenant(), KeyMap())
    assert done.faults == ()
    user, product = done.tenant.users[0], done.tenant.products[0]
    assert (user.email, user.name, user.role) == ("ann@example.test", "Ann Smith", "owner")
    assert user.created_at == datetime(2010, 2, 1, 10, tzinfo=UTC)
    assert (product.price_cents, product.currency, product.units_sold) == (1250, "EUR", 2)
    assert done.tenant.last_number == 1


@pytest.mark.parametrize("amount", ["auf Anfrage", "", "12,505", "-1,00", "1.000,00", "12.50", "1e3", "١٢,٥٠x"])
def test_an_amount_that_says_anything_else_is_not_guessed(amount: str) -> None:
    assert faults(art=(replace(ART, pr=amount),), aufk=(), aufp=()) == [
        f"art artnr 21: {amount!r} is no amount (12,50)"
    ]


@pytest.mark.parametrize("time", ["2010-02-01", "31.02.2010 10:00:00", "01.02.2010 24:00:00", "", "01.02.10 10:00:00"])
def test_a_date_that_never_was_is_reported_with_its_row(time: str) -> None:
    (fault,) = faults(aufk=(replace(AUFK, dat=time),), aufp=(), sess=())
    assert fault.startswith("aufk anr 31: ")
    assert "is no time" in fault


def test_a_position_of_another_customers_article_is_found() -> None:
    assert faults(aufp=(replace(AUFP, artnr=22),)) == [
        "aufp pnr 41: order 31, position 1: article 22 is another customer's"
    ]


def test_two_logins_that_differ_in_case_alone_are_found() -> None:
    (fault,) = faults(ben=(BEN, replace(BEN, bnr=12, login="ANN@example.test")))
    assert fault == "ben bnr 12: the login 'ann@example.test' is there twice"


def test_letters_and_levels_that_nobody_knows_are_found() -> None:
    found = faults(
        ben=(replace(BEN, rl=7),), art=(replace(ART, whg="F"),), aufk=(replace(AUFK, st="X"),), aufp=(), sess=()
    )
    assert [fault.split(":")[0] for fault in found] == ["ben bnr 11", "art artnr 21", "aufk anr 31"]


def test_a_report_never_shows_a_cookie() -> None:
    (fault,) = faults(sess=(replace(SESS, bis="never"),))
    assert fault == "sess bnr 11: 'never' is no time (DD.MM.YYYY HH:MM:SS)"


def test_one_bad_row_is_one_fault_and_its_followers_say_why_they_fail() -> None:
    found = faults(art=(replace(ART, anl="?"),))
    assert found == [
        "art artnr 21: '?' is no time (DD.MM.YYYY HH:MM:SS)",
        "aufp pnr 41: its article 21 or order 31 does not translate",
    ]


def test_what_the_old_shop_cannot_say_stops_the_way_back() -> None:
    there = forward(7, OLD, NewTenant(), KeyMap())
    product, order = there.tenant.products[0], there.tenant.orders[0]
    cases = [
        (NewTenant(products=(replace(product, currency="CHF"),)), "product.products A-1: the old shop has no letter"),
        (NewTenant(products=(replace(product, units_sold=2**31),)), "does not fit into the column"),
        (NewTenant(orders=(replace(order, status="cancelled"),)), "no state for an order"),
        (NewTenant(orders=(replace(order, reference="x" * 121),)), "121 characters do not fit"),
    ]
    for tenant, expected in cases:
        (fault,) = backward(7, tenant, OLD, there.keys).faults
        assert expected in str(fault)


def test_a_password_of_ours_shows_as_one_that_nobody_has_and_comes_back_whole() -> None:
    there = forward(7, OLD, NewTenant(), KeyMap())
    assert there.tenant.users[0].password_hash == "old$ab$cd"
    ours = replace(there.tenant.users[0], password_hash="$argon2id$v=19$x")
    back = backward(7, NewTenant(users=(ours,)), OLD, there.keys)
    assert back.tenant.ben[0].pwd == "$!"
    again = forward(7, back.tenant, NewTenant(users=(ours,)), there.keys)
    assert again.tenant.users == (ours,)


def test_a_row_that_the_old_shop_changed_has_the_next_version() -> None:
    there = forward(7, OLD, NewTenant(), KeyMap())
    dearer = OldTenant(OLD.ben, (replace(ART, pr="13"),), OLD.aufk, OLD.aufp, OLD.sess)
    again = forward(7, dearer, there.tenant, there.keys)
    assert (again.tenant.products[0].price_cents, again.tenant.products[0].version) == (1300, 2)
    assert again.tenant.orders == there.tenant.orders


def test_a_session_that_ended_at_the_old_shop_is_gone_and_one_of_ours_is_not() -> None:
    there = forward(7, OLD, NewTenant(), KeyMap())
    ours = replace(there.tenant.sessions[0], session_id=there.tenant.users[0].user_id, secret_digest=b"x" * 32)
    kept = NewTenant(sessions=(*there.tenant.sessions, ours))
    again = forward(7, OldTenant((BEN,)), kept, there.keys)
    assert again.tenant.sessions == (ours,)


def test_a_decimal_that_is_too_large_is_refused_and_not_cut() -> None:
    with pytest.raises(UntranslatableError):
        fields.write_money(10**17)
