"""``python -m cell shards``: plan moves between the shards of a cell, wait for them, and show where they are.

It only writes the plan down. The API process of the cell carries it out, and goes on where it is killed.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, TextIO

import asyncpg

from cell.rebucketing import plan, store
from cell.rebucketing.plan import Layout, PlanError, Step
from cell.settings import EXIT_MISCONFIGURED, ShardsSettings
from cell.shards import pools
from cell.shards.errors import DirectoryError
from contracts import ids

POLL_S: Final = 0.2
Planner = Callable[[Layout], list[Step]]


def planner(action: str, shard: str, tenant: str) -> Planner | None:
    """What the command asks for; None where it only looks. `InvalidIdError` for a bad tenant."""
    if action == "add":
        return lambda layout: plan.add(layout, shard)
    if action == "drain":
        return lambda layout: plan.drain(layout, shard)
    if action == "isolate":
        number = ids.tenant_number(tenant)
        return lambda layout: plan.isolate(layout, number, shard)
    return None


def run(configured: ShardsSettings, wish: Planner | None, *, look: bool, wait: bool) -> int:
    """Plan, unless it should only look; wait, if told to; print. The exit status: 2 for what cannot be planned."""
    try:
        asyncio.run(_run(configured, wish, look=look, wait=wait))
    except PlanError as e:
        sys.stderr.write(f"cell: {e}\n")
        return EXIT_MISCONFIGURED
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, DirectoryError) as e:
        sys.stderr.write(f"cell: the directory cannot be used: {e}\n")
        return 1
    return 0


async def _run(configured: ShardsSettings, wish: Planner | None, *, look: bool, wait: bool) -> None:
    dsn, password = configured.directory_dsn.get_secret_value(), configured.transfer_password.get_secret_value()
    async with pools.directory_for_transfer(dsn, password, f"cellwall-shards-{configured.name}") as pool:
        if wish is not None:
            await planned(pool, wish, sys.stdout, look=look)
        while wait and not look and await store.moves(pool):  # noqa: ASYNC110 - another process carries them out
            await asyncio.sleep(POLL_S)
        if not look:
            await shown(pool, sys.stdout)


async def planned(directory: Any, wish: Planner, out: TextIO, *, look: bool) -> None:
    """Write the steps down that the wish needs, one transaction; with ``look`` only say how many."""
    async with directory.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE shard_moves IN SHARE ROW EXCLUSIVE MODE")  # two operators: one after one
        if await store.moves(connection):
            raise PlanError("moves of an earlier command are under way; wait for them (`shards status`)")
        steps = wish(await store.layout(connection))
        if not look:
            await store.plan(connection, steps)
    out.write(f"{len(steps)} to move\n")


async def shown(directory: Any, out: TextIO) -> None:
    """The shards, what is open, and what was refused."""
    await _in_turn(directory, (_shards, _open, _refused), out)


async def _in_turn(directory: Any, parts: tuple[Callable[[Any, TextIO], Awaitable[None]], ...], out: TextIO) -> None:
    async with directory.acquire() as connection:
        for part in parts:
            await part(connection, out)


async def _shards(connection: Any, out: TextIO) -> None:
    layout = await store.layout(connection)
    for shard, count in sorted(layout.load().items()):
        pinned = ", ".join(str(ids.tenant_of(t)) for t, at in sorted(layout.pins.items()) if at == shard)
        out.write(f"{shard}  {count} buckets{f', belongs to {pinned}' if pinned else ''}\n")


async def _open(connection: Any, out: TextIO) -> None:
    found = await store.moves(connection)
    out.write(f"{len(found)} moves open\n")
    for move in found:
        if move.state != "planned" or move.reason:
            out.write(f"{_line(move)} {move.state}{f': {move.reason}' if move.reason else ''}\n")


async def _refused(connection: Any, out: TextIO) -> None:
    for move in await store.refused(connection):
        out.write(f"{_line(move)} refused: {move.reason}\n")


def _line(move: store.Move) -> str:
    what = str(ids.tenant_of(move.tenant)) if move.tenant else f"bucket {move.bucket}"
    return f"{what} {move.source} -> {move.target}"
