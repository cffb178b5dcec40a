"""Carrying a tenant between the monolith's tables and what is staged of it, as a whole or by what changed.

Both ways compare digests of the monolith's rows with the marks that the last time left (`cell.zero.quarantine`), so
that a tenant is whole again at the cost of its changes and of one look at each of its rows, which the database takes.
The caller holds the tenant's lock, in a REPEATABLE READ transaction: what is translated, and what is marked as
translated, must be of one snapshot, or a write in between would be lost unseen.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import asyncpg

from cell.shards.session import Pool
from cell.transfer import fence as fences
from cell.transfer import locks
from cell.transfer.fence import Effect
from cell.transfer.locks import LockBusyError
from cell.transfer.rules import Command, FenceRow
from cell.transfer.service import PATIENCE
from cell.zero import database, parts, preflight, quarantine, shop, staging
from cell.zero.parts import NewPart, Part
from cell.zero.quarantine import Change
from cell.zero.translation.backward import backward, missing
from cell.zero.translation.forward import born_here, digest_of, forward
from cell.zero.translation.rows import Fault, KeyMap, NewTenant, OldTenant
from contracts import ids, problems
from contracts.problems import ProblemError
from contracts.transfer import Fence, Keys

PART_MAX: Final = 20_000  # changed rows; of more it is quicker to translate everything
FAULTS_SHOWN: Final = 20
# The row's version is that of the snapshot, or this fails: nobody raised the fence meanwhile.
_UNCHANGED: Final = "UPDATE cellwall.tenants SET updated_at = now() WHERE tenant_id = $1"


async def customer_of(connection: Any, tenant: int) -> int:
    """The monolith's customer; the problem ``conflict`` where the tenant never was one."""
    knr = await database.customer_of(connection, tenant)
    if knr is None:
        raise ProblemError(problems.CONFLICT, f"{ids.tenant_of(tenant)} never was a customer of the monolith")
    return knr


async def out(connection: Any, tenant: int, *, anew: bool = False) -> int:
    """Stage what the monolith's rows say; how many had changed since they were marked.

    ``anew``: whatever was staged and marked before. The problem ``untranslatable`` names rows that do not translate,
    and tables that the translation does not know as they are now.
    """
    await preflight.refuse_strange(connection)
    knr = await customer_of(connection, tenant)
    if anew:
        await staging.adopt_keys(connection, tenant)
        await staging.publish_keys(connection, tenant)
        return await _out_whole(connection, tenant, knr)
    changes = await quarantine.changed(connection, tenant, knr)
    if len(changes) > PART_MAX:
        await _out_whole(connection, tenant, knr)
    elif changes:
        await _out_part(connection, tenant, knr, changes)
    return len(changes)


async def _out_whole(connection: Any, tenant: int, knr: int) -> int:
    kept, keys = await staging.read(connection, tenant), await staging.read_keys(connection, tenant)
    old = await shop.read(connection, knr)
    done = forward(tenant, old, kept, keys)
    if done.faults:
        raise untranslatable(done.faults)
    await staging.write(connection, tenant, kept, done.tenant)
    await staging.note_keys(connection, tenant, keys, done.keys, travel=True)
    await quarantine.mark(connection, tenant, knr)
    return old.rows


async def _out_part(connection: Any, tenant: int, knr: int, changes: list[Change]) -> None:
    part = await _closed(connection, tenant, changes)
    keys = await staging.read_keys_of(connection, tenant, part, NewPart())
    kept = await staging.read(connection, tenant, parts.forward_part(part, keys))
    old = await shop.counted(connection, knr, await shop.read(connection, knr, part))
    done = forward(tenant, old, kept, keys, recount=False)
    if done.faults:
        raise untranslatable(done.faults)
    await staging.write(connection, tenant, kept, done.tenant)
    await staging.note_keys(connection, tenant, keys, done.keys, travel=True)
    await quarantine.mark_part(connection, tenant, knr, part)


async def _closed(connection: Any, tenant: int, changes: list[Change]) -> Part:
    """What changed, with the orders of its positions and with their articles, those of before too."""
    part = parts.part_of((change.tab, change.key) for change in changes)
    before = await staging.articles_of(connection, tenant, sorted(part.aufp))
    return part.closed(before | await shop.articles_of(connection, part.aufp))


async def back(connection: Any, tenant: int, touched: Keys | None = None) -> None:
    """Write what is staged into the monolith's tables, only rows that differ; what would not read the same is refused.

    ``touched``: the keys of ours that changed since the last time; None is everything. Writes past the ambassador are
    put aside first, then the cell's rows win.
    """
    knr = await customer_of(connection, tenant)
    marked = await quarantine.are_marked(connection, tenant)
    foreign = await quarantine.changed(connection, tenant, knr) if marked else []
    await quarantine.keep(connection, tenant, knr, foreign)
    if touched is None or not marked or len(foreign) + sum(map(len, touched.values())) > PART_MAX:
        await staging.adopt_keys(connection, tenant)
        await _back_whole(connection, tenant, knr)
    else:
        await _back_part(connection, tenant, knr, touched, foreign)


