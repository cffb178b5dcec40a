"""A tenant's rows as a whole: copied out, copied in, compared, dropped. The caller holds the tenant's lock.

Runs as the transfer role, which bypasses row-level security (COPY FROM refuses it), so every statement here names the
tenant itself, and an import proves afterwards that it wrote rows of that tenant only.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Final

import msgspec

from cell.transfer import frames, progress
from cell.transfer.catalogue import TenantTable
from cell.transfer.frames import BrokenStreamError, Count, Kind, TableHeader
from cell.vault import Vault
from contracts.transfer import Checksum, Imported, Keys, Stream

QUEUED_PIECES: Final = 8
DROPPED_AT_ONCE: Final = 20_000  # rows: some tenths of a second
SAMPLE: Final = 1000  # rows of a table, to tell the bytes of all
ESTIMATE_MAX: Final = 100_000  # rows of one table that an estimate counts

_BESIDE: Final = ("cellwall.tenant_keys", "cellwall.work")  # what else goes with a tenant's rows
NO_ROWS: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"\xff\xff"  # PostgreSQL's binary COPY of nothing
# Without triggers, as replication writes. `cell migrate` gives the transfer role the right to it; whoever else writes
# rows as a whole is only slower without it, because children come after their parents and go before them.
AS_REPLICA: Final = "SET LOCAL session_replication_role = 'replica'"
_AS_REPLICA_IF_ALLOWED: Final = (
    "SELECT set_config('session_replication_role', 'replica', true)"
    " WHERE has_parameter_privilege('session_replication_role', 'SET')"
)
# A few keys of a large table, whatever the statistics of a table that was just filled say.
BY_INDEX: Final = "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"

# Text that is compared must not depend on how a server or a role is set up.
_PINNED: Final = (
    "SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL intervalstyle = 'iso_8601'; SET LOCAL timezone = 'UTC';"
    " SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C';"
    " SET LOCAL xmlbinary = 'base64'"
)


async def export(
    connection: Any,
    tables: Sequence[TenantTable],
    tenant: int,
    start: Stream | None = None,
    key: bytes | None = None,
) -> AsyncGenerator[bytes]:
    """The row stream of what the connection's transaction sees. Back-pressure: a few pieces wait for the reader.

    ``start``: the stream of changes that continues it. ``key``: the tenant's, unwrapped, where it has one.
    """
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_PIECES)
    producer = asyncio.get_running_loop().create_task(_produce(connection, tables, tenant, before(start, key), queue))
    try:
        while (piece := await queue.get()) is not None:
            yield piece
        await producer
    finally:
        producer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await producer


async def continued(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A stream whose first piece was read already, to see whether there is one."""
    try:
        yield first
        async for piece in rest:
            yield piece
    finally:
        close = getattr(rest, "aclose", None)
        if close is not None:
            await close()


def before(start: Stream | None, key: bytes | None) -> list[bytes]:
    """What comes before the tables."""
    pieces = [frames.MAGIC]
    if start is not None:
        pieces.append(frames.frame(Kind.STREAM, msgspec.json.encode(start)))
    if key is not None:
        pieces.append(frames.frame(Kind.KEY, key))
    return pieces


async def _produce(
    connection: Any,
    tables: Sequence[TenantTable],
    tenant: int,
    before: Sequence[bytes],
    queue: "asyncio.Queue[bytes | None]",
) -> None:
    rows = size = 0

    async def put(data: bytes) -> None:
        nonlocal size
        size += len(data)
        for piece in frames.data_frames(bytes(data)):
            await queue.put(piece)

    try:
        for piece in before:
            await queue.put(piece)
        filled = await _filled(connection, [table.quoted for table in tables], tenant)
        for table, has_rows in zip(tables, filled, strict=True):
            header = TableHeader(table.schema, table.name, table.columns)
            await queue.put(frames.frame(Kind.TABLE, msgspec.json.encode(header)))
            copied = 0
            if not has_rows:
                await put(NO_ROWS)
            else:
                status = await connection.copy_from_query(all_of(table, tenant), output=put, format="binary")
                copied = int(status.rpartition(" ")[2])
            rows += copied
            await queue.put(frames.frame(Kind.TABLE_END, msgspec.json.encode(Count(copied))))
        totals = Count(rows, len(tables), size)
        await queue.put(frames.frame(Kind.END, msgspec.json.encode(totals)))
    except Exception:
        await queue.put(None)  # the reader comes to await this task, and finds the failure
        raise
    await queue.put(None)


async def _filled(connection: Any, names: Sequence[str], tenant: int) -> list[bool]:
    """In which of the tables the tenant has rows, in one trip: most tenants use some of the tables."""
    found = ", ".join(f"EXISTS (SELECT FROM {name} WHERE tenant_id = $1)" for name in names)
    flags: list[bool] = await connection.fetchval(f"SELECT ARRAY[{found}]::boolean[]", tenant)
    return flags


