"""The freeze and the routers: it waits until they hold the tenant's requests, but never for long (moves.md rule 6)."""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import pytest_asyncio
import sqlalchemy as sa
from structlog.testing import capture_logs

from control_plane.models import routers
from control_plane.move import Budgets, State
from control_plane.routes import Cursor, RouteLog, cursor
from tests.integration.control_plane.mover_world import SOURCE, TARGET, World

ROUTER = "router-behind"
LEASE_S = 3600.0
PATIENT_S = 60.0  # no test waits this long: it is what the mover would wait if nobody acknowledged


class Watched(RouteLog):
    """The route log, which tells when the mover has found routers that lag."""

    def __init__(self, world: World) -> None:
        super().__init__(world.engine, world.signals, monotonic)
        self.found_lagging = asyncio.Event()

    async def _lagging(self, revision: int) -> list[str]:
        names = await super()._lagging(revision)
        if names:
            self.found_lagging.set()
        return names


@pytest_asyncio.fixture
async def behind(world: World) -> AsyncIterator[Watched]:
    """One live router that has applied everything until now; it reports nothing by itself. Notices are listened to."""
    listening = asyncio.create_task(world.signals.run(world.dsn))
    await world.route_log.renew(ROUTER, await at(world), LEASE_S)
    yield Watched(world)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    async with world.engine.begin() as conn:
        await conn.execute(sa.delete(routers).where(routers.c.name == ROUTER))


async def at(world: World) -> Cursor:
    """Where the route log stands."""
    async with world.engine.connect() as conn:
        return await cursor(conn)


def frozen(world: World) -> bool:
    """Whether the source was told to freeze the tenant."""
    return "freeze" in [sent.command for sent in world.fleet.sent if sent.cell == SOURCE]


async def test_a_freeze_before_the_routers_hold_would_show_refusals_that_a_short_wait_spares(
    world: World, behind: Watched
) -> None:
    move_id = await world.start()
    with capture_logs() as logs:
        mover = world.mover(budgets=Budgets(hold_s=2 * PATIENT_S), routers_s=PATIENT_S, route_log=behind)
        began = monotonic()
        driving = asyncio.create_task(mover.drive(move_id, term=1))
        noticed = asyncio.create_task(behind.found_lagging.wait())
        await asyncio.wait((driving, noticed), return_when=asyncio.FIRST_COMPLETED)
        noticed.cancel()
        assert not frozen(world), "the source was frozen before the router held the tenant's requests"
        assert (await world.move(move_id)).state is State.HOLDING
        assert not frozen(world)
        await behind.renew(ROUTER, await at(world), LEASE_S)
        assert (await driving).state is State.DONE
    assert frozen(world)
    assert monotonic() - began < PATIENT_S / 2, "the acknowledgement did not end the wait"
    assert "routers_lagged" not in [entry["event"] for entry in logs]
    await world.assert_settled(TARGET)


async def test_a_router_that_never_acknowledges_would_hold_up_every_move(world: World, behind: Watched) -> None:
    move_id = await world.start()
    routers_s, arrived = 0.25, 0.0

    async def on_boundary(name: str) -> None:
        nonlocal arrived
        if name == "holding":
            arrived = monotonic()
        elif name == "frozen":
            assert monotonic() - arrived >= routers_s, "the routers had no time to acknowledge"

    with capture_logs() as logs:
        moved = await world.mover(on_boundary, routers_s=routers_s, route_log=behind).drive(move_id, term=1)
    assert moved.state is State.DONE
    assert arrived
    (lagged,) = [entry for entry in logs if entry["event"] == "routers_lagged"]
    assert (lagged["routers"], lagged["move"], lagged["tenant"]) == ([ROUTER], move_id, world.id)
    await world.assert_settled(TARGET)


async def test_a_router_that_is_gone_is_waited_for_by_nobody(world: World, behind: Watched) -> None:
    await behind.renew(ROUTER, await at(world), -LEASE_S)
    move_id = await world.start()
    with capture_logs() as logs:
        mover = world.mover(budgets=Budgets(hold_s=2 * PATIENT_S), routers_s=PATIENT_S, route_log=behind)
        assert (await mover.drive(move_id, term=1)).state is State.DONE
    assert not behind.found_lagging.is_set()
    assert "routers_lagged" not in [entry["event"] for entry in logs]
