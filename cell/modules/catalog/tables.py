"""The tables of the catalog."""

from typing import Final

import sqlalchemy as sa

from cell.shards.tables import now_column, tenant_table

products: Final = tenant_table(
    "products",
    sa.Column("product_id", sa.Uuid, primary_key=True),
    sa.Column("sku", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("price_cents", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("units_sold", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),
    now_column("created_at"),
    now_column("updated_at"),
    sa.UniqueConstraint("tenant_id", "sku"),
    sa.CheckConstraint("price_cents >= 0", name="price"),
)
