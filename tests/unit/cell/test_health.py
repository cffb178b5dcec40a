"""Readiness: whatever a database does, the answer is a reason, never an exception."""

from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from cell.health import Health


class Pool:
    """One connection that answers, or fails with what it is given."""

    def __init__(self, answer: str | Exception) -> None:
        self._answer = answer
        self.terminated = self.released = 0

    async def acquire(self, timeout: float) -> "Pool":
        return self

    async def release(self, connection: "Pool", timeout: float) -> None:
        self.released += 1

    async def fetchval(self, _query: str) -> str:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def terminate(self) -> None:
        self.terminated += 1


def health(directory: Pool, shard: Pool) -> Health:
    databases: Any = SimpleNamespace(
        directory=directory, shards=SimpleNamespace(names=("shard-1",), pool=lambda _: shard)
    )
    return Health(databases, ("d1", "s1"), lambda: 0.0)


@pytest.mark.parametrize(
    "failure",
    [
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        ConnectionResetError(),
        TimeoutError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_a_shard_that_fails_in_whatever_way_is_a_reason(failure: Exception) -> None:
    shard = Pool(failure)
    report = await health(Pool("d1"), shard).report()
    assert not report.ready
    assert report.reasons == (f"shard-1 cannot be reached ({type(failure).__name__})",)
    assert shard.released == 1
    assert shard.terminated == isinstance(failure, TimeoutError)


async def test_ready_is_who_reaches_everything_in_the_right_schema() -> None:
    assert (await health(Pool("d1"), Pool("s1")).report()).ready
    report = await health(Pool("d1"), Pool("s0")).report()
    assert report.reasons == ("shard-1 has schema s0, this version needs s1",)
