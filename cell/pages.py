"""Lists by id: one page of a tenant's rows, read in a transaction of the caller."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar
from uuid import UUID

from cell import wire
from cell.access import Caller
from cell.shards.session import TenantSession


class Shown(Protocol):
    """A row as the API shows it."""

    @property
    def id(self) -> UUID:
        """What the list is sorted by."""


Row = TypeVar("Row")
View = TypeVar("View", bound=Shown)
Read = Callable[[TenantSession, UUID | None, int], Awaitable[Sequence[Row]]]


async def by_id(
    caller: Caller, limit: int, cursor: str | None, read: Read[Row], view: Callable[[Row], View]
) -> wire.Page[View]:
    """The page of ``limit`` rows behind ``cursor``; 400 names a limit or cursor that cannot be, before any look-up.

    ``read`` gets the id to go on from (None: the beginning) and how many rows to read.
    """
    size, start = wire.page_size(limit), wire.id_of_cursor(cursor)
    async with caller.enter(read_only=True) as (session, _):
        rows = await read(session, start, size + 1)
    return wire.page([view(row) for row in rows], size, lambda shown: wire.cursor_of_id(shown.id))
