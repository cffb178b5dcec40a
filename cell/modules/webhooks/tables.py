"""The tables of the webhooks: who is told, and every delivery with how it went."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from cell import errands
from cell.shards.tables import now_column, tenant_table

# ``secret`` is what deliveries are signed with, sealed with the tenant's key (`cell.vault`): both travel with it.
endpoints: Final = tenant_table(
    "webhook_endpoints",
    sa.Column("endpoint_id", sa.Uuid, primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("events", ARRAY(sa.Text), nullable=False),
    sa.Column("secret", sa.LargeBinary, nullable=False),
    sa.Column("created_by", sa.Uuid, nullable=False),
    now_column("created_at"),
)

# ``body`` is signed and sent as it is here, each time. ``finished_at`` is set when it was taken or given up.
deliveries: Final = tenant_table(
    "webhook_deliveries",
    sa.Column("delivery_id", sa.Uuid, primary_key=True),
    sa.Column("endpoint_id", sa.Uuid, nullable=False),
    sa.Column("event_id", sa.Uuid, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="pending"),
    sa.Column("answer", sa.SmallInteger),
    sa.Column("note", sa.Text),
    now_column("created_at"),
    *errands.columns(),
    sa.ForeignKeyConstraint(
        ["tenant_id", "endpoint_id"],
        ["product.webhook_endpoints.tenant_id", "product.webhook_endpoints.endpoint_id"],
        ondelete="CASCADE",
    ),
    sa.UniqueConstraint("tenant_id", "endpoint_id", "event_id"),
    sa.CheckConstraint(
        "CASE state WHEN 'pending' THEN finished_at IS NULL WHEN 'delivered' THEN finished_at IS NOT NULL"
        " WHEN 'dead' THEN finished_at IS NOT NULL ELSE false END",
        name="state",
    ),
    sa.Index("webhook_deliveries_open_idx", "tenant_id", "due", postgresql_where=sa.text("finished_at IS NULL")),
)
