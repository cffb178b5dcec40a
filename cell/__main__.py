"""The processes of a cell: exit status 2 for what the operator must correct, 1 for what broke."""

import argparse
import sys
from typing import NoReturn

from cell import settings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage and one line."""
        self.exit(2, f"cell: {message} (see {self.prog} --help)\n")


def _check_schema(wanted: str | None) -> None:
    """End with status 2 where this software brings the shards to another revision than the operator wants."""
    from cell.schema import migrate

    if wanted is not None and wanted != (brings := migrate.head(migrate.SHARD)):
        settings.misconfigured(f"{settings.PREFIX}SCHEMA is {wanted!r}, and this version brings the schema {brings!r}")


def _migrate() -> int:
    from cell.schema import migrate

    configured = settings.load(settings.MigrateSettings)
    _check_schema(configured.wanted_schema)
    settings.configure_logging()
    passwords = migrate.Passwords(
        owner=configured.owner_password.get_secret_value(),
        app=configured.app_password.get_secret_value(),
        transfer=configured.transfer_password.get_secret_value(),
    )
    try:
        migrate.run({n: d.get_secret_value() for n, d in configured.shard_admin_dsns.items()}, passwords)
    except migrate.MigrationError as e:
        sys.stderr.write(f"cell: {e}\n")
        return 1
    return 0


def _api() -> int:
    from cell import app

    configured = settings.load(settings.ApiSettings)
    _check_schema(configured.wanted_schema)
    settings.configure_logging(cell=configured.name)
    return app.run(configured)


def _worker() -> int:
    from cell import worker

    configured = settings.load(settings.WorkerSettings)
    _check_schema(configured.wanted_schema)
    settings.configure_logging(cell=configured.name)
    return worker.run(configured)


def _redrive(arguments: argparse.Namespace) -> int:
    from cell import redrive

    configured = settings.load(settings.CellSettings)
    settings.configure_logging(cell=configured.name)
    return redrive.run(configured, redrive.Choice(arguments.tenant, arguments.consumer, arguments.look))


def main(arguments: list[str] | None = None) -> int:
    """Run one of the cell's processes."""
    parser = _Parser(prog="python -m cell", description="The processes of a cell.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, purpose in (
        ("migrate", "create or upgrade the databases of this cell; safe to repeat"),
        ("api", "serve the product behind the ingress, and the transfer API on the internal listener"),
        ("worker", "relay and consume events, prune what is past its retention"),
    ):
        commands.add_parser(name, help=purpose)
    again = commands.add_parser("redrive", help="give dead letters (events given up) another chance")
    again.add_argument("--tenant", help="of this tenant only, such as t1042")
    again.add_argument("--consumer", help="of this consumer only")
    again.add_argument("--look", action="store_true", help="show them and change nothing")
    chosen = parser.parse_args(arguments)
    if chosen.command == "redrive":
        return _redrive(chosen)
    run = {"migrate": _migrate, "api": _api, "worker": _worker}
    return run[chosen.command]()


if __name__ == "__main__":
    raise SystemExit(main())
