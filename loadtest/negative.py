"""The negative control: books that cannot find a broken fence prove nothing, so the fence is broken on purpose.

On a scratch tenant, before any traffic that counts: the cells' fence is replaced by a no-op, the tenant is moved, and
a stale router (ours, signing with the old epoch) goes on writing to the cell that the tenant has left. That cell
acknowledges what nobody will ever read again. The books must say so, and no order may be found for a register that was
read and written in both cells. Then the fence comes back from the cell's own schema, is compared byte for byte with
what was there before, and must refuse the same stale write.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import asyncpg

from contracts import envelope
from contracts.ids import tenant_number
from loadtest import books, ledger
from loadtest.books import Audit, Wrong
from loadtest.driver import Driver
from loadtest.history.clients import Clients, make_registers
from loadtest.history.judge import Judgement, judge
from loadtest.history.operation import History, Kind
from loadtest.history.requests import Register
from loadtest.operator import POLL_S, ControlPlane, LabError, Move, Tenant
from loadtest.record import Record
from loadtest.schedule import Intent
from loadtest.schedule import Kind as Request
from loadtest.tenants import Cast
from loadtest.wire import Answer, Target

CHECKOUT = Path(__file__).resolve().parents[1]
NO_FENCE = CHECKOUT / "tests" / "mutations" / "no_fence.sql"
FENCE = CHECKOUT / "cell" / "schema" / "functions" / "enter_tenant.sql"
DEFINITION = "SELECT pg_get_functiondef('cellwall.enter_tenant(bigint, bigint)'::regprocedure)"
TENANT_TABLES = "SELECT oid::regclass::text AS name FROM pg_class WHERE relforcerowsecurity"
STALE_WRITES = 25
STALE_RATE = 100.0
MOVE_TIMEOUT_S = 30.0
STALE_TIMEOUT_MS = 5000


class FenceError(LabError):
    """The fence could not be put back as it was: nothing on this fleet may be trusted."""


class StaleRouter:
    """A router that never heard of the move: signs the old epoch and sends straight to the old cell."""

    def __init__(self, cell: Target, key: bytes, tenant: str, epoch: int) -> None:
        self._cell = cell
        self._sign = envelope.signer(key)
        self._tenant = tenant.encode()
        self._epoch = str(epoch).encode()
        self._sent = 0

    @property
    def name(self) -> str:
        """What reports call it."""
        return "stale router"

    async def exchange(self, payload: bytes) -> Answer:
        """The request as it is, in an envelope of the old epoch."""
        line, _, rest = payload.partition(b"\r\n")
        method, target, _ = line.split(b" ")
        self._sent += 1
        timeout, request_id, plan = b"%d" % STALE_TIMEOUT_MS, b"stale-%d" % self._sent, b"free"
        signature = self._sign(envelope.message(self._tenant, self._epoch, timeout, request_id, plan, method, target))
        values = (self._tenant, self._epoch, timeout, request_id, plan, signature)
        head = b"".join(b"%s: %s\r\n" % field for field in zip(envelope.FIELDS, values, strict=True))
        return await self._cell.exchange(line + b"\r\n" + head + rest)


@dataclass(frozen=True)
class Bench:
    """What the control needs of the fleet. ``shards`` maps cell -> shard -> superuser's DSN."""

    control_plane: ControlPlane
    shards: Mapping[str, Mapping[str, str]]
    cell: Callable[[str], Target]  # a cell's data listener
    envelope_key: Callable[[str], bytes]

    def router(self, tenant: Tenant) -> "StaleRouter":
        """One that knows of the tenant what is so now, and will hear of nothing else."""
        return StaleRouter(self.cell(tenant.cell), self.envelope_key(tenant.cell), tenant.id, tenant.epoch)


@dataclass(frozen=True)
class Verdict:
    """What the books said without the fence, and whether a register had two lives; how a stale write ended with it."""

    audit: Audit
    move: Move
    acknowledged_stale: int
    refused_with: int
    judged: Judgement

    @property
    def caught(self) -> bool:
        """The books and the register found the broken fence, and the fence is back."""
        wrong = self.audit.count(Wrong.LOST) + self.audit.count(Wrong.MISPLACED)
        seen = self.acknowledged_stale > 0 and wrong >= self.acknowledged_stale and bool(self.judged.violations)
        return seen and self.refused_with == 421

    def words(self) -> str:
        """One sentence."""
        lost, misplaced = self.audit.count(Wrong.LOST), self.audit.count(Wrong.MISPLACED)
        if not self.caught:
            return (
                f"the books missed it: {self.acknowledged_stale} stale writes acknowledged, {lost} lost and"
                f" {misplaced} misplaced reported; {self.judged.words()}; with the fence back a stale write got"
                f" {self.refused_with}"
            )
        return (
            f"without the fence the old cell acknowledged {self.acknowledged_stale} stale writes, and the books report"
            f" {lost} lost and {misplaced} misplaced, and a register in no order, as they must"
            f" ({self.judged.words()}); with the fence back it answers {self.refused_with}"
        )


