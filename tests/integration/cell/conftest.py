"""Fixtures of the cell's tests: migrated databases once a session, a cell opened on them for each test."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest_asyncio

from cell.schema import migrate
from tests.integration.cell.cell_world import CellDatabases, Merchant, World, opened


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cell_databases(postgres_pair: Any) -> CellDatabases:
    """Two migrated shards."""
    dsns = {f"shard-{number}": server.superuser_dsn for number, server in enumerate(postgres_pair, 1)}
    passwords = migrate.Passwords(*(secrets.token_urlsafe(12) for _ in range(3)))
    await migrate.migrate(dsns, passwords)
    return CellDatabases(dsns, passwords)


@pytest_asyncio.fixture
async def world(cell_databases: CellDatabases, redis_server: Any, tmp_path: Path) -> AsyncIterator[World]:
    """A cell, with an empty blob store."""
    async with opened(
        replace(cell_databases, redis_url=redis_server.url, blobs_url=(tmp_path / "blobs").as_uri())
    ) as world:
        yield world


@pytest_asyncio.fixture
async def merchant(world: World) -> Merchant:
    """A tenant of its own for each test."""
    return await world.merchant()
