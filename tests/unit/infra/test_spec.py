"""A spec that cannot be built is refused before anything is, by the name of the field."""

import pytest

from cell.schema import migrate
from infra.local.spec import LocalCellSpec
from infra.spec import CONNECTIONS_MAX, SIZES, CellSpec, SpecError


@pytest.mark.parametrize(
    ("told", "field", "words"),
    [
        ({}, "name", "missing"),
        ({"name": "Cell_1"}, "name", "lower-case DNS label"),
        ({"name": "cell-1", "size": "XL"}, "size", "S, M, L"),
        ({"name": "cell-1", "tier": "gold"}, "tier", "shared, dedicated, canary"),
        ({"name": "cell-1", "region": "mars"}, "region", "eu-central-1"),
        ({"name": "cell-1", "shards": 0}, "shards", "between 1 and 16"),
        ({"name": "cell-1", "shards": "two"}, "shards", "whole number"),
        ({"name": "cell-1", "shards": 1.5}, "shards", "whole number"),
        ({"name": "cell-1", "shards": float("inf")}, "shards", "whole number"),
        ({"name": "cell-1", "shards": 10**400}, "shards", "whole number"),
        ({"name": "cell-1", "version": "a b"}, "version", "1.4.2"),
        ({"name": "cell-1", "version": 1}, "version", "quotes"),
        ({"name": "cell-1", "schema": 2}, "schema", "config set --type string --path cellwall:cell.schema VALUE"),
        ({"name": "cell-1", "capacity": 0}, "capacity", "between 1 and"),
        ({"name": "cell-1", "connections": 0}, "connections", "between 1 and 200"),
        ({"name": "cell-1", "connections": CONNECTIONS_MAX + 1}, "connections", "between 1 and 200"),
        ({"name": "cell-1", "schema": "head; DROP"}, "schema", "0003"),
        ({"name": "cell-1", "images": {"api": "cell:latest"}}, "images.api", "by digest"),
        ({"name": "cell-1", "images": {"web": "cell"}}, "images", "api, worker"),
        ({"name": "cell-1", "images": "cell"}, "images", "must map"),
        ({"name": "cell-1", "colour": "red"}, "colour", "the fields of a cell are name, region"),
    ],
)
def test_a_wrong_spec_is_not_built(told: dict[str, object], field: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as refused:
        CellSpec.parse(told)
    assert refused.value.field == field
    assert str(refused.value).startswith(f"{field}: ")


def test_numbers_of_a_stack_s_state_do_not_become_floats_of_a_cell() -> None:
    spec = CellSpec.parse({"name": "cell-1", "shards": 3.0, "capacity": "70"})
    assert (spec.shards, spec.capacity) == (3, 70)
    assert isinstance(spec.shards, int)


def test_a_spec_is_not_changed_by_the_way_through_configuration() -> None:
    image = f"example.com/cell@sha256:{'0' * 64}"
    spec = CellSpec("cell-1", "eu-central-1", "dedicated", "L", 4, "1.2.0", "0002", {"api": image}, 70, 7)
    assert CellSpec.parse(spec.mapping()) == spec


@pytest.mark.parametrize("size", list(SIZES))
def test_limits_follow_the_size_unless_they_are_given(size: str) -> None:
    plain = CellSpec.parse({"name": "cell-1", "size": size})
    assert (plain.tenants_max, plain.pool_size) == (plain.sized.capacity, plain.sized.connections)
    assert CellSpec.parse({"name": "cell-1", "size": size, "capacity": 3}).tenants_max == 3


@pytest.mark.parametrize("connections", [1, CONNECTIONS_MAX])
def test_the_bounds_of_connections_belong_to_them(connections: int) -> None:
    assert CellSpec.parse({"name": "cell-1", "connections": connections}).pool_size == connections


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("limits", [{}, {"capacity": 3, "connections": 4, "version": "1.2.0", "tier": "canary"}])
def test_what_a_fleet_has_of_a_cell_is_told_as_another_spec(size: str, limits: dict[str, object]) -> None:
    spec = CellSpec.parse({"name": "cell-1", "size": size, "shards": 1, **limits})
    assert LocalCellSpec.of(spec).described() == spec


def test_a_local_cell_takes_the_schema_of_its_checkout_and_no_other() -> None:
    LocalCellSpec.of(CellSpec("cell-1", schema=migrate.head(migrate.SHARD)))
    with pytest.raises(SpecError, match=f"schema: '0000' is not this checkout's '{migrate.head(migrate.SHARD)}'"):
        LocalCellSpec.of(CellSpec("cell-1", schema="0000"))
