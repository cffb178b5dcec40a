"""Placement: fleet snapshot + tenant -> cell + reason in words (design section 4). Pure: no I/O, randomness comes in.

Hard filters, none of which is ever traded for load: pin, state, health, region, tier, schema revision, capacity.
Among the cells that pass, the lowest projected load wins; where the best two are within `TIE` of each other, chance
decides, so that several placers with the same snapshot do not all choose the same cell.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from heapq import nsmallest
from typing import Final

TIE: Final = 0.01  # projected loads this close are no reason to prefer one
REASONS: Final = 20  # of cells that do not fit, said of a tenant for which there is none


@dataclass(frozen=True, slots=True)
class CellFacts:
    """A cell in the snapshot. ``load`` is the sum of its tenants' plan weights, tenants on their way to it included."""

    name: str
    region: str
    tier: str
    state: str
    healthy: bool
    schema: str
    capacity: int
    tenants: int
    load: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a tenant needs. ``region`` and ``schema`` None: any will do. ``avoid``: cells that are no choice for it.

    ``pin``: the one cell that an operator keeps it in; any, where None.
    """

    tier: str
    weight: float
    region: str | None = None
    schema: str | None = None
    avoid: frozenset[str] = frozenset()
    pin: str | None = None


class Filter(StrEnum):
    """The hard filter that a cell did not pass, in the order in which they are asked."""

    PIN = "pin"
    AVOID = "avoid"
    STATE = "state"
    HEALTH = "health"
    REGION = "region"
    TIER = "tier"
    SCHEMA = "schema"
    CAPACITY = "capacity"


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a cell cannot take the tenant."""

    filter: Filter
    reason: str


@dataclass(frozen=True, slots=True)
class Placement:
    """The choice, and why."""

    cell: str
    reason: str


@dataclass(frozen=True, slots=True)
class NoPlacement:
    """No cell passes; ``reason`` says of each what is missing."""

    reason: str


def misfit(cell: CellFacts, wanted: Wanted) -> Misfit | None:
    """The first hard filter that ``cell`` does not pass, or None where it can take the tenant."""
    if wanted.pin is not None and cell.name != wanted.pin:
        return Misfit(Filter.PIN, f"{cell.name} is not {wanted.pin}, to which the tenant is pinned")
    if cell.name in wanted.avoid:
        return Misfit(Filter.AVOID, f"{cell.name} is not a choice for this tenant")
    if cell.state != "active":
        return Misfit(Filter.STATE, f"{cell.name} is {cell.state}")
    if not cell.healthy:
        return Misfit(Filter.HEALTH, f"{cell.name} is not healthy")
    if wanted.region is not None and cell.region != wanted.region:
        return Misfit(Filter.REGION, f"{cell.name} is in region {cell.region}, not {wanted.region}")
    if cell.tier != wanted.tier:
        return Misfit(Filter.TIER, f"{cell.name} is of tier {cell.tier}, not {wanted.tier}")
    if wanted.schema is not None and cell.schema != wanted.schema:
        return Misfit(Filter.SCHEMA, f"{cell.name} has schema {cell.schema}, not {wanted.schema}")
    if cell.tenants >= cell.capacity:
        return Misfit(Filter.CAPACITY, f"{cell.name} is full ({cell.tenants} of {cell.capacity} tenants)")
    return None


def projected_load(cell: CellFacts, wanted: Wanted) -> float:
    """Load per unit of capacity once the tenant is there; comparable between cells of different size."""
    return (cell.load + wanted.weight) / cell.capacity


def place(fleet: Sequence[CellFacts], wanted: Wanted, rng: random.Random) -> Placement | NoPlacement:
    """Choose a cell. The same snapshot, tenant and ``rng`` state give the same choice."""
    if not fleet:
        return NoPlacement("no cell is registered")
    faults = [misfit(cell, wanted) for cell in fleet]
    fitting = [cell for cell, fault in zip(fleet, faults, strict=True) if fault is None]
    best_two = nsmallest(2, fitting, key=lambda cell: (projected_load(cell, wanted), cell.name))
    if not best_two:
        reasons = [fault.reason for fault in faults if fault]
        more = f"; and {len(reasons) - REASONS} cells more" if len(reasons) > REASONS else ""
        return NoPlacement(f"no cell fits: {'; '.join(reasons[:REASONS])}{more}")
    best = projected_load(best_two[0], wanted)
    if len(best_two) == 1:
        only = best_two[0].name
        return Placement(only, f"{only} is the only cell that fits (projected load {best:.3f})")
    second = projected_load(best_two[1], wanted)
    if second - best > TIE:
        return Placement(
            best_two[0].name,
            f"{best_two[0].name} has the least projected load of {len(fitting)} cells that fit "
            f"({best:.3f}; next is {best_two[1].name} with {second:.3f})",
        )
    chosen = rng.choice(best_two).name
    names = " and ".join(cell.name for cell in best_two)
    return Placement(
        chosen,
        f"{names} are the best of {len(fitting)} cells that fit, their projected loads ({best:.3f} and {second:.3f}) "
        f"within {TIE:g} of each other; chance chose {chosen}",
    )
