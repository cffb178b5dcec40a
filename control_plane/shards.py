"""The shards of a cell as operators see them from here: asked of the cell, which plans, remembers and moves by itself.

Nothing of it is kept here but the audit entry: no route and no epoch changes (moves.md rule 24).
"""

from collections.abc import Awaitable
from typing import TypeVar

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import ids, problems
from contracts.problems import ProblemError
from contracts.shards import ShardsReport, ShardWish
from control_plane import audit
from control_plane.auth import Actor
from control_plane.cell_client import CellClient, CellRefusedError, CellUnreachableError
from control_plane.cells import Cell, cell_of
from control_plane.tenants import tenant_named

T = TypeVar("T")


class CellShards:
    """Safe for concurrent use."""

    def __init__(self, engine: AsyncEngine, client: CellClient) -> None:
        self._engine = engine
        self._client = client

    async def report(self, name: str) -> ShardsReport:
        """What lies where in the cell, and what moves."""
        cell = await self._cell(name)
        return await _asked(cell, self._client.shards(cell.target))

    async def carry(self, name: str, wish: ShardWish, actor: Actor) -> ShardsReport:
        """Let the cell plan it. A tenant may be named by its slug; it must live in that cell and not be moving."""
        cell = await self._cell(name)
        wish = await self._resolved(cell, wish)
        found = await _asked(cell, self._client.wish_shards(cell.target, wish))
        if not wish.look:
            async with self._engine.begin() as conn:
                told = {"shard": wish.shard, "tenant": wish.tenant}
                named = {key: value for key, value in told.items() if value}
                await audit.record(conn, actor.name, f"shards_{wish.action}_asked", f"cell:{name}", **named)
        return found

    async def _cell(self, name: str) -> Cell:
        async with self._engine.connect() as conn:
            return await cell_of(conn, name)

    async def _resolved(self, cell: Cell, wish: ShardWish) -> ShardWish:
        if wish.action != "isolate":
            return wish
        async with self._engine.connect() as conn:
            tenant = await tenant_named(conn, wish.tenant)
        if tenant.cell != cell.name:
            raise ProblemError(problems.CONFLICT, f"{tenant.slug} lives in {tenant.cell}, not in {cell.name}.")
        if tenant.move_id is not None:
            raise ProblemError(
                problems.CONFLICT, f"{tenant.slug} is under way between cells (move {tenant.move_id}).",
                advice=f"Wait for it: cellctl moves status {tenant.move_id}",
            )  # fmt: skip
        return msgspec.structs.replace(wish, tenant=str(ids.tenant_of(tenant.number)))


async def _asked(cell: Cell, question: Awaitable[T]) -> T:
    try:
        return await question
    except CellUnreachableError as e:
        raise ProblemError(problems.CELL_UNAVAILABLE, f"{cell.name} does not answer: {e.reason}") from e
    except CellRefusedError as e:
        refused = problems.NOT_FOUND if e.status == 404 else problems.CONFLICT
        raise ProblemError(refused, f"{cell.name}: {e.detail or 'it has no shards that could be changed'}") from e
