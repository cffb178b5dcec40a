"""pre: the tenants' keys, wrapped with the cell's. They do not travel as rows, so publications leave them out."""

import sqlalchemy as sa
from alembic import op

from cell.schema.operations import create_tenant_table, install_function

revision = "s0008"
down_revision = "s0007"


def upgrade() -> None:
    create_tenant_table(
        "tenant_keys",
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        schema="cellwall",
    )
    install_function("open_publication")


def downgrade() -> None:
    op.drop_table("tenant_keys", schema="cellwall")
