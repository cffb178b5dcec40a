"""``python -m cell shards``: the same as `cellctl shards`, at the cell itself, for who has no control plane at hand.

It only writes the plan down. The API process of the cell carries it out, and goes on where it is killed.
"""

import asyncio
import sys
from typing import Final, TextIO

from cell.rebucketing.plan import PlanError
from cell.rebucketing.service import Rebucketing
from cell.settings import EXIT_MISCONFIGURED, ShardsSettings
from cell.shards import directory, pools
from cell.shards.errors import DATABASE_FAILED, DirectoryError
from contracts.shards import ShardMoveLine, ShardsReport, ShardWish

POLL_S: Final = 0.5


def run(configured: ShardsSettings, wish: ShardWish | None, *, wait: bool) -> int:
    """Plan, unless it should only look; wait, if told to; print. The exit status: 2 for what cannot be planned."""
    try:
        asyncio.run(_run(configured, wish, wait=wait))
    except PlanError as e:
        sys.stderr.write(f"cell: {e}\n")
        return EXIT_MISCONFIGURED
    except (*DATABASE_FAILED, DirectoryError) as e:
        sys.stderr.write(f"cell: a database of the cell cannot be used: {e}\n")
        return 1
    return 0


async def _run(configured: ShardsSettings, wish: ShardWish | None, *, wait: bool) -> None:
    dsn, password = configured.directory_dsn.get_secret_value(), configured.transfer_password.get_secret_value()
    name = f"cellwall-shards-{configured.name}"
    async with pools.directory_for_transfer(dsn, password, name) as catalogue:
        async with catalogue.acquire() as connection:
            shards = (await directory.load(connection)).shards
        async with pools.transfer_pools(shards, password, 1, name) as opened:
            service = Rebucketing(catalogue, opened)
            found = await service.report() if wish is None else await service.carry(wish)
            while wait and found.would is None and found.plan is not None and found.plan.open:
                await asyncio.sleep(POLL_S)
                found = await service.report()
    show(found, sys.stdout)


def show(found: ShardsReport, out: TextIO) -> None:
    """The report for people, a line each."""
    if found.would is not None:
        out.write(f"{found.would} to move\n")
        return
    for shard in found.shards:
        out.write(f"{shard.name}  {shard.buckets} buckets{_alone(shard.tenants)}\n")
    if found.plan is not None:
        p = found.plan
        out.write(f"{p.wish}: {p.done} of {p.total} moved, {p.open} open, {p.cancelled} cancelled\n")
    for move in found.moves:
        out.write(f"{_line(move)}\n")


def _alone(tenants: list[str]) -> str:
    return f", belongs to {', '.join(tenants)}" if tenants else ""


def _line(move: ShardMoveLine) -> str:
    said = move.reason if move.state == "planned" else move.step
    what = move.tenant or f"bucket {move.bucket}"
    return f"{what} {move.source} -> {move.target} {move.state}{f': {said}' if said else ''}"
