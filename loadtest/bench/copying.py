"""The copy of a large tenant: its rate beside PostgreSQL's own, and what other tenants feel of it."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import asyncpg

from contracts.ids import tenant_number
from infra.local.fleet import Fleet
from loadtest.bench.figures import BenchError, Figure
from loadtest.bench.gaps import GAP_MAX_MS, shards_of
from loadtest.bench.stage import Stage, ill, staged
from loadtest.bench.subscription import initial_sync_s
from loadtest.lab.seed import SEEDED, seed
from loadtest.operator import ENDED

OTHERS: Final = 6
RATE: Final = 5.0
SEEDED_AT_ONCE: Final = 50_000  # orders, each with a line
QUIET_S: Final = 10.0
POLL_S: Final = 0.05  # a question costs the control plane 2 ms, which the copy lacks on a small machine
ROWS_PER_S: Final = 150_000.0
OTHERS_RATIO: Final = 1.3
_STANDING: Final = frozenset({"standby"})
Say = Callable[[str], None]


async def copied(fleet: Fleet, rows: int, say: Say, *, quiet_s: float = QUIET_S) -> list[Figure]:
    """Seed a tenant, sync it by a subscription, move it and roll back, all under load."""
    async with staged(fleet, 1 + OTHERS) as stage:
        tenant, source = stage.moving.tenant, (await stage.control.tenant(stage.moving.tenant)).cell
        target = stage.elsewhere(source)
        say(f"giving a tenant {rows} rows")
        for begin in range(0, rows // 2, SEEDED_AT_ONCE):
            await seed(await shards_of(stage, tenant), tenant, min(SEEDED_AT_ONCE, rows // 2 - begin))
        shard = await _shard(fleet, source, tenant)
        async with stage.load(RATE, RATE):
            await asyncio.sleep(quiet_s)
            quiet = (0.0, stage.driver.seconds_in())
            say("PostgreSQL's own initial sync of its rows, on the same servers")
            theirs, their_s = await initial_sync_s(
                fleet.admin_dsn(source, shard), fleet.admin_dsn(target, shard), tenant_number(tenant)
            )
            say("its move, and the way back")
            began = stage.driver.seconds_in()
            copying = await _moved(stage, target)
            moved = (began, stage.driver.seconds_in())
            view = await stage.until(copying.view, _STANDING)
            began = stage.driver.seconds_in()
            undone = await stage.operate("POST", f"/v1/moves/{view['id']}/rollback")
            await stage.until(undone, ENDED)
            back = (began, stage.driver.seconds_in())
        ours, theirs_rate = view["rows"] / copying.seconds, theirs / their_s
        alone, beside = (stage.record.latency_of_others(*span) for span in (quiet, copying.span))
        ratio = beside.percentile_ms(99) / alone.percentile_ms(99)
        what = f"a tenant of {view['rows']} rows"
        return [
            Figure(f"{what}: copy", round(ours), "rows/s", f">= {ROWS_PER_S:g}", ours >= ROWS_PER_S),
            Figure(f"{what}: bytes of the copy", round(view["bytes"] / 1e6), "MB"),
            Figure(f"PostgreSQL's own initial sync of {theirs} of them", round(theirs_rate), "rows/s"),
            Figure("the copy by PostgreSQL's own", round(ours / theirs_rate, 2), "times", ">= 1", ours >= theirs_rate),
            Figure("other tenants' p99 without a copy", round(alone.percentile_ms(99), 1), "ms"),
            Figure.at_most(f"other tenants' p99 during a copy ({beside.count} requests)", ratio, "times", OTHERS_RATIO),
            Figure.at_most(f"{what}: write gap", stage.gap(moved).seconds * 1000, "ms", GAP_MAX_MS),
            Figure.at_most(f"{what}: write gap of the rollback", stage.gap(back).seconds * 1000, "ms", GAP_MAX_MS),
            Figure(f"{what}: from the start to the standby", round(moved[1] - moved[0], 1), "s"),
            Figure(f"{what}: the rollback", round(back[1] - back[0], 1), "s"),
            *await _whole(stage, source, shard, rows),
            *await stage.right("a large move and its rollback"),
        ]


class _Copying:
    """When the copy was under way, by the state of the move, and the move at the end."""

    def __init__(self, view: dict[str, Any], span: tuple[float, float]) -> None:
        self.view = view
        self.span = span

    @property
    def seconds(self) -> float:
        """From the opening of the stream to the commit at the target, as the move's steps say."""
        return self.span[1] - self.span[0]


async def _moved(stage: Stage, target: str) -> _Copying:
    """Start the move, and wait until the old home follows the new one."""
    body = {"tenant": stage.moving.tenant, "to": target, "standby": True}
    view = await stage.operate("POST", "/v1/moves", json=body)
    limit = time.monotonic() + 600.0
    while view["state"] != "standby" or view["progress"]["way_back"] != "following":
        if view["state"] in ENDED or time.monotonic() > limit:
            raise BenchError(ill(view))
        await asyncio.sleep(POLL_S)
        view = await stage.operate("GET", f"/v1/moves/{view['id']}")
    start = stage.driver.seconds_in() - time.time()
    began, ended = (
        start + next(datetime.fromisoformat(step["at"]) for step in view["steps"] if step["state"] == state).timestamp()
        for state in ("copying", "catching_up")
    )
    return _Copying(view, (began, ended))


async def _shard(fleet: Fleet, cell: str, tenant: str) -> str:
    for shard, dsn in fleet.cells[cell].shards.items():
        if await _count(dsn, "cellwall.tenants", tenant):
            return shard
    raise BenchError(f"no shard of {cell} has {tenant}")


async def _whole(stage: Stage, cell: str, shard: str, rows: int) -> list[Figure]:
    """Whether what was seeded is there, and nowhere else."""
    tables = ("product.orders", "product.order_lines")
    missing = left = 0
    for name, handle in stage.fleet.cells.items():
        found = [await _seeded(handle.shards[shard], table, stage.moving.tenant) for table in tables]
        if name == cell:
            missing = abs(rows // 2 * 2 - sum(found))
        else:
            left += sum(found)
    return [Figure("seeded rows that are not there after it", missing, "", "== 0", not missing),
            Figure("seeded rows that were left at the other cell", left, "", "== 0", not left)]  # fmt: skip


async def _seeded(dsn: str, table: str, tenant: str) -> int:
    seeded = f"SELECT order_id FROM product.orders WHERE tenant_id = $1 AND reference LIKE '{SEEDED}%'"  # noqa: S608
    return await _count(dsn, table, tenant, f"AND order_id IN ({seeded})")


async def _count(dsn: str, table: str, tenant: str, condition: str = "") -> int:
    connection = await asyncpg.connect(dsn)
    try:
        query = f"SELECT count(*) FROM {table} WHERE tenant_id = $1 {condition}"  # noqa: S608
        found: int = await connection.fetchval(query, tenant_number(tenant))
        return found
    finally:
        await connection.close()
