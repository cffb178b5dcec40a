"""The wire types of cell zero: what its internal listener says beyond the transfer API of every cell.

``GET /transfer/v1/zero/customers``: an array of `Customer`. ``POST`` there: an array of `Enrolment`, all or none.
``GET /transfer/v1/zero/preflight``: a `Preflight`. ``GET /transfer/v1/zero/quarantine``: an array of `Quarantined`.
Bearer of the cell's transfer token, as for all of ``/transfer/v1``.
"""

from typing import Annotated, Any

import msgspec


class Customer(msgspec.Struct, frozen=True):
    """A customer of the monolith. ``tenant`` and ``state`` (of its fence row) are null until it is enrolled."""

    number: int
    slug: str
    name: str
    plan: str  # the monolith's tariff: S, M or L
    email: str  # of the owner with the lowest number; empty where there is none
    rows: int
    tenant: str | None = None
    state: str | None = None


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which tenant a customer is. It is active at epoch 1 from then on; repeating it changes nothing."""

    tenant: str
    customer: Annotated[int, msgspec.Meta(ge=0)]


class CustomerFaults(msgspec.Struct, frozen=True):
    """A customer who cannot leave yet: ``faults`` are the first, in words with table and key, ``total`` counts all."""

    number: int
    slug: str
    faults: tuple[str, ...]
    total: int


class Preflight(msgspec.Struct, frozen=True):
    """What stands in the way. ``blockers`` concern everybody, ``warnings`` nobody; ``customers`` only themselves."""

    blockers: tuple[str, ...]
    warnings: tuple[str, ...]
    customers: tuple[CustomerFaults, ...]
    checked: int  # customers whose rows were translated


class Quarantined(msgspec.Struct, frozen=True):
    """A write to rows of a tenant that lives elsewhere: what the row says now, null where it is gone."""

    tenant: str
    customer: int
    table: str
    key: str
    row: dict[str, Any] | None
    found_at: str
