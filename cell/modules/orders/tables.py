"""The tables of the orders. An order's number is counted in `cellwall.counters`, under `NUMBERS`."""

from typing import Final

import sqlalchemy as sa

from cell import errands
from cell.shards.tables import now_column, tenant_table

NUMBERS: Final = "orders"

orders: Final = tenant_table(
    "orders",
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("reference", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("total_cents", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("created_by", sa.Uuid, nullable=False),
    now_column("created_at"),
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),
    sa.UniqueConstraint("tenant_id", "number"),
    sa.CheckConstraint("total_cents >= 0", name="total"),
)

order_lines: Final = tenant_table(
    "order_lines",
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("line", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("product_id", sa.Uuid, nullable=False),
    sa.Column("quantity", sa.Integer, nullable=False),
    sa.Column("unit_price_cents", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(
        ["tenant_id", "order_id"], ["product.orders.tenant_id", "product.orders.order_id"], ondelete="CASCADE"
    ),
    sa.ForeignKeyConstraint(["tenant_id", "product_id"], ["product.products.tenant_id", "product.products.product_id"]),
    sa.CheckConstraint("quantity > 0", name="quantity"),
    sa.Index("order_lines_product_idx", "tenant_id", "product_id"),
)

# How far an order that is to be paid has come: see `cell.modules.orders.saga`. Other orders have no row here.
sagas: Final = tenant_table(
    "sagas",
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("note", sa.Text),
    now_column("created_at"),
    *errands.columns(),
    sa.ForeignKeyConstraint(
        ["tenant_id", "order_id"], ["product.orders.tenant_id", "product.orders.order_id"], ondelete="CASCADE"
    ),
    sa.CheckConstraint(
        "CASE WHEN step IN ('reserve', 'charge', 'cancel') THEN finished_at IS NULL"
        " WHEN step IN ('confirmed', 'cancelled') THEN finished_at IS NOT NULL ELSE false END",
        name="step",
    ),
    sa.Index("sagas_open_idx", "tenant_id", "due", postgresql_where=sa.text("finished_at IS NULL")),
)
