"""Work beside a process's servers: none of it ends unnoticed."""

import asyncio

import pytest
from structlog.testing import capture_logs

from cell import servers


async def test_work_that_failed_begins_again_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "AGAIN_S", 0.0)
    turns: list[int] = []
    third = asyncio.Event()

    async def agent() -> None:
        turns.append(len(turns))
        if len(turns) == 3:
            third.set()
            await asyncio.Event().wait()
        raise RuntimeError("cannot switch to state 12")

    with capture_logs() as logged:
        async with servers.running(agent):
            async with asyncio.timeout(30):
                await third.wait()
    assert turns == [0, 1, 2]
    assert [(entry["event"], entry["log_level"]) for entry in logged] == [("background_work_failed", "error")] * 2
    assert all("agent" in entry["work"] and entry["exc_info"] for entry in logged)


async def test_what_fails_while_it_is_stopped_is_heard() -> None:
    begun = asyncio.Event()

    async def last_words() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("not told")

    with pytest.raises(OSError, match="not told"):
        async with servers.running(last_words):
            await begun.wait()
