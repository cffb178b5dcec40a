"""Connections: a pool per shard and role, set up so that a tenant session costs three trips and leaves nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import msgspec

from cell.shards import directory
from cell.shards.directory import LiveMap, Shard, ShardMap
from cell.shards.errors import DATABASE_FAILED, ShardUnavailableError
from cell.shards.session import Pool, Shards, Spent, unmetered

CONNECT_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 5.0
STATEMENTS_CACHED: Final = 512
APART_DIRECTORY: Final = 16
APP_ROLE: Final = "cellwall_app"
TRANSFER_ROLE: Final = "cellwall_transfer"
# One plan for each statement of the application: they find their rows by indices, whatever the values are, and to plan
# a statement for every request costs PostgreSQL as much as to run it. A plan that was made while a table was empty must
# not go through all of it later, hence by indices only: every tenant table has one that begins with the tenant.
_PLANNED_ONCE: Final = MappingProxyType({"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"})


if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:  # generic to the type checker only
    _Connection = asyncpg.Connection


class TenantConnection(_Connection):
    """A pooled connection. Nothing outlives a transaction on it, so giving it back needs no reset query."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        """None: all settings are local to their transaction; the pool itself ends an open transaction."""
        return ""


@dataclass(frozen=True, slots=True)
class Databases:
    """What a process of a cell holds open. ``directory`` is reached with the application's role."""

    shard_map: ShardMap | LiveMap
    directory: Pool
    shards: Shards


@asynccontextmanager
async def opened(
    directory_dsn: str, app_password: str, size: int, application: str, spent: Spent = unmetered
) -> AsyncIterator[Databases]:
    """The directory and the application's pools, closed at the end. ``spent`` is told what sessions cost.

    Raises `ShardUnavailableError` where the directory cannot be read. A shard that is down is no failure: its tenants
    fail until it is back, all others are served.
    """
    async with AsyncExitStack() as stack:
        catalogue = await stack.enter_async_context(
            _pool(dsn=directory_dsn, size=2, application=application, connection_class=asyncpg.Connection)
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                shard_map = await directory.live(catalogue)
        except DATABASE_FAILED as e:
            raise ShardUnavailableError(f"the directory cannot be read: {e or type(e).__name__}") from e
        pools = {
            shard.name: await stack.enter_async_context(app_pool(shard, app_password, size, application))
            for shard in shard_map.shards.values()
        }
        await _warm(pools.values())
        yield Databases(shard_map, catalogue, Shards(shard_map, pools, spent=spent))


@asynccontextmanager
async def apart(
    databases: Databases, directory_dsn: str, app_password: str, size: int, application: str, spent: Spent = unmetered
) -> AsyncIterator[Databases]:
    """The same databases on connections of their own, for work that must not take those of others; opened when needed.

    ``size`` connections a shard; to the directory at most `APART_DIRECTORY`.
    """
    async with AsyncExitStack() as stack:
        catalogue = await stack.enter_async_context(
            _pool(
                dsn=directory_dsn,
                size=APART_DIRECTORY,
                application=application,
                connection_class=asyncpg.Connection,
            )
        )
        pools = {
            shard.name: await stack.enter_async_context(app_pool(shard, app_password, size, application))
            for shard in databases.shard_map.shards.values()
        }
        yield Databases(databases.shard_map, catalogue, Shards(databases.shard_map, pools, spent=spent))


@asynccontextmanager
async def app_pool(shard: Shard, password: str, size: int, application: str) -> AsyncIterator[Pool]:
    """The application role's pool of one shard, with the fence prepared on every connection."""
    login: dict[str, Any] = {"user": APP_ROLE, "password": password, "init": _prepare_fence, "settings": _PLANNED_ONCE}
    async with _pool(**_target(shard), **login, size=size, application=application) as pool:
        yield pool


@asynccontextmanager
async def transfer_pools(
    shards: Mapping[str, Shard], password: str, size: int, application: str
) -> AsyncIterator[dict[str, Pool]]:
    """The transfer role's pools, by shard. That role bypasses row-level security; no request of a user reaches it."""
    async with AsyncExitStack() as stack:
        pools = {}
        for shard in shards.values():
            login: dict[str, Any] = {"user": TRANSFER_ROLE, "password": password, "init": _json_codecs}
            pool = _pool(**_target(shard), **login, size=size, application=application)
            pools[shard.name] = await stack.enter_async_context(pool)
        yield pools


@asynccontextmanager
async def directory_for_transfer(directory_dsn: str, password: str, application: str) -> AsyncIterator[Pool]:
    """The directory as the transfer role, which may change the map. The DSN names another user and its password."""
    login: dict[str, Any] = {"user": TRANSFER_ROLE, "password": password}
    async with _pool(dsn=directory_dsn, **login, size=3, application=application) as pool:
        yield pool


@asynccontextmanager
async def following(databases: Databases, process: str) -> AsyncIterator[None]:
    """Keep the map new, and say in the directory that ``process`` knows its shards, until it ends."""
    live = databases.shard_map
    if not isinstance(live, LiveMap):
        yield
        return
    task = asyncio.get_running_loop().create_task(live.follow(process, databases.shards.names))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with suppress(ShardUnavailableError):
            await live.leave(process)


def _target(shard: Shard) -> dict[str, Any]:
    return {"host": shard.host, "port": shard.port, "database": shard.database}


@asynccontextmanager
async def _pool(
    *,
    size: int,
    application: str,
    connection_class: Any = TenantConnection,
    settings: Mapping[str, str] = MappingProxyType({}),
    **where: Any,
) -> AsyncIterator[Pool]:
    pool = asyncpg.create_pool(
        min_size=0,
        max_size=size,
        timeout=CONNECT_TIMEOUT_S,
        statement_cache_size=STATEMENTS_CACHED,
        max_cached_statement_lifetime=0,
        connection_class=connection_class,
        server_settings={"application_name": application, **settings},
        **where,
    )
    await pool
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await pool.close()
        except TimeoutError:
            pool.terminate()


async def _prepare_fence(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await connection.execute("PREPARE enter(bigint, bigint) AS SELECT cellwall.enter_tenant($1, $2)")
    await _json_codecs(connection)


async def _json_codecs(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=_encode_json, decoder=msgspec.json.decode, format="text"
        )


def _encode_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


async def _warm(pools: Iterable[Pool]) -> None:
    """One connection each, so that the first request pays for none; a shard that is down is left for readiness."""

    async def touch(pool: Pool) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT_S), pool.acquire():
            pass

    await asyncio.gather(*(touch(pool) for pool in pools), return_exceptions=True)
