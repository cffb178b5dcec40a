"""The monolith's tables as cell zero reads and writes them: one customer at a time, at one snapshot."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

import msgspec

from cell.zero.parts import Part
from cell.zero.staging import differences, key_of
from cell.zero.translation import rows
from cell.zero.translation.rows import KeyMap, Kind, OldTenant


@dataclass(frozen=True, slots=True)
class ShopTable:
    """A table of the monolith. ``customers``: its rows of customer $1, as alias ``x``. ``key`` finds a row again."""

    name: str
    kind: type[msgspec.Struct]
    key: tuple[str, ...]
    customers: str
    own_knr: bool
    park: str = ""
    numbered: str = ""  # a column that the database fills in

    @property
    def columns(self) -> tuple[str, ...]:
        """All that the translation knows, but the customer's number."""
        return self.kind.__struct_fields__


# Each after those that it refers to.
TABLES: Final = {
    "ben": ShopTable("ben", rows.Ben, ("bnr",), "x.knr = $1", True, "login = '~' || bnr"),
    "art": ShopTable("art", rows.Art, ("artnr",), "x.knr = $1", True, "best = '~' || artnr"),
    "aufk": ShopTable("aufk", rows.Aufk, ("anr",), "x.knr = $1", True),
    "aufp": ShopTable(
        "aufp", rows.Aufp, ("anr", "pos"), "x.anr IN (SELECT anr FROM public.aufk WHERE knr = $1)", False, "", "pnr"
    ),
    "sess": ShopTable(
        "sess", rows.Sess, ("sid",), "x.bnr IN (SELECT bnr FROM public.ben WHERE knr = $1)", False
    ),
}  # fmt: skip
SEQUENCES: Final[dict[Kind, tuple[str, str]]] = {
    "user": ("ben", "bnr"),
    "product": ("art", "artnr"),
    "order": ("aufk", "anr"),
}

# $1 is the customer; the rest is `Part.arguments`.
_PART: Final = {
    "art": "x.artnr = ANY ($2::int[])",
    "aufk": "x.anr = ANY ($3::int[])",
    "aufp": "(x.anr, x.pos) IN (SELECT * FROM unnest($4::int[], $5::int[]))",
}
# A cookie is a secret: its row is named by a digest, and shows everything but it.
_NAMED: Final = {"sess": "left(encode(sha256(convert_to(x.sid, 'UTF8')), 'hex'), 16)"}


def _each(values: Callable[[ShopTable], str], *, part: bool = False) -> str:
    """One statement over all tables, so that there is one snapshot, whatever the cron job commits meanwhile."""
    return " UNION ALL ".join(
        f"SELECT '{t.name}' AS tab, {values(t)} FROM public.{t.name} x WHERE {t.customers}"  # noqa: S608
        + (f" AND {_PART[t.name]}" if part and t.name in _PART else "")
        for t in TABLES.values()
    )


def _doc(_table: ShopTable) -> str:
    return "to_jsonb(x)::text AS doc"


def _key(table: ShopTable) -> str:
    named = " || '/' || ".join(f"x.{column}::text" for column in table.key)
    return f"{_NAMED.get(table.name, named)} AS key"


def _digest(table: ShopTable) -> str:
    """What the row says, as far as the translation knows its columns."""
    line = ", ".join(f"x.{column}" for column in table.columns)
    return f"{_key(table)}, sha256(convert_to(ROW({line})::text, 'UTF8')) AS digest"


def _shown(table: ShopTable) -> str:
    listed = ", ".join(f"'{column}', x.{column}" for column in table.columns if column != "sid")
    return f"{_key(table)}, jsonb_build_object({listed}) AS row"


_READ: Final = _each(_doc)
_READ_PART: Final = _each(_doc, part=True)
# Rows as digests; $1 is the customer, and of a part come `Part.arguments`.
DIGESTS: Final = _each(_digest)
DIGESTS_OF_PART: Final = _each(_digest, part=True)
SHOWN_OF_PART: Final = _each(_shown, part=True)
_COUNT: Final = f"SELECT count(*) FROM ({_READ}) counted"  # noqa: S608 - constants of ours
_MEASURE: Final = (
    "SELECT count(*), coalesce(sum(size), 0)::bigint FROM ("  # noqa: S608 - constants of ours
    + _each(lambda _: "pg_column_size(x.*) AS size")
    + ") measured"
)
_SOLD: Final = (
    "SELECT p.artnr, sum(p.mg)::int AS n FROM public.aufp p JOIN public.aufk k USING (anr)"
    " WHERE k.knr = $1 AND p.artnr = ANY ($2::int[]) GROUP BY p.artnr"
)
_RECOUNT: Final = (
    "UPDATE public.art a SET vk = s.n FROM (SELECT p.artnr, sum(p.mg)::int AS n FROM public.aufp p"
    " JOIN public.aufk k USING (anr) WHERE k.knr = $1 GROUP BY p.artnr) s"
    " WHERE s.artnr = a.artnr AND a.knr = $1 AND a.vk <> s.n"
)
_ARTICLES: Final = (
    "SELECT DISTINCT artnr FROM public.aufp WHERE (anr, pos) IN (SELECT * FROM unnest($1::int[], $2::int[]))"
)
_DECODERS: Final = {name: msgspec.json.Decoder(table.kind) for name, table in TABLES.items()}


