"""The tables of the reports."""

from typing import Final

import sqlalchemy as sa

from cell.shards.tables import now_column, tenant_table

# ``attempt`` rises with every beginning and guards the end of it. ``home`` is the cell that makes the file or has it;
# ``lease`` is until when the maker counts as alive. ``blob``, ``bytes`` and ``digest`` are the claim check.
reports: Final = tenant_table(
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
    now_column("created_at"),
    now_column("due"),
    sa.Column("lease", sa.DateTime(timezone=True)),
    sa.Column("finished_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint("period_from <= period_to", name="period"),
    sa.CheckConstraint("progress BETWEEN 0 AND 1", name="progress"),
    sa.CheckConstraint(
        "CASE status WHEN 'queued' THEN lease IS NULL AND blob IS NULL"
        " WHEN 'running' THEN lease IS NOT NULL AND home IS NOT NULL AND blob IS NULL"
        " WHEN 'done' THEN num_nulls(home, blob, bytes, digest, rows, finished_at) = 0"
        " WHEN 'failed' THEN note IS NOT NULL AND finished_at IS NOT NULL AND blob IS NULL"
        " ELSE false END",
        name="status",
    ),
    sa.Index("reports_open_idx", "tenant_id", "report_id", postgresql_where=sa.text("finished_at IS NULL")),
)
