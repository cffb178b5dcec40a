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


def _shards(arguments: argparse.Namespace) -> int:
    from cell.rebucketing import command
    from contracts.shards import ShardWish

    configured = settings.load(settings.ShardsSettings)
    settings.configure_logging(cell=configured.name)
    wish = None
    if arguments.action != "status":
        shard, tenant = getattr(arguments, "shard", ""), getattr(arguments, "tenant", "")
        wish = ShardWish(arguments.action, shard, tenant, getattr(arguments, "look", False))
    return command.run(configured, wish, wait=getattr(arguments, "wait", False))


def _shards_parser(shards: argparse.ArgumentParser) -> None:
    actions = shards.add_subparsers(dest="action", required=True)
    actions.add_parser("status", help="the shards, how far the newest wish is, and what has to wait and why")
    actions.add_parser("cancel", help="give up the moves that have not begun")
    for name, purpose in (
        ("add", "give a shard its equal part of the buckets; `migrate` and a restart come first"),
        ("drain", "move all buckets of a shard to the others"),
        ("isolate", "give a tenant a shard of its own, which must be empty"),
    ):
        action = actions.add_parser(name, help=purpose)
        if name == "isolate":
            action.add_argument("tenant", help="such as t1042")
        action.add_argument("shard", help="such as shard-3")
        action.add_argument("--look", action="store_true", help="say how many would move and change nothing")
        action.add_argument("--wait", action="store_true", help="until nothing is left to do")


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
    _shards_parser(commands.add_parser("shards", help="move buckets and tenants between the shards of this cell"))
    chosen = parser.parse_args(arguments)
    if chosen.command == "shards":
        return _shards(chosen)
    if chosen.command == "redrive":
        return _redrive(chosen)
    run = {"migrate": _migrate, "api": _api, "worker": _worker}
    return run[chosen.command]()


if __name__ == "__main__":
    raise SystemExit(main())