def all_of(table: TenantTable, tenant: int) -> str:
    """The query of a table's rows. The tenant is an integer of ours and the database quoted the names: COPY takes no
    parameters."""
    return f"SELECT {table.listed} FROM {table.quoted} WHERE tenant_id = {int(tenant)}"  # noqa: S608


async def import_(
    connection: Any, tables: Sequence[TenantTable], tenant: int, pieces: AsyncIterator[bytes], vault: Vault | None
) -> Imported:
    """Write a whole row stream, or raise `BrokenStreamError`. Commits nothing itself. The tenant's key goes to the
    ``vault``; without one none may come.

    As replication writes: without triggers, so foreign keys are not looked up row by row. They hold at the source.
    """
    reader = frames.Reader(pieces)
    await reader.start()
    await connection.execute(_AS_REPLICA_IF_ALLOWED)
    expected = list(tables)
    rows = size = 0
    start: Stream | None = None
    key: frames.Key | None = None
    while not isinstance(header := await reader.table(), Count):
        if isinstance(header, Stream):
            frames.once(start, len(expected) < len(tables))
            frames.check_start(start := header, tenant)
            await progress.begin(connection, tenant, start)
            continue
        if isinstance(header, frames.Key):
            frames.once(key, len(expected) < len(tables))
            if vault is None:
                raise BrokenStreamError("a key came, and there is nothing to wrap it with")
            await vault.adopt(connection, tenant, (key := header).key)
            continue
        if not expected or (expected[0].schema, expected[0].name) != (header.schema, header.name):
            raise BrokenStreamError(f"the table {header.schema}.{header.name} is not the one that comes next here")
        table = expected.pop(0)
        if table.columns != header.columns:
            raise BrokenStreamError(f"{table.label} has other columns here")
        copied, read = await _copy_in(connection, table, tenant, reader)
        rows += copied
        size += read
    if expected or header != Count(rows, len(tables), size):
        raise BrokenStreamError("the totals of the stream are not what arrived")
    return Imported(len(tables), rows, size)


async def _copy_in(connection: Any, table: TenantTable, tenant: int, reader: frames.Reader) -> tuple[int, int]:
    ended: list[Count] = []
    pieces = reader.rows(ended)
    first, second = await anext(pieces, b""), await anext(pieces, b"")
    size = len(first) + len(second)

    async def source() -> AsyncIterator[bytes]:
        nonlocal size
        yield first
        yield second
        async for piece in pieces:
            size += len(piece)
            yield piece

    empty = first == NO_ROWS and not second
    copied = 0 if empty else await copy_in(connection, table, tenant, source())
    if not ended or copied != ended[0].rows:
        raise BrokenStreamError(f"{table.label}: {copied} rows of this tenant arrived, not what was sent")
    return copied, size


async def copy_in(connection: Any, table: TenantTable, tenant: int, data: AsyncIterator[bytes]) -> int:
    """Write a table's rows; how many. Those of another tenant are left out, so that the count betrays them."""
    status = await connection.copy_to_table(
        table.name, schema_name=table.schema, columns=table.columns, source=data, format="binary",
        where=f"tenant_id = {int(tenant)}",
    )  # fmt: skip
    return int(status.rpartition(" ")[2])


async def drop(connection: Any, tables: Sequence[TenantTable], tenant: int) -> None:
    """Delete all rows of the tenant, children first, its key, its wake-ups, and how far streams had filled it."""
    await connection.execute(_AS_REPLICA_IF_ALLOWED)
    for table in reversed(tables):
        await connection.execute(f"DELETE FROM {table.quoted} WHERE tenant_id = $1", tenant)  # noqa: S608
    for name in _BESIDE:
        await connection.execute(f"DELETE FROM {name} WHERE tenant_id = $1", tenant)  # noqa: S608
    await progress.forget_tenant(connection, tenant)


async def drop_if_any(connection: Any, tables: Sequence[TenantTable], tenant: int) -> None:
    """`drop`, for where nothing is expected to be left: one trip to see it."""
    if any(await _filled(connection, [*(table.quoted for table in tables), *_BESIDE], tenant)):
        await drop(connection, tables, tenant)
    else:
        await progress.forget_tenant(connection, tenant)


async def drop_some(connection: Any, tables: Sequence[TenantTable], tenant: int) -> bool:
    """Delete `DROPPED_AT_ONCE` rows of the tenant; false once there were fewer left than that."""
    await connection.execute(_AS_REPLICA_IF_ALLOWED)
    left = DROPPED_AT_ONCE
    for table in reversed(tables):
        query = (
            f"DELETE FROM {table.quoted} WHERE ctid = ANY (ARRAY("  # noqa: S608
            f"SELECT ctid FROM {table.quoted} WHERE tenant_id = $1 LIMIT $2))"
        )
        left -= int((await connection.execute(query, tenant, left)).rpartition(" ")[2])
        if left <= 0:
            return True
    return False


