"""pre: accounts, catalog and orders."""

import sqlalchemy as sa
from alembic import op

from cell.schema.operations import create_tenant_table

revision = "s0002"
down_revision = "s0001"

_ROLES = "role IN ('viewer', 'member', 'admin', 'owner')"


def _time(name: str) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


def _reference(column: str, table: str, to: str, ondelete: str | None = None) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id", column],
        [f"product.{to}.tenant_id", f"product.{to}.{column}"],
        ondelete=ondelete,
        name=f"{table}_tenant_id_{column}_fkey",
    )


def upgrade() -> None:
    _accounts()
    _catalog()
    _orders()


def _accounts() -> None:
    create_tenant_table(
        "users",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("password_hash", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False, server_default="1"),
        _time("created_at"),
        sa.UniqueConstraint("tenant_id", "email", name="users_tenant_id_email_key"),
        sa.CheckConstraint(_ROLES, name="users_role_check"),
    )
    create_tenant_table(
        "api_keys",
        sa.Column("key_id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("secret_digest", sa.LargeBinary, nullable=False),
        _time("created_at"),
        _reference("user_id", "api_keys", "users", "CASCADE"),
        sa.UniqueConstraint("tenant_id", "secret_digest", name="api_keys_tenant_id_secret_digest_key"),
        sa.CheckConstraint(_ROLES, name="api_keys_role_check"),
        sa.Index("api_keys_user_idx", "tenant_id", "user_id"),
    )
    create_tenant_table(
        "sessions",
        sa.Column("session_id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("secret_digest", sa.LargeBinary, nullable=False),
        _time("created_at"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        _reference("user_id", "sessions", "users", "CASCADE"),
        sa.UniqueConstraint("tenant_id", "secret_digest", name="sessions_tenant_id_secret_digest_key"),
        sa.Index("sessions_user_idx", "tenant_id", "user_id"),
        sa.Index("sessions_expires_idx", "tenant_id", "expires_at"),
    )


def _catalog() -> None:
    create_tenant_table(
        "products",
        sa.Column("product_id", sa.Uuid, primary_key=True),
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("price_cents", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("units_sold", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("version", sa.Integer, nullable=False, server_default="1"),
        _time("created_at"),
        _time("updated_at"),
        sa.UniqueConstraint("tenant_id", "sku", name="products_tenant_id_sku_key"),
        sa.CheckConstraint("price_cents >= 0", name="products_price_check"),
    )


def _orders() -> None:
    create_tenant_table(
        "orders",
        sa.Column("order_id", sa.Uuid, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("reference", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("total_cents", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("created_by", sa.Uuid, nullable=False),
        _time("created_at"),
        sa.Column("version", sa.Integer, nullable=False, server_default="1"),
        sa.UniqueConstraint("tenant_id", "number", name="orders_tenant_id_number_key"),
        sa.CheckConstraint("total_cents >= 0", name="orders_total_check"),
    )
    create_tenant_table(
        "order_lines",
        sa.Column("order_id", sa.Uuid, primary_key=True),
        sa.Column("line", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("product_id", sa.Uuid, nullable=False),
        sa.Column("quantity", sa.Integer, nullable=False),
        sa.Column("unit_price_cents", sa.BigInteger, nullable=False),
        _reference("order_id", "order_lines", "orders", "CASCADE"),
        _reference("product_id", "order_lines", "products"),
        sa.CheckConstraint("quantity > 0", name="order_lines_quantity_check"),
        sa.Index("order_lines_product_idx", "tenant_id", "product_id"),
    )


def downgrade() -> None:
    for table in ("order_lines", "orders", "products", "sessions", "api_keys", "users"):
        op.drop_table(table, schema="product")
