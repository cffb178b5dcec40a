"""The streams that come into this cell: batches are applied, once and in their order, and what they touched is known.

One transaction a batch: the tenant's lock, the fence, the state, the rows, and compare-and-set of the progress row. So
a batch that is late, doubled or out of order changes nothing (moves.md rule 1).
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import structlog

from cell.shards.session import Pool
from cell.transfer import apply, batches, catalogue, progress, rows
from cell.transfer import fence as fences
from cell.transfer.apply import ConflictError
from cell.transfer.batches import BrokenBatchError
from cell.transfer.fence import Effect
from cell.transfer.locks import LockBusyError, Patience
from cell.transfer.progress import Progress
from cell.transfer.rules import Command
from cell.transfer.senders import check_stream
from cell.transfer.wal import BrokenMessageError
from contracts import ids, problems, transfer
from contracts.names import Field
from contracts.problems import ProblemError
from contracts.transfer import (
    Applied,
    Batch,
    Fence,
    Remainder,
    RemainderQuery,
    Standby,
    Stream,
    StreamStatus,
    Verified,
)

PATIENCE: Final = Patience(budget_s=2.0, polite_s=0.1)  # who still holds the lock was overtaken
CUT_OVER: Final = "cut-over"  # the marker that a standby counts from
_LIST: Final = """
SELECT coalesce(p.stream, o.roname) AS stream, p.position, p.verified, p.touched
FROM cellwall.stream_progress p
FULL JOIN (SELECT roname FROM pg_replication_origin WHERE roname LIKE 'cellwall\\_t%') o ON o.roname = p.stream
ORDER BY 1
"""
_DROP_ORIGIN: Final = "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = $1"

_log = structlog.get_logger()


class Receivers:
    """``clock`` is the loop's."""

    def __init__(self, pools: Mapping[str, Pool], shard_of: Callable[[int], str], clock: Callable[[], float]) -> None:
        self._pools = pools
        self._shard_of = shard_of
        self._clock = clock

    async def apply(self, tenant: int, fence: Fence, data: bytes) -> Applied:
        """All of the batch or nothing; one that was applied already changes nothing."""
        try:
            head, messages = batches.decode(data)
        except BrokenBatchError as e:
            raise ProblemError(problems.INVALID, str(e)) from e
        check_stream(head.stream, tenant)
        pool = self._pool(tenant)
        row = await fences.arrive(pool, tenant, fence, "apply")
        if row.result is not None:
            return msgspec.convert(row.result, Applied)
        async with (
            pool.acquire() as connection,
            apply.originated(connection, head.stream) as enter,
            self._effect(connection, tenant, fence, "apply") as effect,
        ):
            await enter()
            try:
                applied = await self._applied(effect.connection, tenant, head, messages)
            except (BrokenBatchError, BrokenMessageError) as e:
                raise ProblemError(problems.INVALID, str(e)) from e
            except ConflictError as e:
                raise ProblemError(problems.CONFLICT, str(e)) from e
            await effect.settle(effect.row.state, msgspec.to_builtins(applied))
        return applied

    async def _applied(self, connection: Any, tenant: int, head: Batch, messages: Any) -> Applied:
        found = await self._progress(connection, tenant, head.stream, lock=True)
        if head.position <= found.position:
            return Applied(head.stream, found.position, 0, 0, found.marker, found.touched)
        if head.after != found.position:
            raise ProblemError(
                problems.WRONG_STATE, f"the batch follows {head.after}, the progress is {found.position}"
            )
        touched = found.touched
        if head.changes:
            tables = {t.label: t for t in await catalogue.tenant_tables(connection)}
            changes = apply.decoded(messages, tables, tenant)
            if len(changes) != head.changes:
                raise BrokenBatchError(f"{len(changes)} changes, not {head.changes}")
            await apply.write(connection, tables, changes)
            if found.verified and found.complete:
                touched += await progress.touch(connection, head.stream, apply.own_keys(changes, tables))
        marker = head.marker or ("" if head.changes else found.marker)
        if not await progress.advance(connection, head.stream, found.position, head.position, marker, touched):
            raise ProblemError(problems.WRONG_STATE, "the progress changed under the lock")
        return Applied(head.stream, head.position, head.transactions, head.changes, marker, touched)

    async def verified(self, tenant: int, fence: Fence, body: Verified) -> None:
        """Both sides held the same at that marker, where the receiver still stands. From now on keys are remembered."""
        check_stream(body.stream, tenant)
        async with self._pool(tenant).acquire() as connection, connection.transaction():
            await fences.beside(connection, tenant, fence, "verified")
            found = await self._progress(connection, tenant, body.stream, lock=True)
            if not await progress.verify(connection, body.stream, body.marker):
                raise ProblemError(
                    problems.WRONG_STATE, f"the receiver stands at {found.marker or 'no marker'}, not at {body.marker}"
                )

    async def remainder(self, tenant: int, fence: Fence, query: RemainderQuery) -> Remainder:
        """The checksum over the given keys, or over those that were touched here since the verified marker."""
        check_stream(query.stream, tenant)
        async with self._pool(tenant).acquire() as connection, connection.transaction():
            await fences.beside(connection, tenant, fence, "remainder")
            tables = await catalogue.tenant_tables(connection)
            complete, marker, keys = True, "", query.tables
            if keys is None:
                found = await self._progress(connection, tenant, query.stream)
                complete, marker = found.complete and bool(found.verified), found.verified
                keys = await progress.touched(connection, query.stream) if complete else {}
            _check_keys(keys, tables)
            return Remainder(keys, await rows.checksum_of(connection, tables, tenant, keys), complete, marker)

    async def standby(self, tenant: int, fence: Fence, body: Standby) -> None:
        """frozen -> standby: 421 with the hint, and the stream is applied from its start on. Both sides are the same.

        Repeated by a newer leader it leaves the progress where it is.
        """
        check_stream(body.stream, tenant)
        pool = self._pool(tenant)
        if (await fences.arrive(pool, tenant, fence, "standby")).result is not None:
            return
        async with pool.acquire() as connection, self._effect(connection, tenant, fence, "standby") as effect:
            if effect.row.state == "frozen" or await progress.read(connection, body.stream) is None:
                await progress.begin(connection, tenant, Stream(body.stream, body.position), CUT_OVER)
            await effect.settle("standby", {}, hint=body.hint)

    async def drop(self, tenant: int, stream: str) -> None:
        """Forget progress and origin. Nothing happens where there is nothing."""
        async with self._pool(tenant).acquire() as connection:
            await progress.forget(connection, stream)
            await connection.execute(_DROP_ORIGIN, stream)

    async def list(self) -> list[StreamStatus]:
        """Every stream that this cell receives, and every origin that one left."""
        found: list[StreamStatus] = []
        for shard, pool in sorted(self._pools.items()):
            async with pool.acquire() as connection:
                for record in await connection.fetch(_LIST):
                    status = _status(shard, record)
                    if status is not None:
                        found.append(status)
        return found

    async def _progress(self, connection: Any, tenant: int, stream: str, *, lock: bool = False) -> Progress:
        found = await progress.read(connection, stream, lock=lock)
        if found is None or found.tenant_id != tenant:
            raise ProblemError(problems.STREAM_LOST, "this cell has no progress of the stream")
        return found

    @asynccontextmanager
    async def _effect(self, connection: Any, tenant: int, fence: Fence, command: Command) -> AsyncIterator[Effect]:
        try:
            async with fences.effect_on(connection, tenant, fence, command, PATIENCE, self._clock) as effect:
                yield effect
        except LockBusyError as e:
            raise ProblemError(problems.FREEZE_BUSY, str(e)) from e
        named = {Field.TENANT: str(ids.tenant_of(tenant)), Field.MOVE: fence.move}
        _log.debug("transfer_command_settled", **named, command=command)

    def _pool(self, tenant: int) -> Pool:
        return self._pools[self._shard_of(tenant)]


def _check_keys(keys: transfer.Keys, tables: tuple[catalogue.TenantTable, ...]) -> None:
    known = {t.label: len(rows.own_key(t)) for t in tables}
    for label, wanted in keys.items():
        if label not in known or any(len(key) != known[label] for key in wanted):
            raise ProblemError(problems.INVALID, f"{label}: no such table, or not its key")
    if sum(map(len, keys.values())) > transfer.REMAINDER_KEYS_MAX:
        raise ProblemError(problems.INVALID, f"more than {transfer.REMAINDER_KEYS_MAX} keys")


def _status(shard: str, record: Any) -> StreamStatus | None:
    try:
        tenant = transfer.parse_stream_name(record["stream"]).tenant
    except ValueError:  # a name of somebody else
        return None
    if record["position"] is None:
        return StreamStatus(record["stream"], tenant, shard, "receiver", "unpublished", 0)
    marks = {"verified": record["verified"], "touched": record["touched"]}
    return StreamStatus(record["stream"], tenant, shard, "receiver", "receiving", record["position"], **marks)
