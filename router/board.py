"""The board: memory that the processes of one router share, one region for each worker.

Anonymous, made by the supervisor before it forks, so it has no name and leaves nothing behind. Each word has one
writer, the worker of its region (after the worker's death the supervisor, which wipes what died with it), and any
number of readers; an aligned 8-byte store is never seen half. A region has the worker's status, its metrics, and its
usage, which `admission` sums over all workers.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgspec

DURATION_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_STATUS_WORDS: Final = 16
_PID, _PHASE, _REVISION, _GENERATION, _SERIES, _VALUES, _DROPPED, _BEAT = range(8)

USAGE_SLOTS: Final = 1 << 16  # for tenants, and as many for addresses
_USAGE_WORDS: Final = 4 * USAGE_SLOTS

_SERIES_LIMIT: Final = 2048
_SERIES_BYTES: Final = 256
_VALUES_LIMIT: Final = 16384

_WORDS: Final = _STATUS_WORDS + _USAGE_WORDS + _VALUES_LIMIT + _SERIES_LIMIT * _SERIES_BYTES // 8


class Phase(IntEnum):
    """Where a worker is in its life."""

    ABSENT = 0
    SERVING = 1
    DRAINING = 2


class Series(msgspec.Struct, frozen=True):
    """One time series of one worker. ``kind`` g is a gauge, which dies with its worker; h a histogram."""

    name: str
    labels: dict[str, str]
    kind: str
    at: int
    width: int


@dataclass(frozen=True, slots=True)
class Status:
    """What a worker says about itself."""

    pid: int
    phase: Phase
    revision: int
    generation: int


class Counter:
    """One number of one worker. A counter only rises; a gauge may be set and may fall."""

    __slots__ = ("_at", "_values")

    def __init__(self, values: "memoryview[float]", at: int) -> None:
        self._values = values
        self._at = at

    def add(self, amount: float = 1) -> None:
        """Add; below 0 for gauges only."""
        self._values[self._at] += amount

    def set(self, amount: float) -> None:
        """Set a gauge."""
        self._values[self._at] = amount


class Histogram:
    """Counts below the bounds of `DURATION_BUCKETS_S`, then above them, then the sum in seconds."""

    __slots__ = ("_at", "_values")

    def __init__(self, values: "memoryview[float]", at: int) -> None:
        self._values = values
        self._at = at

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        values, at = self._values, self._at
        bucket = 0
        for bound in DURATION_BUCKETS_S:
            if seconds <= bound:
                break
            bucket += 1
        values[at + bucket] += 1
        values[at + len(DURATION_BUCKETS_S) + 1] += seconds


_HISTOGRAM_WIDTH: Final = len(DURATION_BUCKETS_S) + 2


class Slot:
    """A worker's region."""

    def __init__(self, region: memoryview) -> None:
        status = region[: 8 * _STATUS_WORDS]
        usage_end = 8 * (_STATUS_WORDS + _USAGE_WORDS)
        values_end = usage_end + 8 * _VALUES_LIMIT
        self._status = status.cast("Q")
        self._usage = region[8 * _STATUS_WORDS : usage_end].cast("Q")
        self._values = region[usage_end:values_end].cast("d")
        self._texts = region[values_end:]

    @property
    def tenant_usage(self) -> memoryview:
        """`USAGE_SLOTS` words of counts, then as many of requests in flight, by tenant (see `admission`)."""
        return self._usage[: 2 * USAGE_SLOTS]

    @property
    def address_usage(self) -> memoryview:
        """The same by client address."""
        return self._usage[2 * USAGE_SLOTS :]

    @property
    def dropped_series(self) -> int:
        """Series that found no room; their numbers are lost."""
        return int(self._status[_DROPPED])

    @property
    def beats(self) -> int:
        """Turns of the worker's timer wheel: a number that stands still belongs to a worker that does."""
        return int(self._status[_BEAT])

    def beat(self, turns: int) -> None:
        """Say how often the wheel has turned."""
        self._status[_BEAT] = turns

    def status(self) -> Status:
        """What the worker last said."""
        words = self._status
        return Status(words[_PID], Phase(words[_PHASE]), words[_REVISION], words[_GENERATION])

    def enter(self, pid: int, phase: Phase) -> None:
        """Say who works here and in which phase."""
        self._status[_PID] = pid
        self._status[_PHASE] = phase

    def applied(self, revision: int, generation: int) -> None:
        """Say which revision every further decision of this worker obeys."""
        self._status[_GENERATION] = generation
        self._status[_REVISION] = revision

    def wipe(self) -> None:
        """After the worker's death: nobody is here, nothing is in flight. Counters stay, so they never fall."""
        self._status[_PHASE] = Phase.ABSENT
        self._status[_PID] = self._status[_REVISION] = self._status[_GENERATION] = self._status[_BEAT] = 0
        self._usage.cast("B")[:] = bytes(8 * _USAGE_WORDS)
        for series in self.series():
            if series.kind == "g":
                self._values[series.at] = 0.0

    def counter(self, name: str, **labels: str) -> Counter:
        """The counter of these labels. Keep it: this call is not for the hot path."""
        return Counter(self._values, self._place(name, labels, "c", 1))

    def gauge(self, name: str, **labels: str) -> Counter:
        """The gauge of these labels."""
        return Counter(self._values, self._place(name, labels, "g", 1))

    def histogram(self, name: str, **labels: str) -> Histogram:
        """The histogram of these labels."""
        return Histogram(self._values, self._place(name, labels, "h", _HISTOGRAM_WIDTH))

    def series(self) -> Iterator[Series]:
        """Every series that has a place."""
        for number in range(self._status[_SERIES]):
            at = number * _SERIES_BYTES
            size = self._texts[at]
            yield msgspec.json.decode(bytes(self._texts[at + 1 : at + 1 + size]), type=Series)

    def read(self, series: Series) -> list[float]:
        """The numbers of a series, now."""
        return list(self._values[series.at : series.at + series.width])

    def _place(self, name: str, labels: dict[str, str], kind: str, width: int) -> int:
        for series in self.series():
            if (series.name, series.labels, series.kind) == (name, labels, kind):
                return series.at
        count, at = self._status[_SERIES], self._status[_VALUES]
        text = msgspec.json.encode(Series(name, labels, kind, at, width))
        # The last words take the numbers of series that have no room, and nobody reads them.
        if count >= _SERIES_LIMIT or at + width > _VALUES_LIMIT - _HISTOGRAM_WIDTH or len(text) >= _SERIES_BYTES:
            self._status[_DROPPED] += 1
            return _VALUES_LIMIT - _HISTOGRAM_WIDTH
        place = count * _SERIES_BYTES
        self._texts[place] = len(text)
        self._texts[place + 1 : place + 1 + len(text)] = text
        self._status[_VALUES] = at + width
        self._status[_SERIES] = count + 1
        return int(at)


class Board:
    """The regions of all workers."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = tuple(slots)

    @classmethod
    def create(cls, workers: int) -> "Board":
        """New shared memory; children made by fork share it."""
        memory = memoryview(mmap.mmap(-1, 8 * _WORDS * workers))
        return cls([Slot(memory[8 * _WORDS * i : 8 * _WORDS * (i + 1)]) for i in range(workers)])

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def slot(self, index: int) -> Slot:
        """The region of one worker."""
        return self._slots[index]
