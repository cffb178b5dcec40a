"""``cell migrate``: roles, databases, revisions, grants and the first bucket map. Safe to repeat, and to run twice.

Connects as the superuser only to make roles and databases; revisions run as ``cellwall_owner``, which is no superuser
and which no serving process uses.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import asyncpg
import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import create_async_engine

from cell.schema.operations import APP, OWNER, TRANSFER
from cell.schema.walls import breaches
from contracts import ids
from contracts.names import Field

DIRECTORY: Final = "directory"
SHARD: Final = "shard"
POSTGRES_MIN: Final = 170000  # transaction_timeout
_LOCK: Final = 0x63656C6C  # one migration of a server at a time
_HERE: Final = Path(__file__).parent

# A query of a client that is gone ends within a second; a forgotten transaction does not hold a tenant's lock.
_ROLE_SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {
    OWNER: {"lock_timeout": "5s", "statement_timeout": "15min"},
    APP: {
        "client_connection_check_interval": "1s",
        "statement_timeout": "30s",
        "transaction_timeout": "60s",
        "idle_in_transaction_session_timeout": "15s",
        "lock_timeout": "10s",
        # A seat stands for one processor of the database, so a heavy query of one tenant may not take several.
        "max_parallel_workers_per_gather": "0",
    },
    TRANSFER: {
        "client_connection_check_interval": "1s",
        "transaction_timeout": "15min",
        "idle_in_transaction_session_timeout": "60s",
        "lock_timeout": "10s",
    },
}

# What is applied from a stream says so, and a stream the other way leaves it out: `origin 'none'`.
_ORIGINS: Final = f"""
DO $$
DECLARE
  origin regprocedure;
BEGIN
  FOR origin IN SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace
    AND p.proname = ANY ('{{pg_replication_origin_create, pg_replication_origin_drop, pg_replication_origin_oid,
      pg_replication_origin_session_setup, pg_replication_origin_session_reset}}')
  LOOP
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO {TRANSFER}', origin);
  END LOOP;
END
$$
"""  # noqa: S608

_log = structlog.get_logger()


class MigrationError(Exception):
    """The databases cannot be brought to this version; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Passwords:
    """Of the three roles, on every server of the cell."""

    owner: str
    app: str
    transfer: str

    def items(self) -> tuple[tuple[str, str], ...]:
        """Role and password."""
        return (OWNER, self.owner), (APP, self.app), (TRANSFER, self.transfer)


@dataclass(frozen=True, slots=True)
class Server:
    """A shard's server as its superuser reaches it."""

    name: str
    admin_dsn: str

    @property
    def host(self) -> str:
        """Where the server is, as the cell's processes reach it too: the directory stores it. Loopback if unnamed."""
        return urlsplit(self.admin_dsn).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        """PostgreSQL's own port, 5432, where the DSN names none. ValueError where it names no valid one."""
        return urlsplit(self.admin_dsn).port or 5432

    def url(self, user: str, password: str, database: str) -> str:
        """A DSN of this server for somebody else."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"postgresql://{user}:{quote(password, safe='')}@{host}:{self.port}/{database}"


async def migrate(shard_admin_dsns: Mapping[str, str], passwords: Passwords) -> None:
    """Bring all databases of a cell to this version. The first shard by name also holds the directory."""
    servers = [Server(name, dsn) for name, dsn in sorted(shard_admin_dsns.items())]
    for number, server in enumerate(servers):
        databases = [SHARD, DIRECTORY] if number == 0 else [SHARD]
        async with _administered(server) as admin:
            await _roles(admin, passwords)
            for database in databases:
                await _database(admin, database)
            for database in databases:
                await _opened(server, database)
                await _upgrade(server, passwords, database)
        await _check_walls(server, passwords)
        _log.info("shard_migrated", **{Field.SHARD: server.name}, schema=head(SHARD))
    await _fill_directory(servers, passwords)


def head(database: str) -> str:
    """The newest revision of this version's ``shard`` or ``directory`` schema."""
    return ScriptDirectory.from_config(_config(database)).get_current_head() or ""


def run_revisions(context: EnvironmentContext | Any, version_schema: str | None) -> None:
    """What both ``env.py`` do: all revisions in one transaction on the connection that was handed over."""
    connection: sa.Connection = context.config.attributes["connection"]
    context.configure(connection=connection, version_table_schema=version_schema, transaction_per_migration=False)
    with context.begin_transaction():
        context.run_migrations()


def _config(database: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_HERE / database).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@asynccontextmanager
async def _administered(server: Server) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    try:
        admin = await asyncpg.connect(server.admin_dsn)
    except (OSError, asyncpg.PostgresError) as e:
        raise MigrationError(f"{server.name}: cannot connect to {server.host}:{server.port}: {e}") from e
    try:
        version = admin.get_server_version()
        if await admin.fetchval("SELECT current_setting('server_version_num')::int") < POSTGRES_MIN:
            raise MigrationError(f"{server.name}: PostgreSQL {version.major} is too old, 17 or newer is needed")
        await admin.execute("SELECT pg_advisory_lock($1)", _LOCK)
        yield admin
    finally:
        await admin.close()


