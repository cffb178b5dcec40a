"""pre: the key map of tenants that came from cell zero."""

import sqlalchemy as sa
from alembic import op

from cell.schema.operations import create_tenant_table

revision = "s0007"
down_revision = "s0005"


def upgrade() -> None:
    create_tenant_table(
        "old_keys",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("old_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("new_id", sa.Uuid, nullable=False),
        sa.UniqueConstraint("tenant_id", "kind", "new_id", name="old_keys_tenant_id_kind_new_id_key"),
        sa.CheckConstraint("kind IN ('user', 'product', 'order')", name="old_keys_kind_check"),
    )


def downgrade() -> None:
    op.drop_table("old_keys", schema="product")
