"""The rows of a bucket at two shards: copied while it is served, then made equal in rounds that grow shorter.

A row version that a snapshot does not see was written by a transaction that had not ended then, and no such
transaction has a number below the oldest of the snapshot. So the rows whose ``xmin`` is not below it are all that
changed since, and some that did not, which does no harm. What the target has too much was deleted: after the changed
rows are taken out, both sides have the same rows, or the target has more, which counting tells.

Everything is read from one snapshot of the source and written in transactions of the target, whose fence says that
nobody is served from there.
"""

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, TypeVar

from cell.rebucketing import shard
from cell.rebucketing.shard import BusyError
from cell.rebucketing.store import Move
from cell.shards.session import Pool
from cell.transfer import catalogue, rows
from cell.transfer.catalogue import TenantTable
from contracts import ids

PIECE: Final = 1 << 16  # bytes
IN_MEMORY: Final = 8 << 20  # bytes of changed rows; more of them wait in a file
PARTS: Final = 256  # of a table's keys, to find the few that were deleted
_SINCE: Final = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"
_CHANGED: Final = "age(xmin) <= age($2::text::xid8::xid)"
_STAYED: Final = f"NOT {_CHANGED}"
_INSERT: Final = (
    f"INSERT INTO cellwall.tenants ({', '.join(shard.COLUMNS)})"  # noqa: S608
    f" VALUES ({', '.join(f'${n}' for n in range(1, len(shard.COLUMNS) + 1))})"
)

