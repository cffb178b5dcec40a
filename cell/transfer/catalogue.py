"""Which tables belong to a tenant: those under forced row-level security, in the order of their foreign keys."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final

_TABLES: Final = """
SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name, format('%I.%I', n.nspname, c.relname) AS quoted,
  array_agg(a.attname::text ORDER BY a.attname) AS columns,
  string_agg(format('%I', a.attname), ', ' ORDER BY a.attname) AS listed
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
WHERE c.relkind = 'r' AND c.relrowsecurity AND c.relforcerowsecurity
GROUP BY c.oid, n.nspname, c.relname ORDER BY 2, 3
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

    @property
    def label(self) -> str:
        """How it is called in checksums and messages."""
        return f"{self.schema}.{self.name}"


async def tenant_tables(connection: Any) -> tuple[TenantTable, ...]:
    """All tenant tables, every one after those that it refers to."""
    rows = await connection.fetch(_TABLES)
    tables = {
        r["oid"]: TenantTable(r["schema"], r["name"], r["quoted"], tuple(r["columns"]), r["listed"]) for r in rows
    }
    references = [(r["child"], r["parent"]) for r in await connection.fetch(_REFERENCES)]
    return in_order(tables, references)


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
