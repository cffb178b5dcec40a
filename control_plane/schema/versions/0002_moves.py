"""Moves, their history, and who leads."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TERMINAL = "state IN ('cancelled', 'done', 'failed', 'rolled_back')"
_DECIDED = "state IN ('done', 'purging', 'standby', 'switching')"
_UNFINISHED = (
    "state IN ('aborting', 'frozen', 'holding', 'planned', 'preparing', 'purging', 'restoring', 'standby', 'switching')"
)
_STATES = (
    "state IN ('planned', 'preparing', 'holding', 'frozen', 'switching', 'standby', 'purging', 'done', 'aborting',"
    " 'restoring', 'cancelled', 'failed', 'rolled_back')"
)


def _at(name: str) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False)


def upgrade() -> None:
    """Create the tables of the mover."""
    op.create_table(
        "leader",
        sa.Column("single", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        _at("acquired_at"),
        sa.CheckConstraint("single", name=op.f("ck_leader_one_row")),
        sa.PrimaryKeyConstraint("single", name=op.f("pk_leader")),
    )
    op.create_table(
        "moves",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("tenant", sa.BigInteger(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        _at("state_at"),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("undoes", sa.Text()),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("term", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("source_epoch", sa.BigInteger(), nullable=False),
        sa.Column("target_epoch", sa.BigInteger(), nullable=False),
        sa.Column("restore_epoch", sa.BigInteger()),
        sa.Column("rows", sa.BigInteger()),
        sa.Column("bytes", sa.BigInteger()),
        sa.Column("held_at", sa.DateTime(timezone=True)),
        sa.Column("hold_ms", sa.Float()),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        _at("created_at"),
        _at("updated_at"),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("kind IN ('move', 'rollback')", name=op.f("ck_moves_kind")),
        sa.CheckConstraint(_STATES, name=op.f("ck_moves_state")),
        sa.CheckConstraint("source <> target", name=op.f("ck_moves_elsewhere")),
        sa.CheckConstraint("target_epoch > source_epoch", name=op.f("ck_moves_target_epoch")),
        sa.CheckConstraint(
            "restore_epoch IS NULL OR restore_epoch > target_epoch", name=op.f("ck_moves_restore_epoch")
        ),
        sa.CheckConstraint(f"({_TERMINAL}) = (finished_at IS NOT NULL)", name=op.f("ck_moves_finished_at")),
        sa.CheckConstraint(f"NOT (cancel_requested AND {_DECIDED})", name=op.f("ck_moves_cancelled_or_decided")),
        sa.CheckConstraint("(kind = 'rollback') = (undoes IS NOT NULL)", name=op.f("ck_moves_undoes")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.number"], name=op.f("fk_moves_tenant")),
        sa.ForeignKeyConstraint(["undoes"], ["moves.id"], name=op.f("fk_moves_undoes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_moves")),
    )
    op.create_index("ix_moves_created_at", "moves", ["created_at"])
    op.create_index(
        "uq_moves_tenant_unfinished", "moves", ["tenant"], unique=True, postgresql_where=sa.text(_UNFINISHED)
    )
    op.create_table(
        "move_steps",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("move", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        _at("at"),
        sa.ForeignKeyConstraint(["move"], ["moves.id"], name=op.f("fk_move_steps_move")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_move_steps")),
    )
    op.create_index("ix_move_steps_move", "move_steps", ["move"])
