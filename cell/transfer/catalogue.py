"""Which tables travel with a tenant: those under forced row-level security, in the order of their foreign keys.

All but ``cellwall.tenant_keys``, whose one row is the cell's to wrap anew (`cell.vault`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final

_TABLES: Final = """
SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name, format('%I.%I', n.nspname, c.relname) AS quoted,
  array_agg(a.attname::text ORDER BY a.attname) AS columns,
  string_agg(format('%I', a.attname), ', ' ORDER BY a.attname) AS listed,
  array_agg(format('%I', a.attname) ORDER BY a.attname) AS names,
  array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attname) AS types,
  coalesce(array_agg(a.attname::text ORDER BY array_position(i.indkey::int2[], a.attnum))
    FILTER (WHERE a.attnum = ANY (i.indkey::int2[])), '{}') AS key,
  c.relreplident = 'd' AND i.indimmediate IS TRUE AS replicable
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
WHERE c.relkind = 'r' AND c.relrowsecurity AND c.relforcerowsecurity
  AND ($1 OR (n.nspname, c.relname) <> ('cellwall', 'tenant_keys'))
GROUP BY c.oid, n.nspname, c.relname, i.indimmediate ORDER BY 2, 3
"""
_REFERENCES: Final = """
SELECT DISTINCT conrelid::bigint AS child, confrelid::bigint AS parent
FROM pg_constraint WHERE contype = 'f' AND conrelid <> confrelid
"""


class CatalogueError(Exception):
    """Tables whose foreign keys form a ring: there is no order in which a tenant could be copied."""


@dataclass(frozen=True, slots=True)
class TenantTable:
    """A tenant table. ``quoted`` and ``listed`` are safe to put into SQL text: the database quoted them."""

    schema: str
    name: str
    quoted: str
    columns: tuple[str, ...]  # without generated ones, by name: cells may have them in different places
    listed: str
    names: tuple[str, ...] = ()  # the columns, quoted
    types: tuple[str, ...] = ()  # of the columns, as the database writes them
    key: tuple[str, ...] = ()  # of the primary key, the tenant too
    replicable: bool = True  # an UPDATE or DELETE says which row it means: there is a primary key, checked at once

    @property
    def label(self) -> str:
        """How it is called in checksums and messages."""
        return f"{self.schema}.{self.name}"


async def tenant_tables(connection: Any, *, keys: bool = False) -> tuple[TenantTable, ...]:
    """All tenant tables, every one after those that it refers to; within a cell also that of the wrapped ``keys``."""
    rows = await connection.fetch(_TABLES, keys)
    tables = {r["oid"]: _table(r) for r in rows}
    references = [(r["child"], r["parent"]) for r in await connection.fetch(_REFERENCES)]
    return in_order(tables, references)


def obstacles(tables: Iterable[TenantTable]) -> tuple[str, ...]:
    """Sentences, one a table that no stream can carry; publishing it would break the application's own UPDATE."""
    return tuple(
        f"{t.label} has no primary key that replication can use; a large tenant cannot move"
        for t in tables
        if not t.replicable or "tenant_id" not in t.key
    )


def _table(row: Any) -> TenantTable:
    return TenantTable(
        schema=row["schema"],
        name=row["name"],
        quoted=row["quoted"],
        columns=tuple(row["columns"]),
        listed=row["listed"],
        names=tuple(row["names"]),
        types=tuple(row["types"]),
        key=tuple(row["key"]),
        replicable=row["replicable"],
    )


def in_order(tables: dict[int, TenantTable], references: Iterable[tuple[int, int]]) -> tuple[TenantTable, ...]:
    """Parents first; the same order in every cell that has the same tables."""
    sorter: TopologicalSorter[int] = TopologicalSorter({oid: [] for oid in tables})
    for child, parent in references:
        if child in tables and parent in tables:
            sorter.add(child, parent)
    try:
        sorter.prepare()
    except CycleError as e:
        ring: Sequence[int] = e.args[1]
        raise CatalogueError("a ring of foreign keys: " + " -> ".join(tables[oid].label for oid in ring)) from e
    ordered: list[TenantTable] = []
    while sorter.is_active():
        ready = sorter.get_ready()
        ordered += sorted((tables[oid] for oid in ready), key=lambda t: t.label)
        sorter.done(*ready)
    return tuple(ordered)
