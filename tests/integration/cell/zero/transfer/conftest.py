"""The monolith's database, made once a session; cell zero opened on it for each test."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from tests.integration.cell.cell_world import World
from tests.integration.cell.zero.transfer import zero_fleet, zero_world
from tests.integration.cell.zero.transfer.zero_world import Zero
from tests.integration.control_plane.conftest import plane, template  # noqa: F401 - its fixtures
from tests.integration.control_plane.plane_world import Plane


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shop_dsn(postgres: Any) -> str:
    """A database with the monolith's tables and cell zero's schemas."""
    dsn: str = await postgres.create_database(f"shop_{secrets.token_hex(4)}")
    await zero_world.install(dsn)
    return dsn


@pytest_asyncio.fixture
async def zero(shop_dsn: str) -> AsyncIterator[Zero]:
    """The transfer of cell zero."""
    async with zero_world.opened(shop_dsn) as zero:
        yield zero


@pytest_asyncio.fixture
async def alone(postgres: Any) -> AsyncIterator[Zero]:
    """Cell zero on a database of the test's own."""
    async with zero_fleet.alone(postgres) as zero:
        yield zero


@pytest_asyncio.fixture
async def fleet(plane: Plane, alone: Zero, world: World, tmp_path: Path) -> AsyncIterator[Plane]:  # noqa: F811
    """The control plane with cell zero and a modern cell."""
    async with zero_fleet.streams_of(world, tmp_path / "blobs") as streams:
        await zero_fleet.join(plane, alone, world, streams)
        yield plane
