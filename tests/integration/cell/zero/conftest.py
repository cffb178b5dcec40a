"""The old shop for the tests of cell zero."""

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from tests.integration.cell.zero import shop as shops
from tests.integration.cell.zero.shop import Shop


@pytest_asyncio.fixture
async def shop(postgres: Any) -> AsyncIterator[Shop]:
    """A running shop with three customers."""
    async with shops.running(await shops.database(postgres)) as running:
        yield running
