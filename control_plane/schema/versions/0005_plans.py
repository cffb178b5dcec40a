"""Batches of moves, pins, and the load that forecasts are made of."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_OVER = "state IN ('cancelled', 'done', 'incomplete')"
_OPEN = "state IN ('running', 'waiting')"


def _at(name: str) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False)


def upgrade() -> None:
    """Create the tables of plans."""
    op.add_column("tenants", sa.Column("pinned_to", sa.Text()))
    op.create_foreign_key(op.f("fk_tenants_pinned_to"), "tenants", "cells", ["pinned_to"], ["name"])
    op.create_table(
        "batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("cell", sa.Text()),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("limits", JSONB(), nullable=False),
        sa.Column("blocked", JSONB(), nullable=False),
        sa.Column("wave", sa.Integer(), server_default="0", nullable=False),
        sa.Column("wave_over_at", sa.DateTime(timezone=True)),
        sa.Column("term", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        _at("created_at"),
        _at("updated_at"),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("kind IN ('evacuate', 'rebalance')", name=op.f("ck_batches_kind")),
        sa.CheckConstraint(
            "state IN ('cancelled', 'cancelling', 'done', 'incomplete', 'paused', 'running', 'stopped')",
            name=op.f("ck_batches_state"),
        ),
        sa.CheckConstraint("(kind = 'evacuate') = (cell IS NOT NULL)", name=op.f("ck_batches_cell")),
        sa.CheckConstraint(f"({_OVER}) = (finished_at IS NOT NULL)", name=op.f("ck_batches_finished_at")),
        sa.ForeignKeyConstraint(["cell"], ["cells.name"], name=op.f("fk_batches_cell")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index(
        "uq_batches_open_cell", "batches", ["cell"], unique=True, postgresql_where=sa.text(f"NOT ({_OVER})")
    )
    op.create_index(
        "uq_batches_open_rebalance",
        "batches",
        ["kind"],
        unique=True,
        postgresql_where=sa.text(f"kind = 'rebalance' AND NOT ({_OVER})"),
    )
    op.create_index("ix_batches_created_at", "batches", ["created_at"])
    op.create_table(
        "batch_moves",
        sa.Column("batch", sa.Text(), nullable=False),
        sa.Column("tenant", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("shard", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("move", sa.Text()),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        _at("updated_at"),
        sa.CheckConstraint(
            "state IN ('cancelled', 'done', 'failed', 'running', 'skipped', 'waiting')",
            name=op.f("ck_batch_moves_state"),
        ),
        sa.CheckConstraint("source <> target", name=op.f("ck_batch_moves_elsewhere")),
        sa.CheckConstraint("state <> 'running' OR move IS NOT NULL", name=op.f("ck_batch_moves_running_has_a_move")),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], name=op.f("fk_batch_moves_batch")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.number"], name=op.f("fk_batch_moves_tenant")),
        sa.ForeignKeyConstraint(["move"], ["moves.id"], name=op.f("fk_batch_moves_move")),
        sa.PrimaryKeyConstraint("batch", "tenant", name=op.f("pk_batch_moves")),
    )
    op.create_index(
        "uq_batch_moves_open_tenant", "batch_moves", ["tenant"], unique=True, postgresql_where=sa.text(_OPEN)
    )
    op.create_table(
        "load_samples",
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenants", sa.Integer(), nullable=False),
        sa.Column("busy", sa.Float()),
        sa.PrimaryKeyConstraint("region", "tier", "at", name=op.f("pk_load_samples")),
    )
