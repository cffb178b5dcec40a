"""What a run saw: latencies from the intended send time, every failure, every acknowledged write, the driver's pace.

Latency counts from the moment the schedule wanted the request sent. A stall of one second therefore shows in every
request that was due during it, not only in the one that was in flight (coordinated omission, Gil Tene).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from hdrh.histogram import HdrHistogram

from loadtest.schedule import WRITES, Intent, Kind

HIGHEST_US = 60_000_000
LAG_LIMIT_MS = 50.0
CPU_LIMIT = 0.8


@dataclass(frozen=True, slots=True)
class Failure:
    """One try that did not end in the answer it should. Times are seconds since the start of the run.

    ``retried`` says that the same request was sent again afterwards; ``refused`` that the answer was to go away for
    now. ``local_port`` and ``connected_at`` name the connection it died with, where there was one.
    """

    at: float
    intended: float
    tenant: str
    kind: Kind
    router: str
    cause: str
    status: int = 0
    body: str = ""
    local_port: int = 0
    connected_at: float = 0.0
    retried: bool = False
    refused: bool = False

    def words(self) -> str:
        """The failure in one line."""
        what = f"{self.cause} ({self.status})" if self.status else self.cause
        told = f": {self.body}" if self.body else ""
        return f"{self.at:6.2f} s  {self.kind} of {self.tenant} through {self.router}: {what}{told}"


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A write that the fleet said it had done. ``at`` is seconds since the start; cell and epoch are who said so.

    ``pending``: it was also said that the order is on its way to be paid.
    """

    tenant: str
    order: str
    key: str
    at: float
    cell: str
    epoch: int
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Stale:
    """A read that did not show an order which its tenant had been told was done before the read was sent."""

    tenant: str
    order: str
    at: float
    words: str


@dataclass(frozen=True, slots=True)
class Write:
    """One intended write and when its waiting ended, acknowledged or not. Seconds since the start of the run."""

    intended: float
    ended: float
    acknowledged: bool


@dataclass(frozen=True, slots=True)
class Gap:
    """The longest stretch during which a write waited and none was acknowledged."""

    seconds: float
    at: float


def write_gap(writes: Iterable[Write], *, during: tuple[float, float] = (-inf, inf)) -> Gap:
    """The longest stretch of time in which at least one intended write waited and none was acknowledged.

    With ``during`` the longest of those that overlap this time, at their full length. ``writes`` are all writes then
    too: an acknowledgement of a write intended later ends a silence just as well.

    Time in which nobody wanted to write does not count, so a quiet tenant has no gap; a write that waits for a hold
    to end counts from its *intended* time, or from the last acknowledgement before it if that is later.
    """
    waiting = sorted(writes, key=lambda w: w.intended)
    acks = sorted(w.ended for w in waiting if w.acknowledged)
    worst = Gap(0.0, 0.0)
    for start, end in _busy(waiting):
        edges = [start, *(a for a in acks if start < a < end), end]
        for left, right in pairwise(edges):
            if right - left > worst.seconds and left < during[1] and right > during[0]:
                worst = Gap(right - left, left)
    return worst


def _busy(writes: Sequence[Write]) -> list[tuple[float, float]]:
    """The union of all waiting intervals; ``writes`` are sorted by their intended time."""
    union: list[tuple[float, float]] = []
    for write in writes:
        if union and write.intended <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], write.ended))
        else:
            union.append((write.intended, write.ended))
    return union


@dataclass(frozen=True, slots=True)
class Pace:
    """Whether the driver kept its own schedule. A run whose driver fell behind measured the driver."""

    lag_p99_ms: float
    cpu_share: float

    @property
    def kept(self) -> bool:
        """The run's figures mean something."""
        return self.lag_p99_ms <= LAG_LIMIT_MS and self.cpu_share <= CPU_LIMIT

    def words(self) -> str:
        """The verdict as a sentence."""
        figures = f"send lag p99 {self.lag_p99_ms:.1f} ms, {self.cpu_share:.0%} of one core"
        if self.kept:
            return f"the driver kept its schedule ({figures})"
        return (
            f"INVALID: the driver fell behind its own schedule ({figures};"
            f" limits {LAG_LIMIT_MS:.0f} ms and {CPU_LIMIT:.0%}): lower the rate"
        )


class Latency:
    """A histogram of microseconds up to a minute, three significant digits; longer ones count as a minute."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, HIGHEST_US, 3)

    def add(self, seconds: float) -> None:
        """Count one value."""
        self._histogram.record_value(min(max(int(seconds * 1e6), 1), HIGHEST_US))

    def merge(self, other: "Latency") -> None:
        """Count all of ``other``'s values too."""
        self._histogram.add(other._histogram)

    @property
    def count(self) -> int:
        """Values counted."""
        return int(self._histogram.get_total_count())

    def percentile_ms(self, percent: float) -> float:
        """The value below which ``percent`` of all lie; 0 where there is none."""
        return float(self._histogram.get_value_at_percentile(percent)) / 1000 if self.count else 0.0

    @property
    def max_ms(self) -> float:
        """The largest value."""
        return float(self._histogram.get_max_value()) / 1000 if self.count else 0.0


class Record:
    """Everything of one run. Filled by the driver, read when the run has ended."""

    def __init__(self) -> None:
        self.latency: dict[tuple[str, Kind], Latency] = {}
        self.lag = Latency()
        self.failures: list[Failure] = []
        self.acknowledged: list[Acknowledged] = []
        self.unacknowledged: dict[str, str] = {}  # key -> tenant: sent, and never known to be done
        self.stale: list[Stale] = []
        self.writes: dict[str, list[Write]] = {}
        self.intended = 0
        self.sent = 0
        self.succeeded = 0
        self.retried_well = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def answered(self, intent: Intent, cell: str, now: float) -> None:
        """The expected answer to ``intent``, from ``cell``."""
        self.succeeded += 1
        self.latency.setdefault((cell or "-", intent.kind), Latency()).add(now - intent.at)

    def failed(self, failure: Failure) -> None:
        """A try that did not end in the answer it should."""
        self.failures.append(failure)

    def gave_up(self, intent: Intent, failure: Failure) -> None:
        """``intent`` has no answer, and ``failure`` was its last try."""

    def wrote(self, tenant: str, write: Write) -> None:
        """The end of a write's waiting."""
        self.writes.setdefault(tenant, []).append(write)

    @property
    def pace(self) -> Pace:
        """How well the driver kept its schedule."""
        return Pace(self.lag.percentile_ms(99), self.cpu_seconds / self.seconds if self.seconds else 0.0)

    def of_cell(self, cell: str, *, writes: bool) -> Latency:
        """Latencies of one cell's reads or writes."""
        merged = Latency()
        for (name, kind), latency in self.latency.items():
            if name == cell and (kind in WRITES) == writes:
                merged.merge(latency)
        return merged

    @property
    def cells(self) -> list[str]:
        """The cells that answered."""
        return sorted({cell for cell, _ in self.latency})


@dataclass(frozen=True)
class Kill:
    """A router worker killed on purpose. ``ports`` are our ends of the connections it had, where that is known."""

    router: str
    at: float
    pid: int
    ports: frozenset[int] | None = None

    WINDOW_S = 0.5

    def caused(self, failure: Failure) -> bool:
        """Whether ``failure`` is a request that was in flight on a connection of that worker when it was killed."""
        if failure.cause != "connection lost" or failure.router != self.router:
            return False
        if failure.connected_at > self.at or not self.at - 0.05 <= failure.at <= self.at + self.WINDOW_S:
            return False
        return self.ports is None or failure.local_port in self.ports
