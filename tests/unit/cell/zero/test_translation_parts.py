"""A part of a customer translates as the whole does: what a hold translates is what the copy would have."""

from dataclasses import replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cell.zero import parts
from cell.zero.parts import NewPart, Part
from cell.zero.translation.backward import backward
from cell.zero.translation.forward import forward
from cell.zero.translation.rows import KeyMap, NewTenant, OldTenant
from tests.unit.cell.zero.strategies import NUMBER, changed, old_tenants
from tests.unit.cell.zero.test_translation_laws import EMPTY, as_sets, numbered


def of_old(tenant: OldTenant, part: Part) -> OldTenant:
    """What `shop.read` reads of a part."""
    return replace(
        tenant,
        art=tuple(row for row in tenant.art if row.artnr in part.art),
        aufk=tuple(row for row in tenant.aufk if row.anr in part.aufk),
        aufp=tuple(row for row in tenant.aufp if (row.anr, row.pos) in part.aufp),
    )


def of_new(tenant: NewTenant, part: NewPart) -> NewTenant:
    """What `staging.read` reads of a part."""
    return replace(
        tenant,
        products=tuple(row for row in tenant.products if row.product_id in part.products),
        orders=tuple(row for row in tenant.orders if row.order_id in part.orders),
        order_lines=tuple(row for row in tenant.order_lines if (row.order_id, row.line) in part.lines),
    )


@st.composite
def some(draw: st.DrawFn, tenant: OldTenant) -> Part:
    """Keys of rows that are there, and of some that are not."""
    art = draw(st.sets(st.sampled_from([*(row.artnr for row in tenant.art), 777])))
    aufk = draw(st.sets(st.sampled_from([*(row.anr for row in tenant.aufk), 888])))
    aufp = draw(st.sets(st.sampled_from([*((row.anr, row.pos) for row in tenant.aufp), (888, 1)])))
    return Part(frozenset(art), frozenset(aufk), frozenset(aufp))


def counted(tenant: OldTenant, whole: OldTenant) -> OldTenant:
    """What `shop.counted` makes of it."""
    sold = {row.artnr: sum(line.mg for line in whole.aufp if line.artnr == row.artnr) for row in tenant.art}
    return replace(tenant, art=tuple(msgspec.structs.replace(row, vk=sold[row.artnr]) for row in tenant.art))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_part_of_a_customer_becomes_what_the_whole_would_have_made_of_it(data: st.DataObject) -> None:
    whole = data.draw(old_tenants())
    expected = forward(NUMBER, whole, EMPTY, KeyMap())
    asked = data.draw(some(whole))
    part = asked.closed(row.artnr for row in whole.aufp if (row.anr, row.pos) in asked.aufp)
    users = KeyMap({key: id_ for key, id_ in expected.keys.ids.items() if key[0] == "user"})
    kept = replace(EMPTY, users=expected.tenant.users)
    done = forward(NUMBER, counted(of_old(whole, part), whole), kept, users, recount=False)
    assert done.faults == ()
    assert set(done.keys.ids.items()) <= set(expected.keys.ids.items())
    there = of_new(expected.tenant, parts.forward_part(part, expected.keys))
    assert as_sets(replace(done.tenant, last_number=0)) == as_sets(
        replace(there, last_number=0, sessions=expected.tenant.sessions)
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_changed_in_a_cell_goes_back_in_part_as_it_would_as_a_whole(data: st.DataObject) -> None:
    old = data.draw(old_tenants())
    first = forward(NUMBER, old, EMPTY, KeyMap())
    new = data.draw(changed(first.tenant, first.keys, tuple(s.sid for s in old.sess)))
    keys = numbered(new, first.keys)
    touched = NewPart(
        frozenset(row.product_id for row in new.products if data.draw(st.booleans())),
        frozenset(row.order_id for row in new.orders if data.draw(st.booleans())),
        frozenset((row.order_id, row.line) for row in new.order_lines if data.draw(st.booleans())),
    )
    ours = touched.closed(row for row in new.order_lines if (row.order_id, row.line) in touched.lines)
    theirs = parts.backward_part(ours, keys)
    part = backward(NUMBER, of_new(new, ours), of_old(old, theirs), keys)
    assert part.faults == ()
    assert as_sets(part.tenant) == as_sets(of_old(backward(NUMBER, new, old, keys).tenant, theirs))
    again = forward(NUMBER, part.tenant, of_new(new, ours), keys, recount=False)
    assert again.faults == ()
    assert as_sets(again.tenant) == as_sets(of_new(new, ours))


@given(st.data())
def test_the_names_of_marks_name_the_same_part_again(data: st.DataObject) -> None:
    part = data.draw(some(data.draw(old_tenants())))
    assert parts.part_of(part.names) == part
