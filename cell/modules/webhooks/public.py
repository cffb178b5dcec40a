"""What the composition of a cell needs of the webhooks: their consumer of events, their job and their chores."""

from collections.abc import Awaitable, Callable
from typing import Final

from cell.events.inbox import Consumer
from cell.modules.webhooks.sender import job, opened
from cell.modules.webhooks.service import TYPES, WORK_KIND, fan_out, look_after
from cell.shards.session import TenantSession
from cell.vault import Vault

__all__ = ["CONSUMERS", "WORK_KIND", "chore", "job", "opened"]

CONSUMERS: Final = (Consumer("webhooks.fan-out", frozenset(TYPES), fan_out),)


def chore(home: str, vault: Vault) -> Callable[[TenantSession], Awaitable[int]]:
    """What the sweep does for each tenant: wake who delivers what nobody delivers, seal bare secrets, and forget
    old deliveries."""

    async def look(session: TenantSession) -> int:
        return await look_after(session, vault, home)

    return look
