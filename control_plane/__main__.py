"""``python -m control_plane migrate | serve | mover | create-key | new-log``.

A bad setting is one line and exit status 2. Each command imports its own part: migrating and making keys should not
wait for the web server.
"""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn

import click
import uvloop
from sqlalchemy.exc import SQLAlchemyError

from control_plane.roles import ROLES
from control_plane.settings import (
    DatabaseSettings,
    FleetSettings,
    LogSettings,
    MoverSettings,
    Settings,
    SettingsError,
    load,
    set_up_logging,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The control plane: which tenant lives where. Settings come from the environment (CELLWALL_CP_*)."""
    try:
        set_up_logging(LogSettings().log_level)
    except SettingsError as e:
        _end(2, str(e))


@main.command()
def migrate() -> None:
    """Bring the database to the newest schema and seed the plans. Safe to repeat."""

    from control_plane import schema, seed

    async def work() -> None:
        engine = load(DatabaseSettings).engine()
        try:
            await schema.upgrade(engine)
            await seed.seed(engine)
        finally:
            await engine.dispose()

    _run(work())


@main.command()
def serve() -> None:
    """Run the control plane until SIGTERM or SIGINT. With CELLWALL_CP_MOVER=false it leaves moves to `mover`."""

    from control_plane import app, schema

    async def work() -> None:
        settings = load(Settings)
        await schema.require_newest(settings)
        await app.serve(settings)

    _run(work())


@main.command()
def mover() -> None:
    """Run what moves tenants, and nothing else, until SIGTERM or SIGINT. Of several processes one leads."""

    from control_plane import app, schema

    async def work() -> None:
        settings = load(MoverSettings)
        await schema.require_newest(settings)
        await app.move(settings)

    _run(work())


@main.command("create-key")
@click.option("--name", required=True, help="What the key is for; shown in lists.")
@click.option("--role", required=True, type=click.Choice(ROLES), help="What it may do.")
def make_key(name: str, role: str) -> None:
    """Make an API key and print it. It is shown this once."""

    from control_plane import audit
    from control_plane.auth import create_key

    async def work() -> None:
        engine = load(DatabaseSettings).engine()
        try:
            async with engine.begin() as conn:
                key_id, text = await create_key(conn, name, role)
                await audit.record(conn, "command-line", "key_created", f"key:{key_id}", name=name, role=role)
        finally:
            await engine.dispose()
        click.echo(text)

    _run(work())


@main.command("new-log")
def new_log() -> None:
    """After restoring the database: ask every cell what it has, and begin a new route log above that."""

    from control_plane import restore

    async def work() -> None:
        for line in await restore.run(load(FleetSettings)):
            click.echo(line)

    try:
        _run(work())
    except restore.RestoreError as e:
        _end(1, str(e))


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        uvloop.run(work)
    except SettingsError as e:
        _end(2, str(e))
    except (SQLAlchemyError, OSError) as e:
        cause = getattr(e, "orig", None) or e
        _end(1, f"the database cannot be used: {str(cause).splitlines()[0] if str(cause) else type(cause).__name__}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        _end(130, "interrupted")


def _end(status: int, line: str) -> NoReturn:
    click.echo(f"control_plane: {line}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
