"""Large moves out of cell zero and back: a stream of the staged rows, which follow the monolith's by translation.

Slots, publications and streams are those of every cell, on the staging area (ADR 0029); the monolith's own tables are
neither published nor given triggers. What is different here:

| Command | In cell zero |
|---|---|
| stream/open | translates the tenant anew before the slot and its snapshot are made |
| changes | now and then looks first at what changed in the monolith's tables, and stages it |
| marker | stages what changed, then marks, then compares, in one transaction: the tenant is not kept waiting for it |
| remainder | as receiver: what was touched is written to the monolith's tables first. As sender, frozen: refused where
  somebody wrote past the ambassador |
| preflight | refuses strange tables, counts the monolith's rows, and says what looking at each of them costs the hold |
| blobs | there are none |
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import psycopg2.extensions
import structlog

from cell.shards.session import Pool
from cell.transfer import catalogue, progress, rows, senders
from cell.transfer import fence as fences
from cell.transfer.reader import Login
from cell.transfer.receivers import Receivers
from cell.transfer.senders import Senders, check_stream
from cell.transfer.streams import Streams
from cell.vault import Vault
from cell.zero import carry, preflight, shop
from cell.zero.transfer import SHARD
from contracts import ids, problems
from contracts.names import Field
from contracts.problems import ProblemError
from contracts.transfer import (
    Batch,
    BlobInfo,
    ChangesQuery,
    Fence,
    Mark,
    Marked,
    OpenStream,
    Preflight,
    Remainder,
    RemainderQuery,
    Stream,
)

# A look at every row of a tenant takes the database some time: never more than this share of it for one tenant.
LOOK_S: Final = 5.0
LOOK_SHARE: Final = 0.05
# Rows of the monolith that the database digests and compares in a millisecond, with a share of what is done about those
# that differ (docs/adr/0029-large-customers.md). The hold has two looks, one at the freeze and one before the decision.
LOOK_ROWS_PER_MS: Final = 150.0
LOOKS_IN_HOLD: Final = 2
_MAY_STREAM: Final = """
SELECT current_setting('wal_level') = 'logical' AS logical,
  rolsuper OR rolreplication AS replicates, rolsuper OR rolbypassrls AS bypasses,
  rolsuper OR has_parameter_privilege('session_replication_role', 'SET') AS applies
FROM pg_roles WHERE rolname = current_user
"""

_log = structlog.get_logger()


def login_of(dsn: str, application: str) -> Login:
    """The role and the database of a DSN, for the replication protocol."""
    parts = psycopg2.extensions.parse_dsn(dsn)
    user = parts.get("user", "")
    return Login(
        parts.get("host", ""), int(parts.get("port", 5432)), parts.get("dbname", user), user,
        parts.get("password", ""), application,
    )  # fmt: skip


class ZeroSenders(Senders):
    """Streams out of the staging area."""

    def __init__(self, pool: Pool, login: Login, vault: Vault, clock: Callable[[], float]) -> None:
        super().__init__({SHARD: pool}, lambda _: SHARD, lambda _: login, vault, clock)
        self._shop = pool
        self._time = clock
        self._stages: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._next_look: dict[int, float] = {}

    async def open(self, tenant: int, fence: Fence, body: OpenStream) -> Stream:
        """Translate the tenant anew, if it is served here, and open the stream over what is staged then."""
        row = await fences.arrive(self._shop, tenant, fence, "stream-open")
        if row.result is None and row.state == "active":
            async with self._stages[tenant]:
                await self._stage(tenant, fence, anew=True)
        return await super().open(tenant, fence, body)

    async def changes(self, tenant: int, fence: Fence, query: ChangesQuery) -> tuple[Batch, bytes]:
        """The next batch, after another look at the monolith's rows where that is due."""
        turn = self._stages[tenant]
        if not turn.locked() and self._time() >= self._next_look.get(tenant, 0.0):
            async with turn:
                await self._look(tenant, fence)
        return await super().changes(tenant, fence, query)

    async def _look(self, tenant: int, fence: Fence) -> None:
        async with self._shop.acquire() as connection:
            row = await fences.read(connection, tenant)
        if row is not None and row.state == "active":
            await self._stage(tenant, fence)

    async def _stage(self, tenant: int, fence: Fence, *, anew: bool = False) -> None:
        began = self._time()
        async with carry.beside(self._shop, tenant, fence, "changes", self._time) as (connection, row):
            changed = await carry.out(connection, tenant, anew=anew) if row.state == "active" else 0
        took = self._time() - began
        self._next_look[tenant] = self._time() + max(LOOK_S, took / LOOK_SHARE)
        if changed:
            named = {Field.TENANT: str(ids.tenant_of(tenant)), Field.MOVE: fence.move}
            _log.info("monolith_rows_staged", **named, rows=changed, seconds=round(took, 3))

    async def marker(self, tenant: int, fence: Fence, body: Mark) -> Marked:
        """What changed, the marker and the checksum, as one transaction. Nobody has to wait for it."""
        check_stream(body.stream, tenant)
        async with self._stages[tenant], carry.beside(self._shop, tenant, fence, "marker", self._time) as found:
            connection, row = found
            if row.state == "active":
                await carry.out(connection, tenant)
            await senders.emit(connection, body.stream, body.name)
            checksum = None
            if body.checksum:
                checksum = await rows.checksum(connection, await catalogue.tenant_tables(connection), tenant)
        return Marked(body.name, 0.0, checksum)


