"""What operators want of the shards of a cell: checked, planned and written down; the mover carries it out."""

from collections.abc import Mapping
from typing import Any, Final

import structlog

from cell.rebucketing import plan, shard, store
from cell.rebucketing.plan import Layout, PlanError, Step
from cell.rebucketing.shard import BusyError
from cell.shards.session import Pool
from contracts import ids
from contracts.names import Field
from contracts.shards import ShardLine, ShardMoveLine, ShardPlanLine, ShardsReport, ShardWish

SHOWN: Final = 50  # moves
_ONE_AFTER_ANOTHER: Final = "LOCK TABLE shard_moves IN SHARE ROW EXCLUSIVE MODE"
_ROW: Final = "SELECT tenant_id, state FROM cellwall.tenants WHERE tenant_id = $1"

_log = structlog.get_logger()


class Rebucketing:
    """``directory`` and ``pools`` are reached with the transfer role. `PlanError`: nothing was written, and why."""

    def __init__(self, directory: Pool, pools: Mapping[str, Pool]) -> None:
        self._directory = directory
        self._pools = pools

    async def report(self) -> ShardsReport:
        """The shards, how far the newest wish is, and what is under way or had to wait."""
        async with self._directory.acquire() as connection:
            return await self._report(connection)

    async def carry(self, wish: ShardWish) -> ShardsReport:
        """Write down the moves that the wish needs, all or none; with ``look`` only say how many."""
        if wish.action == "cancel":
            cancelled = await store.cancel(self._directory)
            _log.info("shard_moves_cancelled", moves=cancelled)
            return await self.report()
        async with self._directory.acquire() as connection, connection.transaction():
            await connection.execute(_ONE_AFTER_ANOTHER)
            if await store.moves(connection):
                raise PlanError(
                    "moves of an earlier wish are under way; wait for them (`shards status`) or give up those that"
                    " have not begun (`shards cancel`)"
                )
            layout = await store.layout(connection)
            steps = _steps(layout, wish)
            for step in steps:
                await self._check(step)
            if not wish.look:
                await store.plan(connection, f"{wish.action} {wish.tenant} {wish.shard}".replace("  ", " "), steps)
            found = await self._report(connection)
        if wish.look:
            return ShardsReport(found.shards, found.plan, found.moves, len(steps))
        _log.info("shard_moves_planned", **{Field.SHARD: wish.shard}, action=wish.action, moves=len(steps))
        return found

    async def _check(self, step: Step) -> None:
        """A single tenant that cannot go now is refused at once; a bucket of many waits for those in it."""
        if not step.tenant:
            return
        if step.source not in self._pools:
            raise PlanError(f"this process has no connections to {step.source}: restart it")
        async with self._pools[step.source].acquire() as connection:
            found = await connection.fetch(_ROW, step.tenant)
            if not found:
                raise PlanError(f"this cell has no tenant {ids.tenant_of(step.tenant)}")
            try:
                await shard.check(connection, found)
            except BusyError as e:
                raise PlanError(f"{e}; isolate it when that is over (`cellctl moves list`)") from e

    async def _report(self, connection: Any) -> ShardsReport:
        layout = await store.layout(connection)
        progress = await store.progress(connection)
        told = [m for m in await store.moves(connection) if m.state != "planned" or m.reason][:SHOWN]
        return ShardsReport(
            _lines(layout),
            None
            if progress is None
            else ShardPlanLine(progress.wish, progress.total, progress.done, progress.open, progress.cancelled),
            [
                ShardMoveLine(
                    m.bucket, str(ids.tenant_of(m.tenant)) if m.tenant else "", m.source, m.target, m.state, m.step,
                    m.reason, m.attempt,
                )
                for m in told
            ],
        )  # fmt: skip


def _steps(layout: Layout, wish: ShardWish) -> list[Step]:
    if wish.action == "add":
        return plan.add(layout, wish.shard)
    if wish.action == "drain":
        return plan.drain(layout, wish.shard)
    try:
        return plan.isolate(layout, ids.tenant_number(wish.tenant), wish.shard)
    except ids.InvalidIdError as e:
        raise PlanError(str(e)) from e


def _lines(layout: Layout) -> list[ShardLine]:
    return [
        ShardLine(name, count, [str(ids.tenant_of(t)) for t, at in sorted(layout.pins.items()) if at == name])
        for name, count in sorted(layout.load().items())
    ]
