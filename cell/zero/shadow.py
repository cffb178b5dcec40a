"""Shadow reads: what a modern cell would have answered, asked beside the answer of the old shop and compared.

Only for tenants under preparation that an operator has named, only GET, only answers of 200 up to `BODY_BYTES`. The
client never waits for it, and never sees it. A rehearsal of the tenant (its rows, translated, under a number of their
own at a modern cell) is asked, so the tenant itself stays where it is. A difference is reported only if the old answer
still is what it was: data that changed between the two questions is no fault of the new code.
"""

import asyncio
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from difflib import unified_diff
from typing import Final

import asyncpg
import httpx
import msgspec
import structlog

from cell.shards.errors import DATABASE_FAILED
from cell.shards.session import Pool
from cell.zero.exchange import Headers, Upstream, pieces
from cell.zero.modern import As, ModernCell, is_not_theirs
from contracts import ids
from contracts.names import Field

BODY_BYTES: Final = 1 << 20
WAITING: Final = 64  # comparisons; what comes while so many wait is not compared
REMEMBERED: Final = 200  # differences
DIFFERENCE_CHARACTERS: Final = 2000
TIMEOUT_MS: Final = 10_000
RETRY_S: Final = 1.0
_GAP: Final = re.compile(r">\s*<")
_NAME: Final = (
    "INSERT INTO cellwall_zero.shadows (tenant_id, cell, rehearsal_id, epoch) VALUES ($1, $2, $3, $4)"
    " ON CONFLICT (tenant_id) DO UPDATE SET cell = excluded.cell, rehearsal_id = excluded.rehearsal_id,"
    " epoch = excluded.epoch"
)
_LIST: Final = "SELECT tenant_id, cell, rehearsal_id, epoch FROM cellwall_zero.shadows"

_log = structlog.get_logger()


class Shadow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which cell is asked beside the old shop, and as whom: the tenant's rehearsal there, at its epoch."""

    cell: str
    tenant: str
    epoch: int = 1


class Difference(msgspec.Struct, frozen=True):
    """One question that was answered differently. ``what`` is a unified diff, cut where it is long."""

    tenant: str
    target: str
    what: str


class Report(msgspec.Struct, frozen=True):
    """What came of the shadow reads of this process, and the newest differences."""

    results: dict[str, int]
    differences: list[Difference]


@dataclass(frozen=True, slots=True)
class Read:
    """A question with the old answer."""

    tenant: int
    tenant_id: str
    target: bytes
    headers: Headers
    kind: str
    body: bytes


def readable(kind: str, body: bytes) -> list[str]:
    """An answer in lines that can be compared: what is between tags does not count where it is white space only."""
    text = body.decode("utf-8", "replace")
    if kind.partition(";")[0].strip().lower() == "text/html":
        return _GAP.sub(">\n<", text).strip().split("\n")
    return text.strip().split("\n")


def difference(old_kind: str, old: bytes, new_status: int, new_kind: str, new: bytes) -> str:
    """In which the answers differ, '' where they say the same."""
    if new_status != 200:
        return f"the new answer has the status {new_status}"
    kinds = [kind.partition(";")[0].strip().lower() for kind in (old_kind, new_kind)]
    if kinds[0] != kinds[1]:
        return f"the old answer is {kinds[0]}, the new one {kinds[1]}"
    lines = unified_diff(readable(old_kind, old), readable(new_kind, new), "old", "new", lineterm="", n=0)
    return "\n".join(lines)[:DIFFERENCE_CHARACTERS]


