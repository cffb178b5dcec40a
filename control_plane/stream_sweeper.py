"""Finds slots, publications and progress rows that no move accounts for, says what they are, and drops them.

A slot that nobody reads keeps its server's log, so a forgotten one fills the disk of a healthy cell. The name of a
stream says whose it is (`contracts.transfer.stream_name`), and a stream is made only after its move's row: what is
listed by a cell and belongs to no move that runs or waits is a leftover for good.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import ids, transfer
from contracts.names import Field
from control_plane import audit
from control_plane.cell_client import CellAddress, CellClient, CellError, CellRefusedError
from control_plane.models import tenants
from control_plane.move import UNFINISHED, WAITING, Path
from control_plane.move_store import moves
from control_plane.routes import next_fence

log = structlog.get_logger()

LIST_S: Final = 5.0
CLOSE_S: Final = 10.0
_DIRECTIONS: Final[tuple[transfer.Direction, ...]] = ("out", "back")


def needed_by(running: Iterable[tuple[str, str, Path]]) -> frozenset[str]:
    """The streams that moves (tenant, id, path) may have. A small one has none, a rollback uses the undone one's."""
    return frozenset(
        transfer.stream_name(tenant, move, direction)
        for tenant, move, path in running
        if path is Path.LARGE
        for direction in _DIRECTIONS
    )


def leftovers(
    found: Sequence[transfer.StreamStatus], needed: frozenset[str]
) -> list[tuple[transfer.StreamStatus, str]]:
    """Which parts of streams nobody needs, each with why it is there. Pure."""
    return [(part, _explained(part)) for part in found if part.stream not in needed]


def _explained(part: transfer.StreamStatus) -> str:
    if part.role == "receiver":
        return "the progress of changes that no move carries any more"
    if part.state == "unpublished":
        return "half of a stream: a slot without its publication, or the other way round"
    return f"a slot of no running move, {part.state}, that keeps {part.kept_bytes} bytes of log"


class StreamSweeper:
    """A part of the reconciler's pass."""

    def __init__(self, engine: AsyncEngine, client: CellClient) -> None:
        self._engine = engine
        self._client = client

    async def sweep(self, fleet: Sequence[CellAddress], term: int) -> int:
        """Drop what nobody needs in any cell that answers; how much was found."""
        listed = [(cell, await self._listed(cell)) for cell in fleet]
        # Read after the cells were asked: a move that begins now has a stream of another name.
        needed = await self._needed()
        count = 0
        for cell, parts in listed:
            for part, why in leftovers(parts, needed):
                count += 1
                await self._drop(cell, part, why, term)
        return count

    async def _listed(self, cell: CellAddress) -> list[transfer.StreamStatus]:
        try:
            return await self._client.streams(cell, budget_s=LIST_S)
        except CellRefusedError:  # a cell that sends no streams
            return []
        except CellError as e:
            log.info("streams_not_listed", **{Field.CELL: cell.name, Field.REASON: e.reason})
            return []

    async def _needed(self) -> frozenset[str]:
        alive = [state.value for state in UNFINISHED | WAITING]
        query = sa.select(moves.c.tenant, moves.c.id, moves.c.path).where(moves.c.state.in_(alive))
        async with self._engine.connect() as conn:
            rows = (await conn.execute(query)).all()
        return needed_by((ids.tenant_of(row.tenant), row.id, Path(row.path)) for row in rows)

    async def _drop(self, cell: CellAddress, part: transfer.StreamStatus, why: str, term: int) -> None:
        fields = {Field.CELL: cell.name, Field.TENANT: part.tenant, "stream": part.stream}
        try:
            number = ids.tenant_number(part.tenant)
            async with self._engine.begin() as conn:
                known = await conn.scalar(sa.select(tenants.c.number).where(tenants.c.number == number))
                name = f"sweep-{number}"
                fence = transfer.Fence(term, 1, name) if known is None else await next_fence(conn, number, term, name)
            await self._client.close_stream(cell, ids.tenant_of(number), fence, part.stream, budget_s=CLOSE_S)
        except CellError as e:
            log.warning("leftover_stayed", **fields, reason=str(e))
            return
        log.warning("leftover_stream_dropped", **fields, reason=why)
        async with self._engine.begin() as conn:
            await audit.record(
                conn, audit.CONTROL_PLANE, "leftover_stream_dropped", f"tenant:{part.tenant}",
                cell=cell.name, stream=part.stream, reason=why,
            )  # fmt: skip
