"""Erasing a tenant at its cell, from whatever state it is in: freeze, release, purge, one confirmed step at a time.

Needs that no route leads there any more. Every command has a fence above all earlier ones, so that a late command of
a mover, or a late ``provision``, finds the tenant gone and changes nothing (moves.md rule 1).
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import ids, transfer
from control_plane.cell_client import CellAddress, CellClient
from control_plane.models import Tenant, cells
from control_plane.routes import next_fence

SOFT_MS: Final = 500
HARD_MS: Final = 2_000
STEPS: Final = 8  # active -> frozen -> moved -> gone takes three; a concurrent eraser may cost some


class EraseError(Exception):
    """The tenant's rows could not be confirmed gone; trying again later is safe."""


class Eraser:
    """Erases by looking at the cell's own state first, so that it can be repeated after any failure."""

    def __init__(self, engine: AsyncEngine, client: CellClient) -> None:
        self._engine = engine
        self._client = client

    async def erase(self, tenant: Tenant) -> None:
        """Returns once the cell confirmed a purge; `CellError` or `EraseError` where it did not.

        Also where the cell knows nothing, or has nothing left: a ``provision`` may still be under way there, and only
        a command with a higher fence keeps it from taking effect.
        """
        name = ids.tenant_of(tenant.number)
        cell = await self._address(tenant.cell)
        for _ in range(STEPS):
            status = await self._client.status(cell, name)
            if await self._step(cell, tenant, status.state if status else None):
                return
        raise EraseError(f"{cell.name} did not let go of {name} in {STEPS} steps")

    async def _step(self, cell: CellAddress, tenant: Tenant, state: transfer.TenantState | None) -> bool:
        """One command towards ``gone``; true when it was the last."""
        name = ids.tenant_of(tenant.number)
        async with self._engine.begin() as conn:
            fence = await next_fence(conn, tenant.number, 1, f"erase-{tenant.number}")
        match state:
            case None | "importing":
                await self._client.abort(cell, name, fence, tenant.epoch_high + 1)
            case "active":
                await self._client.freeze(cell, name, fence, transfer.Freeze(SOFT_MS, HARD_MS))
            case "frozen":
                await self._client.release(cell, name, fence, "")  # there is no new home to point to
            case _:
                await self._client.purge(cell, name, fence)
                return True
        return False

    async def _address(self, name: str) -> CellAddress:
        async with self._engine.connect() as conn:
            row = (await conn.execute(sa.select(cells.c.internal_address).where(cells.c.name == name))).one()
        return CellAddress(name, row.internal_address)