class Shadows:
    """Asks and compares, one question at a time. ``told`` counts results."""

    def __init__(
        self,
        pool: Pool,
        old: Upstream,
        cells: Mapping[str, ModernCell],
        told: Callable[[str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._pool = pool
        self._old = old
        self._cells = cells
        self._told = told
        self._sleep = sleep
        self._shadows: dict[int, Shadow] = {}
        self._waiting: asyncio.Queue[Read] = asyncio.Queue(WAITING)
        self._results: Counter[str] = Counter()
        self._differences: deque[Difference] = deque(maxlen=REMEMBERED)

    def wants(self, tenant: int) -> bool:
        """Whether reads of this tenant are to be compared."""
        return tenant in self._shadows

    def offer(self, read: Read) -> None:
        """Have it compared, if there is room; returns at once."""
        try:
            self._waiting.put_nowait(read)
        except asyncio.QueueFull:
            self._count("skipped")

    def report(self) -> Report:
        """What came of it."""
        return Report(dict(self._results), list(self._differences))

    # -- who is compared ----------------------------------------------------------------------------------------

    async def name(self, tenant: int, shadow: Shadow | None) -> bool:
        """Compare this tenant's reads from now on, or no longer. Survives a restart. False: no such tenant here."""
        if shadow is None:
            await self._pool.execute("DELETE FROM cellwall_zero.shadows WHERE tenant_id = $1", tenant)
        else:
            try:
                await self._pool.execute(_NAME, tenant, shadow.cell, ids.tenant_number(shadow.tenant), shadow.epoch)
            except asyncpg.ForeignKeyViolationError:
                return False
        await self.refresh()
        return True

    def knows(self, cell: str) -> bool:
        """Whether that modern cell is known here."""
        return cell in self._cells

    async def refresh(self) -> None:
        """Read whom to compare."""
        rows = await self._pool.fetch(_LIST)
        self._shadows = {
            r["tenant_id"]: Shadow(r["cell"], str(ids.tenant_of(r["rehearsal_id"])), r["epoch"]) for r in rows
        }

    # -- comparing ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        await self._begin()
        while True:
            read = await self._waiting.get()
            shadow = self._shadows.get(read.tenant)
            cell = self._cells.get(shadow.cell) if shadow else None
            if shadow is None or cell is None:
                self._count("skipped")
                continue
            try:
                async with asyncio.timeout(2 * TIMEOUT_MS / 1000):
                    self._count(await self._compare(read, shadow, cell))
            except (httpx.HTTPError, OSError, TimeoutError) as e:
                self._count("unavailable")
                _log.info("shadow_read_failed", **{Field.TENANT: read.tenant_id, Field.REASON: type(e).__name__})

    async def _begin(self) -> None:
        """Know whom to compare, as soon as the database says."""
        while True:
            try:
                await self.refresh()
            except DATABASE_FAILED:
                await self._sleep(RETRY_S)
            else:
                return

    async def _compare(self, read: Read, shadow: Shadow, cell: ModernCell) -> str:
        who = As(shadow.tenant, shadow.epoch, TIMEOUT_MS, "shadow", "shadow")
        async with cell.asked(who, "GET", read.target, read.headers, None) as response:
            if is_not_theirs(response) or response.status_code >= 500:
                return "unavailable"
            status, kind = response.status_code, response.headers.get("content-type", "")
            new = await _whole(response)
        what = difference(read.kind, read.body, status, kind, new)
        if not what:
            return "same"
        if await self._changed_since(read):
            return "changed"
        self._differences.append(Difference(read.tenant_id, read.target.decode("latin-1"), what))
        _log.warning("shadow_read_differed", **{Field.TENANT: read.tenant_id}, path=read.target.partition(b"?")[0])
        return "different"

    async def _changed_since(self, read: Read) -> bool:
        response = await self._old.ask("GET", read.target, read.headers, None)
        try:
            return await _whole(response) != read.body
        finally:
            await response.aclose()

    def _count(self, result: str) -> None:
        self._results[result] += 1
        self._told(result)


async def _whole(response: httpx.Response) -> bytes:
    """An answer's body, as far as `BODY_BYTES`: what is longer differs from what was kept anyway."""
    body = bytearray()
    async for piece in pieces(response):
        body += piece
        if len(body) > BODY_BYTES:
            break
    return bytes(body)
