"""What the composition of a cell needs of the reports: their wall, their maker, and the chore for rows and files."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from cell.blobs import Blobs
from cell.modules.reports import service
from cell.modules.reports.maker import Maker
from cell.modules.reports.metrics import ReportMetrics
from cell.modules.reports.service import QueueWall
from cell.shards.session import Shards, TenantSession
from cell.shards.sql import prepare
from cell.shards.tables import tenants
from contracts import ids

__all__ = ["Maker", "QueueWall", "ReportMetrics", "chore", "tidy"]

FORGOTTEN_AFTER: Final = service.RETENTION + timedelta(days=1)  # a file that is older belongs to no row

_GONE = prepare(
    sa.select(tenants.c.tenant_id).where(
        tenants.c.state == "gone", tenants.c.tenant_id == sa.any_(sa.bindparam("asked", type_=ARRAY(sa.BigInteger)))
    )
)


def chore(blobs: Blobs, home: str) -> Callable[[TenantSession], Awaitable[int]]:
    """What the sweep does for each tenant: queue what has no file here, and forget what is past its retention."""

    async def tend(session: TenantSession) -> int:
        if not await service.any_of(session):
            return 0
        if await service.made_elsewhere(session, home):
            found = [f"{ids.tenant_of(session.tenant)}/{name}" async for name, _ in blobs.of(session.tenant)]
            await service.adopt(session, home, found)
        queued = await service.recover(session, home)
        keys = await service.prune(session)
        await blobs.delete(keys)  # before the commit: what stays behind is in nobody's row
        return queued + len(keys)

    return tend


async def tidy(blobs: Blobs, shards: Shards, now: datetime) -> int:
    """Delete files that no row can name: too old, or of a tenant that this cell has dropped; how many.

    What a tenant that moved away left here stays for its retention: the move may be rolled back.
    """
    doomed: list[str] = []
    by_tenant: dict[int, list[str]] = {}
    async for found in blobs.all():
        if found.modified < now - FORGOTTEN_AFTER:
            doomed.append(found.key)
        elif found.tenant is not None:
            by_tenant.setdefault(found.tenant, []).append(found.key)
    await blobs.delete(doomed)
    # Listed before it is asked who is gone: whatever a tenant that comes back writes is not in the list. Asked again
    # before each file: one that was left here counts as copied by the move that brings its tenant back.
    for tenant in await _gone(shards, by_tenant):
        for key in by_tenant[tenant]:
            if not await _gone(shards, {tenant: [key]}):
                break
            await blobs.delete([key])
            doomed.append(key)
    return len(doomed)


async def _gone(shards: Shards, by_tenant: dict[int, list[str]]) -> list[int]:
    by_shard: dict[str, list[int]] = {}
    for tenant in by_tenant:
        by_shard.setdefault(shards.shard_of(tenant), []).append(tenant)
    found: list[int] = []
    for shard, asked in by_shard.items():
        rows = await shards.pool(shard).fetch(_GONE.text, *_GONE.arguments(0, {"asked": asked}))
        found += [row["tenant_id"] for row in rows]
    return found
