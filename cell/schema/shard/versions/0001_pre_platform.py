"""pre: the fence, the workers' wake-up, and the platform's tenant tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from cell.schema.operations import APP, TRANSFER, create_tenant_table, install_function

revision = "s0001"
down_revision = None


def _time(name: str, nullable: bool = True) -> "sa.Column[object]":
    default = None if nullable else sa.func.now()
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def upgrade() -> None:
    op.execute("CREATE SCHEMA IF NOT EXISTS product")
    op.execute(f"GRANT USAGE ON SCHEMA cellwall, product TO {APP}, {TRANSFER}")
    _fence()
    op.create_table(
        "work",
        sa.Column("tenant_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("due", sa.DateTime(timezone=True), nullable=False),
        schema="cellwall",
    )
    op.create_index("work_due_idx", "work", ["due"], schema="cellwall")
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON cellwall.work TO {APP}, {TRANSFER}")
    _tenant_tables()
    for function in ("enter_tenant", "lock_holders", "end_holders"):
        install_function(function)


def _fence() -> None:
    op.create_table(
        "tenants",
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
        _time("updated_at", nullable=False),
        sa.CheckConstraint(
            "state IN ('importing', 'active', 'frozen', 'standby', 'moved', 'aborted', 'gone')",
            name="tenants_state_check",
        ),
        sa.CheckConstraint("state <> 'active' OR epoch > 0", name="tenants_epoch_check"),
        schema="cellwall",
    )
    op.execute(f"GRANT SELECT ON cellwall.tenants TO {APP}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON cellwall.tenants TO {TRANSFER}")
    op.execute(f"GRANT SELECT ON cellwall.alembic_version TO {APP}, {TRANSFER}")


def _tenant_tables() -> None:
    create_tenant_table(
        "outbox",
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("payload", JSONB, nullable=False),
        _time("created_at", nullable=False),
        _time("relayed_at"),
        _time("finished_at"),
        sa.Index("outbox_unfinished_idx", "tenant_id", "event_id", postgresql_where=sa.text("finished_at IS NULL")),
        sa.Index(
            "outbox_finished_idx", "tenant_id", "finished_at", postgresql_where=sa.text("finished_at IS NOT NULL")
        ),
        schema="cellwall",
    )
    create_tenant_table(
        "inbox",
        sa.Column("consumer", sa.Text, primary_key=True),
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("state", sa.Text, nullable=False, server_default="done"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        _time("due"),
        sa.Column("error", sa.Text),
        _time("updated_at", nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "event_id"],
            ["cellwall.outbox.tenant_id", "cellwall.outbox.event_id"],
            ondelete="CASCADE",
            name="inbox_tenant_id_event_id_fkey",
        ),
        sa.CheckConstraint("state IN ('done', 'failed', 'dead')", name="inbox_state_check"),
        sa.Index("inbox_event_idx", "tenant_id", "event_id"),
        sa.Index("inbox_dead_idx", "tenant_id", "consumer", postgresql_where=sa.text("state = 'dead'")),
        schema="cellwall",
    )
    create_tenant_table(
        "idempotency",
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        _time("created_at", nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Index("idempotency_expires_idx", "tenant_id", "expires_at"),
        schema="cellwall",
    )
    create_tenant_table(
        "counters",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
        schema="cellwall",
    )


def downgrade() -> None:
    for function in ("end_holders(bigint, boolean)", "lock_holders(bigint)", "enter_tenant(bigint, bigint)"):
        op.execute(f"DROP FUNCTION cellwall.{function}")
    for table in ("counters", "idempotency", "inbox", "outbox", "work", "tenants"):
        op.drop_table(table, schema="cellwall")
    op.execute("DROP SCHEMA product")
