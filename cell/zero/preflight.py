"""What stands in the way of leaving cell zero, found before anything is touched; reads only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cell.shards.session import Pool
from cell.zero import shop, staging
from cell.zero.translation.forward import forward
from contracts import ids, problems
from contracts.problems import ProblemError
from contracts.zero import Customer, CustomerFaults, Preflight

FAULTS_SHOWN: Final = 20
NOT_TRANSLATED: Final = 1  # a tenant number for the dry run of a customer that has none yet

# What the translation reads, and what it knowingly leaves out. A column beyond these would be lost without a word.
_KNOWN: Final[Mapping[str, frozenset[str]]] = {
    "knd": frozenset({"knr", "kz", "adr", "tar", "gesp", "ums", "anl"}),
    **{name: frozenset({"knr", *t.columns} if t.own_knr else t.columns) for name, t in shop.TABLES.items()},
}
_LEFT: Final = frozenset({"prot"})  # a log of the whole shop: no tenant's

_COLUMNS: Final = """
SELECT c.relname AS tab, array_agg(a.attname::text ORDER BY a.attnum) AS columns,
  EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS keyed
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace GROUP BY c.oid, c.relname ORDER BY c.relname
"""
_CUSTOMERS: Final = """
SELECT k.knr, k.kz, k.adr, k.tar, c.tenant_id, t.state,
  coalesce((SELECT lower(login) FROM public.ben b WHERE b.knr = k.knr AND b.rl = 3 ORDER BY b.bnr LIMIT 1), '') AS email
FROM public.knd k LEFT JOIN cellwall_zero.customers c USING (knr) LEFT JOIN cellwall.tenants t USING (tenant_id)
ORDER BY k.knr
"""


@dataclass(frozen=True, slots=True)
class ShopColumns:
    """A table of the monolith as its catalogue describes it."""

    name: str
    columns: tuple[str, ...]
    keyed: bool  # it has a primary key


def judge(found: Sequence[ShopColumns]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Blockers and warnings about the monolith's tables; pure."""
    blockers, warnings = [], []
    by_name = {table.name: table for table in found}
    for name, known in _KNOWN.items():
        table = by_name.get(name)
        if table is None:
            blockers.append(f"{name} is missing, which the translation reads")
            continue
        if not table.keyed:
            blockers.append(
                f"{name} has no primary key, so no row of it can be found again; add one: "
                f"ALTER TABLE {name} ADD PRIMARY KEY (...)"
            )
        if strange := sorted(set(table.columns) - known):
            blockers.append(f"{name} has columns that the translation does not know: {', '.join(strange)}")
        if lost := sorted(known - set(table.columns)):
            blockers.append(f"{name} lacks columns that the translation reads: {', '.join(lost)}")
    for name in sorted(by_name.keys() - _KNOWN.keys()):
        keyless = "" if by_name[name].keyed else ", has no primary key"
        what = "stays behind: it belongs to no customer" if name in _LEFT else "stays behind: no translation knows it"
        warnings.append(f"{name}{keyless}, {what}")
    return tuple(blockers), tuple(warnings)


async def tables(connection: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Blockers and warnings about the monolith's tables as they are now; one query of the catalogue."""
    return judge([ShopColumns(r["tab"], tuple(r["columns"]), r["keyed"]) for r in await connection.fetch(_COLUMNS)])


async def refuse_strange(connection: Any) -> None:
    """The problem ``untranslatable`` names tables and columns that would be lost, or that rows cannot be found in.

    Every way out asks it (`cell.zero.carry`), however the move was begun: a batch, by hand, or as a dry run.
    """
    blockers, _ = await tables(connection)
    if blockers:
        raise ProblemError(problems.UNTRANSLATABLE, "; ".join(blockers))


async def customers(pool: Pool) -> list[Customer]:
    """Every customer of the monolith, and which tenant it is."""
    async with pool.acquire() as connection:
        found = await connection.fetch(_CUSTOMERS)
        return [
            Customer(
                number=row["knr"],
                slug=row["kz"],
                name=row["adr"].split("|")[0],
                plan=row["tar"],
                email=row["email"],
                rows=await shop.count(connection, row["knr"]),
                tenant=None if row["tenant_id"] is None else ids.tenant_of(row["tenant_id"]),
                state=row["state"],
            )
            for row in found
        ]


async def check(pool: Pool, only: int | None = None) -> Preflight:
    """Judge the tables, then translate every customer who is still served here, or the one of that number."""
    async with pool.acquire() as connection:
        blockers, warnings = await tables(connection)
        if blockers:
            return Preflight(blockers, warnings, (), 0)
        found = await connection.fetch(_CUSTOMERS)
        faulty, checked = [], 0
        for row in found:
            if only not in (None, row["knr"]) or row["state"] not in (None, "active", "frozen"):
                continue
            checked += 1
            faults = await _faults(connection, row["knr"], row["tenant_id"])
            try:
                ids.slug(row["kz"])
            except ids.InvalidIdError as e:
                faults.append(f"knd knr {row['knr']}: {e}")
            if faults:
                faulty.append(CustomerFaults(row["knr"], row["kz"], tuple(faults[:FAULTS_SHOWN]), len(faults)))
    return Preflight(blockers, warnings, tuple(faulty), checked)


async def _faults(connection: Any, knr: int, tenant: int | None) -> list[str]:
    number = tenant or NOT_TRANSLATED
    kept, keys = await staging.read(connection, number), await staging.read_keys(connection, number)
    return [str(fault) for fault in forward(number, await shop.read(connection, knr), kept, keys).faults]
