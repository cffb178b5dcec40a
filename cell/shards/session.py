"""Tenant sessions: the only way to a tenant's rows. Enter, work, commit.

Three trips for one statement: ``BEGIN; EXECUTE enter(...)``, the statement, ``COMMIT``. `cellwall.enter_tenant` takes
the tenant's shared lock, then checks state and epoch, then sets the row-level-security tenant, all for this
transaction only (moves.md rule 3), so a pooled connection carries nothing over.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from math import inf
from typing import Any, Final, TypeAlias, TypeVar

import asyncpg

from cell.fairness.cost import Cost
from cell.shards import errors
from cell.shards.context import TenantContext
from cell.shards.directory import LiveMap, ShardMap
from cell.shards.passage import Passage
from cell.shards.sql import Statement

LOCK_PATIENCE_S: Final = 0.05  # how long a busy tenant lock is tried again before the tenant counts as frozen
LOCK_RETRY_S: Final = 0.005
MOVING_PATIENCE_S: Final = 5.0  # how long a request waits for its bucket; `cell.rebucketing` holds one for less
DIRECTORY_RETRY_S: Final = 0.05
ROLLBACK_TIMEOUT_S: Final = 2.0
_TIMEOUT_MS_MAX: Final = 2**31 - 1
# InternalClientError is how asyncpg meets a server that said goodbye while the connection was idle in a transaction.
_CONNECTION_LOST: Final = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
)
_NEVER_SENT: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError)  # raised before a byte is written
_SERVER_ENDED: Final = frozenset({"57014", "57P01", "57P02", "57P05", "25P03", "25P04"})
_GAVE_WAY: Final = frozenset({"55P03", "40P01"})  # waited too long for a lock, or in a circle
_UNAVAILABLE: Final = frozenset({"57P03", "53300", "53200", "28P01", "3D000"})

T = TypeVar("T")
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
PooledConnection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Spent: TypeAlias = Callable[[int, str, float], None]  # tenant, shard, seconds: `cell.metering.Meter.spent`
NO_TENANT: Final = 0


def unmetered(_tenant: int, _shard: str, _seconds: float) -> None:
    """For processes whose work nobody counts, such as a command of an operator."""


class TenantSession:
    """One transaction of one tenant. Only `Shards.enter` makes one; it is over when that context ends.

    How long the shard took to answer is added to ``cost``, in seconds of ``clock``.
    """

    def __init__(
        self,
        connection: PooledConnection,
        tenant: int,
        cost: Cost | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self.tenant = tenant
        self._cost = cost or Cost()
        self._clock = clock

    async def fetch(self, statement: Statement, **values: Any) -> list[asyncpg.Record]:
        """All rows."""
        return await self._ask(self._connection.fetch, statement, values)

    async def fetchrow(self, statement: Statement, **values: Any) -> asyncpg.Record | None:
        """The first row, or None."""
        return await self._ask(self._connection.fetchrow, statement, values)

    async def fetchval(self, statement: Statement, **values: Any) -> Any:
        """The first column of the first row, or None."""
        return await self._ask(self._connection.fetchval, statement, values)

    async def execute(self, statement: Statement, **values: Any) -> int:
        """How many rows the statement changed (or returned)."""
        status = await self._ask(self._connection.execute, statement, values)
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def _ask(self, ask: Callable[..., Awaitable[T]], statement: Statement, values: dict[str, Any]) -> T:
        """The driver's answer, with the failures that are the platform's matter raised as errors of ours.

        The call is made in here: a connection that the server has ended is out of the pool's hands and refuses at once.
        """
        arguments = statement.arguments(self.tenant, values)
        began = self._clock()
        try:
            return await ask(statement.text, *arguments)
        except errors.DATABASE_FAILED as e:
            mapped = _mapped(e)
            if mapped is not None:
                raise mapped from e
            raise
        finally:
            self._cost.database_s += self._clock() - began


class Shards:
    """The tenants' databases of this cell. Which shard a tenant is on is decided in memory, by the bucket map."""

    def __init__(
        self,
        shard_map: ShardMap | LiveMap,
        pools: Mapping[str, Pool],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        spent: Spent = unmetered,
    ) -> None:
        """``spent`` is told at the end of every session how long it kept its shard busy."""
        self._map = shard_map
        self._refresh = shard_map.refresh
        self._pools = pools
        self._passage = Passage(pools, clock, sleep)
        self._sleep = sleep
        self._clock = clock
        self._spent = spent

    @property
    def names(self) -> tuple[str, ...]:
        """The shards, in order of their names."""
        return tuple(sorted(self._pools))

    def shard_of(self, tenant: int) -> str:
        """The name of the shard that holds the tenant."""
        return self._map.shard_of(tenant)

    def pool(self, shard: str) -> Pool:
        """The application role's pool of a shard, for platform tables that are under no tenant (``work``)."""
        return self._pools[shard]

    @contextmanager
    def platform(self, shard: str) -> Iterator[Pool]:
        """The same pool for one statement under no tenant, whose time counts as the platform's."""
        began = self._clock()
        try:
            yield self._pools[shard]
        finally:
            self._spent(NO_TENANT, shard, self._clock() - began)

    @asynccontextmanager
    async def enter(self, ctx: TenantContext, *, read_only: bool = False) -> AsyncIterator[TenantSession]:
        """A transaction of the context's tenant: commits when the block ends well, else rolls back.

        Raises `NotOursError` or `FrozenError` before anything ran; other `ShardError`s say what happened to the
        transaction. A ``read_only`` one does not count as an effect of the request. COMMIT, once sent, is awaited
        even when the task is cancelled; a running statement is cancelled at the server.
        """
        shard, connection = await self._entered(ctx, read_only)
        before = ctx.cost.database_s
        try:
            try:
                yield TenantSession(connection, ctx.tenant, ctx.cost, self._clock)
            except BaseException:
                await _rollback(connection)
                raise
            began = self._clock()
            try:
                await _commit(connection, ctx, read_only)
            finally:
                ctx.cost.database_s += self._clock() - began
        finally:
            self._spent(ctx.tenant, shard, ctx.cost.database_s - before)
            await self._pools[shard].release(connection)

    async def _entered(self, ctx: TenantContext, read_only: bool) -> tuple[str, PooledConnection]:
        """The shard and a connection inside of its fence.

        Waits while the tenant's bucket moves between shards, at most `MOVING_PATIENCE_S`, and goes where it lives by
        then. Who has no row where this process thinks may have moved: the shard is asked before that is said.
        """
        until = 0.0
        while True:
            shard = self._map.shard_of(ctx.tenant)
            try:
                return shard, await self._tried(shard, ctx, read_only)
            except (errors.MovingError, errors.WrongShardError, errors.NotHereError) as e:
                until = until or self._clock() + MOVING_PATIENCE_S
                await self._passed(shard, ctx.tenant, until, e)

    async def _passed(self, shard: str, tenant: int, until: float, met: errors.ShardError) -> None:
        """Return when it is worth another try; raise what the request ends with where it is not."""
        try:
            found = await self._passage.stands(shard, tenant, until)
        except errors.DATABASE_FAILED as e:
            raise errors.ShardUnavailableError(str(e)) from e
        if found == "unknown" and isinstance(met, errors.NotHereError):
            raise met
        if self._clock() >= until:
            raise errors.FrozenError from met
        if found == "away" and self._map.shard_of(tenant) == shard:
            try:
                await self._refresh()
            except errors.ShardUnavailableError:  # a directory that is away for a moment, as when it is restarted
                await self._sleep(DIRECTORY_RETRY_S)

    async def _tried(self, shard: str, ctx: TenantContext, read_only: bool) -> PooledConnection:
        pool = self._pools.get(shard)
        if pool is None:
            raise errors.ShardUnavailableError(f"{shard} is newer than this process, which must be restarted")
        before = ctx.cost.database_s
        try:
            connection = await pool.acquire()
        except errors.DATABASE_FAILED as e:
            raise errors.ShardUnavailableError(str(e)) from e
        try:
            await self._enter(connection, ctx, read_only)
        except BaseException:
            await pool.release(connection)
            raise
        finally:
            self._spent(ctx.tenant, shard, ctx.cost.database_s - before)
        return connection

    async def _enter(self, connection: PooledConnection, ctx: TenantContext, read_only: bool) -> None:
        began = self._clock()
        try:
            await self._begun(connection, self._begin(ctx, read_only))
        finally:
            ctx.cost.database_s += self._clock() - began

    def _begin(self, ctx: TenantContext, read_only: bool) -> str:
        """The first trip. The time limit of statements travels in it, in milliseconds, and never as 0: that is none."""
        begin = "BEGIN READ ONLY; " if read_only else "BEGIN; "
        if ctx.statement_by != inf:
            limit_ms = int((ctx.statement_by - self._clock()) * 1000)
            begin += f"SET LOCAL statement_timeout = {min(max(limit_ms, 1), _TIMEOUT_MS_MAX)}; "
        if not ctx.lasting:
            begin += "SET LOCAL synchronous_commit = off; "
        return f"{begin}EXECUTE enter({int(ctx.tenant)}, {int(ctx.epoch)})"

    async def _begun(self, connection: PooledConnection, begin: str) -> None:
        patience = LOCK_PATIENCE_S
        while True:
            try:
                await connection.execute(begin)
                return
            except BaseException as e:
                await _rollback(connection)
                mapped = _mapped(e)
                if isinstance(mapped, errors.FrozenError) and mapped.busy and patience > 0:
                    patience -= LOCK_RETRY_S
                    await self._sleep(LOCK_RETRY_S)
                    continue
                if mapped is not None:
                    raise mapped from e
                raise


