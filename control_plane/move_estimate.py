"""What a move would be like, before it is begun: its path, how long the copy takes, how long routers would hold."""

from dataclasses import dataclass
from typing import Final

from contracts import problems, transfer
from contracts.ids import TenantId
from contracts.problems import ProblemError
from control_plane.cell_client import CellAddress, CellClient, CellError, CellRefusedError, CellUnreachableError
from control_plane.move import Path

# What a hold costs (loopback, two shards on two cores): a fixed part, and of a small tenant rows copied and compared.
HOLD_FIXED_MS: Final = 95.0
HOLD_ROWS_PER_MS: Final = 110.0
HOLD_LARGE_MS: Final = 90.0  # the last changes, and the comparison of what was touched
HOLD_MOST_MS: Final = 4000.0  # of an estimate: what takes longer might not fit into `move.Budgets.hold_s`
COPY_ROWS_PER_S: Final = 150_000.0
COPY_FIXED_S: Final = 0.5
COPY_BYTES_PER_S: Final = 40e6

# Up to here a small move holds as briefly as a large one (ADR 0032).
BRIEF_ROWS: Final = 5_000
# Above any of these the copy would make a small move's hold long, and might not fit into it (`move.Budgets.hold_s`).
SMALL_ROWS: Final = 50_000
SMALL_BYTES: Final = 32 << 20
SMALL_BLOB_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Weight:
    """What a tenant would carry, by its cell's estimate. ``streams``: the cell can send changes as they happen.

    ``hold_ms``: what the hold of a large move costs beyond `HOLD_LARGE_MS`, because of the cell that it leaves.
    """

    rows: int
    bytes: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    obstacles: tuple[str, ...] = ()
    streams: bool = True
    hold_ms: float = 0.0

    @property
    def fits_the_hold(self) -> bool:
        """Whether all of it can be copied while the tenant stands still."""
        return self.rows <= SMALL_ROWS and self.bytes <= SMALL_BYTES and self.blob_bytes <= SMALL_BLOB_BYTES

    @property
    def gains_from_a_stream(self) -> bool:
        """Whether it fits, but would be held longer for its copy than a large move holds; and nothing is in the way."""
        brief = self.rows <= BRIEF_ROWS or bool(self.hold_ms)  # where the cell has to look at each row in either case
        return self.fits_the_hold and not brief and self.streams and not self.obstacles


@dataclass(frozen=True, slots=True)
class Estimate:
    """A move that may begin. ``copy_s`` is the time that the copy takes, ``hold_ms`` that for which routers hold.

    ``passing``: by the large path, for the shorter hold alone, so that its standby is finalized at once.
    """

    tenant: str
    slug: str
    source: str
    target: str
    path: Path
    weight: Weight
    copy_s: float
    hold_ms: float
    passing: bool = False

    @property
    def rows(self) -> int:
        """By the source's own estimate."""
        return self.weight.rows


async def weigh(client: CellClient, cell: CellAddress, tenant: TenantId, slug: str) -> Weight:
    """Ask the tenant's cell; `ProblemError` where it does not answer or does not have the tenant."""
    try:
        try:
            found = await client.preflight(cell, tenant)
        except CellRefusedError as e:
            if e.slug == problems.UNTRANSLATABLE.slug:
                raise ProblemError(problems.UNTRANSLATABLE, f"{cell.name} lets nobody go: {e.detail}") from e
            if e.status != 404:
                raise ProblemError(problems.CONFLICT, f"{cell.name} refuses: {e.reason}") from e
            # A cell that cannot send a stream has no preflight either; it says how many rows there are.
            return await _counted(client, cell, tenant, slug)
    except CellUnreachableError as e:
        raise ProblemError(problems.CELL_UNAVAILABLE, f"{cell.name} does not answer: {e.reason}") from e
    return Weight(found.rows, found.bytes, found.blobs, found.blob_bytes, found.obstacles, hold_ms=found.hold_ms)


async def _counted(client: CellClient, cell: CellAddress, tenant: TenantId, slug: str) -> Weight:
    status: transfer.TenantStatus | None = await client.status(cell, tenant, rows=True)
    if status is None or status.rows is None:
        raise ProblemError(problems.CONFLICT, f"{cell.name} does not know the tenant {slug}.")
    return Weight(status.rows, streams=False)


def path_of(weight: Weight, slug: str, *, standby: bool) -> Path:
    """Small where all of it fits into the hold and a stream gains nothing, else large; ``standby`` wants the lossless
    way back in any case.

    `ProblemError` where a large move is needed and cannot be, with what would help. Pure.
    """
    if weight.fits_the_hold and not standby:
        return Path.LARGE if weight.gains_from_a_stream else Path.SMALL
    if not weight.streams:
        if standby:
            raise ProblemError(
                problems.CONFLICT, f"The cell of {slug} cannot send changes as they happen, so there is no standby.",
                advice="Move it without a standby.",
            )  # fmt: skip
        raise ProblemError(
            problems.TENANT_TOO_LARGE,
            f"{slug} has about {weight.rows} rows, and its cell cannot send changes while they are copied.",
            limit_rows=SMALL_ROWS,
        )
    if weight.obstacles:
        raise ProblemError(problems.NOT_REPLICABLE, f"{slug} cannot be moved: {'; '.join(weight.obstacles)}")
    if HOLD_LARGE_MS + weight.hold_ms > HOLD_MOST_MS:
        raise ProblemError(
            problems.TENANT_TOO_LARGE,
            f"{slug} has about {weight.rows} rows, and its cell has to look at each of them within the hold: about"
            f" {(HOLD_LARGE_MS + weight.hold_ms) / 1000:.1f} s, {HOLD_MOST_MS / 1000:g} s at most.",
            limit_rows=int(weight.rows * (HOLD_MOST_MS - HOLD_LARGE_MS) / weight.hold_ms),
        )
    return Path.LARGE


async def check_room(client: CellClient, source: CellAddress, target: CellAddress, tenant: TenantId) -> None:
    """`ProblemError` where a server at either end takes no more streams. A cell that does not answer is no hindrance:
    the move comes to it soon enough."""
    for cell in (source, target):
        try:
            found = await client.room(cell, tenant)
        except CellError:
            continue
        if found is not None and (full := no_room(cell.name, found)):
            raise ProblemError(problems.NO_STREAM_ROOM, full)


def no_room(cell: str, room: transfer.StreamRoom) -> str:
    """Why not one more stream each way; empty where there is room. Pure."""
    if room.slots >= room.slots_max:
        return f"{room.shard} of {cell} can send {room.slots_max} streams, and {room.slots} are open."
    if room.origins >= room.origins_max:
        return f"{room.shard} of {cell} can receive {room.origins_max} streams, and {room.origins} are open."
    return ""


def timing(weight: Weight, path: Path) -> tuple[float, float]:
    """Seconds of the copy, milliseconds of the hold. Pure."""
    if path is Path.SMALL:
        hold_ms = HOLD_FIXED_MS + weight.rows / HOLD_ROWS_PER_MS
        return hold_ms / 1000, hold_ms
    copy_s = max(weight.rows / COPY_ROWS_PER_S, weight.bytes / COPY_BYTES_PER_S)
    return COPY_FIXED_S + copy_s + weight.blob_bytes / COPY_BYTES_PER_S, HOLD_LARGE_MS + weight.hold_ms
