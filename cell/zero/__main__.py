"""``python -m cell.zero``: the processes of cell zero. Exit status 2 for what the operator must correct, 1 for what
broke."""

import argparse
import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import asyncpg

from cell.settings import configure_logging
from cell.zero import database, settings, staging, writers
from contracts import ids
from contracts.names import Field


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage and one line."""
        settings.stop(f"{message} (see {self.prog} --help)")


def _customer(text: str) -> tuple[int, int]:
    """``t1042=17`` -> (1042, 17)."""
    tenant, _, knr = text.partition("=")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", knr):
        raise argparse.ArgumentTypeError(f"{text!r} is not TENANT=KNR, such as t1042=17")
    try:
        return ids.tenant_number(tenant), int(knr)
    except ids.InvalidIdError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


async def _install() -> int:
    dsn = settings.load(settings.DatabaseSettings).dsn.get_secret_value()
    try:
        await staging.install(dsn)
    except (OSError, TimeoutError, asyncpg.PostgresError) as e:
        settings.stop(f"our schemas cannot be made in the monolith's database: {e or type(e).__name__}", status=1)
    return await _with_database(database.install)


async def _with_database(work: Callable[[Any], Awaitable[None]]) -> int:
    configured = settings.load(settings.DatabaseSettings)
    try:
        connection = await asyncpg.connect(configured.dsn.get_secret_value(), timeout=database.CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError) as e:
        settings.stop(f"the monolith's database cannot be reached: {e or type(e).__name__}", status=1)
    try:
        await work(connection)
    except database.EnrolmentError as e:
        settings.stop(str(e))
    except asyncpg.UndefinedTableError:
        settings.stop("our schema is not in the monolith's database: run install first")
    finally:
        await connection.close()
    return 0


def _ambassador() -> int:
    from cell.zero import app

    configured = settings.load(settings.AmbassadorSettings)
    configure_logging(**{Field.CELL: configured.name})
    return app.run(configured)


def main(arguments: list[str] | None = None) -> int:
    """Run one of them."""
    parser = _Parser(prog="python -m cell.zero", description="Cell zero: the old monolith with the manners of a cell.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="make our schemas in the monolith's database; safe to repeat")
    enrol = commands.add_parser("enrol", help="say which tenants the monolith's customers are; safe to repeat")
    enrol.add_argument("customers", nargs="+", type=_customer, metavar="TENANT=KNR")
    fence = commands.add_parser("writers", help="refuse, or allow, writes past the ambassador for tenants that left")
    fence.add_argument("rule", choices=("refuse", "allow"))
    commands.add_parser("ambassador", help="serve the monolith's tenants to routers")
    chosen = parser.parse_args(arguments)
    if chosen.command == "ambassador":
        return _ambassador()
    if chosen.command == "writers":
        return asyncio.run(_with_database(writers.refuse if chosen.rule == "refuse" else writers.allow))
    if chosen.command == "install":
        return asyncio.run(_install())
    return asyncio.run(_with_database(lambda connection: database.enrol(connection, chosen.customers)))


if __name__ == "__main__":
    sys.exit(main())
