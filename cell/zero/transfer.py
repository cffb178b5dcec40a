"""Moving tenants out of cell zero and back: the commands of contracts/transfer.py over the monolith's rows.

The fence, the row stream and the checksums are the cells' own, on the staging area in the monolith's database. What is
different here:

| Command | In cell zero |
|---|---|
| freeze | nothing of ours holds the monolith's transactions, so it waits for them and ends none (moves.md rule 21) |
| export | translates the monolith's rows into the staging area first, at one snapshot; a `Fault` stops this tenant |
| checksum | of a frozen tenant: refused where the monolith's rows are not those any more that were translated |
| import | translates back, writes only rows that differ, and proves it by translating forward again |
| activate | the key map travels from now on; units that events had yet to count are counted from the positions |
| purge | drops the staged rows; a row of the monolith is never deleted because its tenant has left |
| provision | refused: whoever signs up goes to a modern cell |
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
import structlog

from cell.events.inbox import Consumer
from cell.shards.session import Pool, TenantSession
from cell.transfer import catalogue, rows, rules
from cell.transfer import fence as fences
from cell.transfer.frames import BrokenStreamError
from cell.transfer.service import Transfer
from cell.vault import Vault
from cell.zero import database, quarantine, shop, staging
from cell.zero.door import Door
from cell.zero.translation.backward import backward, missing
from cell.zero.translation.forward import born_here, digest_of, forward
from cell.zero.translation.rows import Fault, NewTenant, OldTenant
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
FAULTS_SHOWN: Final = 20

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
            counted = await shop.count(connection, await _customer(connection, tenant))
        return msgspec.structs.replace(status, rows=counted)

    async def provision(self, tenant: int, fence: Fence, body: Provision) -> Provisioned:
        """Refused."""
        raise ProblemError(problems.WRONG_STATE, "cell zero takes no new tenants: they belong in a modern cell")

    async def prepare(self, tenant: int, fence: Fence, body: Prepare) -> None:
        """Refused for a tenant that never was a customer of the monolith."""
        async with self._shop.acquire() as connection:
            await _customer(connection, tenant)
        await super().prepare(tenant, fence, body)

    # -- out ----------------------------------------------------------------------------------------------------

    async def freeze(self, tenant: int, fence: Fence, body: Freeze) -> Frozen:
        """Admit no more and wait until nothing of the tenant is at work in the monolith (`Door.drain`); end nothing."""
        row = await self._arrive(tenant, fence, "freeze")
        if row.result is not None:
            return msgspec.convert(row.result, Frozen)
        began = self._clock()
        with self._gate.closed(tenant):
            if not await self._door.drain(tenant, (body.soft_ms + body.hard_ms) / 1000):
                raise ProblemError(problems.FREEZE_BUSY, self._door.busy)
            drained_ms = round((self._clock() - began) * 1000, 3)
            self._gate.note_freeze(tenant)
            async with self._effect(tenant, fence, "freeze") as effect:
                frozen = Frozen(effect.row.epoch, drained_ms, 0)
                await effect.settle("frozen", msgspec.to_builtins(frozen))
        _log.info("tenant_frozen", **_named(tenant, fence), drained_ms=drained_ms)
        return frozen

    async def export(self, tenant: int, fence: Fence) -> AsyncIterator[bytes]:
        """Translate, stage, commit, and then stream what is staged: a checksum that comes meanwhile sees it."""
        await self._arrive(tenant, fence, "export")
        async with self._effect(tenant, fence, "export") as effect:
            connection = effect.connection
            kept, keys = await staging.read(connection, tenant), await staging.read_keys(connection, tenant)
            old = await shop.read(connection, await _customer(connection, tenant))
            done = forward(tenant, old, kept, keys)
            if done.faults:
                raise untranslatable(done.faults)
            await staging.write(connection, tenant, kept, done.tenant)
            await staging.note_keys(connection, tenant, keys, done.keys)
            await staging.publish_keys(connection, tenant)
            await quarantine.mark(connection, tenant, old)
            await effect.settle("frozen", {})
        return await super().export(tenant, fence)

    async def checksum(self, tenant: int, fence: Fence) -> Checksum:
        """Of what is staged; of a frozen tenant, only while the monolith's rows are those that were staged."""
        await self._arrive(tenant, fence, "checksum")
        async with self._view(tenant, fence, "checksum") as connection:
            row = await fences.read(connection, tenant)
            if row is not None and row.state == "frozen":
                old = await shop.read(connection, await _customer(connection, tenant))
                if changed := await quarantine.changed(connection, tenant, old):
                    named = ", ".join(f"{mark.tab} {mark.key}" for mark in changed[:FAULTS_SHOWN])
                    raise ProblemError(problems.CONFLICT, f"somebody wrote past the ambassador meanwhile: {named}")
            return await rows.checksum(connection, await catalogue.tenant_tables(connection), tenant)

    # -- back ---------------------------------------------------------------------------------------------------

    async def import_(self, tenant: int, fence: Fence, pieces: AsyncIterator[bytes]) -> Imported:
        """All rows of the stream, staged and translated back into the monolith's tables, in one transaction."""
        row = await self._arrive(tenant, fence, "import")
        if row.result is not None:
            return msgspec.convert(row.result, Imported)
        async with self._effect(tenant, fence, "import") as effect:
            connection = effect.connection
            tables = await catalogue.tenant_tables(connection)
            await rows.drop(connection, tables, tenant)
            try:
                imported = await rows.import_(connection, tables, tenant, pieces, self._vault)
            except BrokenStreamError as e:
                raise ProblemError(problems.INVALID, str(e)) from e
            await self._apply(connection, tenant)
            await effect.settle("importing", msgspec.to_builtins(imported))
        return imported

    async def _apply(self, connection: Any, tenant: int) -> None:
        """Write what is staged into the monolith's tables; a row that would not read the same again is refused."""
        knr = await _customer(connection, tenant)
        new, before = await staging.read(connection, tenant), await staging.read_keys(connection, tenant)
        old = await shop.read(connection, knr)
        keys = await shop.numbered(connection, missing(new, before), before)
        done = backward(tenant, new, old, keys)
        if done.faults:
            raise untranslatable(done.faults)
        await shop.applying(connection)
        await shop.write(connection, knr, old, done.tenant)
        await staging.note_keys(connection, tenant, before, keys)
        written = await shop.read(connection, knr)
        again = forward(tenant, written, new, keys, recount=False)
        if again.faults or _unlike(again.tenant, _sayable(tenant, new, old)):
            where = ", ".join(_unlike(again.tenant, _sayable(tenant, new, old)))
            raise ProblemError(problems.CONFLICT, f"translated back, these read otherwise: {where or again.faults[0]}")
        await quarantine.mark(connection, tenant, written)

    async def activate(self, tenant: int, fence: Fence, body: Activate) -> None:
        """importing -> active. What the old home had relayed and nobody counted is counted here."""
        if (await self._arrive(tenant, fence, "activate")).result is not None:
            return
        async with self._effect(tenant, fence, "activate") as effect:
            rules.check_activation(effect.row, body.epoch)
            connection = effect.connection
            knr = await _customer(connection, tenant)
            await staging.publish_keys(connection, tenant)
            for consumer in self._counting:
                await connection.execute(_COUNTED, tenant, consumer.name, sorted(consumer.types))
            await shop.applying(connection)
            await shop.recount(connection, knr)
            await quarantine.mark(connection, tenant, OldTenant())  # from now on it is written by whom it belongs to
            await effect.settle("active", {}, epoch=body.epoch, hint="")


