"""Writes the changes of one batch: set by set, each row found exactly once, or nothing at all.

Three statements per table at best, whatever the batch holds (`compaction`). Where a value passes from one row to
another under a unique index the net effect can fail though the changes do not: then they are written one by one, in
their own order. An UPDATE that finds no row is a fault, never an INSERT (moves.md rule 8).
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import asyncpg

from cell.shards.errors import DATABASE_FAILED
from cell.transfer import compaction
from cell.transfer.catalogue import TenantTable
from cell.transfer.compaction import Run
from cell.transfer.progress import array_literal
from cell.transfer.rows import AS_REPLICA, BY_INDEX, own_key
from cell.transfer.wal import BrokenMessageError, Change, Decoder, Key, Relation

_ORIGIN: Final = "SELECT pg_replication_origin_create($1) WHERE pg_replication_origin_oid($1) IS NULL"


class ConflictError(Exception):
    """A change that does not fit what is here: the copy is not what the stream continues."""


def decoded(messages: Iterable[bytes], tables: Mapping[str, TenantTable], tenant: int) -> list[Change]:
    """The changes, all of this tenant and of tables as they are here. `BrokenMessageError` otherwise."""
    decoder, changes = Decoder(), []
    owned: dict[Relation, int] = {}
    for message in messages:
        change = decoder.change(message)
        if change is None:
            continue
        at = owned.get(change.relation)
        if at is None:
            at = owned[change.relation] = _tenant_in_key(change.relation, tables)
        if change.key[at] != str(tenant) or (change.old is not None and change.old[at] != str(tenant)):
            raise BrokenMessageError(f"{change.relation.label}: a row of another tenant")
        changes.append(change)
    return changes


def _tenant_in_key(relation: Relation, tables: Mapping[str, TenantTable]) -> int:
    """Where the tenant stands in the relation's key, once the relation is known to be a table of ours."""
    table = tables.get(relation.label)
    key = [relation.columns[i] for i in relation.key]
    if table is None or set(relation.columns) != set(table.columns) or set(key) != set(table.key):
        raise BrokenMessageError(f"{relation.label} is not the same table here")
    return key.index("tenant_id")


def own_keys(changes: Iterable[Change], tables: Mapping[str, TenantTable]) -> dict[str, set[Key]]:
    """The keys that were touched, as remainders name them: without the tenant, in the order of the table's key."""
    found: dict[str, set[Key]] = {}
    for relation, keys in compaction.touched(changes).items():
        order = [relation.columns[i] for i in relation.key]
        at = [order.index(column) for column in own_key(tables[relation.label])]
        found.setdefault(relation.label, set()).update(tuple(key[i] for i in at) for key in keys)
    return found


async def write(connection: Any, tables: Mapping[str, TenantTable], changes: Sequence[Change]) -> None:
    """Write them in the connection's transaction. Raises `ConflictError` or `BrokenMessageError`."""
    await connection.execute(AS_REPLICA)
    await connection.execute(BY_INDEX)
    try:
        async with connection.transaction():
            await _run(connection, tables, compaction.compact(changes))
    except asyncpg.UniqueViolationError:
        try:
            await _run(connection, tables, compaction.one_by_one(changes))
        except asyncpg.UniqueViolationError as e:
            raise ConflictError(str(e)) from e


async def _run(connection: Any, tables: Mapping[str, TenantTable], runs: Iterable[Run]) -> None:
    for run in runs:
        table = tables[run.relation.label]
        status = await connection.execute(_statement(table, run), *_arrays(run))
        count = int(status.rpartition(" ")[2])
        if count != len(run.keys):
            raise ConflictError(f"{table.label}: {run.kind} found {count} of {len(run.keys)} rows")


def _arrays(run: Run) -> list[str]:
    """An array literal for each column: the keys', then those that are set."""
    keys = [] if run.kind == "insert" else [array_literal(column) for column in zip(*run.keys, strict=True)]
    return keys + [array_literal(column) for column in zip(*run.rows, strict=True)]


def _statement(table: TenantTable, run: Run) -> str:
    """The SQL. Every name and type in it was quoted by the database; values are parameters."""
    relation = run.relation
    key = () if run.kind == "insert" else relation.key
    at = [table.columns.index(relation.columns[i]) for i in (*key, *run.columns)]
    values = [f"v{n}::{table.types[i]}" for n, i in enumerate(at)]
    names = [table.names[i] for i in at]
    arrays = ", ".join(f"${n + 1}::text::text[]" for n in range(len(at)))
    source = f"unnest({arrays}) AS v({', '.join(f'v{n}' for n in range(len(at)))})"
    if run.kind == "insert":
        return f"INSERT INTO {table.quoted} ({', '.join(names)}) SELECT {', '.join(values)} FROM {source}"  # noqa: S608
    found = " AND ".join(f"t.{name} = {value}" for name, value in zip(names[: len(key)], values, strict=False))
    if run.kind == "delete":
        return f"DELETE FROM {table.quoted} t USING {source} WHERE {found}"  # noqa: S608
    changed = ", ".join(f"{name} = {value}" for name, value in list(zip(names, values, strict=True))[len(key) :])
    return f"UPDATE {table.quoted} t SET {changed} FROM {source} WHERE {found}"  # noqa: S608


@asynccontextmanager
async def originated(connection: Any, stream: str) -> AsyncIterator[Any]:
    """What is written within says that it came from the stream, so that no stream the other way carries it back.

    ``await`` what is yielded inside of the transaction, under the tenant's lock: of two writers only one may say so.
    """
    with suppress(asyncpg.UniqueViolationError):
        await connection.execute(_ORIGIN, stream)
    entered = False

    async def enter() -> None:
        nonlocal entered
        entered = True  # also where this is cancelled on its way back
        await connection.execute("SELECT pg_replication_origin_session_setup($1)", stream)

    try:
        yield enter
    finally:
        if entered:
            await _leave(connection)


async def _leave(connection: Any) -> None:
    try:
        await connection.execute("SELECT pg_replication_origin_session_reset()")
    except DATABASE_FAILED:
        connection.terminate()  # never back into the pool as somebody else
    except BaseException:
        connection.terminate()
        raise
