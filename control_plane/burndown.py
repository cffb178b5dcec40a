"""The burn-down of cell zero: what its customers, the fleet's tenants and the preflight come to. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from contracts import ids
from contracts.zero import Customer, Preflight

TARIFFS: Final[Mapping[str, str]] = {"S": "free", "M": "standard", "L": "business"}
DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Programme:
    """Who answers for the way out, and until when. ``due`` None: nobody has said."""

    cell: str
    owner: str
    due: date | None
    started_at: datetime
    retired_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """A tenant of the fleet, as far as the burn-down cares."""

    number: int
    slug: str
    cell: str
    moving: bool


@dataclass(frozen=True, slots=True)
class Blocker:
    """A customer who cannot leave as things stand, and why."""

    customer: int
    slug: str
    reason: str


@dataclass(frozen=True, slots=True)
class BurnDown:
    """Where the way out stands. ``left`` + ``moved`` + ``strangers`` are all customers."""

    customers: int
    left: int  # tenants that live in cell zero
    moved: int  # tenants that live elsewhere, or are deleted
    strangers: int  # customers who are no tenant yet
    moving: int
    blockers: tuple[Blocker, ...]
    per_day: float  # moved a day since it began
    done_by: date | None  # at that pace; None where there is none, or where somebody cannot leave as things stand

    @property
    def is_empty(self) -> bool:
        """Nobody is left, and nobody was forgotten."""
        return self.left == 0 and self.strangers == 0


def adoptable(
    customers: Iterable[Customer], tenants: Mapping[int, Known], slugs: frozenset[str], plans: frozenset[str]
) -> tuple[list[Customer], list[Blocker]]:
    """Customers who have no tenant in the fleet and can have one; and those who cannot, with the reason.

    ``tenants`` by number, deleted ones included; ``slugs`` of living tenants.
    """
    found, refused = [], []
    for customer in customers:
        number = None if customer.tenant is None else ids.tenant_number(customer.tenant)
        if number is not None and number in tenants:
            continue
        try:
            ids.slug(customer.slug)
        except ids.InvalidIdError as e:
            refused.append(Blocker(customer.number, customer.slug, str(e)))
            continue
        if customer.slug in slugs:
            refused.append(Blocker(customer.number, customer.slug, "a tenant of the fleet has this slug"))
        elif TARIFFS.get(customer.plan) not in plans:
            refused.append(Blocker(customer.number, customer.slug, f"no plan stands for the tariff {customer.plan!r}"))
        else:
            found.append(customer)
    return found, refused


def burn_down(
    programme: Programme,
    customers: Sequence[Customer],
    tenants: Mapping[int, Known],
    checked: Preflight,
    refused: Iterable[Blocker],
    now: datetime,
) -> BurnDown:
    """Count. A customer whose tenant the fleet has forgotten counts as no tenant."""
    homes = [tenants.get(ids.tenant_number(c.tenant)) if c.tenant else None for c in customers]
    left = sum(home is not None and home.cell == programme.cell for home in homes)
    strangers = homes.count(None)
    moved = len(homes) - left - strangers
    everybody = [Blocker(0, "everybody", reason) for reason in checked.blockers]
    faulty = [Blocker(f.number, f.slug, _shown(f.faults, f.total)) for f in checked.customers]
    blockers = (*everybody, *refused, *faulty)
    days = max((now - programme.started_at) / DAY, 1 / 1440)
    per_day = moved / days
    waiting = left + strangers
    done_by = None
    if waiting == 0:
        done_by = now.date()
    elif not blockers and per_day > 0 and waiting / per_day < 36_500:
        done_by = (now + timedelta(days=waiting / per_day)).date()
    moving = sum(home is not None and home.moving for home in homes)
    return BurnDown(len(customers), left, moved, strangers, moving, blockers, per_day, done_by)


def _shown(faults: Sequence[str], total: int) -> str:
    more = f" (and {total - 1} more)" if total > 1 else ""
    return f"{faults[0]}{more}"
