"""A tenant's rows as a whole: copied out, copied in, compared, dropped. The caller holds the tenant's lock.

Runs as the transfer role, which bypasses row-level security (COPY FROM refuses it), so every statement here names the
tenant itself, and an import proves afterwards that it wrote rows of that tenant only.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec

from cell.transfer import frames
from cell.transfer.catalogue import TenantTable
from cell.transfer.frames import BrokenStreamError, Count, Kind, TableHeader
from contracts.transfer import Checksum, Imported

QUEUED_PIECES: Final = 8
ESTIMATE_MAX: Final = 100_000  # rows of one table that an estimate counts

# Text that is compared must not depend on how a server or a role is set up.
_PINNED: Final = (
    "SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL intervalstyle = 'iso_8601'; SET LOCAL timezone = 'UTC';"
    " SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C';"
    " SET LOCAL xmlbinary = 'base64'"
)


async def export(connection: Any, tables: Sequence[TenantTable], tenant: int) -> AsyncIterator[bytes]:
    """The row stream of a tenant that nobody writes to. Back-pressure: at most a few pieces wait for the reader."""
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_PIECES)
    producer = asyncio.get_running_loop().create_task(_produce(connection, tables, tenant, queue))
    try:
        while (piece := await queue.get()) is not None:
            yield piece
        await producer
    finally:
        producer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await producer


async def _produce(
    connection: Any, tables: Sequence[TenantTable], tenant: int, queue: "asyncio.Queue[bytes | None]"
) -> None:
    rows = size = 0

    async def put(data: bytes) -> None:
        nonlocal size
        size += len(data)
        for piece in frames.data_frames(bytes(data)):
            await queue.put(piece)

    try:
        await queue.put(frames.MAGIC)
        for table in tables:
            header = TableHeader(table.schema, table.name, table.columns)
            await queue.put(frames.frame(Kind.TABLE, msgspec.json.encode(header)))
            # The tenant is an integer of ours and the names were quoted by the database; COPY takes no parameters.
            query = f"SELECT {table.listed} FROM {table.quoted} WHERE tenant_id = {int(tenant)}"  # noqa: S608
            status = await connection.copy_from_query(query, output=put, format="binary")
            copied = int(status.rpartition(" ")[2])
            rows += copied
            await queue.put(frames.frame(Kind.TABLE_END, msgspec.json.encode(Count(copied))))
        totals = Count(rows, len(tables), size)
        await queue.put(frames.frame(Kind.END, msgspec.json.encode(totals)))
    except Exception:
        await queue.put(None)  # the reader comes to await this task, and finds the failure
        raise
    await queue.put(None)


async def import_(
    connection: Any, tables: Sequence[TenantTable], tenant: int, pieces: AsyncIterator[bytes]
) -> Imported:
    """Write a whole row stream, or raise `BrokenStreamError`. Commits nothing itself."""
    reader = frames.Reader(pieces)
    await reader.start()
    expected = list(tables)
    rows = size = 0
    while isinstance(header := await reader.table(), TableHeader):
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
    size = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal size
        async for piece in reader.rows(ended):
            size += len(piece)
            yield piece

    status = await connection.copy_to_table(
        table.name, schema_name=table.schema, columns=table.columns, source=source(), format="binary"
    )
    copied = int(status.rpartition(" ")[2])
    own = await connection.fetchval(f"SELECT count(*) FROM {table.quoted} WHERE tenant_id = $1", tenant)  # noqa: S608
    if not ended or copied != ended[0].rows or own != copied:
        raise BrokenStreamError(f"{table.label}: {copied} rows arrived, {own} of them of this tenant")
    return copied, size


async def drop(connection: Any, tables: Sequence[TenantTable], tenant: int) -> None:
    """Delete all rows of the tenant, children first, and its wake-ups."""
    for table in reversed(tables):
        await connection.execute(f"DELETE FROM {table.quoted} WHERE tenant_id = $1", tenant)  # noqa: S608
    await connection.execute("DELETE FROM cellwall.work WHERE tenant_id = $1", tenant)


async def checksum(connection: Any, tables: Sequence[TenantTable], tenant: int) -> Checksum:
    """Rows and digest per table. Order-free: sums of the two halves of 128 bits of SHA-256 of each row's text."""
    await connection.execute(_PINNED)
    return Checksum({t.label: await _table_checksum(connection, t, tenant) for t in tables})


async def _table_checksum(connection: Any, table: TenantTable, tenant: int) -> tuple[int, str]:
    half = "coalesce(sum(('x' || substr(h, {}, 16))::bit(64)::bigint::numeric), 0)::text"
    query = (
        f"SELECT count(*), {half.format(1)}, {half.format(17)} FROM ("  # noqa: S608
        f"SELECT encode(sha256(convert_to(ROW({table.listed})::text, 'UTF8')), 'hex') AS h"
        f" FROM {table.quoted} WHERE tenant_id = $1) hashed"
    )
    rows, first, second = await connection.fetchrow(query, tenant)
    text = "\n".join((*table.columns, first, second))
    return rows, hashlib.sha256(text.encode()).hexdigest()[:32]


async def estimate(connection: Any, tables: Sequence[TenantTable], tenant: int) -> int:
    """How many rows the tenant has, counting no more than `ESTIMATE_MAX` of a table."""
    total = 0
    for table in tables:
        query = f"SELECT count(*) FROM (SELECT FROM {table.quoted} WHERE tenant_id = $1 LIMIT $2) counted"  # noqa: S608
        total += await connection.fetchval(query, tenant, ESTIMATE_MAX)
    return total
