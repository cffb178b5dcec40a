"""The databases as `cell migrate` leaves them."""

from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine

from cell.modules.accounts import tables as accounts
from cell.modules.catalog import tables as catalog
from cell.modules.inventory import tables as inventory
from cell.modules.old_urls import tables as old_urls
from cell.modules.orders import tables as orders
from cell.modules.payments import tables as payments
from cell.modules.reports import tables as reports
from cell.modules.webhooks import tables as webhooks
from cell.schema import migrate
from cell.schema.walls import breaches
from cell.shards.tables import metadata
from tests.integration.cell.platform_parts.two_cells import Cell, Mutate

PRODUCT = (accounts, catalog, inventory, old_urls, orders, payments, reports, webhooks)  # they complete the metadata


async def found_breaches(cell: Cell) -> list[str]:
    connection = await cell.connect("cellwall_owner")
    try:
        return await breaches(connection)
    finally:
        await connection.close()


async def test_migrating_twice_would_deal_the_buckets_again(cell_databases: Any) -> None:
    first = min(cell_databases.admin_dsns)
    directory = await asyncpg.connect(cell_databases.directory_dsn)
    await _as_directory_owner(cell_databases, f"UPDATE buckets SET shard = '{first}' WHERE bucket = 1023")
    before = await directory.fetch("SELECT * FROM buckets ORDER BY bucket")
    await migrate.migrate(cell_databases.admin_dsns, cell_databases.passwords)
    assert await directory.fetch("SELECT * FROM buckets ORDER BY bucket") == before
    assert len(before) == 1024
    await directory.close()


async def test_an_unreachable_server_is_named(cell_databases: Any) -> None:
    dsn = "postgresql://postgres:password@127.0.0.1:1/postgres"
    with pytest.raises(migrate.MigrationError, match=r"shard-9: cannot connect to 127\.0\.0\.1:1"):
        await migrate.migrate({"shard-9": dsn}, cell_databases.passwords)


async def test_tables_that_the_code_knows_would_differ_from_the_migrated_ones(cell: Cell) -> None:
    password = dict(cell.passwords.items())["cellwall_owner"]
    url = sa.URL.create(
        "postgresql+asyncpg", "cellwall_owner", password, cell.shard.host, cell.shard.port, cell.shard.database
    )
    engine = create_async_engine(url)

    def compare(connection: sa.Connection) -> list[Any]:
        options = {
            "include_schemas": True,
            "version_table_schema": "cellwall",
            "include_name": lambda name, kind, _: kind != "schema" or name in {"cellwall", "product"},
            "compare_server_default": True,
        }
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    async with engine.connect() as connection:
        assert await connection.run_sync(compare) == []
    await engine.dispose()


@pytest.mark.invariant(3)
async def test_a_tenant_table_without_its_wall_would_go_unnoticed(cell: Cell) -> None:
    assert await found_breaches(cell) == []
    await cell.as_owner("CREATE TABLE product.forgotten (id bigserial PRIMARY KEY, tenant_id bigint)")
    try:
        found = await found_breaches(cell)
    finally:
        await cell.as_owner("DROP TABLE product.forgotten")
    assert found == [
        "product.forgotten does not have tenant_id first in its primary key",
        "product.forgotten is not under forced row-level security",
        "product.forgotten does not have exactly the one policy of a tenant table",
        "product.forgotten uses a database sequence, which does not move with a tenant",
    ]


@pytest.mark.mutation(3)
async def test_a_wall_that_was_taken_down_is_found(cell: Cell, mutate: Mutate) -> None:
    await mutate("rls_off")
    assert await found_breaches(cell) == ["cellwall.counters is not under forced row-level security"]


async def test_a_second_permissive_policy_is_found(cell: Cell) -> None:
    await cell.as_owner("CREATE POLICY hole ON product.users USING (true)")
    try:
        found = await found_breaches(cell)
    finally:
        await cell.as_owner("DROP POLICY hole ON product.users")
    assert found == ["product.users does not have exactly the one policy of a tenant table"]


async def test_the_application_could_take_its_wall_down_or_forge_a_fence(cell: Cell) -> None:
    connection = await cell.connect("cellwall_app")
    for statement in (
        "ALTER TABLE product.users DISABLE ROW LEVEL SECURITY",
        "UPDATE cellwall.tenants SET state = 'active'",
        "DELETE FROM cellwall.tenants",
        "CREATE TABLE product.mine (a int)",
        "CREATE TABLE public.mine (a int)",
        "SET ROLE cellwall_owner",
        "TRUNCATE product.users",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()


async def test_an_abandoned_transaction_would_hold_its_tenant_for_ever(cell: Cell) -> None:
    wanted = {"client_connection_check_interval", "transaction_timeout", "idle_in_transaction_session_timeout"}
    for role in ("cellwall_app", "cellwall_transfer"):
        connection = await cell.connect(role)
        rows = await connection.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", list(wanted))
        assert {r["name"] for r in rows if r["setting"] != "0"} == wanted
        await connection.close()


async def _as_directory_owner(cell_databases: Any, statement: str) -> None:
    dsn = cell_databases.directory_dsn
    owner = dsn.replace(
        f"cellwall_app:{cell_databases.passwords.app}", f"cellwall_owner:{cell_databases.passwords.owner}"
    )
    connection = await asyncpg.connect(owner)
    await connection.execute(statement)
    await connection.close()