async def _roles(admin: "asyncpg.Connection[asyncpg.Record]", passwords: Passwords) -> None:
    for role, password in passwords.items():
        if not await admin.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
            await admin.execute(f"CREATE ROLE {role}")
        bypass = "BYPASSRLS" if role == TRANSFER else "NOBYPASSRLS"
        limits = f"LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE {bypass}"
        limits += " INHERIT" if role == TRANSFER else " NOINHERIT NOREPLICATION"  # the transfer's rights: below
        statement = await admin.fetchval(f"SELECT format('ALTER ROLE {role} {limits} PASSWORD %L', $1::text)", password)
        await admin.execute(statement)
        for name, value in _ROLE_SETTINGS[role].items():
            await admin.execute(f"ALTER ROLE {role} SET {name} = '{value}'")
    # A freeze ends the holders of a tenant's lock; metering sees whose statements keep the server busy.
    await admin.execute(f"GRANT pg_signal_backend, pg_read_all_stats TO {TRANSFER}")
    # Rows that arrive as a whole, with all that they refer to, are written as replication writes them: without
    # triggers, so that a cascade that is in the stream already does not happen twice.
    await admin.execute(f"GRANT SET ON PARAMETER session_replication_role TO {TRANSFER}")
    await _replication(admin)


async def _replication(admin: "asyncpg.Connection[asyncpg.Record]") -> None:
    """The right to a replication slot: an attribute of the role, or what Amazon RDS has in its place."""
    managed = await admin.fetchval("SELECT true FROM pg_roles WHERE rolname = 'rds_replication'")
    await admin.execute(f"GRANT rds_replication TO {TRANSFER}" if managed else f"ALTER ROLE {TRANSFER} REPLICATION")


async def _database(admin: "asyncpg.Connection[asyncpg.Record]", database: str) -> None:
    if not await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", database):
        await admin.execute(f"CREATE DATABASE {database} OWNER {OWNER} ENCODING 'UTF8' TEMPLATE template0")
    await admin.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    await admin.execute(f"GRANT CONNECT ON DATABASE {database} TO {APP}, {TRANSFER}")


async def _opened(server: Server, database: str) -> None:
    """The schemas that the superuser has to settle inside of a database."""
    parts = urlsplit(server.admin_dsn)
    connection = await asyncpg.connect(parts._replace(path=f"/{database}").geturl())
    try:
        await connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        if database == SHARD:
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS cellwall AUTHORIZATION {OWNER}")
            await connection.execute(_ORIGINS)
        else:
            await connection.execute(f"GRANT USAGE, CREATE ON SCHEMA public TO {OWNER}")
    finally:
        await connection.close()


async def _upgrade(server: Server, passwords: Passwords, database: str) -> None:
    await upgrade(server.url(OWNER, passwords.owner, database), database)


async def upgrade(dsn: str, database: str) -> None:
    """Run the revisions of ``shard`` or ``directory`` in the database of ``dsn``, as its user."""
    url = sa.make_url(dsn).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=sa.pool.NullPool)
    config = _config(database)
    try:
        async with engine.connect() as connection:

            def run(sync: sa.Connection) -> None:
                config.attributes["connection"] = sync
                command.upgrade(config, "head")
                sync.commit()

            await connection.run_sync(run)
    finally:
        await engine.dispose()


async def _check_walls(server: Server, passwords: Passwords) -> None:
    connection = await asyncpg.connect(server.url(OWNER, passwords.owner, SHARD))
    try:
        found = await breaches(connection)
    finally:
        await connection.close()
    if found:
        raise MigrationError(f"{server.name}: {'; '.join(found)}")


async def _fill_directory(servers: list[Server], passwords: Passwords) -> None:
    """Shards get their present addresses; buckets are dealt out once and from then on only moved, never dealt again."""
    connection = await asyncpg.connect(servers[0].url(OWNER, passwords.owner, DIRECTORY))
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE shards IN EXCLUSIVE MODE")
            await connection.executemany(
                "INSERT INTO shards (name, host, port, database) VALUES ($1, $2, $3, $4)"
                " ON CONFLICT (name) DO UPDATE SET host = excluded.host, port = excluded.port",
                [(s.name, s.host, s.port, SHARD) for s in servers],
            )
            if not await connection.fetchval("SELECT count(*) FROM buckets"):
                deal = [(b, servers[b % len(servers)].name) for b in range(ids.BUCKETS)]
                await connection.executemany("INSERT INTO buckets (bucket, shard) VALUES ($1, $2)", deal)
    finally:
        await connection.close()


def run(shard_admin_dsns: Mapping[str, str], passwords: Passwords) -> None:
    """`migrate` in a loop of its own."""
    asyncio.run(migrate(shard_admin_dsns, passwords))