async def _commit(connection: PooledConnection, ctx: TenantContext, read_only: bool) -> None:
    before = ctx.committed
    ctx.committed = before or not read_only
    try:
        if read_only:  # it may be cancelled: nothing depends on it, and the pool ends what is open
            status = await connection.execute("COMMIT")
        else:
            status = await _unharmed(asyncio.ensure_future(connection.execute("COMMIT")))
    except _CONNECTION_LOST as e:
        if read_only or isinstance(e, _NEVER_SENT):
            ctx.committed = before
            raise errors.CancelledByServerError(str(e)) from e
        raise errors.CommitUnknownError(str(e)) from e
    except asyncpg.PostgresError as e:
        if e.sqlstate in _SERVER_ENDED:
            raise errors.CommitUnknownError(str(e)) from e
        ctx.committed = before
        raise
    if status != "COMMIT":
        ctx.committed = before
        raise errors.TransactionAbortedError(f"the server answered {status} to COMMIT")


async def _rollback(connection: PooledConnection) -> None:
    """Leave no transaction open, whatever happens; a connection that cannot be cleaned in time is closed."""
    try:
        if connection.is_closed() or not connection.is_in_transaction():
            return
        await _unharmed(asyncio.ensure_future(connection.execute("ROLLBACK", timeout=ROLLBACK_TIMEOUT_S)))
    except errors.DATABASE_FAILED:
        with suppress(asyncpg.InterfaceError):  # the pool has let go of it already: the server had closed it
            connection.terminate()


