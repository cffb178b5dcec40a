"""Whether every wall stands: a tenant table that was created without the helper is found here, by the catalogue."""

from typing import Any, Final

# Platform tables that hold no data of a tenant and are read before a tenant is entered.
PLATFORM_TABLES: Final = frozenset(
    f"cellwall.{name}"
    for name in (
        "tenants",
        "work",
        "stream_progress",
        "stream_touched",
        "stream_senders",
        "shard_fences",
        "alembic_version",
    )
)
SCHEMAS: Final = ("cellwall", "product")

_TABLES: Final = """
SELECT n.nspname || '.' || c.relname AS name, c.relrowsecurity AND c.relforcerowsecurity AS forced,
  (SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
   WHERE i.indrelid = c.oid AND i.indisprimary) AS first_key,
  (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd = '*'
     AND pg_get_expr(p.polqual, p.polrelid) = $2 AND pg_get_expr(p.polwithcheck, p.polrelid) = $2) AS walls,
  (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid) AS policies,
  pg_get_userbyid(c.relowner) AS owner,
  EXISTS (SELECT FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
          WHERE d.refobjid = c.oid AND d.refclassid = 'pg_class'::regclass) AS sequences
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname = ANY($1) ORDER BY 1
"""
_POLICY: Final = "(tenant_id = (NULLIF(current_setting('cellwall.tenant'::text, true), ''::text))::bigint)"
_ROLES: Final = """
SELECT rolname AS name, rolsuper OR rolbypassrls AS bypasses FROM pg_roles WHERE rolname = 'cellwall_app'
"""


async def breaches(connection: Any) -> list[str]:
    """Sentences, one a breach; none where every table of the product and the platform is walled."""
    found = []
    for table in await connection.fetch(_TABLES, list(SCHEMAS), _POLICY):
        name = table["name"]
        if table["owner"] == "cellwall_app":
            found.append(f"{name} is owned by the application's role")
        if name in PLATFORM_TABLES:
            continue
        if table["first_key"] != "tenant_id":
            found.append(f"{name} does not have tenant_id first in its primary key")
        if not table["forced"]:
            found.append(f"{name} is not under forced row-level security")
        if table["walls"] != 1 or table["policies"] != 1:
            found.append(f"{name} does not have exactly the one policy of a tenant table")
        if table["sequences"]:
            found.append(f"{name} uses a database sequence, which does not move with a tenant")
    roles = await connection.fetch(_ROLES)
    return found + [f"{role['name']} bypasses row-level security" for role in roles if role["bypasses"]]
