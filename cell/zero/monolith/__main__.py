"""``python -m cell.zero.monolith``: the shop's processes. The database is named by ``SHOP_DSN``."""

import argparse
import asyncio
import os
import sys
from typing import Any, Final

import asyncpg
import uvicorn

from cell.zero.monolith import cron, seed, store
from cell.zero.monolith.app import Shop

CONNECTIONS: Final = 10
REQUEST_S: Final = 30  # PHP's max_execution_time: no statement of a page runs longer


async def _serve(dsn: str, host: str, port: int, longest_s: int) -> None:
    # A transaction that hangs is ended by the database: a request of the shop takes so long at most.
    settings = {"application_name": "shop", "transaction_timeout": f"{longest_s}s"}
    async with asyncpg.create_pool(dsn, min_size=0, max_size=CONNECTIONS, server_settings=settings) as pool:
        config = uvicorn.Config(
            Shop(pool), host=host, port=port, lifespan="off", access_log=False, server_header=False,
            log_level="warning", timeout_keep_alive=75,
        )  # fmt: skip
        await uvicorn.Server(config).serve()


async def _with_database(dsn: str, work: Any) -> None:
    db = await asyncpg.connect(dsn, server_settings={"application_name": "shop-cron"})
    try:
        await work(db)
    finally:
        await db.close()


async def _cron(dsn: str, every_s: float | None) -> None:
    await _with_database(dsn, cron.run)
    while every_s is not None:
        await asyncio.sleep(every_s)
        await _with_database(dsn, cron.run)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cell.zero.monolith", description="The old shop.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve the pages")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, required=True)
    serve.add_argument("--longest", type=int, default=REQUEST_S, metavar="SECONDS", help="no request takes longer")
    commands.add_parser("install", help="make the tables in an empty database")
    night = commands.add_parser("cron", help="run the nightly job")
    night.add_argument("--every", type=float, metavar="SECONDS", help="again and again")
    fill = commands.add_parser(
        "seed", help="make the tables where there are none, and add customers with SHOP_SEED_PASSWORD"
    )
    fill.add_argument("--customers", type=int, default=10)
    fill.add_argument("--orders", type=int, default=20)
    fill.add_argument("--first", type=int, default=1, help="the first customer's number")
    return parser.parse_args(given)


def _from_environment(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        sys.stderr.write(f"shop: {name} is not set\n")
        raise SystemExit(2)
    return value


def main(given: list[str] | None = None) -> int:
    """Run one of the shop's processes."""
    chosen = _arguments(given)
    dsn = _from_environment("SHOP_DSN")
    if chosen.command == "serve":
        asyncio.run(_serve(dsn, chosen.host, chosen.port, chosen.longest))
    elif chosen.command == "cron":
        asyncio.run(_cron(dsn, chosen.every))
    elif chosen.command == "install":
        asyncio.run(_with_database(dsn, store.install))
    else:
        password = _from_environment("SHOP_SEED_PASSWORD")

        async def fill(db: Any) -> None:
            async with db.transaction():
                await store.install(db)
                await seed.seed(
                    db, customers=chosen.customers, orders=chosen.orders, password=password, first=chosen.first
                )

        asyncio.run(_with_database(dsn, fill))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
