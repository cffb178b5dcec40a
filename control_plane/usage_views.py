"""The JSON of usage and of noisy tenants. The command line reads it too, so no database library is imported here."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class TenantLine(msgspec.Struct, frozen=True):
    """A tenant's sums over the time asked for. ``share`` is its part of the database time that tenants took."""

    tenant: str
    slug: str
    requests: int
    refused: dict[str, int]
    database_ms: float
    share: float
    seat_ms: float
    queued_ms: float
    bytes_in: int
    bytes_out: int
    p99_ms: float
    throttled_until: datetime | None


class CellUsage(msgspec.Struct, frozen=True):
    """A cell. ``seconds`` were measured; ``active_ms`` is its databases' own count of all time in statements.

    The latencies are of the newest window; ``tenants`` are the costliest first.
    """

    cell: str
    seconds: float
    requests: int
    rejected: int
    database_ms: float
    active_ms: float
    platform_ms: float
    other_ms: float
    p50_ms: float
    p99_ms: float
    tenants: list[TenantLine]


class UsageView(msgspec.Struct, frozen=True):
    """Cells that told something in the last ``window`` seconds."""

    window: float
    cells: list[CellUsage]


class PolicyView(msgspec.Struct, frozen=True):
    """The policy in force."""

    mode: str
    share: float
    times_even: float
    slower_up: float
    slower_down: float
    floor_ms: float
    busy: float
    windows_up: int
    throttle_s: float
    requests_per_s: float
    burst: int
    in_flight: int


class PolicyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """PATCH of the policy: what is absent stays."""

    mode: Literal["off", "observe", "throttle", "move"] | None = None
    share: Annotated[float, msgspec.Meta(ge=0.1, le=1)] | None = None
    times_even: Annotated[float, msgspec.Meta(ge=1, le=1000)] | None = None
    slower_up: Annotated[float, msgspec.Meta(ge=1, le=100)] | None = None
    slower_down: Annotated[float, msgspec.Meta(ge=1, le=100)] | None = None
    floor_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] | None = None
    busy: Annotated[float, msgspec.Meta(ge=0, le=64)] | None = None
    windows_up: Annotated[int, msgspec.Meta(ge=1, le=60)] | None = None
    throttle_s: Annotated[float, msgspec.Meta(ge=5, le=3600)] | None = None
    requests_per_s: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None = None
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None


class Throttle(msgspec.Struct, frozen=True):
    """A throttled tenant: ``cell`` for whose sake, ``until`` when at the least."""

    tenant: str
    slug: str
    cell: str
    until: datetime


class NoisyEvent(msgspec.Struct, frozen=True):
    """Something that was done about a tenant, by whom and why."""

    at: datetime
    tenant: str
    slug: str
    cell: str
    event: str
    actor: str
    reason: str
    target: str | None
    move: str | None


class NoisyView(msgspec.Struct, frozen=True):
    """Everything about noisy tenants: the policy, who is throttled now, the newest events first."""

    policy: PolicyView
    throttled: list[Throttle]
    events: list[NoisyEvent]


class Veto(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For how long nothing is done about a tenant."""

    seconds: Seconds = 3600.0


class Vetoed(msgspec.Struct, frozen=True):
    """The answer to a veto or a lift. ``until`` None: there is no veto."""

    tenant: str
    slug: str
    lifted: bool
    until: datetime | None
