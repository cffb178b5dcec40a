"""Moving tenants out of cell zero and back: the commands of contracts/transfer.py over the monolith's rows.

The fence, the row stream and the checksums are the cells' own, on the staging area in the monolith's database. What is
different here:

| Command | In cell zero |
|---|---|
| freeze | nothing of ours holds the monolith's transactions, so it waits for them and ends none (moves.md rule 21);
  before the marker of a stream it translates what changed (`cell.zero.streams`) |
| export | translates the monolith's rows into the staging area first, at one snapshot; a fault stops this tenant, and
  a table that the translation does not know every one |
| checksum | of a frozen tenant: refused where the monolith's rows are not those any more that were translated; of one
  that a stream fills: the monolith's rows are written first |
| import | translates back, writes only rows that differ, and proves it by translating forward again |
| activate | the key map travels from now on; units that events had yet to count are counted from the positions |
| purge | drops the staged rows; a row of the monolith is never deleted because its tenant has left |
| provision | refused: whoever signs up goes to a modern cell |
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import msgspec
import structlog

from cell.events.inbox import Consumer
from cell.shards.session import Pool, TenantSession
from cell.transfer import catalogue, rows, rules, senders
from cell.transfer import fence as fences
from cell.transfer.frames import BrokenStreamError
from cell.transfer.service import Transfer
from cell.vault import Vault
from cell.zero import carry, quarantine, shop, staging
from cell.zero.door import Door
from contracts import ids, problems
from contracts.names import Field
from contracts.problems import ProblemError
from contracts.transfer import (
    Activate,
    Checksum,
    Fence,
    Freeze,
    Frozen,
    Imported,
    Prepare,
    Provision,
    Provisioned,
    TenantStatus,
)

SHARD: Final = "monolith"
_FOLLOWS: Final = "SELECT EXISTS (SELECT FROM cellwall.stream_progress WHERE tenant_id = $1)"

# Events that the catalog has yet to count: what they say is counted from the positions, and would count twice later.
_COUNTED: Final = (
    "INSERT INTO cellwall.inbox (tenant_id, consumer, event_id, state)"
    " SELECT tenant_id, $2, event_id, 'done' FROM cellwall.outbox"
    " WHERE tenant_id = $1 AND finished_at IS NULL AND type = ANY($3)"
    " ON CONFLICT (tenant_id, consumer, event_id) DO UPDATE SET state = 'done', due = NULL, error = NULL"
)

_log = structlog.get_logger()


async def _no_owner(_session: TenantSession, _name: str, _email: str, _password: str) -> tuple[Any, str]:
    raise ProblemError(problems.WRONG_STATE, "cell zero takes no new tenants: they belong in a modern cell")


class ZeroTransfer(Transfer):
    """The transfer API of cell zero. ``pool`` is of the monolith's database, by a role that no row-level security
    holds; ``door`` lets requests to the monolith, and knows when none is at work. ``counting`` are the consumers of
    events whose effect is only to count what the monolith's positions say as well."""

    lanes = 1  # what comes back is staged and translated in one transaction

    def __init__(
        self,
        *,
        cell: str,
        schema: str,
        pool: Pool,
        door: Door,
        counting: Sequence[Consumer],
        vault: Vault,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(
            cell=cell,
            schema=schema,
            pools={SHARD: pool},
            shard_of=lambda _tenant: SHARD,
            gate=door,
            create_owner=_no_owner,
            clock=clock,
            vault=vault,
        )
        self._shop = pool
        self._door = door
        self._counting = counting

    async def status(self, tenant: int, *, count_rows: bool = False) -> TenantStatus:
        """The fence row; the rows are the monolith's."""
        status = await super().status(tenant)
        if not count_rows:
            return status
        async with self._shop.acquire() as connection:
            counted = await shop.count(connection, await carry.customer_of(connection, tenant))
        return msgspec.structs.replace(status, rows=counted)

    async def provision(self, tenant: int, fence: Fence, body: Provision) -> Provisioned:
        """Refused."""
        raise ProblemError(problems.WRONG_STATE, "cell zero takes no new tenants: they belong in a modern cell")

    async def prepare(self, tenant: int, fence: Fence, body: Prepare) -> None:
        """Refused for a tenant that never was a customer of the monolith."""
        async with self._shop.acquire() as connection:
            await carry.customer_of(connection, tenant)
        await super().prepare(tenant, fence, body)

    # -- out ----------------------------------------------------------------------------------------------------

    async def freeze(self, tenant: int, fence: Fence, body: Freeze) -> Frozen:
        """Admit no more and wait until nothing of the tenant is at work in the monolith (`Door.drain`); end nothing.

        With a stream, what changed since the last marker is translated, and goes ahead of the marker that ends it.
        """
        row = await self._arrive(tenant, fence, "freeze")
        if row.result is not None:
            return msgspec.convert(row.result, Frozen)
        if body.marker:
            senders.check_stream(body.stream, tenant)
        began = self._clock()
        with self._gate.closed(tenant):
            if not await self._door.drain(tenant, (body.soft_ms + body.hard_ms) / 1000):
                raise ProblemError(problems.FREEZE_BUSY, self._door.busy)
            drained_ms = round((self._clock() - began) * 1000, 3)
            self._gate.note_freeze(tenant)
            async with carry.effect(self._shop, tenant, fence, "freeze", self._clock) as effect:
                if body.marker:
                    await carry.out(effect.connection, tenant)
                    await senders.emit(effect.connection, body.stream, body.marker)
                frozen = Frozen(effect.row.epoch, drained_ms, 0)
                await effect.settle("frozen", msgspec.to_builtins(frozen))
        _log.info("tenant_frozen", **_named(tenant, fence), drained_ms=drained_ms)
        return frozen

    async def export(self, tenant: int, fence: Fence) -> AsyncIterator[bytes]:
        """Translate, stage, commit, and then stream what is staged: a checksum that comes meanwhile sees it."""
        await self._arrive(tenant, fence, "export")
        async with carry.effect(self._shop, tenant, fence, "export", self._clock) as effect:
            await carry.out(effect.connection, tenant, anew=True)
            await effect.settle("frozen", {})
        return await super().export(tenant, fence)

    async def checksum(self, tenant: int, fence: Fence) -> Checksum:
        """Of what is staged. Of a frozen tenant, only while the monolith's rows are those that were staged; of one that
        a stream fills, after the monolith's rows were made what is staged."""
        row = await self._arrive(tenant, fence, "checksum")
        if row.state in ("importing", "standby"):
            async with carry.beside(self._shop, tenant, fence, "checksum", self._clock) as (connection, _row):
                if await connection.fetchval(_FOLLOWS, tenant):
                    await carry.back(connection, tenant)
        async with self._view(tenant, fence, "checksum") as connection:
            found = await fences.read(connection, tenant)
            if found is not None and found.state == "frozen":
                await carry.refuse_foreign(connection, tenant)
            return await rows.checksum(connection, await catalogue.tenant_tables(connection), tenant)

    # -- back ---------------------------------------------------------------------------------------------------

    async def import_(self, tenant: int, fence: Fence, pieces: AsyncIterator[bytes]) -> Imported:
        """All rows of the stream, staged and translated back into the monolith's tables, in one transaction."""
        row = await self._arrive(tenant, fence, "import")
        if row.result is not None:
            return msgspec.convert(row.result, Imported)
        async with carry.effect(self._shop, tenant, fence, "import", self._clock) as effect:
            connection = effect.connection
            tables = await catalogue.tenant_tables(connection)
            await rows.drop(connection, tables, tenant)
            try:
                imported = await rows.import_(connection, tables, tenant, pieces, self._vault)
            except BrokenStreamError as e:
                raise ProblemError(problems.INVALID, str(e)) from e
            await carry.back(connection, tenant)
            await effect.settle("importing", msgspec.to_builtins(imported))
        return imported

    async def activate(self, tenant: int, fence: Fence, body: Activate) -> None:
        """importing -> active. What the old home had relayed and nobody counted is counted here."""
        if (await self._arrive(tenant, fence, "activate")).result is not None:
            return
        async with self._effect(tenant, fence, "activate") as effect:
            rules.check_activation(effect.row, body.epoch)
            connection = effect.connection
            knr = await carry.customer_of(connection, tenant)
            await staging.publish_keys(connection, tenant)
            for consumer in self._counting:
                await connection.execute(_COUNTED, tenant, consumer.name, sorted(consumer.types))
            await shop.applying(connection)
            await shop.recount(connection, knr)
            await quarantine.forget(connection, tenant)
            await effect.settle("active", {}, epoch=body.epoch, hint="")


def _named(tenant: int, fence: Fence) -> dict[str, Any]:
    return {Field.TENANT: str(ids.tenant_of(tenant)), Field.MOVE: fence.move}
