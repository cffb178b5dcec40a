"""The closed loop: looks at the newest usage, decides (`control_plane.noisy`), acts. Runs while this process leads.

Every action is one transaction with its event and its audit entry, on the tenant's locked row, decided from what that
row says then. So a second leader, or one that was paused, does at worst nothing.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Final

import sqlalchemy as sa
import structlog
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import ids
from contracts.names import Field, Metric
from contracts.problems import CONFLICT, ProblemError
from contracts.usage import WINDOW_S
from control_plane import audit, noisy_store, usage
from control_plane.auth import Actor
from control_plane.cell_client import CellError
from control_plane.cells import Cell, fleet_of
from control_plane.models import Tenant, plans, tenants
from control_plane.move_service import Moves
from control_plane.noisy import (
    Act,
    Action,
    Finding,
    Mode,
    Policy,
    Standing,
    decide,
    find,
    load_of,
    still,
    target_for,
)
from control_plane.placement import NoPlacement, Placement, Wanted
from control_plane.throttle import lift, route_is_moved, throttle

PERIOD_S: Final = WINDOW_S
HISTORY_S: Final = 300.0  # of which the baseline is made
LATE_WINDOWS: Final = 2  # how many windows late a cell may be and still be judged
MOVE_REFUSED: Final = "move_refused"
STANDBY_S: Final = 3600.0  # how long the old home of a large tenant follows the new one
_US: Final = Actor(audit.CONTROL_PLANE, "operator")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Look:
    """What one pass decides on."""

    policy: Policy
    fleet: tuple[Cell, ...]
    loads: dict[str, float]
    found: dict[tuple[int, str], Finding]  # by tenant and the cell that says it
    lasting: dict[tuple[int, str], Finding]
    throttled: frozenset[int]

    def candidates(self) -> set[int]:
        """Tenants for whom there may be something to do."""
        return {number for number, _ in self.found} | self.throttled


class Watcher:
    """One pass is `once`; safe to repeat."""

    def __init__(self, engine: AsyncEngine, moves: Moves, rng: random.Random, registry: CollectorRegistry) -> None:
        self._engine = engine
        self._moves = moves
        self._rng = rng
        self._actions = Counter(Metric.CONTROL_NOISY, "What was done about noisy tenants", ("act",), registry=registry)

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """A pass every period, until cancelled."""
        while True:
            try:
                await self.once()
                async with self._engine.begin() as conn:
                    await usage.forget(conn)
                    await noisy_store.forget(conn)
            except (SQLAlchemyError, OSError) as e:
                log.warning("usage_not_judged", **{Field.REASON: str(e)})
            await sleep(PERIOD_S)

    async def once(self) -> int:
        """One pass over the fleet; how many actions were taken."""
        look = await self._look()
        done = 0
        for number in sorted(look.candidates()):
            done += await self._attend(number, look)
        return done

    async def _look(self) -> _Look:
        query = sa.select(tenants.c.number).where(tenants.c.throttled_until.is_not(None))
        async with self._engine.connect() as conn:
            policy = await noisy_store.policy_of(conn)
            told = await usage.windows_of(conn, HISTORY_S)
            newest = await usage.windows_of(conn, (policy.windows_up + LATE_WINDOWS) * WINDOW_S)
            fleet = tuple(await fleet_of(conn))
            throttled = frozenset((await conn.execute(query)).scalars())
        current = [windows for cell, windows in told.items() if len(newest.get(cell, ())) >= policy.windows_up]
        return _Look(
            policy,
            fleet,
            {cell: fmean(map(load_of, windows)) for cell, windows in newest.items()},
            _by_tenant(find(windows, policy) for windows in current),
            _by_tenant(still(windows, policy) for windows in current),
            throttled,
        )

    async def _attend(self, number: int, look: _Look) -> int:
        left = sa.func.extract("epoch", tenants.c.throttled_until - sa.func.clock_timestamp())
        query = sa.select(tenants, left.label("left_s"), plans.c.tier, plans.c.weight)
        query = query.join_from(tenants, plans, plans.c.name == tenants.c.plan).where(
            tenants.c.number == number, tenants.c.state.in_(("active", "suspended"))
        )
        async with self._engine.begin() as conn:
            row = (await conn.execute(query.with_for_update(of=tenants))).one_or_none()
            if row is None:
                return 0
            tenant, past = Tenant.of(row), await noisy_store.past_of(conn, number)
            # What a cell says of tenants that live elsewhere is not believed.
            found, lasting = (each.get((number, tenant.cell)) for each in (look.found, look.lasting))
            standing = Standing(
                tenant.cell,
                None if row.left_s is None else float(row.left_s),
                row.throttled_in or "",
                past.throttles,
                past.veto_until is not None,
                await route_is_moved(conn, tenant),
                past.noted,
            )
            target = NoPlacement("") if found is None else self._target(tenant, row.tier, row.weight, look)
            actions = decide(look.policy, standing, found, lasting, target)
            for action in actions:
                if action.act is not Act.MOVE_STARTED:
                    await self._apply(conn, tenant, action, look.policy)
        for action in actions:
            if action.act is Act.MOVE_STARTED:
                await self._start_move(tenant, action)
        return len(actions)

    def _target(self, tenant: Tenant, tier: str, weight: float, look: _Look) -> Placement | NoPlacement:
        home = next((cell for cell in look.fleet if cell.name == tenant.cell), None)
        if home is None:
            return NoPlacement("its cell is not in the fleet")
        wanted = Wanted(tier, weight, tenant.region, home.schema, pin=tenant.pinned_to)
        return target_for([cell.facts for cell in look.fleet], look.loads, home.name, wanted, self._rng)

    async def _apply(self, conn: AsyncConnection, tenant: Tenant, action: Action, policy: Policy) -> None:
        await self._remember(conn, tenant, action.act, action.reason, target=action.target)
        if action.act in (Act.THROTTLED, Act.PROLONGED):
            await throttle(conn, tenant, policy, action.seconds)
        elif action.act is Act.LIFTED:
            await lift(conn, tenant, policy)

    async def _start_move(self, tenant: Tenant, action: Action) -> None:
        """After the throttle is committed: a move that cannot be is an event too, and changes nothing."""

        async def claim(conn: AsyncConnection, move: str) -> None:
            # The row was free between the throttle and this: an operator may have said no, and saw no move to cancel.
            if (await noisy_store.past_of(conn, tenant.number)).veto_until is not None:
                raise ProblemError(CONFLICT, "An operator has vetoed it meanwhile.")
            if (await noisy_store.policy_of(conn)).mode is not Mode.MOVE:
                raise ProblemError(CONFLICT, "The policy has changed meanwhile.")
            await self._remember(conn, tenant, action.act, action.reason, target=action.target, move=move)

        name = ids.tenant_of(tenant.number)
        try:
            await self._moves.start(name, action.target, _US, claim, finalize_after_s=STANDBY_S)
        except (ProblemError, CellError) as e:
            async with self._engine.begin() as conn:
                await self._remember(conn, tenant, MOVE_REFUSED, str(e), target=action.target)

    async def _remember(
        self, conn: AsyncConnection, tenant: Tenant, event: str, reason: str, *, target: str = "", move: str = ""
    ) -> None:
        name = ids.tenant_of(tenant.number)
        fields = {Field.TENANT: name, Field.CELL: tenant.cell, Field.REASON: reason}
        log.warning("noisy_tenant_attended", **fields, act=str(event))
        self._actions.labels(str(event)).inc()
        await noisy_store.remember(conn, tenant, event, audit.CONTROL_PLANE, reason, target=target, move=move)
        await audit.record(conn, audit.CONTROL_PLANE, str(event), f"tenant:{name}", reason=reason)


def _by_tenant(found: Iterable[list[Finding]]) -> dict[tuple[int, str], Finding]:
    by_tenant = {}
    for finding in chain.from_iterable(found):
        with suppress(ids.InvalidIdError):  # a cell may say anything
            by_tenant[ids.tenant_number(finding.tenant), finding.cell] = finding
    return by_tenant
