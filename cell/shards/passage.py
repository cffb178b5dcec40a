"""What a request does that meets the fence of a bucket: wait, on no connection, until the bucket stands again.

However many requests of a tenant wait, one of them looks, every few milliseconds, and the others wait for it. The
look is one statement, hence of one moment: what it says of a tenant that has no row holds, whatever moves meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from contracts import ids

LOOK_EVERY_S: Final = 0.005
_LOOK: Final = (
    "SELECT CASE WHEN f.state IN ('frozen', 'arriving') THEN 'moving' WHEN f.state = 'away' THEN 'away'"
    " WHEN EXISTS (SELECT FROM cellwall.tenants WHERE tenant_id = $2) THEN 'here' ELSE 'unknown' END"
    " FROM (SELECT (SELECT s.state FROM cellwall.shard_fences s WHERE s.bucket = $1 AND s.tenant_id IN (0, $2)"
    " ORDER BY s.tenant_id DESC LIMIT 1) AS state) f"
)


class Passage:
    """The fences of the buckets as requests meet them. One for the pools of a process; ``clock`` is in seconds."""

    def __init__(
        self,
        pools: Mapping[str, Any],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._pools = pools
        self._clock = clock
        self._sleep = sleep
        self._looking: dict[tuple[str, int], asyncio.Future[str]] = {}

    async def stands(self, shard: str, tenant: int, until: float) -> str:
        """What the shard says of the tenant: here, away (on another shard), or unknown to everybody.

        Waits while the bucket moves; ``moving`` is the answer where it still does at ``until``, and also where who
        looked for all gave up: ask again. Raises what a pool raises whose shard is away.
        """
        key = (shard, tenant)
        looking = self._looking.get(key)
        if looking is not None:
            return await self._told(looking, until)
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._looking[key] = told
        found = "moving"
        try:
            while (found := await self._look(shard, tenant)) == "moving" and self._clock() < until:
                await self._sleep(LOOK_EVERY_S)
            return found
        finally:
            del self._looking[key]
            told.set_result(found)

    async def _told(self, looking: "asyncio.Future[str]", until: float) -> str:
        try:
            async with asyncio.timeout(max(until - self._clock(), 0.0)):
                return await asyncio.shield(looking)
        except TimeoutError:
            return "moving"

    async def _look(self, shard: str, tenant: int) -> str:
        bucket = ids.bucket_of(f"t{tenant}")
        return str(await self._pools[shard].fetchval(_LOOK, bucket, tenant))
