"""The monolith's database, made once a session; cell zero opened on it for each test."""

import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from tests.integration.cell.zero.transfer import zero_world
from tests.integration.cell.zero.transfer.zero_world import Zero


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
