"""Real servers for integration tests: started once a session on free loopback ports, removed at its end."""

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import redis

from infra.local.ports import free_ports
from infra.local.servers import GivenPostgres, PostgresServer, PostgresSpec, RedisServer, RedisSpec

GIVEN_POSTGRES = "CELLWALL_TEST_POSTGRES_DSN"  # superuser DSNs of servers to use instead, separated by spaces
GIVEN_REDIS = "CELLWALL_TEST_REDIS_URL"

Postgres = PostgresServer | GivenPostgres


@dataclass(frozen=True)
class RedisUrl:
    """Where the test's Redis listens, with the password."""

    url: str


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A folder that an unprivileged database account can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="cellwall-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@asynccontextmanager
async def _postgres(folder: Path, name: str, index: int) -> AsyncIterator[Postgres]:
    given = os.environ.get(GIVEN_POSTGRES, "").split()
    if given:
        yield GivenPostgres(given[index % len(given)])
        return
    (port,) = free_ports(1)
    server = PostgresServer(PostgresSpec(name, folder / name, folder / f"{name}.log", port, secrets.token_urlsafe(18)))
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        server.remove()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres(server_folder: Path) -> AsyncIterator[Postgres]:
    """One PostgreSQL server. Make a database of your own in it: ``await postgres.create_database("name")``."""
    async with _postgres(server_folder, "postgres-1", 0) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_pair(server_folder: Path, postgres: Postgres) -> AsyncIterator[tuple[Postgres, Postgres]]:
    """Two PostgreSQL servers, as the two shards of a cell; the first is `postgres`."""
    async with _postgres(server_folder, "postgres-2", 1) as second:
        yield postgres, second


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def _redis(server_folder: Path) -> AsyncIterator[RedisUrl]:
    if given := os.environ.get(GIVEN_REDIS):
        yield RedisUrl(given)
        return
    async with AsyncExitStack() as stack:
        (port,) = free_ports(1)
        spec = RedisSpec("redis", server_folder / "redis", server_folder / "redis.log", port, secrets.token_urlsafe(18))
        server = RedisServer(spec)
        stack.callback(server.remove)
        await server.start()
        stack.push_async_callback(server.stop)
        yield RedisUrl(server.url)


@pytest.fixture
def redis_server(_redis: RedisUrl) -> RedisUrl:
    """An empty Redis."""
    with redis.Redis.from_url(_redis.url) as client:
        client.flushall()
    return _redis