Key = tuple[str, ...]
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class _Count:
    """Rows of one tenant in one table of the source, and how many of them changed."""

    total: int
    changed: int


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two sides of one round, and what both have."""

    source: Any
    target: Any
    tables: Sequence[TenantTable]
    since: str  # rows of the source from this transaction on have changed


async def since(snapshot: Any) -> str:
    """From which transaction on a row is not known to be in this snapshot."""
    return str(int(await snapshot.fetchval(_SINCE)))


async def whole(source: Any, pool: Pool, move: Move, pins: Sequence[int]) -> int:
    """All rows of a `shard.snapshot`, tenant by tenant, compared; how many. The target must have none of them."""
    count = 0
    for row in await shard.tenants(source, move, pins):
        async with pool.acquire() as target, target.transaction():
            await shard.owned(target, move, "arriving")
            tables = await _tables(source, target)
            tenant = row["tenant_id"]
            await target.execute(_INSERT, *row)
            imported = await rows.import_(target, tables, tenant, rows.export(source, tables, tenant), vault=None)
            sums = await _both(rows.checksum(source, tables, tenant), rows.checksum(target, tables, tenant))
            if sums[0] != sums[1]:
                raise BusyError(f"{ids.tenant_of(tenant)}: what arrived is not what was sent")
            count += imported.rows
    return count


async def changes(source: Any, pool: Pool, move: Move, pins: Sequence[int], since: str) -> int:
    """Make the target equal to a `shard.snapshot`, of whose rows it has those that did not change ``since``.

    One transaction; how many rows were written. Counts are compared, and the checksums of what was written.
    """
    found = await shard.tenants(source, move, pins)
    numbers = [row["tenant_id"] for row in found]
    async with pool.acquire() as target, target.transaction():
        await shard.owned(target, move, "arriving")
        pair = _Pair(source, target, await _tables(source, target), since)
        await target.execute(rows.AS_REPLICA)
        await target.execute(rows.BY_INDEX)
        here, there = await _both(_overview(pair, numbers), _totals(pair, numbers))
        touched = await _taken_out(pair, here, there)
        written = 0
        for at, table in enumerate(pair.tables):
            wanted = [tenant for (n, tenant), count in here.items() if n == at and count.changed]
            written += await _brought(pair, table, wanted)
        if touched:
            await _compare(pair, here, await _totals(pair, numbers), touched)
        await _platform(source, target, move, pins, found)
    return written


async def _both(one: Awaitable[A], other: Awaitable[B]) -> tuple[A, B]:
    """At once, on two connections. Where one fails the other is waited for: its connection is still needed."""
    first, second = await asyncio.gather(one, other, return_exceptions=True)
    if isinstance(first, BaseException):
        raise first
    if isinstance(second, BaseException):
        raise second
    return first, second


async def _tables(source: Any, target: Any) -> Sequence[TenantTable]:
    """The same on both sides, those of wrapped keys too: the cell that can unwrap them is the same."""
    here, there = await _both(catalogue.tenant_tables(source, keys=True), catalogue.tenant_tables(target, keys=True))
    if here != there:
        raise BusyError("the tables of the two shards differ: run `cell migrate`")
    return here


async def _overview(pair: _Pair, numbers: list[int]) -> dict[tuple[int, int], _Count]:
    changed = f"count(*) FILTER (WHERE {_CHANGED})"
    counted = await _counted(pair.source, pair.tables, changed, numbers, pair.since)
    return {key: _Count(*counts) for key, counts in counted.items()}


async def _totals(pair: _Pair, numbers: list[int]) -> dict[tuple[int, int], int]:
    return {key: total for key, (total, _) in (await _counted(pair.target, pair.tables, "0", numbers)).items()}


async def _counted(
    connection: Any, tables: Sequence[TenantTable], more: str, numbers: list[int], *values: str
) -> dict[tuple[int, int], tuple[int, int]]:
    """By table and tenant; who has no row in a table is not there."""
    each = " UNION ALL ".join(
        f"SELECT {at} AS at, tenant_id, count(*) AS total, {more} AS more FROM {table.quoted}"  # noqa: S608
        " WHERE tenant_id = ANY ($1::bigint[]) GROUP BY tenant_id"
        for at, table in enumerate(tables)
    )
    return {(r["at"], r["tenant_id"]): (r["total"], r["more"]) for r in await connection.fetch(each, numbers, *values)}


async def _taken_out(
    pair: _Pair, here: Mapping[tuple[int, int], _Count], there: Mapping[tuple[int, int], int]
) -> dict[tuple[int, int], list[Key]]:
    """Delete at the target what changed or is gone, children first; the keys of what changed."""
    touched: dict[tuple[int, int], list[Key]] = {}
    nothing = _Count(0, 0)
    for at, tenant in sorted({*here, *there}, reverse=True):
        count, left = here.get((at, tenant), nothing), there.get((at, tenant), 0)
        table = pair.tables[at]
        if count.changed:
            keys = touched[at, tenant] = await _keys(pair.source, table, tenant, _CHANGED, pair.since)
            left -= await _delete(pair.target, table, tenant, keys)
        if left != count.total - count.changed:
            touched.setdefault((at, tenant), [])
            await _delete(pair.target, table, tenant, await _vanished(pair, table, tenant))
    return touched


async def _keys(connection: Any, table: TenantTable, tenant: int, condition: str, *values: object) -> list[Key]:
    """Keys as text, without the tenant."""
    own = ", ".join(f"{name}::text" for name in _own(table).values())
    query = f"SELECT ARRAY[{own}]::text[] AS key FROM {table.quoted} WHERE tenant_id = $1 AND {condition}"  # noqa: S608
    return [tuple(row["key"]) for row in await connection.fetch(query, tenant, *values)]


async def _delete(connection: Any, table: TenantTable, tenant: int, keys: Iterable[Key]) -> int:
    columns = list(zip(*keys, strict=True))
    own = _own(table)
    if not own:
        done = await connection.execute(f"DELETE FROM {table.quoted} WHERE tenant_id = $1", tenant)  # noqa: S608
        return int(done.rpartition(" ")[2])
    if not columns:
        return 0
    labels = ", ".join(f"k{n}" for n in range(len(own)))
    arrays = ", ".join(f"${n + 2}::text[]" for n in range(len(own)))
    types = [table.types[table.columns.index(column)] for column in own]
    same = " AND ".join(f"t.{name} = given.k{n}::{types[n]}" for n, name in enumerate(own.values()))
    query = (
        f"DELETE FROM {table.quoted} t USING unnest({arrays}) AS given({labels})"  # noqa: S608
        f" WHERE t.tenant_id = $1 AND {same}"
    )
    return int((await connection.execute(query, tenant, *columns)).rpartition(" ")[2])


async def _vanished(pair: _Pair, table: TenantTable, tenant: int) -> set[Key]:
    """The keys that only the target has. Looked for in parts, so that the keys of a large table are not all read."""
    if not _own(table):
        return set()  # one row a tenant, which `_delete` knows by the tenant alone
    here, there = await _both(
        _parts(pair.source, table, tenant, _STAYED, pair.since), _parts(pair.target, table, tenant, "true")
    )
    if any(count > there.get(part, 0) for part, count in here.items()):
        raise BusyError(f"{table.label} of {ids.tenant_of(tenant)}: what was copied is not there")
    parts = [part for part, count in there.items() if here.get(part, 0) != count]
    kept = await _keys(pair.source, table, tenant, f"{_STAYED} AND {_part(table)} = ANY ($3::int[])", pair.since, parts)
    return {*await _keys(pair.target, table, tenant, f"{_part(table)} = ANY ($2::int[])", parts)} - {*kept}


async def _parts(connection: Any, table: TenantTable, tenant: int, condition: str, *values: str) -> dict[int, int]:
    query = (
        f"SELECT {_part(table)} AS part, count(*) AS n FROM {table.quoted}"  # noqa: S608
        f" WHERE tenant_id = $1 AND {condition} GROUP BY 1"
    )
    return {row["part"]: row["n"] for row in await connection.fetch(query, tenant, *values)}


def _part(table: TenantTable) -> str:
    return f"(hashtext(ROW({', '.join(_own(table).values())})::text) & {PARTS - 1})"


def _own(table: TenantTable) -> dict[str, str]:
    """The columns of the key but the tenant's, as they are called and as they are written."""
    return {column: table.names[table.columns.index(column)] for column in rows.own_key(table)}


