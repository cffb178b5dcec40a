"""What cell zero keeps of its tenants in our own tables, and how it gets there: the staging area.

It is the schema of a shard, made by the cells' own revisions in the monolith's database, so that the row stream and the
checksums of a move are those of every cell. It holds what the monolith has no place for (API keys, webhooks, events)
as it came, and of all else the last translation. The monolith's own tables, in ``public``, keep their shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from cell.schema import migrate
from cell.schema.operations import APP, TRANSFER
from cell.zero.parts import NewPart, Part
from cell.zero.translation import rows
from cell.zero.translation.rows import KeyMap, NewTenant

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Staged:
    """A translated table: its struct, its key, and what makes room in a unique column while rows change places."""

    table: str
    kind: type[msgspec.Struct]
    key: tuple[str, ...]
    park: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """All but the tenant's."""
        return self.kind.__struct_fields__


# Each after those that it refers to.
TABLES: Final = {
    "users": Staged("users", rows.User, ("user_id",), "email = user_id::text"),
    "products": Staged("products", rows.Product, ("product_id",), "sku = product_id::text"),
    "orders": Staged("orders", rows.Order, ("order_id",)),
    "order_lines": Staged("order_lines", rows.OrderLine, ("order_id", "line")),
    "sessions": Staged("sessions", rows.Session, ("session_id",)),
}
_COUNTED: Final = "SELECT value FROM cellwall.counters WHERE tenant_id = $1 AND name = 'orders'"
_COUNT: Final = (
    "INSERT INTO cellwall.counters (tenant_id, name, value) VALUES ($1, 'orders', $2)"
    " ON CONFLICT (tenant_id, name) DO UPDATE SET value = excluded.value"
)
_KEYS: Final = (
    "SELECT kind, old_id, new_id FROM cellwall_zero.keys WHERE tenant_id = $1"
    " UNION SELECT kind, old_id, new_id FROM product.old_keys WHERE tenant_id = $1"
)
_KEYS_OF_PART: Final = " UNION ".join(
    f"SELECT kind, old_id, new_id FROM cellwall_zero.keys WHERE tenant_id = $1 AND {which}"  # noqa: S608 - ours
    for which in (
        "kind = 'user'",
        "kind = 'product' AND old_id = ANY ($2::bigint[])",
        "kind = 'order' AND old_id = ANY ($3::bigint[])",
        "kind = 'product' AND new_id = ANY ($4::uuid[])",
        "kind = 'order' AND new_id = ANY ($5::uuid[])",
    )
)
_STAGED_ARTICLES: Final = (
    "SELECT DISTINCT p.old_id FROM unnest($2::bigint[], $3::int[]) AS given(anr, pos)"
    " JOIN cellwall_zero.keys o ON o.tenant_id = $1 AND o.kind = 'order' AND o.old_id = given.anr"
    " JOIN product.order_lines l ON l.tenant_id = $1 AND l.order_id = o.new_id AND l.line = given.pos"
    " JOIN cellwall_zero.keys p ON p.tenant_id = $1 AND p.kind = 'product' AND p.new_id = l.product_id"
)
_NOTE: Final = (
    "INSERT INTO {0} (tenant_id, kind, old_id, new_id)"
    " SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::uuid[]) ON CONFLICT DO NOTHING"
)
# Whatever one of both has and the other has not.
_COPY_KEYS: Final = (
    "INSERT INTO {1} (tenant_id, kind, old_id, new_id)"
    " SELECT k.tenant_id, k.kind, k.old_id, k.new_id FROM {0} k WHERE k.tenant_id = $1"
    " AND NOT EXISTS (SELECT FROM {1} o WHERE o.tenant_id = $1 AND o.kind = k.kind AND o.old_id = k.old_id)"
    " ON CONFLICT DO NOTHING"
)
_KEPT: Final = "cellwall_zero.keys"  # outlives every stay
_TRAVELLING: Final = "product.old_keys"
_ROLE: Final = (
    "DO $$ BEGIN CREATE ROLE {0} NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
)


async def install(dsn: str) -> None:
    """Make the staging area, or bring it to this version. The user of ``dsn`` may make schemas and roles.

    Comes before `database.install`, which finds the fence's table then. The roles are those that revisions grant to;
    nobody logs in as them here.
    """
    connection = await asyncpg.connect(dsn)
    try:
        for role in (APP, TRANSFER):
            await connection.execute(_ROLE.format(role))
        await connection.execute("CREATE SCHEMA IF NOT EXISTS cellwall")
    finally:
        await connection.close()
    await migrate.upgrade(dsn, migrate.SHARD)


async def read(connection: Any, tenant: int, part: NewPart | None = None) -> NewTenant:
    """What is staged of a tenant, or a part of it."""
    found: dict[str, Any] = {name: await _read(connection, staged, tenant, part) for name, staged in TABLES.items()}
    last = await connection.fetchval(_COUNTED, tenant) or 0
    return NewTenant(**found, last_number=last)


async def lines(connection: Any, tenant: int, part: NewPart) -> tuple[rows.OrderLine, ...]:
    """The lines of the part."""
    found: Any = await _read(connection, TABLES["order_lines"], tenant, part)
    return tuple(found)


def _within(part: NewPart, table: str) -> tuple[str, tuple[Any, ...]]:
    """The condition on a table's rows from the second parameter on, and its parameters."""
    if table == "products":
        return " AND product_id = ANY ($2::uuid[])", (list(part.products),)
    if table == "orders":
        return " AND order_id = ANY ($2::uuid[])", (list(part.orders),)
    if table == "order_lines":
        given = [order for order, _ in part.lines], [line for _, line in part.lines]
        return " AND (order_id, line) IN (SELECT * FROM unnest($2::uuid[], $3::int[]))", given
    return "", ()


