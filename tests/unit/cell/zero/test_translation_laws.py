"""The laws of the translation of cell zero: there and back changes nothing, back and there neither."""

import dataclasses
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from cell.zero.translation.backward import backward, missing
from cell.zero.translation.forward import digest_of, forward
from cell.zero.translation.rows import KeyMap, NewTenant, OldTenant
from tests.unit.cell.zero.strategies import NUMBER, changed, old_tenants

EMPTY = NewTenant()


def numbered(new: NewTenant, keys: KeyMap) -> KeyMap:
    """The key map with the integers that the old shop's sequences give out next."""
    sequence = count(1000)
    fresh = {(kind, next(sequence)): id_ for kind, ids in missing(new, keys).items() for id_ in ids}
    return KeyMap({**keys.ids, **fresh})


def as_sets(tenant: NewTenant | OldTenant) -> dict[str, object]:
    """Without the order of rows, and without row numbers that the database gives out."""
    return {
        f.name: frozenset(value) if isinstance(value := getattr(tenant, f.name), tuple) else value
        for f in dataclasses.fields(tenant)
    }


@settings(max_examples=150, deadline=None)
@given(old_tenants())
def test_there_and_back_rewrites_no_row_of_the_old_shop(old: OldTenant) -> None:
    there = forward(NUMBER, old, EMPTY, KeyMap(), recount=False)
    assert there.faults == ()
    back = backward(NUMBER, there.tenant, old, there.keys)
    assert back.faults == ()
    assert as_sets(back.tenant) == as_sets(old)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_back_and_there_loses_nothing_of_ours_whatever_was_written_meanwhile(data: st.DataObject) -> None:
    old = data.draw(old_tenants())
    there = forward(NUMBER, old, EMPTY, KeyMap())
    new = data.draw(changed(there.tenant, there.keys, tuple(s.sid for s in old.sess)))
    keys = numbered(new, there.keys)
    back = backward(NUMBER, new, old, keys)
    assert back.faults == ()
    again = forward(NUMBER, back.tenant, new, keys, recount=False)
    assert again.faults == ()
    assert again.keys == keys
    assert as_sets(again.tenant) == as_sets(new)


@settings(max_examples=75, deadline=None)
@given(st.data())
def test_a_second_rollback_finds_the_rows_of_the_first_and_changes_none(data: st.DataObject) -> None:
    old = data.draw(old_tenants())
    there = forward(NUMBER, old, EMPTY, KeyMap())
    new = data.draw(changed(there.tenant, there.keys, ()))
    keys = numbered(new, there.keys)
    back = backward(NUMBER, new, old, keys)
    assert missing(new, keys) == {}
    assert as_sets(backward(NUMBER, new, back.tenant, keys).tenant) == as_sets(back.tenant)


@settings(max_examples=75, deadline=None)
@given(old_tenants())
def test_the_same_customer_gets_the_same_ids_each_time_also_before_they_are_noted(old: OldTenant) -> None:
    first, second = (forward(NUMBER, old, EMPTY, KeyMap()) for _ in range(2))
    noted = forward(NUMBER, old, first.tenant, first.keys)
    assert first == second
    assert (noted.tenant, noted.keys) == (first.tenant, first.keys)
    other = forward(NUMBER + 1, old, EMPTY, KeyMap())
    assert not set(first.keys.ids.values()) & set(other.keys.ids.values())


@settings(max_examples=75, deadline=None)
@given(old_tenants())
def test_the_wall_between_a_cookie_and_what_is_stored_of_it(old: OldTenant) -> None:
    there = forward(NUMBER, old, EMPTY, KeyMap())
    assert {s.secret_digest for s in there.tenant.sessions} == {digest_of(s.sid) for s in old.sess}
