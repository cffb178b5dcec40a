"""Requests that wait for a connection to a cell: tenants take turns, so that nobody waits behind all of another's."""

from collections import deque
from typing import Generic, Protocol, TypeVar


class Owned(Protocol):
    """A request of some tenant."""

    @property
    def tenant(self) -> bytes:
        """Whose it is. It does not change while the request waits."""


W = TypeVar("W", bound=Owned)


class Turns(Generic[W]):
    """A queue of queues (round robin; Nagle, RFC 970): first come, first served within a tenant."""

    def __init__(self) -> None:
        self._queues: dict[bytes, deque[W]] = {}  # in the order of turns
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, waiter: W) -> None:
        """At the end of its tenant's queue; a tenant that had none has its turn after all others."""
        queue = self._queues.get(waiter.tenant)
        if queue is None:
            queue = self._queues[waiter.tenant] = deque()
        queue.append(waiter)
        self._size += 1

    def popleft(self) -> W:
        """Whose turn it is; IndexError where nobody waits."""
        if not self._size:
            raise IndexError("nobody waits")
        tenant = next(iter(self._queues))
        queue = self._queues.pop(tenant)
        waiter = queue.popleft()
        if queue:
            self._queues[tenant] = queue  # after all others
        self._size -= 1
        return waiter

    def discard(self, waiter: W) -> None:
        """``waiter`` waits no more, if it did."""
        queue = self._queues.get(waiter.tenant)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            self._size -= 1
            if not queue:
                del self._queues[waiter.tenant]
