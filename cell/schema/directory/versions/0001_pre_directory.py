"""pre: shards, the bucket map, and overrides for single tenants."""

import sqlalchemy as sa
from alembic import op

revision = "d0001"
down_revision = None

_APP = "cellwall_app"


def upgrade() -> None:
    op.create_table(
        "shards",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("database", sa.Text, nullable=False),
    )
    op.create_table(
        "buckets",
        sa.Column("bucket", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("shard", sa.Text, sa.ForeignKey("shards.name"), nullable=False),
        sa.CheckConstraint("bucket BETWEEN 0 AND 1023", name="buckets_bucket_check"),
    )
    op.create_table(
        "tenant_shards",
        sa.Column("tenant_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("shard", sa.Text, sa.ForeignKey("shards.name"), nullable=False),
    )
    op.execute(f"GRANT SELECT ON shards, buckets, tenant_shards, alembic_version TO {_APP}")


def downgrade() -> None:
    for table in ("tenant_shards", "buckets", "shards"):
        op.drop_table(table)