class ZeroReceivers(Receivers):
    """Streams into the staging area, and from there into the monolith's tables."""

    def __init__(self, pool: Pool, clock: Callable[[], float]) -> None:
        super().__init__({SHARD: pool}, lambda _: SHARD, clock)
        self._shop = pool
        self._time = clock

    async def remainder(self, tenant: int, fence: Fence, query: RemainderQuery) -> Remainder:
        """The checksum of what is staged, once the monolith's tables are known to say the same."""
        check_stream(query.stream, tenant)
        async with carry.beside(self._shop, tenant, fence, "remainder", self._time) as (connection, row):
            if row.state == "frozen":
                await carry.refuse_foreign(connection, tenant)
            elif query.tables is None and row.state in ("importing", "standby"):
                found = await self._progress(connection, tenant, query.stream)
                known = found.complete and bool(found.verified)
                touched = await progress.touched(connection, query.stream) if known else None
                await carry.back(connection, tenant, touched)
        return await super().remainder(tenant, fence, query)


class ZeroStreams(Streams):
    """What large moves ask of cell zero."""

    def __init__(self, pool: Pool, login: Login, vault: Vault, clock: Callable[[], float]) -> None:
        self.senders = ZeroSenders(pool, login, vault, clock)
        self.receivers = ZeroReceivers(pool, clock)
        self._pools = {SHARD: pool}
        self._shard_of = lambda _tenant: SHARD
        self._shop = pool

    async def preflight(self, tenant: int) -> Preflight:
        """Rows and bytes of the monolith, what forbids a stream, and what the hold costs beyond any other.

        Refused, for every tenant, while the monolith's tables are not those that the translation knows.
        """
        async with self._shop.acquire() as connection:
            if await fences.read(connection, tenant) is None:
                raise ProblemError(problems.NOT_FOUND, "cell zero has no such tenant")
            knr = await carry.customer_of(connection, tenant)
            await preflight.refuse_strange(connection)
            counted, size = await shop.measure(connection, knr)
            may = await connection.fetchrow(_MAY_STREAM)
            tables = await catalogue.tenant_tables(connection)
        hold_ms = LOOKS_IN_HOLD * counted / LOOK_ROWS_PER_MS
        return Preflight(counted, size, 0, 0, (*obstacles(may), *catalogue.obstacles(tables)), hold_ms)

    async def blobs(self, tenant: int) -> Sequence[BlobInfo]:
        """Not found: cell zero has no store of files."""
        raise ProblemError(problems.NOT_FOUND, "cell zero has no store of files")

    async def blob(self, tenant: int, name: str) -> AsyncIterator[bytes]:
        """Not found."""
        raise ProblemError(problems.NOT_FOUND, "cell zero has no store of files")

    async def store_blob(self, tenant: int, fence: Fence, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Not found."""
        raise ProblemError(problems.NOT_FOUND, "cell zero has no store of files")


def obstacles(may: Any) -> tuple[str, ...]:
    """What the monolith's server or our role in it lacks for a stream, each with what to do. Pure."""
    role = "the role of CELLWALL_ZERO_DSN"
    found = {
        "the monolith's server has not wal_level = logical; set it and restart the server": may["logical"],
        f"{role} may not replicate: ALTER ROLE ... REPLICATION": may["replicates"],
        f"{role} must bypass row-level security: ALTER ROLE ... BYPASSRLS": may["bypasses"],
        f"{role} may not apply a stream: GRANT SET ON PARAMETER session_replication_role": may["applies"],
    }
    return tuple(said for said, is_so in found.items() if not is_so)