async def _customer(connection: Any, tenant: int) -> int:
    knr = await database.customer_of(connection, tenant)
    if knr is None:
        raise ProblemError(problems.CONFLICT, f"{ids.tenant_of(tenant)} never was a customer of the monolith")
    return knr


def _sayable(tenant: int, new: NewTenant, old: OldTenant) -> NewTenant:
    """Without sessions whose cookie the monolith has forgotten: nobody can come back with one."""
    cookies = {digest_of(row.sid) for row in old.sess}
    kept = tuple(s for s in new.sessions if s.secret_digest in cookies or born_here(tenant, s))
    return replace(new, sessions=kept)


def _unlike(one: NewTenant, other: NewTenant) -> list[str]:
    names = [name for name in staging.TABLES if set(getattr(one, name)) != set(getattr(other, name))]
    return names + ([] if one.last_number == other.last_number else ["counters"])


def untranslatable(faults: tuple[Fault, ...]) -> ProblemError:
    """The answer for a tenant that has rows which do not translate: the first of them, and how many there are."""
    shown = "; ".join(map(str, faults[:FAULTS_SHOWN]))
    more = f"; and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
    return ProblemError(problems.UNTRANSLATABLE, f"{shown}{more}")


def _named(tenant: int, fence: Fence) -> dict[str, Any]:
    return {Field.TENANT: str(ids.tenant_of(tenant)), Field.MOVE: fence.move}
