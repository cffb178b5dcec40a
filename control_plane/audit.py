"""The audit log: who changed what, written in the transaction of the change: neither exists without the other."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.models import audit

CONTROL_PLANE = "control-plane"  # the actor of what nobody asked for, such as finishing a deletion
FRONT_DOOR = "front-door"


async def record(conn: AsyncConnection, actor: str, action: str, subject: str, **detail: Any) -> None:
    """Add an entry in the caller's transaction. ``action`` is a verb in the past; no secret goes into ``detail``."""
    await conn.execute(sa.insert(audit).values(actor=actor, action=action, subject=subject, detail=detail))


async def entries(conn: AsyncConnection, limit: int, before: int | None) -> list[sa.Row[Any]]:
    """The newest entries first, those with an id below ``before`` where given."""
    query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(audit.c.id < before)
    return list((await conn.execute(query)).all())
