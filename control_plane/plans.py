"""Plans: fleet + residents -> which tenants should move where, each with its reason; what cannot move, with a way out.

Pure: no I/O, randomness comes in. The same functions answer ``--dry-run``, what-if and batches that are carried out.

No plan moves a tenant that it, or a plan under way, would move back:

| Would undo | Kept from it by |
|---|---|
| its own moves | a tenant moves at most once in a plan; nothing moves into a cell that the plan empties |
| its own moves, planned again | a rebalance moves between cells more than `tolerance` apart, never past their middle |
| a batch under way | its tenants are `Resident.busy`, the cells that it empties are ``emptying`` |
| an operator's word | pins; a tenant in a dedicated or canary cell stays in one of that tier |
| a move of a moment ago | `Resident.busy` says so to a rebalance for a while |
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush, nsmallest
from typing import Final

from control_plane.placement import CellFacts, Filter, NoPlacement, Placement, Wanted, misfit, place

TOLERANCE: Final = 0.05  # loads per place this close are balanced
MAX_MOVES: Final = 1000  # of one rebalance

# What helps where a tenant fits nowhere: asked of the cell that came nearest.
_HELP: Final = {
    Filter.PIN: "Unpin it: cellctl tenants unpin {slug}",
    Filter.AVOID: "Add a cell: there is no other one for it.",
    Filter.STATE: "Open a cell: cellctl cells activate CELL",
    Filter.HEALTH: "Bring a cell back to health: cellctl cells list shows which are not.",
    Filter.REGION: "Add a cell in the region {region}: its data stays there.",
    Filter.TIER: "Add a cell of the tier {tier} in the region {region}.",
    Filter.SCHEMA: "Migrate the cells to one schema revision: both sides of a move have the same.",
    Filter.CAPACITY: "Add a cell, or raise a capacity: cellctl cells capacity CELL TENANTS",
}


@dataclass(frozen=True, slots=True)
class Resident:
    """A tenant in the snapshot. ``tier`` is its plan's; ``busy`` says why it is not to be moved now, else is empty."""

    number: int
    slug: str
    cell: str
    weight: float
    region: str
    tier: str
    pin: str | None = None
    busy: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One move of a plan."""

    number: int
    slug: str
    source: str
    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """A tenant that should move and cannot: why, and what would help."""

    number: int
    slug: str
    cell: str
    reason: str
    advice: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to move. ``before`` and ``after`` are the fleet as it is and as it would be."""

    moves: tuple[Proposal, ...]
    blocked: tuple[Blocked, ...]
    before: tuple[CellFacts, ...]
    after: tuple[CellFacts, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """A what-if: cells that come, cells that go, and ``growth`` of tenants and load (1.5: half as much again)."""

    add: tuple[CellFacts, ...] = ()
    without: frozenset[str] = frozenset()
    growth: float = 1.0


def load_of(cell: CellFacts) -> float:
    """Load per place: comparable between cells of different size. A cell without places is as full as it can be."""
    return cell.load / cell.capacity if cell.capacity else float("inf")


def spread(fleet: Iterable[CellFacts]) -> float:
    """The worst imbalance of the fleet: the largest difference of load per place inside one pool of alike cells."""
    gaps = [max(map(load_of, pool)) - min(map(load_of, pool)) for pool in _pools(fleet)]
    return max(gaps, default=0.0)


def givers(fleet: Iterable[CellFacts], tolerance: float = TOLERANCE) -> frozenset[str]:
    """The cells that a rebalance may take tenants from: only of these need the tenants be read."""
    found: set[str] = set()
    for pool in _pools(fleet):
        least = min(map(load_of, pool))
        found.update(cell.name for cell in pool if load_of(cell) - least > tolerance)
    return frozenset(found)


class _Fleet:
    """The fleet as it becomes while a plan is made. After ``growth`` each tenant stands for so many."""

    def __init__(self, fleet: Sequence[CellFacts], growth: float = 1.0) -> None:
        self._growth = growth
        self._heads = {cell.name: cell.tenants for cell in fleet}  # of today: what a move takes one of
        grown = [replace(c, tenants=round(c.tenants * growth), load=c.load * growth) for c in fleet]
        self.before = tuple(grown)
        self.cells = {cell.name: cell for cell in grown}
        self.moves: list[Proposal] = []
        self.blocked: list[Blocked] = []

    def move(self, tenant: Resident, target: str, reason: str) -> None:
        self._change(tenant.cell, -1, -tenant.weight)
        self._change(target, 1, tenant.weight)
        self.moves.append(Proposal(tenant.number, tenant.slug, tenant.cell, target, reason))

    def _change(self, name: str, heads: int, load: float) -> None:
        self._heads[name] += heads
        cell, tenants = self.cells[name], round(self._heads[name] * self._growth)
        self.cells[name] = replace(cell, tenants=tenants, load=cell.load + load)

    def block(self, tenant: Resident, reason: str, advice: str) -> None:
        self.blocked.append(Blocked(tenant.number, tenant.slug, tenant.cell, reason, advice))

    def plan(self, reason: str) -> Plan:
        return Plan(tuple(self.moves), tuple(self.blocked), self.before, tuple(self.cells.values()), reason)


def evacuate(
    fleet: Sequence[CellFacts],
    residents: Iterable[Resident],
    cell: str,
    rng: random.Random,
    *,
    emptying: frozenset[str] = frozenset(),
) -> Plan:
    """Move every tenant out of ``cell``, the heaviest first: so the loads of the targets end close together.

    ``emptying``: cells that batches under way empty; nothing is moved there.
    """
    made = _Fleet(fleet)
    _empty(made, residents, cell, rng, emptying | {cell})
    return made.plan(f"every tenant leaves {cell}")


def _empty(made: _Fleet, residents: Iterable[Resident], cell: str, rng: random.Random, avoid: frozenset[str]) -> None:
    leaving = sorted((r for r in residents if r.cell == cell), key=lambda r: (-r.weight, r.number))
    near = _near(made.cells.values(), len(leaving), avoid)
    nowhere: dict[tuple[str, str, str | None], tuple[str, str]] = {}
    for tenant in leaving:
        if tenant.busy:
            made.block(tenant, tenant.busy, "Plan again once that is over.")
            continue
        if tenant.pin == cell:
            made.block(tenant, f"it is pinned to {cell}", _HELP[Filter.PIN].format(slug=tenant.slug))
            continue
        placed, _ = where([made.cells[name] for name in near], made.cells[cell], tenant, avoid, rng)
        if isinstance(placed, Placement):
            made.move(tenant, placed.cell, f"{cell} is emptied; {placed.reason}")
            continue
        kind = (tenant.tier, tenant.region, tenant.pin)
        if kind not in nowhere:  # why, is the same for all of a kind; and asks every cell
            everywhere = list(made.cells.values())
            none, wanted = where(everywhere, made.cells[cell], tenant, avoid, rng)
            nowhere[kind] = none.reason, help_for(everywhere, tenant, wanted)
        made.block(tenant, *nowhere[kind])


def _near(fleet: Iterable[CellFacts], count: int, avoid: frozenset[str]) -> list[str]:
    """Where ``count`` tenants can end: of cells that are alike, the emptiest, so many that no other is ever better.

    Each tenant raises one cell, so after ``count`` of them the best two are still among the ``count + 2`` emptiest.
    """
    alike: dict[tuple[str, str, str, int], list[CellFacts]] = {}
    for cell in fleet:
        if cell.name not in avoid and cell.state == "active" and cell.healthy and cell.tenants < cell.capacity:
            alike.setdefault((cell.region, cell.tier, cell.schema, cell.capacity), []).append(cell)
    chosen = (nsmallest(count + 2, cells, key=lambda c: (c.load, c.name)) for cells in alike.values())
    return sorted(cell.name for cells in chosen for cell in cells)


def where(
    fleet: Sequence[CellFacts], home: CellFacts, tenant: Resident, avoid: frozenset[str], rng: random.Random
) -> tuple[Placement | NoPlacement, Wanted]:
    """Where a tenant that must leave its cell goes, and what it needs there: the tier of its cell, else its plan's."""
    found: Placement | NoPlacement = NoPlacement("")
    wanted = Wanted(home.tier, tenant.weight)
    for tier in dict.fromkeys((home.tier, tenant.tier)):
        wanted = Wanted(tier, tenant.weight, tenant.region, home.schema, avoid | {home.name}, tenant.pin)
        found = place(fleet, wanted, rng)
        if isinstance(found, Placement):
            break
    return found, wanted


def help_for(fleet: Iterable[CellFacts], tenant: Resident, wanted: Wanted) -> str:
    """What would help a tenant that fits nowhere: the last filter that the nearest cell fails at."""
    order = list(Filter)
    faults = [fault.filter for cell in fleet if (fault := misfit(cell, wanted)) is not None]
    nearest = max(faults, key=order.index, default=Filter.AVOID)
    return _HELP[nearest].format(slug=tenant.slug, region=tenant.region, tier=wanted.tier)


def rebalance(
    fleet: Sequence[CellFacts],
    residents: Iterable[Resident],
    *,
    tolerance: float = TOLERANCE,
    max_moves: int = MAX_MOVES,
    emptying: frozenset[str] = frozenset(),
) -> Plan:
    """The fewest moves that bring cells of one pool (region, tier, schema) within ``tolerance``; pins come first."""
    made = _Fleet(fleet)
    return made.plan(_rebalance(made, residents, tolerance, max_moves, emptying))


def _rebalance(
    made: _Fleet, residents: Iterable[Resident], tolerance: float, max_moves: int, emptying: frozenset[str]
) -> str:
    """Add the moves that level the fleet to those that are planned already; what comes of it, in words."""
    homes: dict[str, list[Resident]] = {}
    limit = len(made.moves) + max_moves
    for tenant in residents:
        if tenant.pin is not None and tenant.pin != tenant.cell:
            _to_pin(made, tenant, emptying)
        elif tenant.pin is None and not tenant.busy:
            homes.setdefault(tenant.cell, []).append(tenant)
    for tenants in homes.values():
        tenants.sort(key=lambda r: (r.weight, r.number))
    for pool in _pools(cell for cell in made.cells.values() if cell.name not in emptying):
        _level(made, [cell.name for cell in pool], homes, tolerance, limit)
    left = spread(cell for cell in made.cells.values() if cell.name not in emptying)
    if len(made.moves) >= limit:
        return f"the first {max_moves} moves; the loads per place then differ by up to {left:.3f}"
    return f"loads per place of alike cells then differ by up to {left:.3f}; {tolerance:g} is balanced"


def _to_pin(made: _Fleet, tenant: Resident, emptying: frozenset[str]) -> None:
    assert tenant.pin is not None
    target = made.cells.get(tenant.pin)
    if tenant.busy or target is None:
        reason = tenant.busy or f"{tenant.pin}, to which it is pinned, is gone"
        made.block(tenant, reason, "Plan again later, or unpin it.")
        return
    # The operator chose the cell: its tier is not the planner's business.
    wanted = Wanted(target.tier, tenant.weight, tenant.region, made.cells[tenant.cell].schema, emptying, tenant.pin)
    fault = misfit(target, wanted)
    if fault is None:
        made.move(tenant, tenant.pin, f"it is pinned to {tenant.pin}")
    else:
        made.block(tenant, fault.reason, _HELP[fault.filter].format(slug=tenant.slug, region=tenant.region, tier=""))


def _pools(fleet: Iterable[CellFacts]) -> list[list[CellFacts]]:
    """Cells among which tenants may go freely: open, healthy, alike in region, tier and schema."""
    pools: dict[tuple[str, str, str], list[CellFacts]] = {}
    for cell in fleet:
        if cell.state == "active" and cell.healthy and cell.capacity > 0:
            pools.setdefault((cell.region, cell.tier, cell.schema), []).append(cell)
    return [pools[key] for key in sorted(pools)]


class _Ranking:
    """Cells by load per place, lightest or fullest first, while loads change. Outdated entries are skipped."""

    def __init__(self, made: _Fleet, names: Iterable[str], sign: int) -> None:
        self._made = made
        self._sign = sign
        self._heap = [(sign * load_of(made.cells[name]), name) for name in names]
        heapify(self._heap)

    def first(self) -> CellFacts | None:
        """The first cell of the ranking, which stays in it."""
        while self._heap:
            load, name = self._heap[0]
            if load == self._sign * load_of(self._made.cells[name]):
                return self._made.cells[name]
            heappop(self._heap)
        return None

    def drop(self) -> None:
        """Take the first one out until it is added again."""
        heappop(self._heap)

    def add(self, name: str) -> None:
        """A cell with its present load."""
        heappush(self._heap, (self._sign * load_of(self._made.cells[name]), name))


def _level(
    made: _Fleet, names: list[str], homes: Mapping[str, list[Resident]], tolerance: float, max_moves: int
) -> None:
    """Take from the fullest cell, give to the emptiest one, until they are alike or nothing helps any more."""
    fullest, emptiest = _Ranking(made, names, -1), _Ranking(made, names, 1)
    while len(made.moves) < max_moves:
        giver, taker = fullest.first(), emptiest.first()
        if giver is None or taker is None or load_of(giver) - load_of(taker) <= tolerance:
            return
        if taker.tenants >= taker.capacity:
            emptiest.drop()
            continue
        tenant = _best(homes.get(giver.name, []), giver, taker)
        if tenant is None:
            fullest.drop()  # nobody in it may move, or whoever does makes it worse
            continue
        homes[giver.name].remove(tenant)
        gap = f"{giver.name} has load {load_of(giver):.3f} per place, {taker.name} {load_of(taker):.3f}"
        made.move(tenant, taker.name, gap)
        for name in (giver.name, taker.name):
            fullest.add(name)
            emptiest.add(name)


def _best(tenants: Sequence[Resident], giver: CellFacts, taker: CellFacts) -> Resident | None:
    """Who brings the two closest together without turning them around; ``tenants`` by weight, lightest first."""
    ideal = (giver.load * taker.capacity - taker.load * giver.capacity) / (giver.capacity + taker.capacity)
    fitting = [tenant for tenant in tenants if tenant.weight <= ideal]
    return fitting[-1] if fitting else None


def what_if(
    fleet: Sequence[CellFacts], residents: Sequence[Resident], change: Change, rng: random.Random
) -> tuple[Plan, tuple[str, ...]]:
    """The plan for a fleet that does not exist yet, and warnings. Cells that go are emptied, then the rest is levelled.

    Each tenant is planned for once; a move that levelling would add for one that left its cell is not proposed. A
    move takes along what its tenant has grown to, in tenants and in load, so that the cells add up.
    """
    changed = [replace(cell, state="draining") if cell.name in change.without else cell for cell in fleet]
    made = _Fleet([*changed, *change.add], change.growth)
    grown = [replace(tenant, weight=tenant.weight * change.growth) for tenant in residents]
    for cell in sorted(change.without):
        _empty(made, grown, cell, rng, change.without)
    stay = [tenant for tenant in grown if tenant.cell not in change.without]
    reason = _rebalance(made, stay, TOLERANCE, MAX_MOVES, change.without)
    plan = made.plan(reason if change.growth == 1 else f"each move stands for {change.growth:g} tenants; {reason}")
    warnings = tuple(
        f"{cell.name} would hold {cell.tenants} tenants and takes {cell.capacity}"
        for cell in plan.after
        if cell.tenants > cell.capacity and cell.name not in change.without
    )
    return plan, warnings
