"""The tables of the accounts. Secrets are stored as digests; what a client holds works after a move."""

from typing import Final

import sqlalchemy as sa

from cell.shards.tables import now_column, tenant_table

_USER: Final = ["product.users.tenant_id", "product.users.user_id"]

users: Final = tenant_table(
    "users",
    sa.Column("user_id", sa.Uuid, primary_key=True),
    sa.Column("email", sa.Text, nullable=False),  # in lower case
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("password_hash", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),
    now_column("created_at"),
    sa.UniqueConstraint("tenant_id", "email"),
    sa.CheckConstraint("role IN ('viewer', 'member', 'admin', 'owner')", name="role"),
)

api_keys: Final = tenant_table(
    "api_keys",
    sa.Column("key_id", sa.Uuid, primary_key=True),
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),  # a ceiling: the key never does more than its user may
    sa.Column("secret_digest", sa.LargeBinary, nullable=False),
    now_column("created_at"),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], _USER, ondelete="CASCADE"),
    sa.UniqueConstraint("tenant_id", "secret_digest"),
    sa.CheckConstraint("role IN ('viewer', 'member', 'admin', 'owner')", name="role"),
    sa.Index("api_keys_user_idx", "tenant_id", "user_id"),
)

sessions: Final = tenant_table(
    "sessions",
    sa.Column("session_id", sa.Uuid, primary_key=True),
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("secret_digest", sa.LargeBinary, nullable=False),
    now_column("created_at"),
    sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(["tenant_id", "user_id"], _USER, ondelete="CASCADE"),
    sa.UniqueConstraint("tenant_id", "secret_digest"),
    sa.Index("sessions_user_idx", "tenant_id", "user_id"),
    sa.Index("sessions_expires_idx", "tenant_id", "expires_at"),
)
