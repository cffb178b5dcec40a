"""What the composition of a cell needs of the webhooks: their consumer of events, their job and their chores."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from cell.events.inbox import Consumer
from cell.modules.webhooks.sender import job, opened
from cell.modules.webhooks.service import QUEUE, TYPES, WORK_KIND, fan_out, prune
from cell.shards.session import TenantSession

__all__ = ["CONSUMERS", "WORK_KIND", "chores", "job", "opened"]

CONSUMERS: Final = (Consumer("webhooks.fan-out", frozenset(TYPES), fan_out),)


def chores(home: str) -> Sequence[Callable[[TenantSession], Awaitable[int]]]:
    """What the sweep does for each tenant: wake who delivers what nobody delivers, and forget old deliveries."""
    return (QUEUE.chore(home), prune)
