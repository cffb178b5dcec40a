"""The first schema: route log, cells, plans, tenants, keys, audit."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table; rows that the product needs are seeded by ``python -m control_plane migrate``."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("role IN ('admin', 'operator', 'viewer', 'router')", name=op.f("ck_api_keys_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_table(
        "cells",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="active", nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("capacity_pinned", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("internal_address", sa.Text(), nullable=False),
        sa.Column("schema_revision", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("shards", ARRAY(sa.Text()), nullable=False),
        sa.Column("ready", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("in_flight", sa.Integer(), server_default="0", nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('active', 'draining', 'closed', 'removed')", name=op.f("ck_cells_state")),
        sa.CheckConstraint("tier IN ('shared', 'dedicated', 'canary')", name=op.f("ck_cells_tier")),
        sa.CheckConstraint("capacity >= 0", name=op.f("ck_cells_capacity")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_cells")),
    )
    op.create_table(
        "plans",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), server_default="shared", nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("requests_per_s", sa.Float(), nullable=False),
        sa.Column("burst", sa.Integer(), nullable=False),
        sa.Column("in_flight", sa.Integer(), nullable=False),
        sa.CheckConstraint("tier IN ('shared', 'dedicated', 'canary')", name=op.f("ck_plans_tier")),
        sa.CheckConstraint(
            "weight > 0 AND requests_per_s > 0 AND burst > 0 AND in_flight > 0", name=op.f("ck_plans_limits")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_plans")),
    )
    op.create_table(
        "route_cursor",
        sa.Column("singleton", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("log_id", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("singleton", name=op.f("ck_route_cursor_one_row")),
        sa.CheckConstraint("revision >= 0", name=op.f("ck_route_cursor_revision")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_route_cursor")),
    )
    op.create_table(
        "route_log",
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("latest", sa.Boolean(), nullable=False),
        sa.Column("tombstone", sa.Boolean(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_route_log")),
    )
    op.create_index("uq_route_log_latest", "route_log", ["subject"], unique=True, postgresql_where=sa.text("latest"))
    op.create_table(
        "routers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("log_id", sa.Text(), nullable=False),
        sa.Column("applied", sa.BigInteger(), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("live_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_routers")),
    )
    op.create_table(
        "tenants",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cell", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("epoch_high", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("state", sa.Text(), server_default="provisioning", nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("hosts", ARRAY(sa.Text()), nullable=False),
        sa.Column("move_id", sa.Text(), nullable=True),
        sa.Column("move_target", sa.Text(), nullable=True),
        sa.Column("fence_term", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("fence_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("email_digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(state = 'deleted') = (deleted_at IS NOT NULL)", name=op.f("ck_tenants_deleted_at")),
        sa.CheckConstraint(
            "move_id IS NULL OR state IN ('active', 'suspended')", name=op.f("ck_tenants_moving_is_live")
        ),
        sa.CheckConstraint(
            "state IN ('provisioning', 'active', 'suspended', 'deleting', 'deleted')", name=op.f("ck_tenants_state")
        ),
        sa.CheckConstraint("(move_id IS NULL) = (move_target IS NULL)", name=op.f("ck_tenants_move")),
        sa.CheckConstraint("epoch >= 1 AND epoch <= epoch_high", name=op.f("ck_tenants_epoch")),
        sa.CheckConstraint("number > 0 AND number < 1000000000000000000", name=op.f("ck_tenants_number")),
        sa.ForeignKeyConstraint(["cell"], ["cells.name"], name=op.f("fk_tenants_cell")),
        sa.ForeignKeyConstraint(["move_target"], ["cells.name"], name=op.f("fk_tenants_move_target")),
        sa.ForeignKeyConstraint(["plan"], ["plans.name"], name=op.f("fk_tenants_plan")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_tenants")),
    )
    op.create_index("ix_tenants_cell", "tenants", ["cell"], unique=False)
    op.create_index("ix_tenants_email_digest", "tenants", ["email_digest"], unique=False)
    op.create_index(
        "uq_tenants_slug",
        "tenants",
        ["slug"],
        unique=True,
        postgresql_where=sa.text("state IN ('provisioning', 'active', 'suspended')"),
    )
