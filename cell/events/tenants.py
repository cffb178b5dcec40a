"""Which tenants are active here: a list to begin with, never a permission (that is `Shards.enter`)."""

from collections.abc import AsyncIterator
from typing import Final

import sqlalchemy as sa

from cell.shards.session import Shards
from cell.shards.sql import prepare
from cell.shards.tables import tenants

PAGE_TENANTS: Final = 500

_ACTIVE = prepare(
    sa.select(tenants.c.tenant_id)
    .where(tenants.c.state == "active", tenants.c.tenant_id > sa.bindparam("after", type_=sa.BigInteger))
    .order_by(tenants.c.tenant_id)
    .limit(PAGE_TENANTS)
)


async def active(shards: Shards, shard: str) -> AsyncIterator[int]:
    """The active tenants of a shard in order of their numbers, read page by page; no connection is held between."""
    after = 0
    while rows := await shards.pool(shard).fetch(_ACTIVE.text, *_ACTIVE.arguments(0, {"after": after})):
        for row in rows:
            yield row["tenant_id"]
        after = rows[-1]["tenant_id"]
