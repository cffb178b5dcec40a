"""The JSON of the control plane's API: what it takes and what it shows."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from contracts import ids
from contracts.routes import CellState

if TYPE_CHECKING:  # the command line reads these views too, and should not wait for the database's libraries
    from control_plane.cells import Cell
    from control_plane.models import Tenant
    from control_plane.move_progress import Progress
    from control_plane.move_store import Move, Step

Limit = Annotated[int, msgspec.Meta(ge=1, le=500)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class SignUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new tenant and its owner. The password goes to the cell only; it is neither stored nor logged here."""

    slug: str
    name: Name
    email: Annotated[str, msgspec.Meta(max_length=254)]
    password: Annotated[str, msgspec.Meta(min_length=8, max_length=200)]
    plan: str = "free"
    region: str | None = None


class NewTenant(SignUp, frozen=True, forbid_unknown_fields=True):
    """The same from an operator, who may choose the cell."""

    cell: str | None = None


class SignedUp(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to both. ``api_key`` is the owner's first key, shown once."""

    tenant: str
    slug: str
    host: str
    api_key: str
    user_id: str
    cell: str = ""  # for operators only
    reason: str = ""


class TenantView(msgspec.Struct, frozen=True):
    """A tenant. ``move`` is the running move's id, ``pinned_to`` the cell that it is kept in."""

    id: str
    slug: str
    name: str
    cell: str
    epoch: int
    state: str
    plan: str
    region: str
    hosts: tuple[str, ...]
    move: str | None
    created_at: datetime
    pinned_to: str | None = None

    @classmethod
    def of(cls, t: "Tenant") -> "TenantView":
        """From the row."""
        return cls(
            ids.tenant_of(t.number), t.slug, t.name, t.cell, t.epoch, t.state, t.plan, t.region, t.hosts, t.move_id,
            t.created_at, t.pinned_to,
        )  # fmt: skip


class TenantPage(msgspec.Struct, frozen=True):
    """``next`` is the cursor of the following page, None on the last."""

    tenants: list[TenantView]
    next: str | None


class CellView(msgspec.Struct, frozen=True):
    """A cell. ``healthy``: ready, and heard of within its lease."""

    name: str
    region: str
    tier: str
    state: CellState
    capacity: int
    tenants: int
    address: str
    internal_address: str
    schema: str
    version: str
    shards: tuple[str, ...]
    last_seen: datetime
    healthy: bool

    @classmethod
    def of(cls, c: "Cell") -> "CellView":
        """From the fleet snapshot."""
        return cls(
            c.name, c.region, c.tier, c.state, c.capacity, c.tenants, c.address, c.internal_address, c.schema,
            c.version, c.shards, c.last_seen, c.healthy,
        )  # fmt: skip


class CellList(msgspec.Struct, frozen=True):
    """All cells by name."""

    cells: list[CellView]


class CellChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PATCH of a cell: what is absent stays."""

    state: CellState | None = None
    capacity: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] | None = None


class RouterView(msgspec.Struct, frozen=True):
    """How far a router is. ``live`` while its lease runs."""

    name: str
    log_id: str
    revision: int
    last_seen: datetime
    live: bool


class RouterList(msgspec.Struct, frozen=True):
    """All routers that ever reported."""

    routers: list[RouterView]


class RouteExplained(msgspec.Struct, frozen=True):
    """What routers know of a tenant, and why it is so, in words."""

    tenant: str
    hosts: tuple[str, ...]
    cell: str
    epoch: int
    state: str
    plan: str
    revision: int
    log_id: str
    address: str
    reason: str


class PlanView(msgspec.Struct, frozen=True):
    """A plan and its limits per router."""

    name: str
    title: str
    requests_per_s: float
    burst: int
    in_flight: int


class PlanList(msgspec.Struct, frozen=True):
    """Plans, smallest first."""

    plans: list[PlanView]


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An API key to be made."""

    name: Name
    role: Literal["admin", "operator", "viewer", "router"]


class CreatedKey(msgspec.Struct, frozen=True):
    """The key itself is shown once."""

    id: str
    name: str
    role: str
    key: str


class KeyView(msgspec.Struct, frozen=True):
    """An API key without its secret."""

    id: str
    name: str
    role: str
    created_at: datetime
    revoked_at: datetime | None


class KeyList(msgspec.Struct, frozen=True):
    """All keys, revoked ones included, oldest first."""

    keys: list[KeyView]


class AuditEntry(msgspec.Struct, frozen=True):
    """One change: who, what, to which subject."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


class AuditPage(msgspec.Struct, frozen=True):
    """Newest first; ``next`` is the cursor of older entries."""

    entries: list[AuditEntry]
    next: str | None


class FindWorkspace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose workspaces are looked for."""

    email: Annotated[str, msgspec.Meta(min_length=3, max_length=254)]


class Noted(msgspec.Struct, frozen=True):
    """The same answer whether the address is known or not."""

    message: str


class StartMove(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tenant`` is an id or a slug, ``to`` a cell.

    ``standby``: keep the source following after the switch, also where the tenant is small. ``finalize_after_s``: give
    a standby up by itself so long after the switch; refused where there will be none.
    """

    tenant: str
    to: str
    standby: bool = False
    finalize_after_s: Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)] | None = None


class StepView(msgspec.Struct, frozen=True):
    """One line of a move's history."""

    state: str
    at: datetime
    detail: str


class ProgressView(msgspec.Struct, frozen=True):
    """How far the stream of a large move is. Rates and ``eta_s`` are of the copy; lags are bytes of a log."""

    rows: int
    rows_expected: int
    bytes: int
    bytes_expected: int
    rows_per_s: float
    bytes_per_s: float
    eta_s: float | None
    copies: int
    blobs: int
    comparisons: int
    changes: int
    lag_bytes: int | None
    to_compare: int
    way_back: str  # none, open, following, over, or lost and why
    changes_back: int
    lag_back_bytes: int | None

    @classmethod
    def of(cls, p: "Progress", *, over: bool) -> "ProgressView":
        """From the stored progress; ``over``: of a move that has ended, whose old cell follows no more."""
        way_back = "following" if p.standing else "open" if p.back_position is not None else "none"
        if over and way_back != "none":
            way_back = "over"
        return cls(
            p.rows_so_far, p.rows_expected, p.copied_bytes, p.bytes_expected, round(p.rows_per_s, 1),
            round(p.bytes_per_s, 1), p.eta_s, p.copies, p.blobs, p.verified, p.changes, p.lag_bytes, p.touched,
            f"lost: {p.lost}" if p.lost else way_back, p.changes_back, p.lag_back_bytes,
        )  # fmt: skip


class MoveView(msgspec.Struct, frozen=True):
    """A move as operators see it. ``epoch`` is the one that the tenant has, or gets, by it."""

    id: str
    kind: str
    tenant: str
    slug: str
    source: str
    target: str
    state: str
    reason: str
    epoch: int
    rows: int | None
    bytes: int | None
    hold_ms: float | None
    attempts: int
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    steps: list[StepView]
    path: str = "small"
    paused: bool = False
    finalizing: bool = False
    finalize_after_s: float | None = None
    schema: str | None = None
    progress: ProgressView | None = None  # of moves that are not small

    @classmethod
    def of(cls, move: "Move", steps: "list[Step]") -> "MoveView":
        """From the stored move; ``steps`` oldest first."""
        return cls(
            id=move.id,
            kind=move.kind,
            tenant=ids.tenant_of(move.tenant),
            slug=move.slug,
            source=move.source,
            target=move.target,
            state=move.state,
            reason=move.reason,
            epoch=move.epoch,
            rows=move.rows,
            bytes=move.bytes,
            hold_ms=move.hold_ms,
            attempts=move.attempts,
            created_at=move.created_at,
            updated_at=move.updated_at,
            finished_at=move.finished_at,
            steps=[StepView(step.state, step.at, step.detail) for step in steps],
            path=move.path,
            paused=move.paused,
            finalizing=move.finalize,
            finalize_after_s=move.finalize_after_s,
            schema=move.schema,
            progress=None if move.path == "small" else ProgressView.of(move.progress, over=bool(move.finished_at)),
        )


class MoveList(msgspec.Struct, frozen=True):
    """Newest first; their steps are in the single view."""

    moves: list[MoveView]


class EstimateView(msgspec.Struct, frozen=True):
    """What a move would be like; nothing was changed."""

    tenant: str
    slug: str
    source: str
    target: str
    rows: int
    hold_ms: float
    path: str = "small"
    bytes: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    copy_s: float = 0.0
