"""The metadata of a shard's database: one helper for tenant tables, and the platform's own tables.

Tenant tables carry ``tenant_id`` first in their primary key and are under forced row-level security; the transfer
finds them in the database's catalogue, so a new one travels with its tenant without being registered anywhere. Only
``tenant_keys`` does not travel as it is: each cell wraps anew what is in it (`cell.vault`).
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.schema import SchemaItem

PLATFORM: Final = "cellwall"
PRODUCT: Final = "product"

metadata: Final = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)


def tenant_table(name: str, *items: SchemaItem, schema: str = PRODUCT) -> sa.Table:
    """A tenant table: ``tenant_id`` comes first, columns marked ``primary_key=True`` complete the key.

    A foreign key names ``tenant_id`` on both sides. No sequences: keys are UUIDv7 or
    counters of the tenant. The migration creates it with `cell.schema.operations.create_tenant_table`.
    """
    tenant = sa.Column("tenant_id", sa.BigInteger, primary_key=True, autoincrement=False)
    return sa.Table(name, metadata, tenant, *items, schema=schema)


def now_column(name: str) -> "sa.Column[object]":
    """A ``timestamptz NOT NULL`` that defaults to the transaction's time."""
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


# The fence row: whether this cell owns a tenant, at which epoch, and the highest move command seen. Written only by
# the transfer API; `cellwall.enter_tenant` reads it.
tenants: Final = sa.Table(
    "tenants",
    metadata,
    sa.Column("tenant_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("bucket", sa.SmallInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("min_epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("move", sa.Text, nullable=False, server_default=""),
    sa.Column("term", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("seq", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("command", sa.Text, nullable=False, server_default=""),
    sa.Column("result", JSONB),
    sa.Column("hint", sa.Text, nullable=False, server_default=""),
    now_column("updated_at"),
    sa.Index("tenants_bucket_idx", "bucket"),
    schema=PLATFORM,
)

# A bucket, or with ``tenant_id`` a tenant with a shard of its own, that moves between shards or has moved away. Where
# there is no row, it is here. ``move`` and ``attempt`` are of the directory's ``shard_moves``: a late one is refused.
shard_fences: Final = sa.Table(
    "shard_fences",
    metadata,
    sa.Column("bucket", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("tenant_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("move", sa.BigInteger, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    schema=PLATFORM,
)

# A wake-up for workers. Not authoritative and not copied: whatever it says, the work itself goes through the fence.
work: Final = sa.Table(
    "work",
    metadata,
    sa.Column("tenant_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("due", sa.DateTime(timezone=True), nullable=False),
    sa.Index(None, "due"),
    schema=PLATFORM,
)

# How far the stream of a move was applied here, and which keys it touched since both sides were last compared.
stream_progress: Final = sa.Table(
    "stream_progress",
    metadata,
    sa.Column("stream", sa.Text, primary_key=True),
    sa.Column("tenant_id", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("marker", sa.Text, nullable=False, server_default=""),
    sa.Column("verified", sa.Text, nullable=False, server_default=""),
    sa.Column("touched", sa.Integer, nullable=False, server_default="0"),
    now_column("updated_at"),
    schema=PLATFORM,
)
stream_touched: Final = sa.Table(
    "stream_touched",
    metadata,
    sa.Column("stream", sa.Text, primary_key=True),
    sa.Column("table_name", sa.Text, primary_key=True),
    sa.Column("key", ARRAY(sa.Text), primary_key=True),
    schema=PLATFORM,
)

# Streams that go out. ``start``: the first position of the slot that is there now; what was read from an older slot of
# the same name cannot be continued with it.
stream_senders: Final = sa.Table(
    "stream_senders",
    metadata,
    sa.Column("stream", sa.Text, primary_key=True),
    sa.Column("tenant_id", sa.BigInteger, nullable=False),
    sa.Column("start", sa.BigInteger, nullable=False),
    schema=PLATFORM,
)

# A tenant's key, wrapped with this cell's.
tenant_keys: Final = tenant_table(
    "tenant_keys",
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
    now_column("created_at"),
    schema=PLATFORM,
)

# Events that were decided in the same transaction as the change they tell of. ``relayed_at`` is a hint only; a row is
# finished, and pruned, when the inbox of every consumer has it.
outbox: Final = tenant_table(
    "outbox",
    sa.Column("event_id", sa.Uuid, primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("payload", JSONB, nullable=False),
    now_column("created_at"),
    sa.Column("relayed_at", sa.DateTime(timezone=True)),
    sa.Column("finished_at", sa.DateTime(timezone=True)),
    sa.Index("outbox_unfinished_idx", "tenant_id", "event_id", postgresql_where=sa.text("finished_at IS NULL")),
    sa.Index("outbox_finished_idx", "tenant_id", "finished_at", postgresql_where=sa.text("finished_at IS NOT NULL")),
    schema=PLATFORM,
)

# One row per consumer and event: "done" with the effect it committed with, "failed" until the next attempt is due, or
# "dead" after too many attempts. It goes when its event is pruned.
inbox: Final = tenant_table(
    "inbox",
    sa.Column("consumer", sa.Text, primary_key=True),
    sa.Column("event_id", sa.Uuid, primary_key=True),
    sa.Column("state", sa.Text, nullable=False, server_default="done"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("due", sa.DateTime(timezone=True)),
    sa.Column("error", sa.Text),
    now_column("updated_at"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "event_id"], ["cellwall.outbox.tenant_id", "cellwall.outbox.event_id"], ondelete="CASCADE"
    ),
    sa.CheckConstraint("state IN ('done', 'failed', 'dead')", name="state"),
    sa.Index("inbox_event_idx", "tenant_id", "event_id"),
    sa.Index("inbox_dead_idx", "tenant_id", "consumer", postgresql_where=sa.text("state = 'dead'")),
    schema=PLATFORM,
)

# The stored answer of a create, committed with its effect and never before it.
idempotency: Final = tenant_table(
    "idempotency",
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("status", sa.SmallInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    now_column("created_at"),
    sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    sa.Index("idempotency_expires_idx", "tenant_id", "expires_at"),
    schema=PLATFORM,
)

# Numbers that a tenant counts by itself, such as order numbers: they move with it, as a sequence would not.
counters: Final = tenant_table(
    "counters",
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
    schema=PLATFORM,
)
