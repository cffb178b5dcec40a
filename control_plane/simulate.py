"""A fleet over years, in seconds: tenants come, grow and leave, cells are opened, a rebalance levels. Pure, seeded.

The rules are those of the control plane, over whole arrays: placement takes the cell of the tenant's region with the
least load per place (`placement`), a cell is opened where a pool is fuller than `forecast.FULL_AT`, a rebalance takes
tenants from the fullest cells and never past the middle (`plans`). What is simplified: many sign-ups are placed at a
time, the least loaded quarter of a pool taking one each; all cells are alike; a drained cell does not occur.

Loads are log-normal and drift: most tenants are small, a few are large, and the large ones were not large when they
came. That is why placement alone does not keep a fleet level.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from control_plane.forecast import FULL_AT
from control_plane.plans import TOLERANCE

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

REGIONS: Final = ("eu", "us", "apac")
SHARES: Final = (0.4, 0.4, 0.2)  # of the tenants, by region
PASSES: Final = 4  # of one rebalance: what a cell takes may be too much for it

# The route table's layout (`router/table.py`): words of 8 bytes; a test holds these figures against the real one.
_SLOT: Final = 16
_RECORD: Final = 16
_TENANT_KEY: Final = 14  # "@t" and up to twelve digits
_HEADER: Final = 256
_CELL_TEXT: Final = 96  # of a cell in the directory


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated. ``sigma`` of the loads' logarithms; ``drift`` the same of one month; ``churn`` a month."""

    cells: int = 10_000
    tenants: int = 10_000_000
    months: int = 36
    begin: float = 0.1  # of the tenants, in the first month
    sigma: float = 1.0
    drift: float = 0.05
    churn: float = 0.01
    tolerance: float = TOLERANCE * 2
    hosts: int = 1  # a tenant
    host_bytes: int = 24
    seed: int = 1

    @property
    def capacity(self) -> int:
        """Places of a cell: so many that the cells are as full as they should be in the end."""
        return max(1, round(self.tenants / self.cells / FULL_AT))


@dataclass(frozen=True, slots=True)
class Month:
    """One month. Imbalance: the load of the fullest cell, and of the 99th in a hundred, by the mean of its region."""

    month: int
    tenants: int
    cells: int
    came: int
    left: int
    moves: int
    fullest_before: float
    fullest: float
    p99: float
    used: float  # of the places
    table_bytes: int


@dataclass(slots=True)
class _Fleet:
    region: NDArray[np.int8]
    count: Ints
    load: Floats


class _World:
    """The fleet and its tenants. Arrays are made once, as large as they will be; the first ``living`` places count."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.rng = np.random.default_rng(scenario.seed)
        self.fleet = _Fleet(np.empty(0, np.int8), np.empty(0, np.intp), np.empty(0))
        self.living = 0
        self._cell = np.empty(scenario.tenants, np.intp)
        self._load = np.empty(scenario.tenants)

    @property
    def cell(self) -> Ints:
        """The cell of each tenant."""
        return self._cell[: self.living]

    @property
    def load(self) -> Floats:
        """The load of each tenant."""
        return self._load[: self.living]

    def remove(self, gone: Ints) -> None:
        """Let tenants go; the last ones take their places."""
        keep = self.living - len(gone)
        tail = np.ones(len(gone), np.bool_)
        tail[gone[gone >= keep] - keep] = False
        holes = gone[gone < keep]
        last = keep + np.flatnonzero(tail)
        self._cell[holes], self._load[holes] = self._cell[last], self._load[last]
        self.living = keep

    def add(self, cells: Ints, loads: Floats) -> None:
        """Let tenants come."""
        end = self.living + len(loads)
        self._cell[self.living : end], self._load[self.living : end] = cells, loads
        self.living = end


def table_bytes(tenants: int, hosts: int, host_bytes: int, cells: int) -> int:
    """The size of a router's table of so many routes; its workers share it. Half of most parts is room to grow."""
    keys = tenants * (1 + hosts)
    slots = 64
    while keys > 0.5 * slots:
        slots *= 2
    names = tenants * (1 + _TENANT_KEY + hosts * (1 + host_bytes))
    records = max(64, 2 * (tenants + 1))
    return _HEADER + _SLOT * slots + _RECORD * records + max(4096, 2 * names) + max(65536, 2 * _CELL_TEXT * cells)


def simulate(scenario: Scenario, tell: Callable[[Month], None] = lambda _month: None) -> list[Month]:
    """Every month in turn; ``tell`` hears of each. The same scenario gives the same months."""
    world = _World(scenario)
    months: list[Month] = []
    for number in range(scenario.months):
        months.append(_month(world, number))
        tell(months[-1])
    return months


