"""pre: reports."""

import sqlalchemy as sa
from alembic import op

from cell.schema.operations import create_tenant_table

revision = "s0003"
down_revision = "s0002"

_STATUS = (
    "CASE status WHEN 'queued' THEN lease IS NULL AND blob IS NULL"
    " WHEN 'running' THEN lease IS NOT NULL AND home IS NOT NULL AND blob IS NULL"
    " WHEN 'done' THEN num_nulls(home, blob, bytes, digest, rows, finished_at) = 0"
    " WHEN 'failed' THEN note IS NOT NULL AND finished_at IS NOT NULL AND blob IS NULL"
    " ELSE false END"
)


def _time(name: str, nullable: bool = True) -> "sa.Column[object]":
    default = None if nullable else sa.func.now()
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def upgrade() -> None:
    create_tenant_table(
        "reports",
        sa.Column("report_id", sa.Uuid, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("period_from", sa.Date, nullable=False),
        sa.Column("period_to", sa.Date, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("progress", sa.Double, nullable=False, server_default="0"),
        sa.Column("rows", sa.BigInteger),
        sa.Column("bytes", sa.BigInteger),
        sa.Column("digest", sa.LargeBinary),
        sa.Column("blob", sa.Text),
        sa.Column("home", sa.Text),
        sa.Column("note", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("created_by", sa.Uuid, nullable=False),
        _time("created_at", nullable=False),
        _time("due", nullable=False),
        _time("lease"),
        _time("finished_at"),
        sa.CheckConstraint("period_from <= period_to", name="reports_period_check"),
        sa.CheckConstraint("progress BETWEEN 0 AND 1", name="reports_progress_check"),
        sa.CheckConstraint(_STATUS, name="reports_status_check"),
        sa.Index("reports_open_idx", "tenant_id", "report_id", postgresql_where=sa.text("finished_at IS NULL")),
    )


def downgrade() -> None:
    op.drop_table("reports", schema="product")
