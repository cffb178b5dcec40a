"""pre: moves of buckets and of single tenants between the shards of the cell, and which processes know which shards."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "d0002"
down_revision = "d0001"

_APP = "cellwall_app"
_TRANSFER = "cellwall_transfer"


def _now(name: str) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


def upgrade() -> None:
    op.create_table(
        "shard_moves",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("plan", sa.BigInteger, nullable=False),
        sa.Column("wish", sa.Text, nullable=False),
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sa.Column("tenant_id", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("source", sa.Text, sa.ForeignKey("shards.name"), nullable=False),
        sa.Column("target", sa.Text, sa.ForeignKey("shards.name"), nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="planned"),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
        sa.Column("step", sa.Text, nullable=False, server_default=""),
        _now("due"),
        _now("updated_at"),
        sa.CheckConstraint(
            "state IN ('planned', 'copying', 'switched', 'done', 'cancelled')", name="shard_moves_state_check"
        ),
        sa.CheckConstraint("source <> target", name="shard_moves_target_check"),
    )
    op.create_index(
        "shard_moves_open_idx",
        "shard_moves",
        ["bucket"],
        unique=True,
        postgresql_where=sa.text("state IN ('planned', 'copying', 'switched')"),
    )
    op.create_table(
        "processes",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("shards", ARRAY(sa.Text), nullable=False),
        _now("seen_at"),
    )
    op.execute(f"GRANT SELECT ON shard_moves TO {_APP}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON processes TO {_APP}")
    op.execute(f"GRANT SELECT ON shards, buckets, tenant_shards, processes TO {_TRANSFER}")
    op.execute(f"GRANT UPDATE ON buckets TO {_TRANSFER}")
    op.execute(f"GRANT INSERT, UPDATE ON tenant_shards, shard_moves TO {_TRANSFER}")
    op.execute(f"GRANT SELECT ON shard_moves TO {_TRANSFER}")


def downgrade() -> None:
    op.drop_table("processes")
    op.drop_table("shard_moves")
    op.execute(f"REVOKE ALL ON shards, buckets, tenant_shards FROM {_TRANSFER}")
