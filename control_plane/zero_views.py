"""The JSON of the way out of cell zero."""

from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec

from contracts.zero import Preflight
from control_plane.plan_views import LimitsView

if TYPE_CHECKING:  # the command line reads these views too, and should not wait for the database's libraries
    from control_plane.burndown import Blocker
    from control_plane.zero import Planned, Status


class ZeroPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /v1/zero/{cell}/plan``: who answers for the way out, and until when."""

    owner: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    due: date | None = None
    dry_run: bool = False


class ZeroMigrate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /v1/zero/{cell}/migrate``: how much goes at once."""

    limits: LimitsView = LimitsView()


class ZeroRetire(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /v1/zero/{cell}/retire``."""

    accept_quarantine: bool = False


class BlockerView(msgspec.Struct, frozen=True):
    """Why a customer cannot leave; customer 0 is everybody."""

    customer: int
    slug: str
    reason: str

    @classmethod
    def of(cls, blocker: "Blocker") -> "BlockerView":
        """The view of a blocker."""
        return cls(blocker.customer, blocker.slug, blocker.reason)


class PlannedView(msgspec.Struct, frozen=True):
    """``adopted`` customers are tenants now, or would be; ``refused`` ones cannot be."""

    cell: str
    customers: int
    adopted: int
    refused: list[BlockerView]

    @classmethod
    def of(cls, done: "Planned") -> "PlannedView":
        """The view of a plan."""
        return cls(done.cell, done.customers, done.adopted, [BlockerView.of(b) for b in done.refused])


class PreflightView(Preflight, frozen=True):
    """What stands in the way, and whether somebody planned the way out already."""

    planned: bool = True

    @classmethod
    def of(cls, found: Preflight, *, planned: bool) -> "PreflightView":
        """The view of a preflight."""
        return cls(found.blockers, found.warnings, found.customers, found.checked, planned)


class ZeroStatusView(msgspec.Struct, frozen=True):
    """The burn-down. ``left`` + ``moved`` + ``strangers`` are all customers; ``done_by`` is at the pace so far.

    It is null where nobody leaves, and while a blocker stands."""

    cell: str
    owner: str
    due: date | None
    started_at: datetime
    retired_at: datetime | None
    customers: int
    left: int
    moved: int
    strangers: int
    moving: int
    quarantined: int
    per_day: float
    done_by: date | None
    blockers: list[BlockerView]
    warnings: list[str]

    @classmethod
    def of(cls, status: "Status") -> "ZeroStatusView":
        """The view of a status."""
        programme, counted = status.programme, status.burn_down
        return cls(
            cell=programme.cell,
            owner=programme.owner,
            due=programme.due,
            started_at=programme.started_at,
            retired_at=programme.retired_at,
            customers=counted.customers,
            left=counted.left,
            moved=counted.moved,
            strangers=counted.strangers,
            moving=counted.moving,
            quarantined=status.quarantined,
            per_day=round(counted.per_day, 2),
            done_by=counted.done_by,
            blockers=[BlockerView.of(b) for b in counted.blockers],
            warnings=list(status.warnings),
        )
