"""Connections of a pool for a bounded time, for what must not wait for a network that swallows everything."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def borrowed(pool: Any, seconds: float) -> AsyncIterator[Any]:
    """A connection for ``seconds`` at most, and as long to get it; `TimeoutError` after that.

    Its pool would wait for the server's word before it takes back a connection in the middle of a query, which may be
    for ever. One that was not answered in time is closed instead.
    """
    connection = await pool.acquire(timeout=seconds)
    try:
        async with asyncio.timeout(seconds):
            yield connection
    except (TimeoutError, asyncio.CancelledError):
        connection.terminate()
        raise
    finally:
        await pool.release(connection, timeout=seconds)  # which may ask the server to reset it
