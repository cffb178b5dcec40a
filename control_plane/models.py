"""The control plane's tables (SQLAlchemy Core). CHECK constraints guard the states: no code path can invent one.

A row of ``tenants`` is never removed once its route was published: it stays as a tombstone that remembers the highest
epoch ever given out. ``route_log`` holds every published record; ``latest`` marks the newest one of each subject.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from control_plane.roles import ROLES

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

CELL_STATES = ("active", "draining", "closed", "removed")  # removed: out of the fleet, remembered by tombstones
TIERS = ("shared", "dedicated", "canary")
# provisioning: the row reserves the slug while the cell creates the tenant. deleting: no route any more, rows are
# still being purged at the cell. deleted: the tombstone.
TENANT_STATES = ("provisioning", "active", "suspended", "deleting", "deleted")


def one_of(column: str, values: tuple[str, ...]) -> str:
    """The SQL text of a CHECK that allows only ``values`` (constants of this package, never input)."""
    return f"{column} IN ({', '.join(repr(v) for v in values)})"


def _now() -> sa.TextClause:
    return sa.text("now()")


# One row. Updating it is the publication lock: the row stays locked until the publisher commits.
route_cursor = sa.Table(
    "route_cursor",
    metadata,
    sa.Column("singleton", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("log_id", sa.Text, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.CheckConstraint("singleton", name="one_row"),
    sa.CheckConstraint("revision >= 0", name="revision"),
)

route_log = sa.Table(
    "route_log",
    metadata,
    sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("subject", sa.Text, nullable=False),  # tenant:t1042, cell:cell-1, plan:free
    sa.Column("latest", sa.Boolean, nullable=False),
    sa.Column("tombstone", sa.Boolean, nullable=False),
    sa.Column("record", sa.Text, nullable=False),  # the line of contracts.routes, without its newline
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=_now()),
)
sa.Index("uq_route_log_latest", route_log.c.subject, unique=True, postgresql_where=route_log.c.latest)

# A router's lease: it counts for `wait_applied` until ``live_until``.
routers = sa.Table(
    "routers",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("log_id", sa.Text, nullable=False),
    sa.Column("applied", sa.BigInteger, nullable=False),
    sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
    sa.Column("live_until", sa.DateTime(timezone=True), nullable=False),
)

plans = sa.Table(
    "plans",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("tier", sa.Text, nullable=False, server_default="shared"),
    sa.Column("weight", sa.Integer, nullable=False),  # the load that one tenant of this plan is expected to bring
    sa.Column("requests_per_s", sa.Float, nullable=False),
    sa.Column("burst", sa.Integer, nullable=False),
    sa.Column("in_flight", sa.Integer, nullable=False),
    sa.CheckConstraint(one_of("tier", TIERS), name="tier"),
    sa.CheckConstraint("weight > 0 AND requests_per_s > 0 AND burst > 0 AND in_flight > 0", name="limits"),
)

cells = sa.Table(
    "cells",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("region", sa.Text, nullable=False),
    sa.Column("tier", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="active"),
    sa.Column("capacity", sa.Integer, nullable=False),  # tenants
    # True once an operator set the capacity: from then on registration does not change it.
    sa.Column("capacity_pinned", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("internal_address", sa.Text, nullable=False),
    sa.Column("schema_revision", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("shards", ARRAY(sa.Text), nullable=False),
    sa.Column("ready", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("in_flight", sa.Integer, nullable=False, server_default="0"),
    sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False, server_default=_now()),
    sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
    sa.CheckConstraint(one_of("state", CELL_STATES), name="state"),
    sa.CheckConstraint(one_of("tier", TIERS), name="tier"),
    sa.CheckConstraint("capacity >= 0", name="capacity"),
)

tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("slug", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("cell", sa.Text, sa.ForeignKey("cells.name"), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="1"),
    # The highest epoch ever given out for this tenant. A new one is epoch_high + 1; none is used twice.
    sa.Column("epoch_high", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("state", sa.Text, nullable=False, server_default="provisioning"),
    sa.Column("plan", sa.Text, sa.ForeignKey("plans.name"), nullable=False),
    sa.Column("region", sa.Text, nullable=False),
    sa.Column("hosts", ARRAY(sa.Text), nullable=False),
    # The running move and its target: set and cleared together. The target's capacity counts the tenant as well.
    sa.Column("move_id", sa.Text),
    sa.Column("move_target", sa.Text, sa.ForeignKey("cells.name")),
    # The highest fence (moves.md rule 1) given out for a command about this tenant: see `routes.next_fence`.
    sa.Column("fence_term", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("fence_seq", sa.BigInteger, nullable=False, server_default="0"),
    # While set, its route has the throttled plan in the place of its own; for the sake of the cell that is named.
    sa.Column("throttled_until", sa.DateTime(timezone=True)),
    sa.Column("throttled_in", sa.Text),
    # The one cell in which an operator wants it to live: nothing moves it elsewhere, a rebalance moves it there.
    sa.Column("pinned_to", sa.Text, sa.ForeignKey("cells.name")),
    # Keyed hash of the owner's e-mail address; the address itself is not kept here.
    sa.Column("email_digest", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_now()),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=_now()),
    sa.Column("deleted_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint(one_of("state", TENANT_STATES), name="state"),
    sa.CheckConstraint("number > 0 AND number < 1000000000000000000", name="number"),
    sa.CheckConstraint("epoch >= 1 AND epoch <= epoch_high", name="epoch"),
    sa.CheckConstraint("(move_id IS NULL) = (move_target IS NULL)", name="move"),
    sa.CheckConstraint("move_id IS NULL OR state IN ('active', 'suspended')", name="moving_is_live"),
    sa.CheckConstraint("(state = 'deleted') = (deleted_at IS NOT NULL)", name="deleted_at"),
    sa.CheckConstraint("(throttled_until IS NULL) = (throttled_in IS NULL)", name="throttled"),
)
sa.Index(
    "uq_tenants_slug",
    tenants.c.slug,
    unique=True,
    postgresql_where=tenants.c.state.in_(("provisioning", "active", "suspended")),
)
sa.Index("ix_tenants_cell", tenants.c.cell)
sa.Index("ix_tenants_email_digest", tenants.c.email_digest)

# The way out of a cell zero: who answers for it, and until when.
zero_programmes = sa.Table(
    "zero_programmes",
    metadata,
    sa.Column("cell", sa.Text, sa.ForeignKey("cells.name"), primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("due", sa.Date),
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, server_default=_now()),
    sa.Column("retired_at", sa.DateTime(timezone=True)),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("secret_sha256", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_now()),
    sa.Column("revoked_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint(one_of("role", ROLES), name="role"),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=_now()),
    sa.Column("actor", sa.Text, nullable=False),  # key:<id>, cell:<name>, front-door, control-plane
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("detail", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A row of ``tenants`` as the rest of the package passes it around."""

    number: int
    slug: str
    name: str
    cell: str
    epoch: int
    epoch_high: int
    state: str
    plan: str
    region: str
    hosts: tuple[str, ...]
    move_id: str | None
    move_target: str | None
    created_at: datetime
    throttled_until: datetime | None = None
    pinned_to: str | None = None

    @classmethod
    def of(cls, row: sa.Row[Any]) -> "Tenant":
        """From a row that has (at least) the columns of ``tenants``."""
        return cls(
            row.number, row.slug, row.name, row.cell, row.epoch, row.epoch_high, row.state, row.plan, row.region,
            tuple(row.hosts), row.move_id, row.move_target, row.created_at, row.throttled_until, row.pinned_to,
        )  # fmt: skip
