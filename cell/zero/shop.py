"""The monolith's tables as cell zero reads and writes them: one customer at a time, at one snapshot."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import msgspec

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

# One statement has one snapshot, whatever the cron job commits meanwhile.
_READ: Final = " UNION ALL ".join(
    f"SELECT '{t.name}' AS tab, to_jsonb(x)::text AS doc FROM public.{t.name} x WHERE {t.customers}"  # noqa: S608
    for t in TABLES.values()
)
_COUNT: Final = f"SELECT count(*) FROM ({_READ}) counted"  # noqa: S608 - constants of ours
_RECOUNT: Final = (
    "UPDATE public.art a SET vk = s.n FROM (SELECT artnr, sum(mg)::int AS n FROM public.aufp GROUP BY artnr) s"
    " WHERE s.artnr = a.artnr AND a.knr = $1 AND a.vk <> s.n"
)
_DECODERS: Final = {name: msgspec.json.Decoder(table.kind) for name, table in TABLES.items()}


async def read(connection: Any, knr: int) -> OldTenant:
    """All rows of a customer, at one snapshot, in the order of their keys."""
    found: dict[str, list[Any]] = {name: [] for name in TABLES}
    for tab, doc in await connection.fetch(_READ, knr):
        found[tab].append(_DECODERS[tab].decode(doc))
    return OldTenant(**{name: _ordered(each, TABLES[name]) for name, each in found.items()})


def _ordered(found: list[Any], table: ShopTable) -> tuple[Any, ...]:
    return tuple(sorted(found, key=lambda row: key_of(row, table.key)))


async def count(connection: Any, knr: int) -> int:
    """How many rows a customer has."""
    counted: int = await connection.fetchval(_COUNT, knr)
    return counted


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


@dataclass(frozen=True, slots=True)
class Mark:
    """What one row of the monolith said, as far as the translation knows its columns."""

    tab: str
    key: str
    digest: bytes
    row: dict[str, Any]


def marks(old: OldTenant) -> Iterator[Mark]:
    """A mark for every row. A cookie is a secret: its row is named by a digest, and shows everything but it."""
    for name, table in TABLES.items():
        for row in getattr(old, name):
            doc = msgspec.to_builtins(row)
            key = "/".join(str(value) for value in key_of(row, table.key))
            digest = hashlib.sha256(msgspec.json.encode(row)).digest()
            if name == "sess":
                key = hashlib.sha256(key.encode()).hexdigest()[:16]
                del doc["sid"]
            yield Mark(name, key, digest, doc)
