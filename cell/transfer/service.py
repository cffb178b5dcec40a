"""The commands of the transfer API. Each is fenced, idempotent, and one transaction on the tenant's shard."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

import msgspec
import structlog

from cell.events.outbox import WORK_KIND
from cell.gate import Gate
from cell.shards.errors import ShardUnavailableError
from cell.shards.session import Pool, TenantSession
from cell.transfer import catalogue, lanes, progress, rows, rules, senders
from cell.transfer import fence as fences
from cell.transfer.fence import ElsewhereError
from cell.transfer.frames import BrokenStreamError
from cell.transfer.locks import LockBusyError, Patience
from cell.transfer.rules import Command, FenceRow
from cell.transfer.shedding import Shedder
from cell.vault import Vault, VaultError
from contracts import ids, problems
from contracts.names import Field
from contracts.problems import ProblemError
from contracts.transfer import (
    Abort,
    Activate,
    CellInfo,
    Checksum,
    Fence,
    Freeze,
    Frozen,
    Imported,
    Prepare,
    Provision,
    Provisioned,
    Release,
    Restore,
    TenantStatus,
)

# Of everything but a freeze: who still holds the lock is an older command, which the fence has overtaken.
PATIENCE: Final = Patience(budget_s=2.0, polite_s=0.1)
POLITE_FREEZE_S: Final = 0.05
_HINT: Final = re.compile(r"[A-Za-z0-9;_-]{0,400}")
_ENTER_FOR_OWNER: Final = "SELECT set_config('cellwall.tenant', $1, true)"
# Activation clears claims: whatever the old home had relayed may never have been consumed there.
_RELAY_AGAIN: Final = "UPDATE cellwall.outbox SET relayed_at = NULL WHERE tenant_id = $1 AND finished_at IS NULL"
_WAKE: Final = (
    "INSERT INTO cellwall.work (tenant_id, kind, due) SELECT $1, kind, now() FROM unnest($2::text[]) AS kind"
    " ON CONFLICT (tenant_id, kind) DO UPDATE SET due = least(work.due, excluded.due)"
)

ELSEWHERE_S: Final = 4.0  # how long a command waits for a bucket; its caller gives up after five seconds
ELSEWHERE_RETRY_S: Final = 0.02

CreateOwner = Callable[[TenantSession, str, str, str], Awaitable[tuple[Any, str]]]
T = TypeVar("T", bound=msgspec.Struct)
A = TypeVar("A")

_log = structlog.get_logger()


async def unchanging() -> None:
    """For a cell whose buckets stay where they are."""


class Transfer:
    """Moves tenants in and out. ``shard_of`` says where a tenant belongs in this cell; ``clock`` is the loop's."""

    lanes: ClassVar = lanes.LANES  # of a snapshot

    def __init__(
        self,
        *,
        cell: str,
        schema: str,
        pools: Mapping[str, Pool],
        shard_of: Callable[[int], str],
        gate: Gate,
        create_owner: CreateOwner,
        clock: Callable[[], float],
        vault: Vault,
        kinds: Sequence[str] = (WORK_KIND,),
        refresh: Callable[[], Awaitable[None]] = unchanging,
    ) -> None:
        """``kinds`` of work are woken for a tenant that becomes active here: claims of its old home count no more."""
        self._cell = cell
        self._schema = schema
        self._pools = pools
        self._shard_of = shard_of
        self._gate = gate
        self._create_owner = create_owner
        self._clock = clock
        self._turns = {shard: asyncio.Lock() for shard in pools}  # to take the connections of all lanes
        self.shedder = Shedder(pools, clock)  # its loop is the process's to run
        self._vault = vault
        self._kinds = list(kinds)
        self._refresh = refresh  # of what `shard_of` knows

    # -- reading ------------------------------------------------------------------------------------------------

    def info(self) -> CellInfo:
        """Which cell this is."""
        return CellInfo(self._cell, self._schema, tuple(sorted(self._pools)), self.lanes)

    async def tenants(self) -> list[TenantStatus]:
        """The fence rows of all shards, also of tenants that left."""
        found: list[TenantStatus] = []
        for shard, pool in sorted(self._pools.items()):
            async with pool.acquire() as connection:
                found += [_status(row, shard) for row in await fences.read_all(connection)]
        return found

    async def status(self, tenant: int, *, count_rows: bool = False) -> TenantStatus:
        """The fence row of one tenant."""
        return await self._where_it_is(tenant, partial(self._status_at, tenant, count_rows))

    async def _status_at(self, tenant: int, count_rows: bool, shard: str) -> TenantStatus:
        async with self._pools[shard].acquire() as connection, connection.transaction():
            await fences.hold_bucket(connection, tenant)
            row = await fences.read(connection, tenant)
            if row is None:
                raise ProblemError(problems.NOT_FOUND, "this cell has no such tenant")
            count = None
            if count_rows:
                count = await rows.estimate(connection, await catalogue.tenant_tables(connection), tenant)
        return _status(row, shard, count)

    # -- the target ---------------------------------------------------------------------------------------------

    async def provision(self, tenant: int, fence: Fence, body: Provision) -> Provisioned:
        """An empty active tenant with its owner. A repeat makes the owner anew: only its own answer has the key."""
        await self._arrive(tenant, fence, "provision")
        async with self._effect(tenant, fence, "provision") as effect:
            if not rules.check_provision(effect.row, body.epoch):
                await rows.drop(effect.connection, await catalogue.tenant_tables(effect.connection), tenant)
            await effect.connection.execute(_ENTER_FOR_OWNER, str(tenant))
            session = TenantSession(effect.connection, tenant)
            user_id, api_key = await self._create_owner(session, body.name, body.owner_email, body.owner_password)
            await effect.settle("active", {"provisioned": True}, epoch=body.epoch)
        return Provisioned(str(user_id), api_key)

    async def prepare(self, tenant: int, fence: Fence, body: Prepare) -> None:
        """Make room: state ``importing``, no rows, whatever an earlier stay or import left.

        Refused where the epoch is used up here: found at activation only, it would come after the decision.
        """
        if body.schema != self._schema:
            raise ProblemError(problems.SCHEMA_MISMATCH, f"{self._cell} has {self._schema}, not {body.schema}")
        row = await self._arrive(tenant, fence, "prepare")
        if row.result is not None:
            return
        if row.state != "gone":
            await self._shed(tenant, fence, "prepare", body.min_epoch)
        async with self._effect(tenant, fence, "prepare") as effect:
            rules.check_preparation(effect.row, body.min_epoch)
            await rows.drop(effect.connection, await catalogue.tenant_tables(effect.connection), tenant)
            await effect.settle("importing", {}, min_epoch=body.min_epoch, hint="")

    async def import_(self, tenant: int, fence: Fence, pieces: AsyncIterator[bytes]) -> Imported:
        """All rows of the stream, or an import that did not take effect. A repeat after success reads nothing.

        In one transaction; a snapshot in several, see `lanes`.
        """
        row = await self._arrive(tenant, fence, "import")
        if row.result is not None:
            return msgspec.convert(row.result, Imported)
        snapshot, pieces = await lanes.is_snapshot(pieces)
        if snapshot:
            return await self._import_laned(tenant, fence, pieces)
        async with self._effect(tenant, fence, "import") as effect:
            tables = await catalogue.tenant_tables(effect.connection)
            await rows.drop_if_any(effect.connection, tables, tenant)
            try:
                imported = await rows.import_(effect.connection, tables, tenant, pieces, self._vault)
            except BrokenStreamError as e:
                raise ProblemError(problems.INVALID, str(e)) from e
            await effect.settle("importing", msgspec.to_builtins(imported))
        return imported

    async def _import_laned(self, tenant: int, fence: Fence, pieces: AsyncIterator[bytes]) -> Imported:
        shard = self._shard_of(tenant)
        async with self._effect(tenant, fence, "import") as effect:  # what an attempt before this one may have left
            tables = await catalogue.tenant_tables(effect.connection)
            await rows.drop(effect.connection, tables, tenant)
        try:
            async with lanes.acquired(self._pools[shard], self._turns[shard]) as connections:
                received = await lanes.import_(
                    lambda lane: fences.part(
                        connections[lane], tenant, fence, "import", PATIENCE.budget_s, self._clock
                    ),
                    tables, tenant, pieces,
                )  # fmt: skip
        except BrokenStreamError as e:
            raise ProblemError(problems.INVALID, str(e)) from e
        except LockBusyError as e:
            raise ProblemError(problems.FREEZE_BUSY, str(e)) from e
        async with self._effect(tenant, fence, "import") as effect:
            if received.start is not None:
                await progress.begin(effect.connection, tenant, received.start)
            if received.key is not None:
                await self._vault.adopt(effect.connection, tenant, received.key.key)
            imported = Imported(len(tables), received.rows, received.size)
            await effect.settle("importing", msgspec.to_builtins(imported))
        return imported

    async def activate(self, tenant: int, fence: Fence, body: Activate) -> None:
        """importing -> active, and the workers are woken for what the outbox holds. Against `abort`, the first wins."""
        if (await self._arrive(tenant, fence, "activate")).result is not None:
            return
        async with self._effect(tenant, fence, "activate") as effect:
            rules.check_activation(effect.row, body.epoch)
            await effect.connection.execute(_RELAY_AGAIN, tenant)
            await effect.connection.execute(_WAKE, tenant, self._kinds)
            await effect.settle("active", {}, epoch=body.epoch, hint="")

    async def abort(self, tenant: int, fence: Fence, body: Abort) -> None:
        """Give an import up: its rows go, and no activation below ``min_epoch`` succeeds any more.

        The source waits for this answer, so many rows go afterwards, by the `Shedder`.

        A tenant that moved away stays ``moved``, or ``standby``, with its rows: they are the older home's, not the
        import's, and a standby goes on following.
        """
        if (await self._arrive(tenant, fence, "abort")).result is not None:
            return
        async with self._effect(tenant, fence, "abort") as effect:
            least = max(effect.row.min_epoch, body.min_epoch)
            if effect.row.state in ("moved", "standby"):
                await effect.settle(effect.row.state, {}, min_epoch=least)
                return
            tables = await catalogue.tenant_tables(effect.connection)
            left = await rows.are_many(effect.connection, tables, tenant)
            if not left:
                await rows.drop(effect.connection, tables, tenant)
            await effect.settle("aborted", {}, min_epoch=least)
        if left:
            self.shedder.wake()

    # -- the source ---------------------------------------------------------------------------------------------

    async def freeze(self, tenant: int, fence: Fence, body: Freeze) -> Frozen:
        """Soft: admit no more, let admitted requests finish. Hard: the exclusive lock, ending who still holds it.

        When it returns, no transaction of the tenant is open and none can begin. A marker commits with the freeze, so
        that nothing of the tenant follows it in the stream. `FREEZE_BUSY` leaves it active.
        """
        row = await self._arrive(tenant, fence, "freeze")
        if row.result is not None:
            return msgspec.convert(row.result, Frozen)
        began = self._clock()
        patience = Patience(body.hard_ms / 1000, min(POLITE_FREEZE_S, body.hard_ms / 4000))
        with self._gate.closed(tenant):
            await self._gate.drain(tenant, body.soft_ms / 1000)
            drained_ms = round((self._clock() - began) * 1000, 3)
            self._gate.note_freeze(tenant)
            async with self._effect(tenant, fence, "freeze", patience) as effect:
                if body.marker:
                    senders.check_stream(body.stream, tenant)
                    await senders.emit(effect.connection, body.stream, body.marker)
                frozen = Frozen(effect.row.epoch, drained_ms, effect.ended)
                await effect.settle("frozen", msgspec.to_builtins(frozen))
        _log.info("tenant_frozen", **_named(tenant, fence), cancelled=frozen.cancelled, drained_ms=frozen.drained_ms)
        return frozen

    async def export(self, tenant: int, fence: Fence) -> AsyncIterator[bytes]:
        """The row stream of a frozen tenant. What refuses it is raised here; what breaks later cuts the stream."""
        await self._arrive(tenant, fence, "export")
        stream = self._export(tenant, fence)
        first = await anext(stream)
        return rows.continued(first, stream)

    async def _export(self, tenant: int, fence: Fence) -> AsyncIterator[bytes]:
        async with self._view(tenant, fence, "export") as connection:
            tables = await catalogue.tenant_tables(connection)
            try:
                key = await self._vault.unwrapped(connection, tenant)
            except VaultError as e:
                raise ProblemError(problems.CONFLICT, str(e)) from e
            exported = rows.export(connection, tables, tenant, key=key)
            async with aclosing(exported) as pieces:  # before the transaction ends
                async for piece in pieces:
                    yield piece

    async def restore(self, tenant: int, fence: Fence, body: Restore) -> None:
        """frozen -> active at a higher epoch. A tenant that no freeze ever took only gets the epoch."""
        row = await self._arrive(tenant, fence, "restore")
        if row.result is not None:
            return
        # An active tenant stays so: this command, by arriving, fenced out every older freeze. Its transactions may go
        # on, so nobody has to give the lock up, and one who cannot be made to does not keep the tenant from its epoch.
        patience = None if row.state == "active" else PATIENCE
        async with self._effect(tenant, fence, "restore", patience) as effect:
            rules.check_restore(effect.row, body.epoch)
            await effect.connection.execute(_WAKE, tenant, self._kinds)
            await effect.settle("active", {}, epoch=body.epoch)

    async def release(self, tenant: int, fence: Fence, body: Release) -> None:
        """frozen -> moved: from now on 421, with the signed new route."""
        if not _HINT.fullmatch(body.hint):
            raise ProblemError(problems.INVALID, "hint: not a signed route")
        if (await self._arrive(tenant, fence, "release")).result is not None:
            return
        async with self._effect(tenant, fence, "release") as effect:
            await effect.settle("moved", {}, hint=body.hint)

    # -- both ---------------------------------------------------------------------------------------------------

    async def checksum(self, tenant: int, fence: Fence) -> Checksum:
        """Rows and digest per table, of a tenant that nobody writes to."""
        await self._arrive(tenant, fence, "checksum")
        async with self._view(tenant, fence, "checksum") as connection:
            return await rows.checksum(connection, await catalogue.tenant_tables(connection), tenant)

    async def purge(self, tenant: int, fence: Fence) -> None:
        """Drop the rows of a tenant that lives elsewhere. The fence row stays, so that late commands are refused.

        A large tenant goes in parts. Where the caller's patience ends first, a repeat goes on from there.
        """
        if (await self._arrive(tenant, fence, "purge")).result is not None:
            return
        await self._shed(tenant, fence, "purge")
        async with self._effect(tenant, fence, "purge") as effect:
            await rows.drop(effect.connection, await catalogue.tenant_tables(effect.connection), tenant)
            await effect.settle("gone", {})

    # -- how ----------------------------------------------------------------------------------------------------

    async def _shed(self, tenant: int, fence: Fence, command: Command, min_epoch: int | None = None) -> None:
        """Delete many rows in transactions of their own, as long as no newer command comes; few are left to the end."""
        parts = 0
        while True:
            try:
                async with fences.effect(self._pool(tenant), tenant, fence, command, PATIENCE, self._clock) as effect:
                    if min_epoch is not None:
                        rules.check_preparation(effect.row, min_epoch)
                    tables = await catalogue.tenant_tables(effect.connection)
                    if not parts and not await rows.are_many(effect.connection, tables, tenant):
                        return
                    await effect.give_up()
                    if not await rows.drop_some(effect.connection, tables, tenant):
                        return
            except LockBusyError as e:
                raise ProblemError(problems.FREEZE_BUSY, str(e)) from e
            parts += 1

    def _pool(self, tenant: int) -> Pool:
        return self._pools[self._shard_of(tenant)]

    async def _arrive(self, tenant: int, fence: Fence, command: Command) -> FenceRow:
        async def at(shard: str) -> FenceRow:
            return await fences.arrive(self._pools[shard], tenant, fence, command)

        return await self._where_it_is(tenant, at)

    async def _where_it_is(self, tenant: int, act: Callable[[str], Awaitable[A]]) -> A:
        """On the tenant's shard. Waits while its bucket moves, so that a sign-up does not fail for it."""
        until = self._clock() + ELSEWHERE_S
        while True:
            try:
                return await act(self._shard_of(tenant))
            except ElsewhereError:
                if self._clock() >= until:
                    raise
            with suppress(ShardUnavailableError):  # a directory that is away for a moment
                await self._refresh()
            await asyncio.sleep(ELSEWHERE_RETRY_S)

    @asynccontextmanager
    async def _effect(
        self, tenant: int, fence: Fence, command: Command, patience: Patience | None = PATIENCE
    ) -> AsyncIterator[fences.Effect]:
        try:
            async with fences.effect(self._pool(tenant), tenant, fence, command, patience, self._clock) as effect:
                yield effect
        except LockBusyError as e:
            raise ProblemError(problems.FREEZE_BUSY, str(e)) from e
        _log.info("transfer_command_settled", **_named(tenant, fence), command=command)

    @asynccontextmanager
    async def _view(self, tenant: int, fence: Fence, command: Command) -> AsyncIterator[Any]:
        pool = self._pool(tenant)
        try:
            async with fences.view(pool, tenant, fence, command, PATIENCE.budget_s, self._clock) as connection:
                yield connection
        except LockBusyError as e:
            raise ProblemError(problems.FREEZE_BUSY, str(e)) from e


def _status(row: FenceRow, shard: str, count: int | None = None) -> TenantStatus:
    tenant = str(ids.tenant_of(row.tenant_id))
    return TenantStatus(tenant, row.state, row.epoch, shard, row.move, row.term, row.seq, count, row.min_epoch)


def _named(tenant: int, fence: Fence) -> dict[str, Any]:
    return {Field.TENANT: str(ids.tenant_of(tenant)), Field.MOVE: fence.move}
