"""The table of the payments: one for each order that is charged."""

from typing import Final

import sqlalchemy as sa

from cell.shards.tables import now_column, tenant_table

# ``key`` is what the gateway knows the charge by. It is written before the first call and never changes.
payments: Final = tenant_table(
    "payments",
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("amount_cents", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="pending"),
    sa.Column("charge", sa.Text),
    sa.Column("note", sa.Text),
    now_column("created_at"),
    now_column("updated_at"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "order_id"], ["product.orders.tenant_id", "product.orders.order_id"], ondelete="CASCADE"
    ),
    sa.UniqueConstraint("tenant_id", "key"),
    sa.CheckConstraint("amount_cents > 0", name="amount"),
    sa.CheckConstraint(
        "CASE state WHEN 'pending' THEN charge IS NULL WHEN 'charged' THEN charge IS NOT NULL"
        " WHEN 'declined' THEN charge IS NULL WHEN 'cancelled' THEN charge IS NULL"
        " WHEN 'refunded' THEN charge IS NOT NULL ELSE false END",
        name="state",
    ),
)
