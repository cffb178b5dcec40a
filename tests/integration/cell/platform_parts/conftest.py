"""Fixtures: two cells over migrated servers, and mutations that are undone."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.integration.cell.platform_parts.two_cells import FUNCTIONS, MUTATIONS, Cell, Mutate, opened
from tests.mutations.fence import GUARDS, without


@pytest_asyncio.fixture
async def cells(cell_databases: Any) -> AsyncIterator[tuple[Cell, Cell]]:
    """Each of the two migrated servers as a cell of its own."""
    first, second = sorted(cell_databases.admin_dsns.items())
    passwords = cell_databases.passwords
    async with opened("cell-1", first[1], passwords) as one, opened("cell-2", second[1], passwords) as two:
        yield one, two


@pytest.fixture
def cell(cells: tuple[Cell, Cell]) -> Cell:
    """The first cell."""
    return cells[0]


@pytest_asyncio.fixture
async def superuser(cell: Cell, cell_databases: Any) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A session of the first cell's database superuser at its shard, which no role of the cell may end."""
    admin_dsn = min(cell_databases.admin_dsns.items())[1]
    connection = await asyncpg.connect(admin_dsn, database=cell.shard.database)
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def mutate(cells: tuple[Cell, Cell]) -> AsyncIterator[Mutate]:
    """Apply a mutation of ``tests/mutations`` to the first cell's shard; the real functions and walls come back."""
    cell = cells[0]

    async def apply(name: str) -> None:
        await cell.as_owner(without(name) if name in GUARDS else (MUTATIONS / f"{name}.sql").read_text())

    yield apply
    for function in sorted(FUNCTIONS.glob("*.sql")):
        await cell.as_owner(function.read_text())
    await cell.as_owner((MUTATIONS / "restore_walls.sql").read_text())
