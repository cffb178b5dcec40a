"""What one worker counts. Labels are bounded: cell, code, reason; never a tenant."""

from typing import Final

from contracts.names import Metric
from router.board import Counter, Histogram, Slot

NO_CELL: Final = "-"  # the label of requests that never had a cell


class Metrics:
    """The series of one worker, each looked up once."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._requests: dict[tuple[str, int], Counter] = {}
        self._durations: dict[str, Histogram] = {}
        self._refused: dict[str, Counter] = {}
        self._replays: dict[str, Counter] = {}
        self._upstreams: dict[str, Counter] = {}
        self._walls: dict[tuple[str, bool], Counter] = {}
        self._holds = slot.gauge(Metric.ROUTER_HOLDS)
        self._clients = slot.gauge(Metric.ROUTER_CLIENTS)

    def answered(self, cell: str, status: int, seconds: float) -> None:
        """A request ended with an answer; status 499 where the client left before."""
        counter = self._requests.get((cell, status))
        if counter is None:
            counter = self._slot.counter(Metric.ROUTER_REQUESTS, cell=cell, code=str(status))
            self._requests[cell, status] = counter
        counter.add()
        duration = self._durations.get(cell)
        if duration is None:
            duration = self._durations[cell] = self._slot.histogram(Metric.ROUTER_DURATION, cell=cell)
        duration.observe(seconds)

    def refused(self, reason: str) -> None:
        """The router answered by itself; ``reason`` is the problem's slug."""
        counter = self._refused.get(reason)
        if counter is None:
            counter = self._refused[reason] = self._slot.counter(Metric.ROUTER_REFUSED, reason=reason)
        counter.add()

    def replayed(self, reason: str) -> None:
        """A request was sent again: misdirected, tenant-frozen or lost."""
        counter = self._replays.get(reason)
        if counter is None:
            counter = self._replays[reason] = self._slot.counter(Metric.ROUTER_RETRIES, reason=reason)
        counter.add()

    def walled(self, wall: str, refused: bool) -> None:
        """Something went beyond a wall, and was refused or only observed."""
        counter = self._walls.get((wall, refused))
        if counter is None:
            outcome = "refused" if refused else "observed"
            counter = self._slot.counter(Metric.ROUTER_WALLS, wall=wall, outcome=outcome)
            self._walls[wall, refused] = counter
        counter.add()

    def gauges(self, waiting: int, clients: int, upstreams: dict[str, int]) -> None:
        """How many requests wait in holds, and connections are open to clients and to each cell, now."""
        self._holds.set(waiting)
        self._clients.set(clients)
        for cell, count in upstreams.items():
            gauge = self._upstreams.get(cell)
            if gauge is None:
                gauge = self._upstreams[cell] = self._slot.gauge(Metric.ROUTER_UPSTREAMS, cell=cell)
            gauge.set(count)
