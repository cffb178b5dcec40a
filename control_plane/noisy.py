"""Noisy tenants: windows of usage -> who is one -> what to do about it, each with its reason in words. Pure.

A tenant is noisy while it takes most of what its cell spends *and* its neighbours are slower than they were without it:
either alone is nobody's harm. Going up takes several windows in a row; coming down has lower thresholds and waits for
the throttle to expire, because a throttled tenant is quiet for that reason alone.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median
from typing import Final

from contracts.usage import TenantUsage, Window
from control_plane.placement import CellFacts, NoPlacement, Placement, Wanted, place

NEIGHBOURS_MIN: Final = 20  # requests of others in a window; fewer say nothing about their latency
BASELINE_WINDOWS: Final = 6
THROTTLE_MAX_S: Final = 3600.0
SHARE_MIN: Final = 0.1  # below this nobody is noisy, however many share the cell
DOWN: Final = 0.6  # of what is too much: below it a tenant is quiet
ROOMIER: Final = 0.5  # a target spends at most this part of what the tenant's cell spends


class Mode(StrEnum):
    """How far the control plane goes by itself."""

    OFF = "off"
    OBSERVE = "observe"  # note what it would have done
    THROTTLE = "throttle"  # and propose a move
    MOVE = "move"  # throttle, and start the move


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds and limits. ``requests_per_s``, ``burst`` and ``in_flight`` are the throttled plan's, per router."""

    mode: Mode = Mode.THROTTLE
    share: float = 0.5  # of the cell's cost that is too much in any cell,
    times_even: float = 5.0  # and so is this many times an even part, where many share the cell (`too_much`)
    slower_up: float = 2.0  # times the neighbours' baseline
    slower_down: float = 1.3
    floor_ms: float = 20.0  # a neighbours' p99 below this harms nobody; also their baseline where there is none yet
    busy: float = 0.1  # a load (`load_of`) below this leaves room in a cell, whoever uses it
    windows_up: int = 3
    throttle_s: float = 120.0  # doubled with each time in the last hour
    requests_per_s: float = 10.0
    burst: int = 20
    in_flight: int = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """A tenant that is noisy in its cell, and why that is said. ``share`` of the cell's cost, latencies in ms."""

    tenant: str
    cell: str
    share: float
    neighbours_p99_ms: float
    baseline_ms: float

    @property
    def reason(self) -> str:
        """The sentence that operators read."""
        return (
            f"it takes {self.share:.0%} of what {self.cell} spends, and its neighbours' p99 is "
            f"{self.neighbours_p99_ms:.0f} ms against {self.baseline_ms:.0f} ms without it"
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """A tenant as the control plane has it. ``left_s`` of its throttle, None without one; ``times`` in the last hour.

    ``throttled_in`` is the cell for whose sake it was throttled; ``noted`` whether observing has noted it lately.
    """

    cell: str
    left_s: float | None = None
    throttled_in: str = ""
    times: int = 0
    vetoed: bool = False
    moving: bool = False
    noted: bool = False


class Act(StrEnum):
    """What is done; also the name of the event that remembers it."""

    OBSERVED = "observed"
    THROTTLED = "throttled"
    PROLONGED = "throttle_prolonged"
    LIFTED = "throttle_lifted"
    MOVE_PROPOSED = "move_proposed"
    MOVE_STARTED = "move_started"


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do, and why. ``seconds`` of a throttle, ``target`` of a move."""

    act: Act
    reason: str
    seconds: float = 0.0
    target: str = ""


def shares(window: Window) -> dict[str, float]:
    """Each listed tenant's part of the cell's cost: of its database time or of its seats, whichever is larger."""
    lines = (*window.tenants, window.rest)
    database, seats = sum(line.database_ms for line in lines), sum(line.seat_ms for line in lines)
    return {line.tenant: max(_part(line.database_ms, database), _part(line.seat_ms, seats)) for line in window.tenants}


def too_much(window: Window, policy: Policy) -> float:
    """The share from which on a tenant of this window may be noisy."""
    even = 1.0 / max(1, len(window.tenants))
    return min(policy.share, max(SHARE_MIN, policy.times_even * even))


def load_of(window: Window) -> float:
    """Database seconds a second and shard, or seats in use, whichever is more: floods of cheap requests cost seats."""
    database = sum(s.active_ms for s in window.shards) / max(1, len(window.shards))
    seats = sum(line.seat_ms for line in (*window.tenants, window.rest))
    return max(database, seats) / 1000 / window.seconds


def find(windows: Sequence[Window], policy: Policy) -> list[Finding]:
    """The noisy tenants of one cell, given its windows of the last minutes, oldest first."""
    return _findings(windows, policy, 1.0, policy.slower_up)


def still(windows: Sequence[Window], policy: Policy) -> list[Finding]:
    """Those that are not quiet enough yet for a throttle to be lifted."""
    return _findings(windows, policy, DOWN, policy.slower_down)


def _findings(windows: Sequence[Window], policy: Policy, part: float, slower: float) -> list[Finding]:
    newest = windows[-policy.windows_up :]
    if len(newest) < policy.windows_up or any(load_of(window) < policy.busy for window in newest):
        return []
    loud = [{t for t, s in shares(w).items() if s >= part * too_much(w, policy)} for w in newest]
    candidates = set.intersection(*loud)
    found = (_judge(tenant, windows, policy, slower) for tenant in sorted(candidates))
    return [finding for finding in found if finding is not None]


def _judge(tenant: str, windows: Sequence[Window], policy: Policy, slower: float) -> Finding | None:
    newest = windows[-policy.windows_up :]
    before = baseline_ms(windows[: -policy.windows_up], tenant, policy)
    lines = [_line(window, tenant) for window in newest]
    if any(line.others_requests < NEIGHBOURS_MIN for line in lines):
        return None
    if any(line.others_p99_ms < max(policy.floor_ms, slower * before) for line in lines):
        return None
    share = median(shares(window)[tenant] for window in newest)
    return Finding(tenant, newest[0].cell, share, median(line.others_p99_ms for line in lines), before)


def baseline_ms(windows: Sequence[Window], tenant: str, policy: Policy) -> float:
    """The neighbours' usual p99: its median over the windows in which the tenant was a small part of the cell."""
    calm = []
    for window in windows:
        line = _line(window, tenant)
        requests, p99_ms = line.others_requests, line.others_p99_ms
        if not requests:  # it was not among those of whom this is told, so the cell's is as good as theirs
            requests, p99_ms = window.requests - line.requests, window.p99_ms
        if requests >= NEIGHBOURS_MIN and shares(window).get(tenant, 0.0) < DOWN * too_much(window, policy):
            calm.append(p99_ms)
    return median(calm) if len(calm) >= BASELINE_WINDOWS else policy.floor_ms


def decide(
    policy: Policy, standing: Standing, found: Finding | None, lasting: Finding | None, target: Placement | NoPlacement
) -> list[Action]:
    """What to do about a tenant now. ``found`` by `find`, ``lasting`` by `still`; ``target`` is where it could go."""
    if standing.left_s is not None:
        return _throttled(policy, standing, standing.left_s, lasting)
    if found is None or standing.moving or standing.vetoed or policy.mode is Mode.OFF:
        return []
    if policy.mode is Mode.OBSERVE:
        return [] if standing.noted else [Action(Act.OBSERVED, found.reason)]
    actions = [Action(Act.THROTTLED, found.reason, seconds=_seconds(policy, standing.times))]
    if isinstance(target, Placement):
        act = Act.MOVE_STARTED if policy.mode is Mode.MOVE else Act.MOVE_PROPOSED
        actions.append(Action(act, f"{found.reason}; {target.reason}", target=target.cell))
    return actions


def _throttled(policy: Policy, standing: Standing, left_s: float, lasting: Finding | None) -> list[Action]:
    if standing.moving:  # its route belongs to the move until that is over
        return []
    if standing.vetoed:
        return [Action(Act.LIFTED, "an operator vetoed it")]
    if policy.mode in (Mode.OFF, Mode.OBSERVE):
        return [Action(Act.LIFTED, f"the policy is {policy.mode}")]
    if standing.cell != standing.throttled_in:
        return [Action(Act.LIFTED, f"it lives in {standing.cell} now")]
    if left_s > 0:
        return []
    if lasting is not None:
        return [Action(Act.PROLONGED, lasting.reason, seconds=_seconds(policy, standing.times))]
    return [Action(Act.LIFTED, "its time is over, and its neighbours are well")]


def _seconds(policy: Policy, times: int) -> float:
    return float(min(THROTTLE_MAX_S, policy.throttle_s * 2.0**times))


def target_for(
    fleet: Sequence[CellFacts], loads: Mapping[str, float], home: str, wanted: Wanted, rng: random.Random
) -> Placement | NoPlacement:
    """A roomier cell of the tenant's tier, else a dedicated one. ``loads`` are measured, by cell; unknown is idle."""
    busy = {cell.name for cell in fleet if loads.get(cell.name, 0.0) > ROOMIER * loads.get(home, 0.0)}
    avoid = wanted.avoid | busy | {home}
    placed: Placement | NoPlacement = NoPlacement("")
    for tier in dict.fromkeys((wanted.tier, "dedicated")):
        placed = place(fleet, replace(wanted, tier=tier, avoid=frozenset(avoid)), rng)
        if isinstance(placed, Placement):
            return placed
    return placed


def _line(window: Window, tenant: str) -> TenantUsage:
    return next((line for line in window.tenants if line.tenant == tenant), TenantUsage(tenant))


def _part(amount: float, total: float) -> float:
    return amount / total if total > 0 else 0.0
