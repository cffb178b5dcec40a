"""Two cells with streams, on the servers of `two_cells`, and the steps of a large move as a mover would take them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cell import blobs
from cell.transfer.reader import Login
from cell.transfer.streams import Streams
from contracts import ids
from contracts.transfer import (
    Activate,
    Applied,
    Batch,
    ChangesQuery,
    Checksum,
    Freeze,
    Mark,
    Marked,
    OpenStream,
    Prepare,
    Remainder,
    RemainderQuery,
    SnapshotQuery,
    Standby,
    Stream,
    Verified,
    stream_name,
)
from tests.integration.cell.platform_parts.two_cells import SCHEMA, Cell

MOVE = "move-1"


@dataclass
class Large:
    """A cell and its streams."""

    cell: Cell
    streams: Streams

    @property
    def transfer(self) -> Any:
        """The ordinary commands."""
        return self.cell.transfer

    def fence(self, term: int = 1) -> Any:
        """The next fence of the leader."""
        return self.cell.fence(MOVE, term)

    async def open(self, tenant: int, direction: Any = "out") -> Stream:
        """Open a stream at this cell."""
        return await self.streams.senders.open(tenant, self.fence(), OpenStream(named(tenant, direction)))

    async def changes(
        self, tenant: int, after: int, direction: Any = "out", wait_ms: int = 30_000, max_bytes: int = 1 << 22
    ) -> tuple[Batch, bytes]:
        """The next batch of a stream that this cell sends."""
        query = ChangesQuery(named(tenant, direction), after, max_bytes, wait_ms)
        return await self.streams.senders.changes(tenant, self.fence(), query)

    async def apply(self, tenant: int, batch: bytes) -> Applied:
        """Apply a batch here."""
        return await self.streams.receivers.apply(tenant, self.fence(), batch)

    async def mark(self, tenant: int, name: str, direction: Any = "out", budget_ms: int = 2000) -> Marked:
        """A marker in a stream that this cell sends."""
        mark = Mark(named(tenant, direction), name, budget_ms)
        return await self.streams.senders.marker(tenant, self.fence(), mark)

    async def checksum(self, tenant: int) -> Checksum:
        """Of a tenant that nobody writes to."""
        found: Checksum = await self.transfer.checksum(tenant, self.fence())
        return found

    async def verify(self, tenant: int, marker: str, direction: Any = "out") -> None:
        """Both sides were the same there."""
        await self.streams.receivers.verified(tenant, self.fence(), Verified(named(tenant, direction), marker))

    async def remainder(self, tenant: int, keys: Any = None, direction: Any = "out") -> Remainder:
        """The remainder's checksum."""
        query = RemainderQuery(named(tenant, direction), keys)
        return await self.streams.receivers.remainder(tenant, self.fence(), query)

    async def freeze(self, tenant: int, marker: str, direction: Any = "out") -> None:
        """A freeze that ends in a marker."""
        await self.transfer.freeze(tenant, self.fence(), Freeze(0, 5000, named(tenant, direction), marker))

    async def standby(self, tenant: int, back: Stream) -> None:
        """frozen -> standby."""
        await self.streams.receivers.standby(tenant, self.fence(), Standby("hint", back.stream, back.position))

    async def close(self, tenant: int, direction: Any = "out") -> None:
        """Drop a stream."""
        await self.streams.close(tenant, self.fence(), named(tenant, direction))

    async def slots(self) -> list[str]:
        """The replication slots of the server."""
        return [row["slot_name"] for row in await self.cell.fetch("SELECT slot_name FROM pg_replication_slots")]

    async def publications(self) -> list[str]:
        """The publications of the shard."""
        return [row["pubname"] for row in await self.cell.fetch("SELECT pubname FROM pg_publication")]


def named(tenant: int, direction: Any = "out") -> str:
    """The stream's name."""
    return stream_name(ids.tenant_of(tenant), MOVE, direction)


@asynccontextmanager
async def large(cell: Cell, folder: Path) -> AsyncIterator[Large]:
    """Streams over the cell's own pools."""
    transfer = cell.transfer
    login = Login.to(cell.shard, cell.passwords.transfer, "test-stream")
    streams = Streams(
        pools=transfer._pools,
        shard_of=transfer._shard_of,
        login=lambda _: login,
        blobs=blobs.opened(folder.as_uri()),
        vault=cell.vault,
        clock=transfer._clock,
    )
    try:
        yield Large(cell, streams)
    finally:
        await streams.shut()


async def copied(source: Large, target: Large, tenant: int, epoch: int = 2) -> Stream:
    """Stream opened, snapshot imported; catching up can begin."""
    stream = await source.open(tenant)
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, epoch))
    rows = await source.streams.senders.snapshot(tenant, source.fence(), SnapshotQuery(stream.stream))
    await target.transfer.import_(tenant, target.fence(), rows)
    return stream


async def drained(
    source: Large, target: Large, tenant: int, after: int, marker: str, direction: Any = "out"
) -> Applied:
    """Carry batches until the marker was applied."""
    while True:
        head, batch = await source.changes(tenant, after, direction)
        applied = await target.apply(tenant, batch)
        assert applied.position >= after
        after = applied.position
        if head.marker == marker:
            return applied


async def cut_over(source: Large, target: Large, tenant: int, after: int, epoch: int) -> Stream:
    """Verify at a marker, freeze, drain, compare the remainder, switch; the old home is a standby."""
    marked = await source.mark(tenant, "m-1")
    applied = await drained(source, target, tenant, after, "m-1")
    assert marked.checksum == await target.checksum(tenant)
    await target.verify(tenant, "m-1")
    back = await target.open(tenant, "back")
    await source.freeze(tenant, "end")
    await drained(source, target, tenant, applied.position, "end")
    theirs = await target.remainder(tenant)
    assert theirs.complete
    assert (await source.remainder(tenant, theirs.tables)).checksum == theirs.checksum
    await target.transfer.activate(tenant, target.fence(), Activate(epoch))
    await source.standby(tenant, back)
    await source.close(tenant)
    return back
