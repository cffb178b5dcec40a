"""Statements: compiled once, bound by name, and never to another tenant."""

import pytest
import sqlalchemy as sa

from cell.shards.sql import NotPreparableError, prepare
from cell.shards.tables import counters, outbox

FIND = prepare(
    sa.select(outbox.c.event_id)
    .where(outbox.c.tenant_id == sa.bindparam("tenant_id"), outbox.c.type == "order.created")
    .limit(sa.bindparam("limit", type_=sa.Integer))
)


def test_arguments_stand_in_the_order_of_the_text() -> None:
    assert "$1" in FIND.text
    assert FIND.arguments(7, {"limit": 10}) == [7, "order.created", 10]


def test_a_caller_could_name_another_tenant() -> None:
    with pytest.raises(TypeError, match="bound by the session"):
        FIND.arguments(7, {"limit": 10, "tenant_id": 8})
    literal = prepare(sa.insert(counters).values(tenant_id=8, name="n", value=1))
    assert literal.arguments(7, {})[0] == 7


@pytest.mark.parametrize(("values", "message"), [({}, "'limit'"), ({"limit": 1, "limt": 2}, "'limt'")])
def test_a_misspelt_parameter_is_no_default(values: dict[str, int], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        FIND.arguments(7, values)


def test_null_can_be_a_literal_and_a_value() -> None:
    statement = prepare(
        sa.insert(counters).values(tenant_id=sa.bindparam("tenant_id"), name=None, value=sa.bindparam("value"))
    )
    assert statement.arguments(7, {"value": None}) == [7, None, None]


def test_a_list_in_the_text_is_refused_at_import() -> None:
    with pytest.raises(NotPreparableError, match="any_"):
        prepare(sa.select(outbox).where(outbox.c.type.in_(sa.bindparam("types", expanding=True))))


def test_tenant_id_comes_first_in_every_key() -> None:
    for table in (outbox, counters):
        assert table.primary_key.columns.keys()[0] == "tenant_id"
