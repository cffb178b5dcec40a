"""The JSON of plans and batches. The command line reads it too, so no database library is imported here."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from contracts import ids
from control_plane.plans import Plan, load_of, spread

if TYPE_CHECKING:
    from control_plane.batch_service import Course
    from control_plane.batch_store import Member

SHOWN_MOVES = 100  # of one batch, those first that need a look
_ORDER = ("failed", "running", "waiting", "skipped", "cancelled", "done")

Slots = Annotated[int, msgspec.Meta(ge=1, le=64)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class LimitsView(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """How much of a batch goes at once; see `waves.Limits`."""

    at_once: Slots = 4
    per_source: Slots = 4
    per_target: Slots = 4
    per_shard: Slots = 2
    max_errors: Share = 0.1
    tries: Annotated[int, msgspec.Meta(ge=1, le=10)] = 2
    first_wave: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    growth: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4
    wave_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 200
    bake_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0


class StartBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``evacuate`` needs a cell. ``partial``: move those who can be moved, though others cannot."""

    kind: Literal["evacuate", "rebalance"]
    cell: str | None = None
    partial: bool = False
    tolerance: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.05
    limits: LimitsView = LimitsView()


class NewCell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cell of a what-if."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
    region: Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
    capacity: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
    tier: Literal["shared", "dedicated", "canary"] = "shared"


class WhatIf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cells that come, cells that go, growth of all tenants (1.5: half as much again)."""

    add: Annotated[list[NewCell], msgspec.Meta(max_length=1000)] = []
    without: Annotated[list[str], msgspec.Meta(max_length=1000)] = []
    growth: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0


class ProposalView(msgspec.Struct, frozen=True):
    """One move of a plan, and why."""

    tenant: str
    slug: str
    source: str
    target: str
    reason: str


class BlockedView(msgspec.Struct, frozen=True):
    """A tenant that should move and cannot, and what would help."""

    tenant: str
    slug: str
    cell: str
    reason: str
    advice: str


class CellLoadView(msgspec.Struct, frozen=True):
    """A cell before and after. The loads are per place; None where a cell has no places, as cell zero."""

    name: str
    region: str
    tier: str
    capacity: int
    tenants_before: int
    tenants_after: int
    load_before: float | None
    load_after: float | None


class PlanView(msgspec.Struct, frozen=True):
    """A plan; nothing was changed. ``cells`` are those that it touches. ``spread``: worst imbalance of alike cells."""

    moves: list[ProposalView]
    blocked: list[BlockedView]
    cells: list[CellLoadView]
    spread_before: float
    spread_after: float
    reason: str
    warnings: list[str]

    @classmethod
    def of(cls, plan: Plan, warnings: tuple[str, ...] = ()) -> "PlanView":
        """From the plan."""
        before = {cell.name: cell for cell in plan.before}
        touched = [c for c in plan.after if c != before.get(c.name)]
        return cls(
            [ProposalView(ids.tenant_of(m.number), m.slug, m.source, m.target, m.reason) for m in plan.moves],
            [BlockedView(ids.tenant_of(b.number), b.slug, b.cell, b.reason, b.advice) for b in plan.blocked],
            [
                CellLoadView(
                    c.name, c.region, c.tier, c.capacity, before[c.name].tenants, c.tenants,
                    *(load_of(x) if x.capacity else None for x in (before[c.name], c)),
                )
                for c in touched
            ],
            spread(plan.before),
            spread(plan.after),
            plan.reason,
            list(warnings),
        )  # fmt: skip


class BatchMoveView(msgspec.Struct, frozen=True):
    """One tenant of a batch; ``wave`` counts from 1."""

    tenant: str
    slug: str
    source: str
    target: str
    wave: int
    state: str
    tries: int
    move: str | None
    move_state: str | None
    reason: str

    @classmethod
    def of(cls, m: "Member") -> "BatchMoveView":
        """From the stored item."""
        i = m.item
        return cls(
            ids.tenant_of(i.tenant), m.slug, i.source, i.target, i.wave + 1, i.state, m.tries, m.move, m.move_state,
            m.reason,
        )  # fmt: skip


class BatchView(msgspec.Struct, frozen=True):
    """A batch. ``moves``: at most `SHOWN_MOVES`, failed ones first. ``blocked`` could not be planned when it began."""

    id: str
    kind: str
    cell: str | None
    state: str
    reason: str
    wave: int
    waves: int
    counts: dict[str, int]
    total: int
    eta_s: float | None
    limits: LimitsView
    blocked: list[BlockedView]
    actor: str
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    moves: list[BatchMoveView]

    @classmethod
    def of(cls, course: "Course", *, moves: bool = True) -> "BatchView":
        """From the stored batch."""
        b, members = course.batch, course.members
        counts = {state: course.counts[state] for state in sorted(course.counts)}
        shown = sorted(members, key=lambda m: _ORDER.index(m.item.state))[: SHOWN_MOVES if moves else 0]
        return cls(
            id=b.id,
            kind=b.kind,
            cell=b.cell,
            state=b.state,
            reason=b.reason,
            wave=b.wave + 1,
            waves=1 + max((m.item.wave for m in members), default=0),
            counts={str(state): n for state, n in counts.items()},
            total=len(members),
            eta_s=course.eta_s,
            limits=msgspec.convert(b.limits, LimitsView, from_attributes=True),
            blocked=[BlockedView(ids.tenant_of(x.number), x.slug, x.cell, x.reason, x.advice) for x in b.blocked],
            actor=b.actor,
            created_at=b.created_at,
            updated_at=b.updated_at,
            finished_at=b.finished_at,
            moves=[BatchMoveView.of(m) for m in shown],
        )


class BatchList(msgspec.Struct, frozen=True):
    """Newest first; their moves are in the single view."""

    batches: list[BatchView]


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cell that a tenant is to live in, whatever plans say; None: any."""

    cell: str | None


class PoolView(msgspec.Struct, frozen=True):
    """Cells that share their tenants (region, tier), and when the next one is due.

    ``due_days``: at the growth of the last ``history_days``; None where it does not grow, or nothing is known yet.
    """

    region: str
    tier: str
    cells: int
    tenants: int
    places: int
    growth_per_day: float | None
    busy: float | None
    history_days: float
    due_days: float | None
    reason: str


class ForecastView(msgspec.Struct, frozen=True):
    """The pool that needs a cell first, first."""

    full_at: float
    pools: list[PoolView]
