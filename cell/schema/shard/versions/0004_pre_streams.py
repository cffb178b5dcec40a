"""pre: the progress of streams that come in, and publications of streams that go out."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

from cell.schema.operations import TRANSFER, install_function

revision = "s0004"
down_revision = "s0003"

_FUNCTIONS = ("open_publication(text, bigint)", "close_publication(text)")


def upgrade() -> None:
    op.create_table(
        "stream_progress",
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("tenant_id", sa.BigInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("marker", sa.Text, nullable=False, server_default=""),
        sa.Column("verified", sa.Text, nullable=False, server_default=""),
        sa.Column("touched", sa.Integer, nullable=False, server_default="0"),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        schema="cellwall",
    )
    op.create_table(
        "stream_touched",
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("table_name", sa.Text, primary_key=True),
        sa.Column("key", ARRAY(sa.Text), primary_key=True),
        schema="cellwall",
    )
    op.execute(
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON cellwall.stream_progress, cellwall.stream_touched TO {TRANSFER}"
    )
    op.create_table(
        "stream_senders",
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("tenant_id", sa.BigInteger, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        schema="cellwall",
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON cellwall.stream_senders TO {TRANSFER}")
    for function in _FUNCTIONS:
        install_function(function.partition("(")[0])
        op.execute(f"REVOKE EXECUTE ON FUNCTION cellwall.{function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION cellwall.{function} TO {TRANSFER}")


def downgrade() -> None:
    for function in _FUNCTIONS:
        op.execute(f"DROP FUNCTION cellwall.{function}")
    op.drop_table("stream_senders", schema="cellwall")
    op.drop_table("stream_touched", schema="cellwall")
    op.drop_table("stream_progress", schema="cellwall")
