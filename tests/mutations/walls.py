"""The walls inside a cell with one of their parts taken away. Each must turn the test that names it red."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cell.fairness.levels import Level, Operations
from cell.fairness.limits import CallerLimits
from cell.fairness.queues import Queues, Ticket
from cell.fairness.station import Station
from cell.fairness.wall import Visit, Wall
from cell.ingress import _Watch
from cell.shards.session import Shards

Patch = pytest.MonkeyPatch


def first_come_first_served(patch: Patch) -> None:
    """One queue for everybody: who asked first begins next."""

    def pop(self: Queues, _allowed: Callable[[Ticket], bool]) -> Ticket | None:
        waiting = [ticket for queue in self._busy.values() for ticket in queue.waiting]
        if not waiting:
            return None
        oldest = min(waiting, key=lambda ticket: ticket.asked_at)
        assert oldest.queue is not None
        self._take_out(oldest, oldest.queue)
        return oldest

    patch.setattr(Queues, "pop", pop)


def room_without_end(patch: Patch) -> None:
    """A tenant may have everything waiting."""
    made = Queues.__init__

    def init(self: Queues, *arguments: Any, **sizes: Any) -> None:
        made(self, *arguments, **sizes)
        self._tenant_room = self._room = self._length = 10**6

    patch.setattr(Queues, "__init__", init)


def one_level(patch: Patch) -> None:
    """Heavy work takes the seats of everything else."""
    patch.setattr(Operations, "level", lambda *_: Level.INTERACTIVE)


def nothing_foreseen(patch: Patch) -> None:
    """A large body is read, whatever becomes of it."""
    patch.setattr(Wall, "foresee", lambda *_: None)


def no_caller_limits(patch: Patch) -> None:
    """One key or user of a tenant may take all."""
    patch.setattr(CallerLimits, "enter", lambda *_: None)
    patch.setattr(CallerLimits, "leave", lambda *_: None)


def ghosts(patch: Patch) -> None:
    """Who left keeps its place in the queue."""
    patch.setattr(Station, "withdraw", lambda *_: [])


def seat_before_body(patch: Patch) -> None:
    """A seat is taken when the head is there."""

    async def at_once(self: _Watch) -> bool:
        self._pump = asyncio.get_running_loop().create_task(self._read())
        return True

    patch.setattr(_Watch, "read_ahead", at_once)


def seat_until_the_end(patch: Patch) -> None:
    """A seat is kept until the client has read the answer."""
    leave = Wall.leave

    def at_the_end(self: Wall, visit: Visit, *, usual: bool) -> None:
        if not usual:  # what the answer's head says
            leave(self, visit, usual=usual)

    patch.setattr(Wall, "leave", at_the_end)


def no_statement_timeout(patch: Patch) -> None:
    """The database does not know of the time limit."""

    def begin(_self: Shards, ctx: Any, read_only: bool) -> str:
        return f"BEGIN{' READ ONLY' if read_only else ''}; EXECUTE enter({ctx.tenant}, {ctx.epoch})"

    patch.setattr(Shards, "_begin", begin)
