"""pre: inventory, payments, the order saga and webhooks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

from cell.schema.operations import create_tenant_table

revision = "s0005"
down_revision = "s0004"


def _time(name: str, nullable: bool = True) -> "sa.Column[object]":
    default = None if nullable else sa.func.now()
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _errand() -> tuple["sa.Column[object]", ...]:
    return (
        _time("due", nullable=False),
        _time("lease"),
        sa.Column("home", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        _time("finished_at"),
    )


def _reference(column: str, table: str, to: str, ondelete: str | None = None) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id", column],
        [f"product.{to}.tenant_id", f"product.{to}.{column}"],
        ondelete=ondelete,
        name=f"{table}_tenant_id_{column}_fkey",
    )


def upgrade() -> None:
    _inventory()
    _payments()
    _saga()
    _webhooks()


def _inventory() -> None:
    create_tenant_table(
        "stock",
        sa.Column("product_id", sa.Uuid, primary_key=True),
        sa.Column("on_hand", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("version", sa.Integer, nullable=False, server_default="1"),
        _time("updated_at", nullable=False),
        _reference("product_id", "stock", "products", "CASCADE"),
        sa.CheckConstraint("reserved BETWEEN 0 AND on_hand", name="stock_reserved_check"),
    )
    create_tenant_table(
        "reservations",
        sa.Column("order_id", sa.Uuid, primary_key=True),
        sa.Column("product_id", sa.Uuid, primary_key=True),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        _time("created_at", nullable=False),
        _reference("order_id", "reservations", "orders", "CASCADE"),
        _reference("product_id", "reservations", "stock"),
        sa.CheckConstraint("quantity > 0", name="reservations_quantity_check"),
        sa.Index("reservations_product_idx", "tenant_id", "product_id"),
    )


def _payments() -> None:
    create_tenant_table(
        "payments",
        sa.Column("order_id", sa.Uuid, primary_key=True),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("amount_cents", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="pending"),
        sa.Column("charge", sa.Text),
        sa.Column("note", sa.Text),
        _time("created_at", nullable=False),
        _time("updated_at", nullable=False),
        _reference("order_id", "payments", "orders", "CASCADE"),
        sa.UniqueConstraint("tenant_id", "key", name="payments_tenant_id_key_key"),
        sa.CheckConstraint("amount_cents > 0", name="payments_amount_check"),
        sa.CheckConstraint(
            "CASE state WHEN 'pending' THEN charge IS NULL WHEN 'charged' THEN charge IS NOT NULL"
            " WHEN 'declined' THEN charge IS NULL WHEN 'cancelled' THEN charge IS NULL"
            " WHEN 'refunded' THEN charge IS NOT NULL ELSE false END",
            name="payments_state_check",
        ),
    )


def _saga() -> None:
    create_tenant_table(
        "sagas",
        sa.Column("order_id", sa.Uuid, primary_key=True),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("note", sa.Text),
        _time("created_at", nullable=False),
        *_errand(),
        _reference("order_id", "sagas", "orders", "CASCADE"),
        sa.CheckConstraint(
            "CASE WHEN step IN ('reserve', 'charge', 'cancel') THEN finished_at IS NULL"
            " WHEN step IN ('confirmed', 'cancelled') THEN finished_at IS NOT NULL ELSE false END",
            name="sagas_step_check",
        ),
        sa.Index("sagas_open_idx", "tenant_id", "due", postgresql_where=sa.text("finished_at IS NULL")),
    )


def _webhooks() -> None:
    create_tenant_table(
        "webhook_endpoints",
        sa.Column("endpoint_id", sa.Uuid, primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("events", ARRAY(sa.Text), nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("created_by", sa.Uuid, nullable=False),
        _time("created_at", nullable=False),
    )
    create_tenant_table(
        "webhook_deliveries",
        sa.Column("delivery_id", sa.Uuid, primary_key=True),
        sa.Column("endpoint_id", sa.Uuid, nullable=False),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="pending"),
        sa.Column("answer", sa.SmallInteger),
        sa.Column("note", sa.Text),
        _time("created_at", nullable=False),
        *_errand(),
        _reference("endpoint_id", "webhook_deliveries", "webhook_endpoints", "CASCADE"),
        sa.UniqueConstraint(
            "tenant_id", "endpoint_id", "event_id", name="webhook_deliveries_tenant_id_endpoint_id_event_id_key"
        ),
        sa.CheckConstraint(
            "CASE state WHEN 'pending' THEN finished_at IS NULL WHEN 'delivered' THEN finished_at IS NOT NULL"
            " WHEN 'dead' THEN finished_at IS NOT NULL ELSE false END",
            name="webhook_deliveries_state_check",
        ),
        sa.Index("webhook_deliveries_open_idx", "tenant_id", "due", postgresql_where=sa.text("finished_at IS NULL")),
    )


def downgrade() -> None:
    for table in ("webhook_deliveries", "webhook_endpoints", "sagas", "payments", "reservations", "stock"):
        op.drop_table(table, schema="product")
