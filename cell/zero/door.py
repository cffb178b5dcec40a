"""The door of cell zero: which tenants the monolith may serve, and when nothing of a tenant is at work in it any more.

| Promise | How |
|---|---|
| The frozen set survives any restart | it is the fence row in the monolith's own database, read for every request |
| Unknown means refuse | no row, another state, another epoch, a database or a lock that is away: nothing is forwarded |
| One ambassador counts requests in flight | it holds a lock of the database, and serves nobody while it does not |
| A tenant counts as drained only when it is | `drain` waits for admitted requests, for those whose client or answer was
  lost, after a restart for the last that another may have forwarded, and for transactions that began before that |
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from cell.gate import Gate
from cell.shards.borrowing import borrowed
from cell.shards.context import TenantContext
from cell.shards.errors import DATABASE_FAILED, FrozenError, NotOursError, ShardUnavailableError
from cell.shards.session import Pool
from contracts.names import Field

APPLICATION: Final = "cellwall-zero"  # how our own connections are named in the monolith's database
LOOK_S: Final = 0.005  # how often `drain` looks again
READ_TIMEOUT_S: Final = 2.0
SOLE_CHECK_S: Final = 2.0
SOLE_RETRY_S: Final = 0.2
UNAWARE_S: Final = 2 * SOLE_CHECK_S + READ_TIMEOUT_S  # for which one that has lost the lock may still let somebody in
_SOLE: Final = 0x7A65726F_0001
_ROW: Final = (
    "SELECT t.state, t.epoch, t.hint, c.knr FROM cellwall.tenants t"
    " JOIN cellwall_zero.customers c USING (tenant_id) WHERE t.tenant_id = $1"
)
# Whose transactions may still hold something of a request that has ended: those that have written, and of the time when
# another ambassador may have been at work ($2) all, for they may yet write. Prepared ones have no session.
_OLDER: Final = (
    "SELECT string_agg(who, ', ') FROM ("
    " SELECT format('pid %s (%s)', pid, application_name) AS who FROM pg_stat_activity"
    " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    " AND NOT starts_with(application_name, $3) AND xact_start < $1"
    " AND (backend_xid IS NOT NULL OR xact_start < $2)"
    " UNION ALL SELECT format('prepared transaction %s', gid) FROM pg_prepared_xacts"
    " WHERE database = current_database() AND prepared < $1) found"
)
_MAY_SEE: Final = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'usage')"

_log = structlog.get_logger()


class DoorError(Exception):
    """The database is not fit for an ambassador; the message says what to do."""


class Door(Gate):
    """The gate of one ambassador. ``longest_s`` is the longest that the monolith works on a request, ``unaware_s`` how
    long another that has lost the lock may still forward; ``clock`` is the loop's. It refuses everybody until `keep`
    holds the lock."""

    def __init__(
        self, pool: Pool, *, longest_s: float, clock: Callable[[], float], unaware_s: float = UNAWARE_S
    ) -> None:
        super().__init__(clock)
        self._pool = pool
        self._longest_s = longest_s
        self._unaware_s = unaware_s
        self._time = clock
        self._exchanges: dict[int, int] = {}
        self._uncertain: dict[int, float] = {}  # until when something of a tenant may still run, unseen
        self._since: tuple[float, datetime] | None = None  # since when nobody else forwards: our and its clock
        self._contested = False  # another may have had the lock since this process began
        self.busy: str = ""  # what the last `drain` that gave up was waiting for

    @property
    def is_sole(self) -> bool:
        """Whether this process holds the lock."""
        return self._since is not None

    # -- admission ----------------------------------------------------------------------------------------------

    async def enter(self, context: TenantContext) -> int:
        """The monolith's customer number of a tenant that is active here at this epoch; nothing ran where it raises.

        The gate has admitted the request already, so a freeze that comes after this answer waits for it.
        """
        if self._since is None:
            raise ShardUnavailableError("another ambassador is at work, or the database is away")
        try:
            async with borrowed(self._pool, READ_TIMEOUT_S) as connection:
                row = await connection.fetchrow(_ROW, context.tenant)
        except DATABASE_FAILED as e:
            raise ShardUnavailableError(f"the monolith's database: {type(e).__name__}") from e
        if row is None:
            raise NotOursError
        if row["epoch"] == context.epoch and row["state"] == "active":
            knr: int = row["knr"]
            return knr
        if row["epoch"] == context.epoch and row["state"] == "frozen":
            raise FrozenError
        raise NotOursError(row["hint"])

    @contextmanager
    def exchanging(self, tenant: int) -> Iterator[None]:
        """Count a request that the monolith is working on, whether or not anybody waits for its answer."""
        self._exchanges[tenant] = self._exchanges.get(tenant, 0) + 1
        try:
            yield
        finally:
            self._exchanges[tenant] -= 1
            if not self._exchanges[tenant]:
                del self._exchanges[tenant]

    def lost_sight(self, tenant: int) -> None:
        """The connection of a request broke: the monolith may go on with it for as long as it ever takes."""
        now = self._time()
        self._uncertain = {t: at for t, at in self._uncertain.items() if at > now}
        self._uncertain[tenant] = now + self._longest_s

    # -- freezing -----------------------------------------------------------------------------------------------

    async def drain(self, tenant: int, budget_s: float) -> bool:
        """Wait until nothing of the tenant is at work in the monolith; false, and `busy` says why, where the budget
        ended first: then the tenant is not frozen. Call it inside `closed`."""
        until = self._time() + budget_s
        mark: datetime | None = None
        while True:
            self.busy = self._at_work(tenant)
            if not self.busy:
                mark = mark or await self._pool.fetchval("SELECT clock_timestamp()")
                self.busy = await self._older(mark)
                if not self.busy:
                    return True
            if self._time() >= until:
                _log.warning("tenant_not_drained", **{Field.TENANT: f"t{tenant}", Field.REASON: self.busy})
                return False
            await asyncio.sleep(min(LOOK_S, max(0.0, until - self._time())))

    def _at_work(self, tenant: int) -> str:
        if self._since is None:
            return "this ambassador is not the only one, or the database is away"
        flying = max(self._in_flight.get(tenant, 0), self._exchanges.get(tenant, 0))
        if flying:
            return f"{flying} requests in flight"
        left = max(self._uncertain.get(tenant, 0.0), self._since[0] + self._longest_s) - self._time()
        if left > 0:
            return f"requests that the monolith may still be working on, for {left:.1f} s at most"
        return ""

    async def _older(self, mark: datetime) -> str:
        assert self._since is not None, "nobody gets here without the lock"
        unsure = self._since[1] + timedelta(seconds=self._longest_s)
        found: str | None = await self._pool.fetchval(_OLDER, mark, unsure, APPLICATION)
        return f"transactions that began before: {found}" if found else ""

    # -- being the only one -------------------------------------------------------------------------------------

    async def keep(self, connect: Callable[[], Awaitable[Any]], sleep: Callable[[float], Awaitable[None]]) -> None:
        """Hold the lock on a connection of its own, until cancelled; get it again after it was lost.

        Whoever gets it anew is as wise as after a restart: another may have forwarded meanwhile. Where another was
        seen to have it, or it was lost, that one may not know yet that it has it no more.
        """
        while True:
            try:
                async with _session(connect) as connection:
                    taken = await connection.fetchval("SELECT pg_try_advisory_lock($1)", _SOLE)
                    contested, self._contested = self._contested, True
                    if taken:
                        await self._hold(connection, sleep, self._unaware_s if contested else 0.0)
            except DATABASE_FAILED as e:
                _log.warning("sole_lock_lost", **{Field.REASON: type(e).__name__})
            finally:
                self._since = None
            await sleep(SOLE_RETRY_S)

    async def _hold(self, connection: Any, sleep: Callable[[float], Awaitable[None]], unaware_s: float) -> None:
        now = await connection.fetchval("SELECT clock_timestamp()")
        self._since = (self._time() + unaware_s, now + timedelta(seconds=unaware_s))
        _log.info("sole_lock_taken")
        while True:
            await sleep(SOLE_CHECK_S)
            await connection.fetchval("SELECT 1", timeout=SOLE_CHECK_S)


@asynccontextmanager
async def _session(connect: Callable[[], Awaitable[Any]]) -> AsyncIterator[Any]:
    connection = await connect()
    try:
        yield connection
    finally:
        connection.terminate()  # gives the lock up; a polite goodbye could hang


async def check_rights(connection: Any) -> None:
    """`DoorError` where the role cannot see the transactions of others, which it has to wait for."""
    if not await connection.fetchval(_MAY_SEE):
        raise DoorError("the role of CELLWALL_ZERO_DSN must be a member of pg_read_all_stats")
