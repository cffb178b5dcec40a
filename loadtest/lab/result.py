"""What one run of the lab leaves on disk: ``result.json``, read by score, report and compare. Versioned.

A run is one case of a scenario (one kind of aggressor, one count, one place, walls on or off; or one fault), once.
Times are seconds since the start of the traffic unless said otherwise. A request belongs to the phase and to the
second in which it was *intended* to be sent, so a stall shows where it began (coordinated omission, Gil Tene).
Latencies are those of requests that got the answer they asked for, from the intended time to the last byte.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path

import msgspec
from hdrh.histogram import HdrHistogram

from loadtest.record import HIGHEST_US

VERSION = 1
FILE = "result.json"
SIGNIFICANT_DIGITS = 3
NONE_MS = -1.0


class ResultError(Exception):
    """A result file that cannot be read; the message names it and says why."""


class Role(StrEnum):
    """What a tenant is for in the run."""

    VICTIM = "victim"  # works at its modest rate in every phase; what happens to it is what is measured
    AGGRESSOR = "aggressor"  # attacks in the phases of kind `LOAD` only


class PhaseKind(StrEnum):
    """What a phase is for."""

    WARMUP = "warmup"  # not to be judged
    ALONE = "alone"  # victims alone: the baseline
    LOAD = "load"  # with aggressors, a fault, moves, or a step of the ramp
    AFTER = "after"  # the cause is gone: does it recover?


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of the run. ``rate`` is what victims were offered in all, requests a second."""

    name: str  # unique in the run: "alone", "with", "after", "step-3"
    kind: PhaseKind
    begin: float
    end: float
    rate: float


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Which combination of the scenario this run is. Empty text or 0 where it does not apply."""

    walls: str = "on"  # on | off | observe
    aggressor: str = ""  # kind of aggressor
    count: int = 0  # aggressors
    times: float = 0.0  # each offers so many times a victim's rate
    where: str = ""  # same: in the victims' cell; other: in another
    fault: str = ""  # "kill cell-1-api", "hang cell-1-shard-1"

    @property
    def slug(self) -> str:
        """A name for folders and tables, unique within the scenario."""
        parts = [self.aggressor, f"x{self.count}" if self.count else "", self.where]
        parts += [self.fault.replace(" ", "-"), f"walls-{self.walls}"]
        return "_".join(part for part in parts if part)


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What was run, where and when."""

    scenario: str
    kind: str  # noisy-neighbour, blast-radius, ...
    case: Case
    repeat: int  # from 1
    seed: int
    started: str  # UTC, ISO 8601
    system: str = "cellwall"  # cellwall | peer
    target: str = ""  # base URL, or "local fleet"
    cells: list[str] = []
    hit: list[str] = []  # cells with an aggressor in them, or that a fault was aimed at
    victims: int = 0
    aggressors: int = 0
    machine: str = ""
    cpu_walls: str = ""  # in words, also why there are none
    software: str = ""


