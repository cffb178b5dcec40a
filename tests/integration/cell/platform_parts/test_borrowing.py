"""A network that swallows everything costs a bounded time, and no connection of the pool."""

from typing import Any

import asyncpg
import pytest

from cell.shards.borrowing import borrowed
from tests.integration.cell.platform_parts.two_cells import Cell
from tests.system.fault_proxy import Fault, FaultProxy


async def test_a_half_open_connection_is_closed_and_not_waited_for(
    cell: Cell, superuser: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    host, port = superuser._addr  # type: ignore[attr-defined]
    given: Any = superuser._params  # type: ignore[attr-defined]
    proxy = FaultProxy(f"{host}:{port}")
    login = {"user": given.user, "password": given.password, "database": given.database}
    async with (
        proxy.listening(),
        asyncpg.create_pool(host="127.0.0.1", port=proxy.port, **login, min_size=1, max_size=1) as pool,
    ):
        async with borrowed(pool, 30) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        proxy.set(Fault.HALF_OPEN)
        with pytest.raises(TimeoutError):
            async with borrowed(pool, 0.2) as connection:
                await connection.fetchval("SELECT 2")
        assert proxy.met
        proxy.set(Fault.NONE)
        async with borrowed(pool, 30) as connection:
            assert await connection.fetchval("SELECT 3") == 3
