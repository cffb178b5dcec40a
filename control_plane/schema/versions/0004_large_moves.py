"""Moves of large tenants: their path, their stream, what was asked of them, and how far they are."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATES = (
    "state IN ('planned', 'preparing', 'copying', 'catching_up', 'holding', 'frozen', 'switching', 'standby',"
    " 'returning', 'purging', 'done', 'aborting', 'restoring', 'cancelled', 'failed', 'rolled_back')"
)
_UNFINISHED = (
    "state IN ('aborting', 'catching_up', 'copying', 'frozen', 'holding', 'planned', 'preparing', 'purging',"
    " 'restoring', 'standby', 'switching')"
)


def upgrade() -> None:
    """Widen ``moves``."""
    for column in (
        sa.Column("path", sa.Text(), server_default="small", nullable=False),
        sa.Column("stream", sa.Text()),
        sa.Column("schema_revision", sa.Text()),
        sa.Column("paused", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("finalize_requested", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("finalize_after_s", sa.Float()),
        sa.Column("standby_at", sa.DateTime(timezone=True)),
        sa.Column("progress", JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
    ):
        op.add_column("moves", column)
    op.drop_constraint(op.f("ck_moves_state"), "moves")
    op.create_check_constraint(op.f("ck_moves_state"), "moves", _STATES)
    op.create_check_constraint(op.f("ck_moves_path"), "moves", "path IN ('small', 'large', 'back')")
    op.create_check_constraint(op.f("ck_moves_stream"), "moves", "(path = 'small') = (stream IS NULL)")
    op.create_check_constraint(op.f("ck_moves_returning"), "moves", "state <> 'returning' OR path = 'large'")
    op.create_check_constraint(
        op.f("ck_moves_finalize"), "moves",
        "NOT finalize_requested OR state IN ('standby', 'purging', 'done', 'rolled_back')",
    )  # fmt: skip
    op.drop_index("uq_moves_tenant_unfinished", "moves")
    op.create_index(
        "uq_moves_tenant_unfinished", "moves", ["tenant"], unique=True, postgresql_where=sa.text(_UNFINISHED)
    )
