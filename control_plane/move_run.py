"""What one drive of a move works with: who takes part, the fences of its commands, and where its stream is."""

from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import transfer
from contracts.ids import TenantId
from contracts.transfer import Fence
from control_plane.cell_client import CellAddress, CellClient
from control_plane.models import tenants
from control_plane.move_store import Move, StaleMoveError

FENCE_BLOCK: Final = 1000  # fences reserved at once, so that a command inside the hold needs no commit of its own


class VerificationError(Exception):
    """Both sides answered, and what they hold or say is not what the move needs. Trying again does not help."""


class StreamLostError(Exception):
    """A stream, or what was built on it, is gone."""


@dataclass(frozen=True, slots=True)
class Parties:
    """Who a move is about, as commands name them."""

    tenant: TenantId
    source: CellAddress
    target: CellAddress


class Fences:
    """Fences of one move under one term, reserved in blocks; see `routes.next_fence` for the single ones."""

    def __init__(self, engine: AsyncEngine, move: Move) -> None:
        self._engine = engine
        self._move = move
        self._next = self._end = 0

    async def take(self) -> Fence:
        """A fence above every one given out before for this tenant; `StaleMoveError` under a newer term."""
        if self._next == self._end:
            await self._reserve()
        self._next += 1
        return Fence(self._move.term, self._next - 1, self._move.id)

    async def _reserve(self) -> None:
        query = (
            tenants.update()
            .where(tenants.c.number == self._move.tenant, tenants.c.fence_term <= self._move.term)
            .values(fence_term=self._move.term, fence_seq=tenants.c.fence_seq + FENCE_BLOCK)
            .returning(tenants.c.fence_seq)
        )
        async with self._engine.begin() as conn:
            high = (await conn.execute(query)).scalar_one_or_none()
        if high is None:
            raise StaleMoveError(self._move.id)
        self._next, self._end = high - FENCE_BLOCK + 1, high + 1


@dataclass(slots=True)
class Flow:
    """Where the stream is, as this drive has seen it. ``position`` None: the receiver is asked before it is used."""

    position: int | None = None
    unbroken: bool = False  # the freeze was ours, and no step failed since: its marker is still to come
    ends: int = 0  # markers given out in the place of the freeze's

    def broken(self) -> None:
        """Something failed: what the receiver applied is not known."""
        self.position, self.unbroken = None, False


@dataclass(slots=True)
class Run:
    """One drive."""

    at: Parties
    fences: Fences
    term: int
    flow: Flow = field(default_factory=Flow)


async def confirm_active(client: CellClient, move: Move, run: Run, budget_s: float) -> None:
    """`VerificationError` unless the target serves the tenant at the move's epoch."""
    target = run.at.target
    status = await client.status(target, run.at.tenant, budget_s=budget_s)
    if status is None or status.state != "active" or status.epoch < move.target_epoch:
        said = "it does not know the tenant" if status is None else f"{status.state} at epoch {status.epoch}"
        raise VerificationError(f"{target.name} does not confirm the tenant as active: {said}")


def differences(ours: transfer.Checksum | None, theirs: transfer.Checksum) -> str:
    """The tables that are not the same."""
    mine = {} if ours is None else ours.tables
    names = sorted(mine.keys() | theirs.tables.keys())
    return ", ".join(name for name in names if mine.get(name) != theirs.tables.get(name))
