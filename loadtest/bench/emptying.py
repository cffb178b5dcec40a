"""A cell that is emptied while its tenants are served."""

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import asyncpg

from infra.local.fleet import Fleet
from loadtest.bench.figures import BenchError, Figure
from loadtest.bench.gaps import SETTLE_S
from loadtest.bench.stage import Stage, staged

LOADED: Final = 8
RATE: Final = 4.0
AT_ONCE: Final = 3  # a sign-up hashes a password
ROWS: Final = 100  # of each tenant
POLL_S: Final = 0.25
LIMIT_S: Final = 1200.0
THOUSAND_S: Final = 600.0
OVER: Final = frozenset({"done", "incomplete", "stopped", "cancelled"})
_ROWS: Final = """
INSERT INTO product.products (tenant_id, product_id, sku, name, price_cents, currency)
SELECT tenant_id, gen_random_uuid(), 'old-' || n, repeat('x', 40), 100, 'EUR'
FROM cellwall.tenants CROSS JOIN generate_series(1, $1) n WHERE state = 'active'
"""
Say = Callable[[str], None]


async def emptied(fleet: Fleet, cell: str, tenants: int, say: Say) -> list[Figure]:
    """Move every tenant out of the cell; some of them are used meanwhile. It takes tenants again afterwards."""
    async with staged(fleet, LOADED) as stage:
        here = sum([(await stage.control.tenant(each.tenant)).cell == cell for each in stage.cast.accounts])
        say(f"signing up {tenants - here} tenants in {cell}")
        await _sign_up(stage, cell, tenants - here)
        for dsn in fleet.cells[cell].shards.values():
            connection = await asyncpg.connect(dsn)
            try:
                await connection.execute(_ROWS, ROWS)
            finally:
                await connection.close()
        async with stage.load(RATE, RATE):
            await asyncio.sleep(SETTLE_S)
            say(f"emptying {cell}")
            began = time.monotonic()
            view = await _batch(stage, cell)
            seconds = time.monotonic() - began
        await stage.operate("PATCH", f"/v1/cells/{cell}", json={"state": "active"})
        done, total = view["counts"].get("done", 0), view["total"]
        scaled = seconds / total * 1000
        words = "1,000 small tenants" if total == 1000 else f"1,000 small tenants, scaled from {total}"
        return [
            Figure(f"a cell of {total} tenants emptied: moves that did not end well", total - done, "", "== 0",
                   done == total and view["state"] == "done"),
            Figure(f"a cell of {total} tenants emptied: time", round(seconds, 1), "s"),
            Figure.at_most(words, scaled, "s", THOUSAND_S),
            *await stage.right("while a cell was emptied"),
        ]  # fmt: skip


async def _sign_up(stage: Stage, cell: str, count: int) -> None:
    run, gate = secrets.token_hex(3), asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        slug = f"small-{run}-{number}"
        body = {"slug": slug, "name": "Small", "email": f"owner@{slug}.example", "cell": cell, "plan": "free",
                "password": secrets.token_urlsafe(12)}  # fmt: skip
        async with gate:
            await stage.operate("POST", "/v1/tenants", json=body)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))


async def _batch(stage: Stage, cell: str) -> dict[str, Any]:
    view = await stage.operate("POST", "/v1/batches", json={"kind": "evacuate", "cell": cell})
    limit = time.monotonic() + LIMIT_S
    while view["state"] not in OVER:
        if time.monotonic() > limit:
            raise BenchError(f"the batch is {view['state']} after {LIMIT_S:.0f} s")
        await asyncio.sleep(POLL_S)
        view = await stage.operate("GET", f"/v1/batches/{view['id']}")
    found: dict[str, Any] = view
    return found