async def _back_whole(connection: Any, tenant: int, knr: int) -> None:
    new, before = await staging.read(connection, tenant), await staging.read_keys(connection, tenant)
    old = await shop.read(connection, knr)
    keys = await shop.numbered(connection, missing(new, before), before)
    await _write(connection, tenant, knr, new, old, keys)
    await staging.note_keys(connection, tenant, before, keys)
    _check(tenant, await shop.read(connection, knr), new, old, keys)
    await quarantine.mark(connection, tenant, knr)


async def _back_part(connection: Any, tenant: int, knr: int, touched: Keys, foreign: list[Change]) -> None:
    theirs = await _closed(connection, tenant, foreign)
    keys = await staging.read_keys_of(connection, tenant, theirs, NewPart())
    ours = parts.touched_part(touched).joined(parts.forward_part(theirs, keys))
    ours = ours.closed(await staging.lines(connection, tenant, ours))
    before = await staging.read_keys_of(connection, tenant, theirs, ours)
    new = await staging.read(connection, tenant, ours)
    part = theirs.joined(parts.backward_part(ours, before))
    old = await shop.read(connection, knr, part)
    keys = await shop.numbered(connection, missing(new, before), before)
    await _write(connection, tenant, knr, new, old, keys)
    await staging.note_keys(connection, tenant, before, keys)
    part = part.joined(parts.backward_part(ours, keys))
    _check(tenant, await shop.read(connection, knr, part), new, old, keys)
    await quarantine.mark_part(connection, tenant, knr, part)


async def _write(connection: Any, tenant: int, knr: int, new: NewTenant, old: OldTenant, keys: KeyMap) -> None:
    done = backward(tenant, new, old, keys)
    if done.faults:
        raise untranslatable(done.faults)
    await shop.applying(connection)
    await shop.write(connection, knr, old, done.tenant)


def _check(tenant: int, written: OldTenant, new: NewTenant, old: OldTenant, keys: KeyMap) -> None:
    """`ProblemError` unless what was written reads as what came."""
    again = forward(tenant, written, new, keys, recount=False)
    unlike = _unlike(again.tenant, _sayable(tenant, new, old))
    if again.faults or unlike:
        where = ", ".join(unlike) or again.faults[0]
        raise ProblemError(problems.CONFLICT, f"translated back, these read otherwise: {where}")


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


async def refuse_foreign(connection: Any, tenant: int) -> None:
    """The problem ``conflict`` where the monolith's rows are not as they were marked: nobody of ours wrote that.

    A column that came meanwhile is refused too: the snapshot that was translated did not have it.
    """
    await preflight.refuse_strange(connection)
    if changed := await quarantine.changed(connection, tenant, await customer_of(connection, tenant)):
        named = ", ".join(f"{change.tab} {change.key}" for change in changed[:FAULTS_SHOWN])
        raise ProblemError(problems.CONFLICT, f"somebody wrote past the ambassador meanwhile: {named}")


@asynccontextmanager
async def effect(
    pool: Pool, tenant: int, fence: Fence, command: Command, clock: Callable[[], float]
) -> AsyncIterator[Effect]:
    """`cell.transfer.fence.effect`, in a transaction of one snapshot."""
    async with (
        _one_snapshot(pool) as connection,
        fences.effect_on(connection, tenant, fence, command, PATIENCE, clock) as found,
    ):
        yield found


@asynccontextmanager
async def beside(
    pool: Pool, tenant: int, fence: Fence, command: Command, clock: Callable[[], float]
) -> AsyncIterator[tuple[Any, FenceRow]]:
    """The tenant's lock in a transaction of one snapshot, for a command that raises no fence.

    What it did is undone with the problem ``fenced`` where a newer command arrived meanwhile.
    """
    async with _one_snapshot(pool) as connection:
        await locks.exclusive(connection, tenant, PATIENCE, clock)
        yield connection, await fences.beside(connection, tenant, fence, command)
        await connection.execute(_UNCHANGED, tenant)


@asynccontextmanager
async def _one_snapshot(pool: Pool) -> AsyncIterator[Any]:
    try:
        async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
            await connection.execute("SET LOCAL statement_timeout = 0")
            yield connection
    except LockBusyError as e:
        raise ProblemError(problems.FREEZE_BUSY, str(e)) from e
    except asyncpg.SerializationError as e:
        raise ProblemError(problems.FENCED, "a newer command came while this one was at work") from e