class Histogram(msgspec.Struct, frozen=True):
    """Latencies in microseconds up to a minute, three significant digits, as HdrHistogram V2 (compressed, base64)."""

    count: int
    encoded: str

    @classmethod
    def of(cls, values_us: Iterable[int]) -> "Histogram":
        """From values in microseconds; those beyond a minute count as one."""
        histogram = HdrHistogram(1, HIGHEST_US, SIGNIFICANT_DIGITS)
        for value in values_us:
            histogram.record_value(min(max(value, 1), HIGHEST_US))
        return cls.encode(histogram)

    @classmethod
    def encode(cls, histogram: HdrHistogram) -> "Histogram":
        """From a histogram with our bounds."""
        count = int(histogram.get_total_count())
        return cls(count, histogram.encode().decode("ascii") if count else "")

    def decode(self) -> HdrHistogram:
        """A histogram to ask; it takes about 150 kB of memory."""
        if not self.count:
            return HdrHistogram(1, HIGHEST_US, SIGNIFICANT_DIGITS)
        return HdrHistogram.decode(self.encoded)

    def percentile_ms(self, percent: float) -> float:
        """The value below which ``percent`` of all lie; 0 where there is none."""
        return float(self.decode().get_value_at_percentile(percent)) / 1000 if self.count else 0.0


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All of them as one."""
    total = HdrHistogram(1, HIGHEST_US, SIGNIFICANT_DIGITS)
    for histogram in histograms:
        if histogram.count:
            total.add(histogram.decode())
    return Histogram.encode(total)


class Counts(msgspec.Struct, kw_only=True):
    """How requests ended. ``sent`` is the sum of the others.

    ``refused`` got 429, or 503 with Retry-After: told to go away early. ``failed`` is everything else: errors, lost
    connections, no answer in time. For a victim both are errors.
    """

    sent: int = 0
    succeeded: int = 0
    refused: int = 0
    failed: int = 0

    @property
    def errors(self) -> int:
        """Requests without the answer they asked for."""
        return self.refused + self.failed


class Group(Counts, kw_only=True):
    """All requests of one kind by the tenants of one role in one cell (their home as the run began) in one phase."""

    phase: str
    role: Role
    cell: str
    kind: str
    latency: Histogram


class TenantFigures(Counts, kw_only=True):
    """All requests of one tenant in one phase."""

    phase: str
    tenant: str  # id
    role: Role
    cell: str
    latency: Histogram


class Second(Counts, kw_only=True):
    """One second of the tenants of one role in one cell. Percentiles are `NONE_MS` where nothing succeeded."""

    at: int
    cell: str
    role: Role
    p50_ms: float = NONE_MS
    p99_ms: float = NONE_MS
    max_ms: float = NONE_MS


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's slowest answer of each second, for the heat map. `NONE_MS` where nothing succeeded."""

    tenant: str
    role: Role
    cell: str
    max_ms: list[float]
    errors: list[int]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was done to the system, or that it did, to be marked in plots."""

    at: float
    name: (
        str  # aggressors-start, aggressors-stop, kill, hang, revive, resume, move-start, move-end, evacuate-start, ...
    )
    target: str  # cell, process or tenant; may be empty
    words: str


class FailureExample(msgspec.Struct, frozen=True, kw_only=True):
    """One request that failed or was refused; the first of each sort are kept."""

    at: float
    intended: float
    phase: str
    tenant: str
    role: Role
    cell: str
    kind: str
    cause: str
    status: int
    body: str


class FailureCount(msgspec.Struct, frozen=True, kw_only=True):
    """How often requests failed or were refused for one cause."""

    phase: str
    role: Role
    cell: str
    cause: str  # "connection lost", "unexpected status", "refused", "no answer within 10 s", ...
    status: int
    count: int


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict of the books. ``checked`` is False where they could not be read; ``words`` says why then.

    ``disordered`` counts registers that were read and written beside the traffic, and whose operations have no order
    that explains every answer, or none that could be found in time.
    """

    checked: bool
    acknowledged: int = 0
    found: int = 0
    lost: int = 0
    doubled: int = 0
    misplaced: int = 0
    foreign: int = 0
    stale: int = 0
    disordered: int = 0
    words: list[str] = []

    @property
    def wrong(self) -> int:
        """How many entries are."""
        return self.lost + self.doubled + self.misplaced + self.foreign + self.stale + self.disordered

    @property
    def balanced(self) -> bool:
        """They were read, and nothing is wrong."""
        return self.checked and not self.wrong


class DriverFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How one process of the driver fared. Shares are of its time."""

    process: int
    requests: int
    lag_p50_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    cpu_share: float
    waited_share: float  # ready to run, and not running: the machine was short of processors


class Validity(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the figures mean something. A run whose driver fell behind measured the driver."""

    valid: bool
    reasons: list[str]  # why not, in words
    drivers: list[DriverFigures]
    steal_share: float  # of the machine's processor time, taken by the hypervisor
    pressure_share: float  # of the run's time, in which somebody waited for a processor (/proc/pressure/cpu)


class Result(msgspec.Struct, kw_only=True):
    """One run. ``measures`` are figures of the scenario's kind, each named with its unit: ``knee_rps``, ``hold_ms``."""

    version: int = VERSION
    meta: Meta
    phases: list[Phase]
    groups: list[Group]
    tenants: list[TenantFigures]
    seconds: list[Second]
    timelines: list[Timeline]
    events: list[Event]
    failures: list[FailureExample]
    failure_counts: list[FailureCount]
    books: Books
    validity: Validity
    measures: dict[str, float] = {}

    def phase_of(self, kind: PhaseKind) -> list[Phase]:
        """The phases of one kind, in order."""
        return [phase for phase in self.phases if phase.kind is kind]

    def latency(self, phase: str, role: Role, *, cells: Iterable[str] | None = None, kind: str = "") -> Histogram:
        """Latencies of a phase and role; of some cells or all, of one kind of request or all."""
        wanted = None if cells is None else set(cells)
        return merged(
            group.latency
            for group in self.groups
            if group.phase == phase
            and group.role is role
            and (wanted is None or group.cell in wanted)
            and (not kind or group.kind == kind)
        )

    def write(self, folder: Path) -> Path:
        """Write it as ``result.json`` into ``folder``, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        path, part = folder / FILE, folder / f"{FILE}.part"
        part.write_bytes(msgspec.json.encode(self))
        return part.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Result":
        """Read one; ``path`` is the file or its folder. `ResultError` where it is none, or of another version."""
        file = path / FILE if path.is_dir() else path
        try:
            raw = file.read_bytes()
            version = msgspec.json.decode(raw, type=_Versioned).version
            if version != VERSION:
                raise ResultError(f"{file} has version {version} of the format, and this is version {VERSION}")
            return msgspec.json.decode(raw, type=cls)
        except OSError as e:
            raise ResultError(f"{file} cannot be read: {e.strerror}") from e
        except msgspec.DecodeError as e:
            raise ResultError(f"{file} is no result of the lab: {e}") from e


class _Versioned(msgspec.Struct):
    version: int


def results(folder: Path) -> Iterator[Result]:
    """Every result below ``folder``, in the order of their paths. The lab writes SCENARIO/CASE/REPEAT/result.json."""
    for path in sorted(folder.rglob(FILE)):
        yield Result.read(path)
