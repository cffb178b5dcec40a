"""Usage of cells, the throttle of a tenant, and what was done about noisy ones."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables of the closed loop."""
    op.add_column("tenants", sa.Column("throttled_until", sa.DateTime(timezone=True)))
    op.add_column("tenants", sa.Column("throttled_in", sa.Text()))
    op.create_check_constraint(
        op.f("ck_tenants_throttled"), "tenants", "(throttled_until IS NULL) = (throttled_in IS NULL)"
    )
    op.create_table(
        "usage_windows",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("cell", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["cell"], ["cells.name"], name=op.f("fk_usage_windows_cell")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_windows")),
    )
    op.create_index("ix_usage_windows_at", "usage_windows", ["at"])
    op.create_table(
        "noisy_policy",
        sa.Column("singleton", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("policy", JSONB(), nullable=False),
        sa.CheckConstraint("singleton", name=op.f("ck_noisy_policy_one_row")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_noisy_policy")),
    )
    op.create_table(
        "noisy_vetoes",
        sa.Column("tenant", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.number"], name=op.f("fk_noisy_vetoes_tenant")),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_noisy_vetoes")),
    )
    op.create_table(
        "noisy_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("tenant", sa.BigInteger(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("cell", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("target", sa.Text()),
        sa.Column("move", sa.Text()),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.number"], name=op.f("fk_noisy_events_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_noisy_events")),
    )
    op.create_index("ix_noisy_events_tenant_at", "noisy_events", ["tenant", "at"])
