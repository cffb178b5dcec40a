"""The control plane's schema: Alembic migrations, run by ``python -m control_plane migrate``."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.settings import DatabaseSettings, SettingsError

LOCK_TIMEOUT_MS = 5_000


def config(connection: Connection | None = None) -> Config:
    """The Alembic configuration of this package; ``connection`` is what `env.py` migrates."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    made.attributes["connection"] = connection
    return made


async def upgrade(engine: AsyncEngine) -> None:
    """Bring the database to the newest revision, in one transaction: all of it or nothing.

    Safe to repeat and to run from two processes at once (the second waits for the first).
    """
    async with engine.begin() as conn:
        await conn.run_sync(lambda sync: command.upgrade(config(sync), "head"))


async def require_newest(settings: DatabaseSettings) -> None:
    """`SettingsError` where the database is not at the revision that this code was written for."""
    engine = settings.engine(pool_size=1)
    try:
        async with engine.connect() as conn:
            found = await conn.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
    finally:
        await engine.dispose()
    newest = ScriptDirectory.from_config(config()).get_current_head()
    if found != newest:
        raise SettingsError(
            f"the database has schema {found or 'none'}, this is for {newest}: run python -m control_plane migrate"
        )
