"""pre: which buckets, and which single tenants, are moving between shards or have moved away from this one."""

import sqlalchemy as sa
from alembic import op

from cell.schema.operations import APP, TRANSFER, install_function

revision = "s0009"
down_revision = "s0008"


def upgrade() -> None:
    op.create_table(
        "shard_fences",
        sa.Column("bucket", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("tenant_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("move", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.CheckConstraint("state IN ('here', 'frozen', 'arriving', 'away')", name="shard_fences_state_check"),
        schema="cellwall",
    )
    op.create_index("tenants_bucket_idx", "tenants", ["bucket"], schema="cellwall")
    op.execute(f"GRANT SELECT ON cellwall.shard_fences TO {APP}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON cellwall.shard_fences TO {TRANSFER}")
    op.execute(f"GRANT DELETE ON cellwall.tenants TO {TRANSFER}")
    install_function("hold_bucket")
    install_function("enter_tenant")


def downgrade() -> None:
    raise NotImplementedError("the fence reads cellwall.shard_fences: install the former enter_tenant first")
