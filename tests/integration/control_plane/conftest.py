"""Fixtures of the control plane's tests: a database copied from a migrated template, and a control plane on it."""

import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from control_plane.schema import upgrade
from control_plane.seed import seed
from tests.integration.control_plane.mover_world import control_plane_dsn, world  # noqa: F401 - fixtures of the mover's tests
from tests.integration.control_plane.plane_world import Plane


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def template(postgres: Any) -> tuple[str, str]:
    """A migrated and seeded database to copy from: the superuser's DSN and its name."""
    name = f"control_plane_{secrets.token_hex(4)}"
    dsn = await postgres.create_database(name)
    engine = create_async_engine(sa.make_url(dsn).set(drivername="postgresql+asyncpg"))
    await upgrade(engine)
    await seed(engine)
    await engine.dispose()
    return dsn, name


@contextlib.asynccontextmanager
async def _database(template: tuple[str, str]) -> AsyncIterator[str]:
    dsn, source = template
    name = f"{source}_{secrets.token_hex(4)}"
    admin_dsn = sa.make_url(dsn).set(database="postgres").render_as_string(hide_password=False)
    admin = await asyncpg.connect(admin_dsn)
    await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{source}"')
    try:
        yield sa.make_url(dsn).set(database=name).render_as_string(hide_password=False)
    finally:
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await admin.close()


@pytest_asyncio.fixture
async def plane(template: tuple[str, str]) -> AsyncIterator[Plane]:
    """A control plane of the test's own, with two registered cells and one key of each role."""
    async with _database(template) as dsn:
        made = Plane(dsn)
        await made.begin()
        try:
            yield made
        finally:
            await made.end()


@pytest_asyncio.fixture
async def database(template: tuple[str, str]) -> AsyncIterator[str]:
    """The DSN of a migrated and seeded database of the test's own."""
    async with _database(template) as dsn:
        yield dsn


@pytest_asyncio.fixture
async def postgres_empty(template: tuple[str, str]) -> AsyncIterator[str]:
    """The DSN of an empty database."""
    async with _database((template[0], "template1")) as dsn:
        yield dsn