async def _read(connection: Any, staged: Staged, tenant: int, part: NewPart | None) -> tuple[msgspec.Struct, ...]:
    more, values = ("", ()) if part is None else _within(part, staged.table)
    listed = ", ".join(staged.columns)
    query = f"SELECT {listed} FROM product.{staged.table} WHERE tenant_id = $1{more}"  # noqa: S608 - constants of ours
    return tuple(staged.kind(*record) for record in await connection.fetch(query, tenant, *values))


async def write(connection: Any, tenant: int, before: NewTenant, after: NewTenant) -> None:
    """Change what is staged from ``before`` to ``after``; rows that hang on a row which stays are not touched."""
    changes = {
        name: differences(getattr(before, name), getattr(after, name), staged.key) for name, staged in TABLES.items()
    }
    for name, staged in reversed(TABLES.items()):
        await _delete(connection, staged, tenant, changes[name].gone)
    for name, staged in TABLES.items():
        await _update(connection, staged, tenant, changes[name].changed)
        await _insert(connection, staged, tenant, changes[name].new)
    if after.last_number != before.last_number:
        await connection.execute(_COUNT, tenant, after.last_number)


async def _delete(connection: Any, staged: Staged, tenant: int, gone: Sequence[msgspec.Struct]) -> None:
    where = " AND ".join(f"{column} = ${n}" for n, column in enumerate(staged.key, 2))
    query = f"DELETE FROM product.{staged.table} WHERE tenant_id = $1 AND {where}"  # noqa: S608 - constants of ours
    await connection.executemany(query, [(tenant, *key_of(row, staged.key)) for row in gone])


async def _update(connection: Any, staged: Staged, tenant: int, changed: Sequence[msgspec.Struct]) -> None:
    where = " AND ".join(f"{column} = ${n}" for n, column in enumerate(staged.key, 2))
    if staged.park:
        parked = f"UPDATE product.{staged.table} SET {staged.park} WHERE tenant_id = $1 AND {where}"  # noqa: S608
        await connection.executemany(parked, [(tenant, *key_of(row, staged.key)) for row in changed])
    free = [column for column in staged.columns if column not in staged.key]
    values = ", ".join(f"{column} = ${n}" for n, column in enumerate(free, len(staged.key) + 2))
    query = f"UPDATE product.{staged.table} SET {values} WHERE tenant_id = $1 AND {where}"  # noqa: S608
    await connection.executemany(query, [(tenant, *key_of(r, staged.key), *key_of(r, free)) for r in changed])


async def _insert(connection: Any, staged: Staged, tenant: int, new: Sequence[msgspec.Struct]) -> None:
    if new:
        records = [(tenant, *key_of(row, staged.columns)) for row in new]
        columns = ["tenant_id", *staged.columns]
        await connection.copy_records_to_table(staged.table, schema_name="product", columns=columns, records=records)


async def read_keys(connection: Any, tenant: int) -> KeyMap:
    """Every integer that the tenant's rows have or had."""
    return _key_map(await connection.fetch(_KEYS, tenant))


async def read_keys_of(connection: Any, tenant: int, old: Part, new: NewPart) -> KeyMap:
    """Those of a part, named from either side, and of all users. `adopt_keys` came before."""
    ours = list(new.products), list(new.orders)
    return _key_map(await connection.fetch(_KEYS_OF_PART, tenant, list(old.art), list(old.aufk), *ours))


def _key_map(found: Sequence[Any]) -> KeyMap:
    return KeyMap({(row["kind"], row["old_id"]): UUID(bytes=row["new_id"].bytes) for row in found})


async def articles_of(connection: Any, tenant: int, given: Sequence[tuple[int, int]]) -> set[int]:
    """The articles of positions (anr, pos), as they are staged."""
    found = await connection.fetch(_STAGED_ARTICLES, tenant, [anr for anr, _ in given], [pos for _, pos in given])
    return {row["old_id"] for row in found}


async def note_keys(connection: Any, tenant: int, before: KeyMap, after: KeyMap, *, travel: bool = False) -> None:
    """Remember what ``after`` has beyond ``before``; ``travel``: it leaves with the tenant, too."""
    new = [(kind, number, id_) for (kind, number), id_ in after.ids.items() if (kind, number) not in before.ids]
    if new:
        for table in (_KEPT, _TRAVELLING) if travel else (_KEPT,):
            await connection.execute(_NOTE.format(table), tenant, *(list(column) for column in zip(*new, strict=True)))


async def publish_keys(connection: Any, tenant: int) -> None:
    """Let the whole key map travel with the tenant from now on."""
    await connection.execute(_COPY_KEYS.format(_KEPT, _TRAVELLING), tenant)


async def adopt_keys(connection: Any, tenant: int) -> None:
    """Remember for ever what came with the tenant."""
    await connection.execute(_COPY_KEYS.format(_TRAVELLING, _KEPT), tenant)


@dataclass(frozen=True, slots=True)
class Differences:
    """What has to be done to get from one set of rows to another."""

    gone: tuple[Any, ...]
    changed: tuple[Any, ...]
    new: tuple[Any, ...]


def differences(before: Sequence[T], after: Sequence[T], key: Sequence[str]) -> Differences:
    """Rows are the same where they have the same key."""
    old = {key_of(row, key): row for row in before}
    wanted = {key_of(row, key): row for row in after}
    return Differences(
        tuple(row for k, row in old.items() if k not in wanted),
        tuple(row for k, row in wanted.items() if k in old and old[k] != row),
        tuple(row for k, row in wanted.items() if k not in old),
    )


def key_of(row: msgspec.Struct, columns: Sequence[str]) -> tuple[Any, ...]:
    """The values of some columns."""
    return tuple(getattr(row, column) for column in columns)
