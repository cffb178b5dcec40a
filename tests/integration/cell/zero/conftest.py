"""The old shop for the tests of cell zero."""

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from tests.integration.cell.zero import shop as shops
from tests.integration.cell.zero import zero_world
from tests.integration.cell.zero.shop import Shop
from tests.integration.cell.zero.zero_world import World


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shop_template(postgres: Any) -> str:
    """What the databases of the tests' shops are made from."""
    return await shops.template(postgres)


@pytest_asyncio.fixture
async def shop(postgres: Any, shop_template: str) -> AsyncIterator[Shop]:
    """A running shop with three customers."""
    async with shops.database(postgres, shop_template) as dsn, shops.running(dsn) as running:
        yield running


@pytest_asyncio.fixture
async def zero(shop: Shop) -> AsyncIterator[World]:
    """The shop's customers as tenants of cell zero."""
    async with zero_world.opened(shop, await zero_world.enrolled(shop.dsn)) as world:
        yield world