async def read(connection: Any, knr: int, part: Part | None = None) -> OldTenant:
    """All rows of a customer, or a part of them, at one snapshot, in the order of their keys."""
    found: dict[str, list[Any]] = {name: [] for name in TABLES}
    asked = (_READ, knr) if part is None else (_READ_PART, knr, *part.arguments)
    for tab, doc in await connection.fetch(*asked):
        found[tab].append(_DECODERS[tab].decode(doc))
    return OldTenant(**{name: _ordered(each, TABLES[name]) for name, each in found.items()})


async def counted(connection: Any, knr: int, old: OldTenant) -> OldTenant:
    """The part with units sold as all positions of the customer say, which a part of them cannot."""
    sold = dict(await connection.fetch(_SOLD, knr, [row.artnr for row in old.art]))
    return replace(old, art=tuple(msgspec.structs.replace(row, vk=sold.get(row.artnr, 0)) for row in old.art))


async def articles_of(connection: Any, lines: Iterable[tuple[int, int]]) -> set[int]:
    """The articles of positions (anr, pos) that are there."""
    given = list(lines)
    found = await connection.fetch(_ARTICLES, [anr for anr, _ in given], [pos for _, pos in given])
    return {row["artnr"] for row in found}


def _ordered(found: list[Any], table: ShopTable) -> tuple[Any, ...]:
    return tuple(sorted(found, key=lambda row: key_of(row, table.key)))


async def count(connection: Any, knr: int) -> int:
    """How many rows a customer has."""
    counted: int = await connection.fetchval(_COUNT, knr)
    return counted


async def measure(connection: Any, knr: int) -> tuple[int, int]:
    """How many rows a customer has, and their bytes."""
    counted, size = await connection.fetchrow(_MEASURE, knr)
    return counted, size


async def applying(connection: Any) -> None:
    """To the end of this transaction the fence against other writers (`cell.zero.writers`) lets us through."""
    await connection.execute("SET LOCAL cellwall_zero.applying = 'on'")


async def recount(connection: Any, knr: int) -> None:
    """Count units sold as the cron job does, before it comes round."""
    await connection.execute(_RECOUNT, knr)


async def numbered(connection: Any, missing: dict[Kind, list[UUID]], keys: KeyMap) -> KeyMap:
    """The key map with an integer for every id that has none: the next of the monolith's own sequences."""
    fresh: dict[tuple[Kind, int], UUID] = {}
    for kind, ids in missing.items():
        table, column = SEQUENCES[kind]
        query = "SELECT nextval(pg_get_serial_sequence($1, $2)) FROM generate_series(1, $3)"
        given = await connection.fetch(query, f"public.{table}", column, len(ids))
        fresh |= {(kind, row[0]): id_ for row, id_ in zip(given, ids, strict=True)}
    return KeyMap({**keys.ids, **fresh})


async def write(connection: Any, knr: int, before: OldTenant, after: OldTenant) -> None:
    """Change a customer's rows from ``before`` to ``after``, and no row that is the same in both."""
    changes = {name: differences(getattr(before, name), getattr(after, name), t.key) for name, t in TABLES.items()}
    for name, table in reversed(TABLES.items()):
        query = f"DELETE FROM public.{name} WHERE {_where(table, 1)}"  # noqa: S608 - constants of ours
        await connection.executemany(query, [key_of(row, table.key) for row in changes[name].gone])
    for name, table in TABLES.items():
        await _update(connection, table, changes[name].changed)
        await _insert(connection, table, knr, changes[name].new)


async def _update(connection: Any, table: ShopTable, changed: Sequence[Any]) -> None:
    if table.park:
        query = f"UPDATE public.{table.name} SET {table.park} WHERE {_where(table, 1)}"  # noqa: S608
        await connection.executemany(query, [key_of(row, table.key) for row in changed])
    free = [column for column in table.columns if column not in (*table.key, table.numbered)]
    values = ", ".join(f"{column} = ${n}" for n, column in enumerate(free, len(table.key) + 1))
    query = f"UPDATE public.{table.name} SET {values} WHERE {_where(table, 1)}"  # noqa: S608 - constants of ours
    await connection.executemany(query, [(*key_of(r, table.key), *key_of(r, free)) for r in changed])


async def _insert(connection: Any, table: ShopTable, knr: int, new: Sequence[Any]) -> None:
    if not new:
        return
    given = [column for column in table.columns if column != table.numbered]
    columns = ["knr", *given] if table.own_knr else given
    records = [(knr, *key_of(r, given)) if table.own_knr else key_of(r, given) for r in new]
    await connection.copy_records_to_table(table.name, schema_name="public", columns=columns, records=records)


def _where(table: ShopTable, first: int) -> str:
    return " AND ".join(f"{column} = ${n}" for n, column in enumerate(table.key, first))
