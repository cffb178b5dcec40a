"""Input that is none of a few values is refused with these, under the name that the caller gave."""

from types import SimpleNamespace

import pytest

from control_plane.choices import choices, said
from control_plane.move import State
from control_plane.plan_views import StartBatch, WhatIf
from control_plane.views import CellChange, NewKey

CELL_STATES = ("active", "closed", "draining")


@pytest.mark.parametrize(
    ("annotation", "path", "valid"),
    [
        (CellChange, "state", CELL_STATES),
        (StartBatch, "kind", ("evacuate", "rebalance")),
        (WhatIf, "add[0].tier", ("canary", "dedicated", "shared")),
        (NewKey, "role", ("admin", "operator", "router", "viewer")),
        (State | None, "", tuple(sorted(State))),
        (CellChange, "capacity", ()),
        (CellChange, "nothing", ()),
        (str, "", ()),
    ],
)
def test_the_valid_values_of_a_place_are_found(annotation: object, path: str, valid: tuple[str, ...]) -> None:
    assert tuple(sorted(choices(annotation, path))) == valid


def test_a_parameter_is_named_as_the_caller_wrote_it_and_not_as_the_code_does() -> None:
    state = SimpleNamespace(annotation=State | None, kwarg_definition=SimpleNamespace(name="state"))
    limit = SimpleNamespace(annotation=int, kwarg_definition=SimpleNamespace(name=None))
    parameters = {"move_state": state, "limit": limit}
    told = said({"key": "move_state", "message": "Invalid enum value 'bogus'", "source": "query"}, parameters)
    assert told.startswith("state: Invalid enum value 'bogus'; there are: planned, preparing, ")
    assert said({"key": "limit", "message": "Expected `int` <= 500"}, parameters) == "limit: Expected `int` <= 500"
    assert said({"message": "no key"}, parameters) == "no key"


def test_a_field_of_the_body_is_found_in_its_type() -> None:
    data = SimpleNamespace(annotation=CellChange, kwarg_definition=SimpleNamespace(name=None))
    told = said({"key": "state", "message": "Invalid enum value 'x'", "source": "body"}, {"data": data})
    assert told.startswith("state: Invalid enum value 'x'; there are: ")
    assert all(state in told for state in CELL_STATES)
