"""What a move of a large tenant asks of a cell beyond the commands of every move: streams, and the tenant's blobs."""

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

from cell.blobs import BlobMissingError, Blobs, BlobStoreError, BlobTooLargeError
from cell.shards.session import Pool
from cell.transfer import catalogue, rows
from cell.transfer import fence as fences
from cell.transfer.reader import Login
from cell.transfer.receivers import Receivers
from cell.transfer.room import room
from cell.transfer.senders import Senders, check_stream
from cell.vault import Vault
from contracts import problems
from contracts.problems import ProblemError
from contracts.transfer import BlobInfo, Fence, Preflight, StreamRoom, StreamStatus

_BLOB: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")


class Streams:
    """``login`` says how to reach a shard with the replication protocol; ``clock`` is the loop's."""

    def __init__(
        self,
        *,
        pools: Mapping[str, Pool],
        shard_of: Callable[[int], str],
        login: Callable[[str], Login],
        blobs: Blobs,
        vault: Vault,
        clock: Callable[[], float],
    ) -> None:
        self.senders = Senders(pools, shard_of, login, vault, clock)
        self.receivers = Receivers(pools, shard_of, clock)
        self._pools = pools
        self._shard_of = shard_of
        self._blobs = blobs

    async def shut(self) -> None:
        """At the end of the process: readers and snapshots end, slots stay."""
        await self.senders.close()

    async def list(self) -> list[StreamStatus]:
        """Every part of a stream at this cell, and every leftover."""
        return await self.senders.list() + await self.receivers.list()

    async def close(self, tenant: int, fence: Fence, stream: str) -> None:
        """Drop whatever this cell has of the stream. Refused below the fence's term; no state forbids it."""
        check_stream(stream, tenant)
        async with self._pool(tenant).acquire() as connection:
            row = await fences.read(connection, tenant)
        if row is not None and fence.term < row.term:
            raise ProblemError(problems.FENCED, f"the leader of term {row.term} is at work")
        await self.senders.drop(tenant, stream)
        await self.receivers.drop(tenant, stream)

    async def preflight(self, tenant: int) -> Preflight:
        """What a move would carry, by estimate, and what forbids that it is a large one."""
        async with self._pool(tenant).acquire() as connection:
            if await fences.read(connection, tenant) is None:
                raise ProblemError(problems.NOT_FOUND, "this cell has no such tenant")
            tables = await catalogue.tenant_tables(connection)
            counted, size = await rows.measure(connection, tables, tenant)
        sizes = [blob.size for blob in await self.blobs(tenant)]
        return Preflight(counted, size, len(sizes), sum(sizes), catalogue.obstacles(tables))

    async def room(self, tenant: int) -> StreamRoom:
        """How many more streams the tenant's shard takes, of whomever."""
        async with self._pool(tenant).acquire() as connection:
            return await room(connection, self._shard_of(tenant))

    # -- blobs --------------------------------------------------------------------------------------------------

    async def blobs(self, tenant: int) -> "Sequence[BlobInfo]":
        """The tenant's blobs in this cell's store."""
        try:
            return sorted(
                [BlobInfo(name, size) async for name, size in self._blobs.of(tenant)], key=lambda blob: blob.name
            )
        except BlobStoreError as e:
            raise ProblemError(problems.BLOBS_UNAVAILABLE, str(e)) from e

    async def blob(self, tenant: int, name: str) -> AsyncIterator[bytes]:
        """The pieces of one."""
        try:
            return await self._blobs.copied_out(tenant, _blob_name(name))
        except BlobMissingError as e:
            raise ProblemError(problems.NOT_FOUND, str(e)) from e
        except BlobStoreError as e:
            raise ProblemError(problems.BLOBS_UNAVAILABLE, str(e)) from e

    async def store_blob(self, tenant: int, fence: Fence, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Store it under its key: whole or not at all. The tenant must be on its way in, or have its rows here."""
        async with self._pool(tenant).acquire() as connection:
            await fences.beside(connection, tenant, fence, "blob")
        try:
            async with self._blobs.writing(tenant, _blob_name(name)) as file:
                async for piece in pieces:
                    await file.write(piece)
        except BlobTooLargeError as e:
            raise ProblemError(problems.INVALID, str(e)) from e
        except BlobStoreError as e:
            raise ProblemError(problems.BLOBS_UNAVAILABLE, str(e)) from e

    def _pool(self, tenant: int) -> Pool:
        return self._pools[self._shard_of(tenant)]


def _blob_name(name: str) -> str:
    if not _BLOB.fullmatch(name):
        raise ProblemError(problems.INVALID, f"{name!r} is not the name of a file")
    return name