async def are_many(connection: Any, tables: Sequence[TenantTable], tenant: int) -> bool:
    """Whether the tenant has more rows than one statement or two should delete."""
    counts = " UNION ALL ".join(
        f"(SELECT count(*) AS n FROM (SELECT FROM {t.quoted} WHERE tenant_id = $1 LIMIT $2) counted)"  # noqa: S608
        for t in tables
    )
    found = await connection.fetchval(f"SELECT sum(n) FROM ({counts}) c", tenant, DROPPED_AT_ONCE)  # noqa: S608
    return int(found or 0) >= DROPPED_AT_ONCE


async def checksum(connection: Any, tables: Sequence[TenantTable], tenant: int) -> Checksum:
    """Rows and digest per table. Order-free: sums of the two halves of 128 bits of SHA-256 of each row's text."""
    await connection.execute(_PINNED)
    each = " UNION ALL ".join(
        f"SELECT {n} AS n, sums.* FROM ({_sums(_all_lines(t))}) sums"  # noqa: S608
        for n, t in enumerate(tables)
    )
    found = {row[0]: row[1:] for row in await connection.fetch(each, tenant)} if tables else {}
    return Checksum({t.label: _digest(t, *found[n]) for n, t in enumerate(tables)})


async def checksum_of(connection: Any, tables: Sequence[TenantTable], tenant: int, keys: Keys) -> Checksum:
    """The same over the rows that have those keys. A key without a row counts nothing."""
    await connection.execute(_PINNED)
    await connection.execute(BY_INDEX)
    known = {t.label: t for t in tables}
    found = {}
    for label, wanted in sorted(keys.items()):
        table = known[label]
        columns = list(zip(*wanted, strict=True))
        sums = await connection.fetchrow(_sums(_lines_of_keys(table)), tenant, *columns)
        found[label] = _digest(table, *sums)
    return Checksum(found)


def _all_lines(table: TenantTable) -> str:
    return f"SELECT ROW({table.listed})::text AS line FROM {table.quoted} WHERE tenant_id = $1"  # noqa: S608


def _lines_of_keys(table: TenantTable) -> str:
    """Rows by key: one array of text a column of the key but the tenant's, from the second parameter on.

    Key by key, because a planner that knows nothing of a table that was just filled may read all of the tenant instead.
    """
    own = own_key(table)
    if not own:
        return _all_lines(table)
    at = [table.columns.index(column) for column in own]
    labels = ", ".join(f"k{n}" for n in range(len(own)))
    arrays = ", ".join(f"${n + 2}::text[]" for n in range(len(own)))
    found = " AND ".join(f"{table.names[i]} = wanted.k{n}::{table.types[i]}" for n, i in enumerate(at))
    return (
        f"SELECT line FROM (SELECT DISTINCT {labels} FROM unnest({arrays}) AS given({labels})) wanted"  # noqa: S608
        f" CROSS JOIN LATERAL ({_all_lines(table)} AND {found} OFFSET 0) found"
    )


def own_key(table: TenantTable) -> tuple[str, ...]:
    """The columns of the primary key but the tenant's."""
    return tuple(column for column in table.key if column != "tenant_id")


def _sums(lines: str) -> str:
    """The query of how many lines there are, and of the sums of the halves of their hashes."""
    half = "coalesce(sum(('x' || substr(h, {}, 16))::bit(64)::bigint::numeric), 0)::text"
    return (
        f"SELECT count(*), {half.format(1)}, {half.format(17)} FROM ("  # noqa: S608
        f"SELECT encode(sha256(convert_to(line, 'UTF8')), 'hex') AS h FROM ({lines}) lines"
        " OFFSET 0) hashed"  # hashes each row once, not twice
    )


def _digest(table: TenantTable, rows: int, first: str, second: str) -> tuple[int, str]:
    text = "\n".join((*table.columns, first, second))
    return rows, hashlib.sha256(text.encode()).hexdigest()[:32]


async def estimate(connection: Any, tables: Sequence[TenantTable], tenant: int) -> int:
    """How many rows the tenant has, counting no more than `ESTIMATE_MAX` of a table."""
    total = 0
    for table in tables:
        query = f"SELECT count(*) FROM (SELECT FROM {table.quoted} WHERE tenant_id = $1 LIMIT $2) counted"  # noqa: S608
        total += await connection.fetchval(query, tenant, ESTIMATE_MAX)
    return total


async def measure(connection: Any, tables: Sequence[TenantTable], tenant: int) -> tuple[int, int]:
    """All rows of the tenant, counted, and their bytes as far as a sample of each table tells."""
    total = size = 0
    for table in tables:
        count = await connection.fetchval(f"SELECT count(*) FROM {table.quoted} WHERE tenant_id = $1", tenant)  # noqa: S608
        sample = f"SELECT * FROM {table.quoted} WHERE tenant_id = $1 LIMIT {SAMPLE}"  # noqa: S608
        mean = await connection.fetchval(
            f"SELECT coalesce(avg(pg_column_size(s)), 0)::float8 FROM ({sample}) s",  # noqa: S608
            tenant,
        )
        total += count
        size += int(count * mean)
    return total, size
