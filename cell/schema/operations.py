"""What revisions are made of: tenant tables with their wall, and functions from their files, one each."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import SchemaItem

OWNER: Final = "cellwall_owner"
APP: Final = "cellwall_app"
TRANSFER: Final = "cellwall_transfer"

_FUNCTIONS: Final = Path(__file__).parent / "functions"
WALL: Final = "tenant_id = NULLIF(current_setting('cellwall.tenant', true), '')::bigint"


def create_tenant_table(name: str, *items: SchemaItem, schema: str = "product") -> None:
    """A tenant table: ``tenant_id`` first in its key, forced row-level security, grants of both roles.

    ``items`` are columns and constraints without ``tenant_id``. NULLIF: a local setting reads as '' once its
    transaction is over.
    """
    tenant = sa.Column("tenant_id", sa.BigInteger, primary_key=True, autoincrement=False)
    op.create_table(name, tenant, *items, schema=schema)
    raise_wall(name, schema=schema)


def raise_wall(name: str, *, schema: str = "product") -> None:
    """Row-level security, forced, with the one policy; and the grants."""
    table = f'"{schema}"."{name}"'
    for statement in (
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY tenant_wall ON {table} USING ({WALL}) WITH CHECK ({WALL})",
    ):
        op.execute(statement)
    grant(name, schema=schema)


def grant(name: str, *, schema: str) -> None:
    """Rows for the application and for the transfer; structure for neither."""
    op.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON "{schema}"."{name}" TO {APP}, {TRANSFER}')


def install_function(name: str) -> None:
    """Create or replace the function of ``functions/NAME.sql``."""
    op.execute((_FUNCTIONS / f"{name}.sql").read_text())
