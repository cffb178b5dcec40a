"""The module that docs/bring-your-own-app.md builds: its code is taken from there, and must run as it stands."""

import asyncio
import re
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.ext.asyncio import create_async_engine

from cell import app, modules, worker
from cell.shards.tables import metadata
from tests.integration.cell.cell_world import CellDatabases, Merchant, World, opened

DOC = Path(__file__).parents[3] / "docs" / "bring-your-own-app.md"
ORDER = ("tables", "revision", "service", "api", "public")
TABLE = "product.notes"


def documented() -> dict[str, ModuleType]:
    """The modules of the page, loaded under the names that they have in a cell."""
    blocks = dict(re.findall(r"^```python notes/(\w+)\.py\n(.*?)^```$", DOC.read_text(), re.MULTILINE | re.DOTALL))
    assert set(blocks) == set(ORDER), "the page shows other files than the test loads"
    package = ModuleType("cell.modules.notes")
    package.__path__ = []
    sys.modules[package.__name__] = package
    modules.notes = package  # type: ignore[attr-defined]
    loaded = {}
    for name in ORDER:
        module = ModuleType(f"{package.__name__}.{name}")
        sys.modules[module.__name__] = module
        exec(compile(blocks[name], f"{DOC.name}:{name}.py", "exec"), module.__dict__)
        setattr(package, name, module)
        loaded[name] = module
    return loaded


def forgotten() -> None:
    """As if the page had not been loaded."""
    for name in [name for name in sys.modules if name.startswith("cell.modules.notes")]:
        del sys.modules[name]
    if hasattr(modules, "notes"):
        del modules.notes
    if TABLE in metadata.tables:
        metadata.remove(metadata.tables[TABLE])


@pytest.fixture
def notes() -> Iterator[dict[str, ModuleType]]:
    """The page's modules, as if they were files of the cell."""
    try:
        yield documented()
    finally:
        forgotten()


async def as_owner(databases: CellDatabases, work: Any) -> None:
    """Run Alembic operations in each shard."""
    for dsn in databases.admin_dsns.values():
        url = sa.make_url(dsn).set(drivername="postgresql+asyncpg", database="shard", query={})
        engine = create_async_engine(url)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(work)
        finally:
            await engine.dispose()


@pytest_asyncio.fixture
async def shop(
    cell_databases: CellDatabases, redis_server: Any, tmp_path: Path, notes: dict[str, ModuleType]
) -> AsyncIterator[World]:
    """A cell with the page's revision and modules."""

    def upgrade(connection: sa.Connection) -> None:
        with Operations.context(MigrationContext.configure(connection)):
            notes["revision"].upgrade()

    def downgrade(connection: sa.Connection) -> None:
        connection.execute(sa.text(f"DROP TABLE IF EXISTS {TABLE}"))

    databases = replace(cell_databases, redis_url=redis_server.url, blobs_url=(tmp_path / "blobs").as_uri())
    try:
        await as_owner(databases, upgrade)
        async with opened(databases, [notes["api"].router, *app.PRODUCT]) as world:
            yield world
    finally:
        await as_owner(databases, downgrade)


async def test_the_documented_module_serves_counts_and_keeps_its_rows_to_its_tenant(
    shop: World, notes: dict[str, ModuleType]
) -> None:
    mine, theirs = await shop.merchant(), await shop.merchant()
    text = f"three words {secrets.token_hex(4)}"
    added = await mine.owner.post("/v1/notes", json={"text": text})
    assert added.status_code == 201, added.text
    async with shop.worker(*worker.CONSUMERS, *notes["public"].CONSUMERS):
        found = await counted(mine)
    assert (found["id"], found["text"], found["words"]) == (added.json()["id"], text, 3)
    assert (await theirs.owner.get("/v1/notes")).json()["items"] == []
    assert (await mine.client(None).get("/v1/notes")).status_code == 401
    assert (await mine.owner.post("/v1/notes", json={"txt": text})).status_code == 400


async def test_the_documented_table_is_behind_the_wall_of_row_level_security(shop: World) -> None:
    merchant = await shop.merchant()
    assert (await merchant.owner.post("/v1/notes", json={"text": "mine"})).status_code == 201
    shard = shop.databases.shards.shard_of(merchant.number)
    password, dsn = shop.cell.passwords.app, sa.make_url(shop.cell.admin_dsns[shard])
    connection = await asyncpg.connect(
        host=dsn.host, port=dsn.port, user="cellwall_app", password=password, database="shard"
    )
    try:
        assert await connection.fetch("SELECT * FROM product.notes") == []
    finally:
        await connection.close()
    assert len(await merchant.rows("SELECT * FROM product.notes WHERE tenant_id = $1")) == 1


async def counted(merchant: Merchant) -> dict[str, Any]:
    """The only note of a tenant, once its words were counted."""
    async with asyncio.timeout(60):
        while True:
            (note,) = (await merchant.owner.get("/v1/notes")).json()["items"]
            if note["words"] is not None:
                return dict(note)
            await asyncio.sleep(0.05)
