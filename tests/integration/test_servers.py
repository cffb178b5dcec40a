"""The embedded servers do what the fleet and the other integration tests lean on."""

import asyncio
import secrets
import signal
from pathlib import Path

import asyncpg
import pytest
import redis

from infra.local.errors import PortTakenError
from infra.local.ports import LOOPBACK, free_ports
from infra.local.processes import Identity
from infra.local.servers import PostgresServer, PostgresSpec, with_database


def a_server(folder: Path, name: str, port: int) -> PostgresServer:
    return PostgresServer(PostgresSpec(name, folder / name, folder / f"{name}.log", port, secrets.token_urlsafe(18)))


async def test_a_database_refuses_whoever_has_no_password(postgres: PostgresServer) -> None:
    dsn = await postgres.create_database("passwords")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(
            host=LOOPBACK, port=postgres.port, user="postgres", password="guess", database="passwords"
        )
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("SHOW listen_addresses") == LOOPBACK
    assert await connection.fetchval("SHOW fsync") == "on"
    await connection.close()


async def test_the_two_shards_are_different_servers(postgres_pair: tuple[PostgresServer, PostgresServer]) -> None:
    first, second = postgres_pair
    assert first.superuser_dsn != second.superuser_dsn


async def test_committed_rows_survive_kill_9_of_the_server(server_folder: Path) -> None:
    (port,) = free_ports(1)
    server = a_server(server_folder, "killed", port)
    await server.start()
    try:
        connection = await asyncpg.connect(with_database(server.superuser_dsn, "postgres"))
        await connection.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
        (identity,) = [found for found in [Identity.of(server.pid)] if found]
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        backends = {Identity.of(int(pid)) for pid in children} - {None}
        await server._running.stop(signal.SIGKILL)
        assert Identity.of(identity.pid) != identity
        while backends & {Identity.of(int(pid)) for pid in children}:  # until they notice, they keep the shared memory
            await asyncio.sleep(0.01)
        await server.start()
        again = await asyncpg.connect(server.superuser_dsn)
        assert await again.fetchval("SELECT n FROM kept") == 7
        await again.close()
        connection.terminate()
    finally:
        await server.stop()
        server.remove()


async def test_a_port_in_use_is_named_as_such(postgres: PostgresServer, server_folder: Path) -> None:
    server = a_server(server_folder, "second-on-the-port", postgres.port)
    try:
        with pytest.raises(PortTakenError, match=str(postgres.port)):
            await server.start()
    finally:
        server.remove()


def test_redis_refuses_whoever_has_no_password_and_starts_empty(redis_server: redis.Redis) -> None:
    url: str = redis_server.url  # type: ignore[attr-defined]
    with redis.Redis.from_url(url) as client:
        assert client.dbsize() == 0
    with redis.Redis.from_url(url.replace("redis://:", "redis://:x")) as client, pytest.raises(redis.RedisError):
        client.ping()