def _month(world: _World, number: int) -> Month:
    s, left = world.scenario, 0
    if number:
        gone = np.flatnonzero(world.rng.random(world.living, dtype=np.float32) < s.churn)
        left = len(gone)
        world.remove(gone)
        drift = world.rng.standard_normal(world.living, dtype=np.float32)
        drift *= np.float32(s.drift)
        world.load[:] *= np.exp(drift, out=drift)
    _weigh(world)
    came = max(0, _wanted(s, number) - world.living)
    for region, count in enumerate(world.rng.multinomial(came, SHARES)):
        _open(world, region, int(count))
        loads = world.rng.lognormal(0.0, s.sigma, int(count))
        world.add(_spread(world, region, loads), loads)
    before = float(_imbalance(world).max())
    moves = _rebalance(world)
    imbalance, cells = _imbalance(world), len(world.fleet.count)
    return Month(
        number, world.living, cells, came, left, moves, before, float(imbalance.max()),
        float(np.quantile(imbalance, 0.99)), world.living / (cells * s.capacity),
        table_bytes(world.living, s.hosts, s.host_bytes, cells),
    )  # fmt: skip


def _wanted(s: Scenario, number: int) -> int:
    """Tenants at the end of a month: exponential growth from the first to the last."""
    if s.months == 1:
        return s.tenants
    share: float = s.begin ** (1 - number / (s.months - 1))
    return round(s.tenants * share)


def _weigh(world: _World) -> None:
    cells = len(world.fleet.region)
    world.fleet.count = np.bincount(world.cell, minlength=cells)
    world.fleet.load = np.bincount(world.cell, weights=world.load, minlength=cells).astype(np.float64)


def _open(world: _World, region: int, coming: int) -> None:
    """Open cells until the region's pool has room for who is coming below `FULL_AT`."""
    fleet, s = world.fleet, world.scenario
    ours = fleet.region == region
    need = int(np.ceil((fleet.count[ours].sum() + coming) / (s.capacity * FULL_AT)))
    new = max(0, need - int(ours.sum()))
    fleet.region = np.append(fleet.region, np.full(new, region, np.int8))
    fleet.count = np.append(fleet.count, np.zeros(new, np.intp))
    fleet.load = np.append(fleet.load, np.zeros(new))


def _spread(world: _World, region: int, loads: Floats) -> Ints:
    """A cell for each of ``loads``, where the load is least, in turns of a quarter of the pool; sums are kept up."""
    fleet, chosen = world.fleet, np.empty(len(loads), np.intp)
    pool = np.flatnonzero(fleet.region == region)
    load, count = fleet.load[pool], fleet.count[pool]
    capacity, turn, at = world.scenario.capacity, max(1, len(pool) // 4), 0
    while at < len(loads):
        key = np.where(count < capacity, load, np.inf)
        size = min(turn, len(loads) - at, int(np.isfinite(key).sum()))
        least = np.argpartition(key, size - 1)[:size] if size < len(key) else np.arange(len(key))
        chosen[at : at + size] = pool[least]
        load[least] += loads[at : at + size]
        count[least] += 1
        at += size
    fleet.load[pool], fleet.count[pool] = load, count
    return chosen


def _rebalance(world: _World) -> int:
    """Take tenants from cells above their region's mean, the fewest that help; how many moved."""
    moved = 0
    for _ in range(PASSES):
        leaving = _leaving(world)
        if not len(leaving):
            break
        moved += len(leaving)
        homes = world.cell[leaving]
        np.subtract.at(world.fleet.load, homes, world.load[leaving])
        np.subtract.at(world.fleet.count, homes, 1)
        regions = world.fleet.region[homes]
        for region in range(len(REGIONS)):
            ours = leaving[regions == region]
            heaviest_first = ours[np.argsort(-world.load[ours])]
            world.cell[heaviest_first] = _spread(world, region, world.load[heaviest_first])
    return moved


def _leaving(world: _World) -> Ints:
    """Who leaves: of each cell that is too full the heaviest tenants that fit into what it has too much."""
    mean = _means(world)
    excess = world.fleet.load - mean
    too_full = excess > world.scenario.tolerance * mean
    candidates = np.flatnonzero(too_full[world.cell])
    homes, loads = world.cell[candidates], world.load[candidates]
    fits = loads <= excess[homes]  # a tenant larger than that would only carry the excess elsewhere
    candidates, homes, loads = candidates[fits], homes[fits], loads[fits]
    order = np.lexsort((-loads, homes))
    candidates, homes, loads = candidates[order], homes[order], loads[order]
    running = np.cumsum(loads, dtype=np.float64)
    first = np.searchsorted(homes, homes, side="left")
    of_cell = running - running[first] + loads[first]
    return candidates[of_cell <= excess[homes]]


def _means(world: _World) -> Floats:
    """The mean load of each cell's region."""
    fleet = world.fleet
    sums = np.bincount(fleet.region, weights=fleet.load, minlength=len(REGIONS))
    sizes = np.bincount(fleet.region, minlength=len(REGIONS))
    means: Floats = (sums / np.maximum(1, sizes))[fleet.region]
    return means


def _imbalance(world: _World) -> Floats:
    shares: Floats = world.fleet.load / _means(world)
    return shares
