"""The soft side of a freeze, in memory: who is in flight, and whom not to admit for the moment.

Nothing hangs on it but politeness: it lets admitted requests finish before the hard freeze cancels what is left. A
process that restarts forgets it and loses nothing, because the fence is in the database.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

REMEMBER_S: Final = 60.0  # how long a freeze explains transactions that the database ended


class Gate:
    """Counts requests in flight per tenant and stops admission of a tenant. One per process and event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._in_flight: dict[int, int] = {}
        self._closed: defaultdict[int, int] = defaultdict(int)
        self._drained: dict[int, asyncio.Event] = {}
        self._froze: dict[int, float] = {}

    @property
    def in_flight(self) -> int:
        """Admitted requests that have not left, over all tenants."""
        return sum(self._in_flight.values())

    def admit(self, tenant: int) -> bool:
        """Count the request in, unless the tenant is closed. Whoever is admitted must `leave`."""
        if tenant in self._closed:
            return False
        self._in_flight[tenant] = self._in_flight.get(tenant, 0) + 1
        return True

    def is_closed(self, tenant: int) -> bool:
        """Whether the tenant is not admitted now: for who was admitted and has waited since."""
        return tenant in self._closed

    def leave(self, tenant: int) -> None:
        """Count a request out."""
        left = self._in_flight[tenant] - 1
        if left:
            self._in_flight[tenant] = left
            return
        del self._in_flight[tenant]
        drained = self._drained.get(tenant)
        if drained is not None:
            drained.set()

    @contextmanager
    def closed(self, tenant: int) -> Iterator[None]:
        """Admit no request of the tenant within this block. Blocks may overlap; the last one opens."""
        self._closed[tenant] += 1
        try:
            yield
        finally:
            self._closed[tenant] -= 1
            if not self._closed[tenant]:
                del self._closed[tenant]

    async def drain(self, tenant: int, budget_s: float) -> bool:
        """Wait until no request of the tenant is in flight; false where the budget ended first."""
        if tenant not in self._in_flight:
            return True
        drained = self._drained.setdefault(tenant, asyncio.Event())
        try:
            async with asyncio.timeout(budget_s):
                await drained.wait()
        except TimeoutError:
            return tenant not in self._in_flight
        finally:
            self._drained.pop(tenant, None)
        return True

    def note_freeze(self, tenant: int) -> None:
        """From now on, and for a minute, transactions of this tenant that the database ended were ended by a freeze."""
        now = self._clock()
        self._froze = {t: at for t, at in self._froze.items() if now - at < REMEMBER_S}
        self._froze[tenant] = now

    def was_frozen(self, tenant: int) -> bool:
        """Whether a freeze went through lately."""
        at = self._froze.get(tenant)
        return at is not None and self._clock() - at < REMEMBER_S
