"""The key map: which of our rows an integer id of the old shop means.

Rows of the tenant, so they are written by the import that brings the tenant from cell zero, and travel on with it from
cell to cell. What was created after the move has no integer id until it goes back to the old shop.
"""

from typing import Final, Literal

import sqlalchemy as sa

from cell.shards.tables import tenant_table

Kind = Literal["user", "product", "order"]  # bnr of BEN, artnr of ART, anr of AUFK

old_keys: Final = tenant_table(
    "old_keys",
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("old_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("new_id", sa.Uuid, nullable=False),
    sa.UniqueConstraint("tenant_id", "kind", "new_id"),
    sa.CheckConstraint("kind IN ('user', 'product', 'order')", name="kind"),
)