async def _unharmed(task: "asyncio.Future[str]") -> str:
    """The task's result. Cancellation of the caller waits for the task to finish and is then raised."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            cancelled = True
    if cancelled and not task.cancelled() and task.exception() is None:
        raise asyncio.CancelledError
    return task.result()


def _lost(error: BaseException) -> bool:
    """Whether the connection is gone. Wrong arguments are interface errors too (and ValueErrors), but not ours."""
    return isinstance(error, _CONNECTION_LOST) and not isinstance(error, ValueError)


def _mapped(error: BaseException) -> errors.ShardError | None:
    """The error of ours that stands for one of the driver, or None where it is the application's own matter."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate
        if state == "CW421" and error.hint == "unknown":
            return errors.NotHereError()
        if state == "CW421":
            return errors.NotOursError(error.detail or "")
        if state == "CW308":
            return errors.WrongShardError(str(error))
        if state == "CW503" and error.detail == "moving":
            return errors.MovingError()
        if state == "CW503":
            return errors.FrozenError(busy=error.detail == "busy")
        if state in _SERVER_ENDED or state in _GAVE_WAY:
            return errors.CancelledByServerError(str(error))
        if state in _UNAVAILABLE:
            return errors.ShardUnavailableError(str(error))
    if _lost(error):
        return errors.ShardUnavailableError(str(error))
    return None
