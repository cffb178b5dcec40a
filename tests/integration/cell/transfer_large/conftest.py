"""Two cells with streams."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from tests.integration.cell.platform_parts.two_cells import opened
from tests.integration.cell.transfer_large.large_world import Large, large


@pytest_asyncio.fixture
async def cells(cell_databases: Any, tmp_path: Path) -> AsyncIterator[tuple[Large, Large]]:
    """Each of the two migrated servers as a cell of its own."""
    first, second = sorted(cell_databases.admin_dsns.items())
    passwords = cell_databases.passwords
    async with (
        opened("cell-1", first[1], passwords) as one,
        opened("cell-2", second[1], passwords) as two,
        large(one, tmp_path / "one") as source,
        large(two, tmp_path / "two") as target,
    ):
        yield source, target
        for cell in (source, target):
            for status in await cell.streams.list():
                tenant = int(status.tenant[1:])
                await cell.streams.close(tenant, cell.fence(99), status.stream)
            assert await cell.slots() == []
            assert await cell.publications() == []
