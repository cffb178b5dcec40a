"""Waiting for conditions, never for time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")
# Nobody is refused because this machine was slow to start a process.
PATIENT_ROUTERS: Final = ("--hold-s", "60", "--request-s", "80")


async def until(condition: Callable[[], Awaitable[T | None]], what: str, *, timeout_s: float = 120.0) -> T:
    """The condition's first true value; an `AssertionError` that names ``what`` after ``timeout_s``."""
    end = time.monotonic() + timeout_s
    while True:
        value = await condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not come true within {timeout_s:g} s"
        await asyncio.sleep(0.02)