async def _brought(pair: _Pair, table: TenantTable, tenants: Sequence[int]) -> int:
    """The changed rows of a table, out of the source and into the target."""
    if not tenants:
        return 0
    numbers = ", ".join(str(int(tenant)) for tenant in tenants)
    changed = _CHANGED.replace("$2", f"'{int(pair.since)}'")
    query = (  # COPY takes no parameters; all of it is numbers of ours and names that the database quoted
        f"SELECT {table.listed} FROM {table.quoted}"  # noqa: S608
        f" WHERE tenant_id = ANY ('{{{numbers}}}'::bigint[]) AND {changed}"
    )
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as spool:

        async def put(data: bytes) -> None:
            spool.write(data)

        await pair.source.copy_from_query(query, output=put, format="binary")
        spool.seek(0)
        status = await pair.target.copy_to_table(
            table.name, schema_name=table.schema, columns=table.columns, source=_pieces(spool), format="binary"
        )
    return int(status.rpartition(" ")[2])


async def _pieces(spool: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := spool.read(PIECE):
        yield piece


async def _compare(
    pair: _Pair,
    here: Mapping[tuple[int, int], _Count],
    there: Mapping[tuple[int, int], int],
    touched: Mapping[tuple[int, int], Sequence[Key]],
) -> None:
    """`BusyError` unless every table of every tenant has as many rows as at the source, and the written ones equal."""
    keys: dict[int, dict[str, list[list[str]]]] = defaultdict(dict)
    for (at, tenant), written in touched.items():
        if written:
            keys[tenant][pair.tables[at].label] = [list(key) for key in written]
    same = {key: count.total for key, count in here.items()} == there
    for tenant, wanted in keys.items():
        sums = await _both(
            rows.checksum_of(pair.source, pair.tables, tenant, wanted),
            rows.checksum_of(pair.target, pair.tables, tenant, wanted),
        )
        same = same and sums[0] == sums[1]
    if not same:
        raise BusyError("what arrived is not what was sent")


async def _platform(source: Any, target: Any, move: Move, pins: Sequence[int], found: Sequence[Any]) -> None:
    """The tenants' own rows and what wakes workers for them: few, and written anew."""
    numbers = [row["tenant_id"] for row in found]
    gone = f"DELETE FROM cellwall.tenants WHERE {shard.OF}"  # noqa: S608
    await target.execute(gone, move.bucket, move.tenant, list(pins))
    await target.executemany(_INSERT, [tuple(row) for row in found])
    work = await source.fetch("SELECT tenant_id, kind, due FROM cellwall.work WHERE tenant_id = ANY ($1)", numbers)
    await target.execute("DELETE FROM cellwall.work WHERE tenant_id = ANY ($1)", numbers)
    await target.executemany(
        "INSERT INTO cellwall.work (tenant_id, kind, due) VALUES ($1, $2, $3)", [tuple(row) for row in work]
    )