async def negative_control(bench: Bench, scratch: Cast, run: str) -> Verdict:
    """Break the fence, move the scratch tenant under stale writes, read the books, mend the fence.

    Leaves no row of the tenant and no changed function, whatever happens in between.
    """
    account = scratch.accounts[0]
    before = await bench.control_plane.tenant(account.tenant)
    target = next(cell for cell in await bench.control_plane.cells() if cell != before.cell)
    stale = bench.router(before)
    record = Record()
    driver = Driver([stale], scratch.accounts, scratch.orders, f"{run}-stale", record)
    everywhere = [dsn for databases in bench.shards.values() for dsn in databases.values()]
    try:
        registers, history = await make_registers(stale, [account], 1)
        async with without_fence(everywhere):
            async with purge_delayed(list(bench.shards[before.cell].values()), account.tenant):
                move = await bench.control_plane.start_move(account.tenant, target)
                await _wait_decided(bench.control_plane, move)
                await driver.run(stale_writes(STALE_WRITES))
                fresh = bench.router(await bench.control_plane.tenant(account.tenant))
                await _in_both(stale, fresh, registers, history)
            move = await bench.control_plane.wait_move(move, timeout_s=MOVE_TIMEOUT_S)
            homes = await bench.control_plane.homes()
            rows = await ledger.read(bench.shards)
        written = [*scratch.first_orders, *record.acknowledged]
        home = {account.tenant: homes[account.tenant]}
        audit = books.audit(written, record.unacknowledged, rows, home)
        acknowledged = len(record.acknowledged)
        after = Record()
        await Driver([stale], scratch.accounts, scratch.orders, f"{run}-fenced", after).run(stale_writes(1))
        refused = after.failures[0].status if after.failures else 201
        return Verdict(audit, move, acknowledged, refused, judge([history]))
    finally:
        await bench.control_plane.delete_tenant(account.tenant)
        await asyncio.gather(*(sweep(dsn, account.tenant) for dsn in everywhere))


async def _in_both(stale: Target, fresh: Target, registers: Sequence[Register], history: History) -> None:
    """A change where the tenant lives, a read where it lived; then the other way round."""
    for router, kind in ((fresh, Kind.WRITE), (stale, Kind.READ), (stale, Kind.WRITE), (fresh, Kind.READ)):
        await Clients([router], registers, history, Random(0)).operate(0, registers[0], kind)


def stale_writes(count: int) -> Sequence[Intent]:
    """Creates at a steady rate."""
    return [Intent(n, n / STALE_RATE, 0, Request.CREATE, (n % 10) / 10) for n in range(count)]


@asynccontextmanager
async def without_fence(dsns: Sequence[str]) -> AsyncIterator[None]:
    """Inside, `enter_tenant` lets everybody in. Afterwards it is the one of the cell's schema again, verified."""
    originals = await asyncio.gather(*(_definition(dsn) for dsn in dsns))
    try:
        await asyncio.gather(*(_execute(dsn, NO_FENCE.read_text()) for dsn in dsns))
        yield
    finally:
        await asyncio.gather(*(_execute(dsn, FENCE.read_text()) for dsn in dsns))
        for original, dsn in zip(originals, dsns, strict=True):
            if await _definition(dsn) != original:
                raise FenceError("the fence of a shard is not what it was before the negative control")


@asynccontextmanager
async def purge_delayed(dsns: Sequence[str], tenant: str) -> AsyncIterator[None]:
    """Inside, a reader keeps the tenant's rows from being deleted, so that the stale router finds its old cell whole.

    Without it the control would be a race against the purge, won on a slow machine and lost on a fast one. The locks
    are those of a foreign key (FOR KEY SHARE): reading, updating and adding rows go on.
    """
    connections = [await asyncpg.connect(dsn) for dsn in dsns]
    try:
        for connection in connections:
            await connection.execute("BEGIN")
            for table in await connection.fetch(TENANT_TABLES):
                query = f"SELECT 1 FROM {table['name']} WHERE tenant_id = $1 FOR KEY SHARE"  # noqa: S608  the catalogue's
                await connection.fetch(query, tenant_number(tenant))
        yield
    finally:
        for connection in connections:
            await connection.close()


async def _wait_decided(control_plane: ControlPlane, move: Move) -> None:
    """Wait until the target has the tenant and the source has not lost its rows yet."""
    until = time.monotonic() + MOVE_TIMEOUT_S
    while (now := await control_plane.move(move.id)).state not in ("standby", "purging"):
        if now.ended or time.monotonic() > until:
            raise LabError(f"the scratch tenant's move ended as {now.state} ({now.reason})")
        await asyncio.sleep(POLL_S / 5)


async def sweep(dsn: str, tenant: str) -> None:
    """Remove what the broken fence let in: every row of the tenant in every tenant table of a shard."""
    connection = await asyncpg.connect(dsn)
    try:
        tables = await connection.fetch(TENANT_TABLES)
        async with connection.transaction():
            await connection.execute("SET LOCAL session_replication_role = replica")  # in any order of foreign keys
            for table in tables:
                query = f"DELETE FROM {table['name']} WHERE tenant_id = $1"  # noqa: S608  the catalogue's
                await connection.execute(query, tenant_number(tenant))
    finally:
        await connection.close()


async def _definition(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval(DEFINITION))
    finally:
        await connection.close()


async def _execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
