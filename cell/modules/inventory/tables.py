"""The tables of the inventory. A product without a row in ``stock`` is not counted: it can always be ordered."""

from typing import Final

import sqlalchemy as sa

from cell.shards.tables import now_column, tenant_table

stock: Final = tenant_table(
    "stock",
    sa.Column("product_id", sa.Uuid, primary_key=True),
    sa.Column("on_hand", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),
    now_column("updated_at"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "product_id"], ["product.products.tenant_id", "product.products.product_id"], ondelete="CASCADE"
    ),
    sa.CheckConstraint("reserved BETWEEN 0 AND on_hand", name="reserved"),
)

# Units that are promised to an order whose payment is under way. The row goes when the units are sold or released.
reservations: Final = tenant_table(
    "reservations",
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("product_id", sa.Uuid, primary_key=True),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    now_column("created_at"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "order_id"], ["product.orders.tenant_id", "product.orders.order_id"], ondelete="CASCADE"
    ),
    sa.ForeignKeyConstraint(["tenant_id", "product_id"], ["product.stock.tenant_id", "product.stock.product_id"]),
    sa.CheckConstraint("quantity > 0", name="quantity"),
    sa.Index("reservations_product_idx", "tenant_id", "product_id"),
)
