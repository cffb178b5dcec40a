"""What is known of one request or job: whose it is, at which epoch, and how long it may take."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf

from cell.fairness.cost import Cost
from contracts import ids

ANY_EPOCH = 0  # for workers: whatever the epoch, but only while the tenant is active here


def unlimited(_user: object) -> None:
    """For work that no user asked for."""


async def at_once() -> None:
    """For long work that nothing slows down."""


@dataclass(slots=True)
class TenantContext:
    """One unit of work for one tenant. Times are seconds of the monotonic clock, which is also the loop's.

    ``deadline`` is when the application is stopped, ``statement_by`` when the database itself ends a statement that is
    still at work: later, in case this process could not.
    ``committed`` turns true just before a writing transaction of this request sends COMMIT: from then on the request
    may have had an effect, so the ingress no longer promises that nothing ran (moves.md rule 4). ``cost`` is what it
    has cost so far. ``identified`` is called with the user as soon as it is known; it raises
    `cell.fairness.station.RefusedError` where that user has used up its part.

    ``turn`` is awaited between two parts of long work, outside of any transaction: it returns when the next part may
    begin, and raises `RefusedError` where there is no place for it any more.

    Where it is not ``lasting``, COMMIT does not wait for the disk: a server that crashes may lose the last second of
    such work, the newest first. For what is done again then, with nothing outside that knows of it.
    """

    tenant: int
    tenant_id: str
    epoch: int
    deadline: float
    request_id: str
    plan: str
    committed: bool = False
    cost: Cost = field(default_factory=Cost)
    statement_by: float = inf
    identified: Callable[[object], None] = unlimited
    turn: Callable[[], Awaitable[None]] = at_once
    lasting: bool = True

    @classmethod
    def for_worker(cls, tenant: int, deadline: float, job: str, *, lasting: bool = True) -> "TenantContext":
        """The context of background work: any epoch, no plan."""
        return cls(tenant, str(ids.tenant_of(tenant)), ANY_EPOCH, deadline, job, "", lasting=lasting)
