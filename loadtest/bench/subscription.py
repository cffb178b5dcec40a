"""What a copy is compared with: PostgreSQL's own initial sync of the same rows, on the same servers."""

import asyncio
import os
import subprocess
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

import asyncpg

from infra.local.binaries import find_postgres
from infra.local.servers import create_database, with_database
from loadtest.bench.figures import BenchError

NAME: Final = "cellwall_bench"
TABLES: Final = ("product.orders", "product.order_lines")
POLL_S: Final = 0.02
LIMIT_S: Final = 600.0


async def initial_sync_s(source: str, target: str, tenant: int) -> tuple[int, float]:
    """Rows, and the seconds from ``CREATE SUBSCRIPTION`` until all of them are there. DSNs of shards, a superuser's.

    Into a database of its own on the target's server, with the same tables and indexes, in the binary format. Nothing
    of it is left.
    """
    sender = await asyncpg.connect(source)
    try:
        filtered = ", ".join(f"{table} WHERE (tenant_id = {tenant})" for table in TABLES)
        await sender.execute(f"CREATE PUBLICATION {NAME} FOR TABLE {filtered}")
        try:
            return await _into(await create_database(with_database(target, "postgres"), NAME), source, target)
        finally:
            await sender.execute(f"DROP PUBLICATION {NAME}")
    finally:
        await sender.close()


async def _into(database: str, source: str, target: str) -> tuple[int, float]:
    admin = await asyncpg.connect(with_database(target, "postgres"))
    try:
        await asyncio.to_thread(_copy_schema, target, database)
        receiver = await asyncpg.connect(database)
        try:
            return await _synced(receiver, source)
        finally:
            await receiver.close()
    finally:
        await admin.execute(f"DROP DATABASE {NAME} WITH (FORCE)")
        await admin.close()


async def _synced(receiver: "asyncpg.Connection[asyncpg.Record]", source: str) -> tuple[int, float]:
    began = time.monotonic()
    quoted = source.replace("'", "''")
    await receiver.execute(
        # As its owner, a superuser: the tables' owner is under row-level security, which COPY FROM refuses.
        f"CREATE SUBSCRIPTION {NAME} CONNECTION '{quoted}' PUBLICATION {NAME}"
        " WITH (binary = true, origin = none, run_as_owner = true)"
    )
    try:
        left = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate NOT IN ('s', 'r')"
        while await receiver.fetchval(left):
            errors = await receiver.fetchval("SELECT sum(sync_error_count) FROM pg_stat_subscription_stats")
            if errors or time.monotonic() - began > LIMIT_S:
                raise BenchError("the subscription's initial sync failed: the log of the target's server says why")
            await asyncio.sleep(POLL_S)
        seconds = time.monotonic() - began
        rows = [await receiver.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES]  # noqa: S608
    finally:
        await receiver.execute(f"DROP SUBSCRIPTION {NAME}")
    return sum(rows), seconds


def _copy_schema(source: str, target: str) -> None:
    programs = find_postgres().postgres.parent
    dump = [str(programs / "pg_dump"), "--schema-only", "--no-publications", "--no-subscriptions"]
    made = subprocess.run(dump, env=_login(source), capture_output=True, check=False)
    if made.returncode == 0:
        load = [str(programs / "psql"), "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1"]
        made = subprocess.run(load, env=_login(target), input=made.stdout, capture_output=True, check=False)
    if made.returncode != 0:
        raise BenchError(f"the schema could not be copied: {made.stderr.decode().strip()[-300:]}")


def _login(dsn: str) -> Mapping[str, str]:
    """In the environment: command lines can be read by everybody."""
    parts = urlsplit(dsn)
    return {
        "PATH": os.environ.get("PATH", ""), "PGHOST": parts.hostname or "", "PGPORT": str(parts.port),
        "PGUSER": parts.username or "", "PGPASSWORD": unquote(parts.password or ""), "PGDATABASE": parts.path[1:],
    }  # fmt: skip
