"""The wall's bookkeeping: whatever ends a visit, nothing stays behind; costs go where they belong."""

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from cell.fairness.internal import InternalWall
from cell.fairness.levels import Enforcement, Level, Operations, Rule
from cell.fairness.limits import Limits
from cell.fairness.station import RefusedError
from cell.fairness.wall import REST, Config, Enforced, Plan, Visit, Wall
from cell.shards.context import TenantContext
from contracts.envelope import LARGE_BODY
from contracts.names import Refusal

CONFIG = Config.fit(4, interactive=2, batch=1, tenant_room=4, room=8)
TOKEN = "t" * 43


class Told:
    def __init__(self) -> None:
        self.waits: list[float] = []
        self.seen: Counter[tuple[str, str]] = Counter()

    def queued(self, level: str, seconds: float) -> None:
        assert level in Level
        self.waits.append(seconds)

    def observed(self, wall: str, reason: str) -> None:
        self.seen[wall, reason] += 1


class World:
    """A wall in a time of its own."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.now = 100.0
        self.told = Told()
        operations = Operations(["/v1/orders/{id}"], [])
        self.wall = Wall(config, operations, lambda t: f"s{t % 2}", self.told, clock=lambda: self.now, seed=7)

    def plan(self) -> Plan:
        return self.wall.plan("GET", "/v1/orders/1", 20.0, self.now)

    def ask(self, tenant: int, caller: int = 0) -> Visit:
        plan = self.plan()
        context = TenantContext(tenant, f"t{tenant}", 1, plan.budget.application_by, "r", "free")
        return self.wall.ask(context, plan, caller)

    @property
    def seats(self) -> tuple[int, int, int]:
        return self.wall.seats(Level.INTERACTIVE)


async def test_a_seat_would_be_lost_when_its_owner_is_cancelled_as_it_gets_it() -> None:
    world = World()
    first, second = world.ask(2), world.ask(2)
    third = world.ask(2)
    assert third.waits
    waiting = asyncio.create_task(world.wall.seated(third))
    await asyncio.sleep(0)
    world.now += 0.5
    world.wall.leave(first, usual=True)  # hands its seat on
    waiting.cancel()  # ... and at the same time its new owner goes
    with pytest.raises(asyncio.CancelledError):
        await waiting
    world.wall.leave(third, usual=False)
    world.wall.leave(second, usual=True)
    assert world.seats == (2, 0, 0)


async def test_who_waits_would_not_be_woken_or_the_wait_not_told() -> None:
    world = World()
    first, _ = world.ask(2), world.ask(2)
    third = world.ask(4)
    waiting = asyncio.create_task(world.wall.seated(third))
    await asyncio.sleep(0)
    world.now += 0.25
    first.context.cost.database_s = 0.1
    world.wall.leave(first, usual=True)
    world.wall.leave(first, usual=True)  # again: nothing
    await asyncio.wait_for(waiting, 5)
    assert third.context.cost.queued_s == pytest.approx(0.25)
    assert world.told.waits == [pytest.approx(0.25)]
    assert first.context.cost.seat_s == pytest.approx(0.25)
    assert world.seats == (2, 2, 0)


async def test_who_gives_its_place_to_others_would_wait_for_ever() -> None:
    world = World(replace(CONFIG, key=Limits(0.0, 1, 99)))
    visits = [world.ask(tenant) for tenant in (2, 2, 2, 2, 2, 2, 4, 4, 4, 4)]
    waiting = [asyncio.create_task(world.wall.seated(visit)) for visit in visits[2:]]
    await asyncio.sleep(0)
    assert world.seats == (2, 2, 8)
    world.ask(6)  # the level is full: one of those with the most waiting has to go
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=5)
    (evicted,) = done
    with pytest.raises(RefusedError) as refused:
        await evicted
    assert refused.value.refusal is Refusal.TENANT_BUSY
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_shard_that_hangs_would_take_the_seats_of_the_others() -> None:
    world = World()
    for _ in range(4):
        world.ask(1)
    assert world.ask(3).waits
    assert not world.ask(2).waits


async def test_who_is_refused_a_seat_would_stay_counted_for_its_key() -> None:
    world = World(replace(CONFIG, key=Limits(0.0, 1, 6)))
    visits = [world.ask(2, caller=9) for _ in range(6)]
    with pytest.raises(RefusedError) as key:
        world.ask(2, caller=9)
    assert key.value.refusal is Refusal.CALLER
    for _ in range(3):
        with pytest.raises(RefusedError) as room:
            world.ask(2, caller=8)
        assert room.value.refusal is Refusal.TENANT_BUSY
    for visit in visits:
        world.wall.leave(visit, usual=False)
    again = [world.ask(2, caller=8) for _ in range(6)]
    assert world.seats == (2, 2, 4)
    assert len(again) == 6


async def test_a_user_with_many_keys_would_be_many_users() -> None:
    world = World(replace(CONFIG, user=Limits(0.0, 1, 2)))
    visits = [world.ask(2, caller=key) for key in range(3)]
    for visit in visits[:2]:
        visit.context.identified("ada")
        visit.context.identified("ada")  # a second session of the same request
    with pytest.raises(RefusedError):
        visits[2].context.identified("ada")
    visits[2].context.identified("bob")
    world.wall.leave(visits[0], usual=True)
    world.ask(2, caller=4).context.identified("ada")


async def test_observed_walls_would_not_be_counted() -> None:
    observe = Enforcement.OBSERVE
    config = replace(CONFIG, key=Limits(0.0, 1, 5), enforced=Enforced(observe, observe, observe))
    world = World(config)
    visits = [world.ask(2) for _ in range(8)]
    assert not any(visit.waits for visit in visits)
    assert world.told.seen == {("limits", Refusal.CALLER): 3, ("fairness", Refusal.TENANT_BUSY): 2}
    world.now += 19.0
    world.wall.leave(visits[0], usual=True)
    assert world.told.seen["timeouts", Refusal.DEADLINE] == 1
    assert world.plan().budget.application_by == world.now + 20.0


async def test_copies_would_wait_for_nobody_or_strangers_would_take_their_seats() -> None:
    world, going, calls = World(), asyncio.Event(), list[str]()

    async def application(scope: Any, _receive: Any, _send: Any) -> None:
        calls.append(scope["path"])
        await going.wait()

    async def send(message: Any) -> None:
        raise AssertionError(message)

    def call(path: str, token: str = TOKEN) -> "asyncio.Task[None]":
        headers = [(b"authorization", f"Bearer {token}".encode())]
        return asyncio.create_task(internal({"type": "http", "path": path, "headers": headers}, None, send))

    internal = InternalWall(application, world.wall, TOKEN, lambda: asyncio.get_running_loop().time())
    tasks = [call(f"/transfer/v1/tenants/t{tenant}/export") for tenant in range(1001, 1006)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(calls) == 3
    assert world.wall.seats(Level.INTERNAL) == (3, 3, 2)
    others = [call("/transfer/v1/tenants/t1001/freeze"), call("/transfer/v1/tenants/t1001/export", "u" * 43)]
    await asyncio.sleep(0)
    assert len(calls) == 5  # neither small commands nor those that will be refused wait here
    going.set()
    await asyncio.gather(*tasks, *others)
    assert len(calls) == 7
    assert world.wall.seats(Level.INTERNAL) == (3, 0, 0)


@pytest.mark.parametrize("connections", range(1, 41))
def test_seats_would_be_more_than_connections(connections: int) -> None:
    sizes = Config.fit(connections).sizes
    assert sizes[Level.INTERACTIVE].most + sizes[Level.BATCH].most <= max(2, connections - (connections > 2))


class Batch:
    """A wall with one seat for long work, in a time that sleepers move."""

    def __init__(self, fairness: Enforcement = Enforcement.ON) -> None:
        self.now = 100.0
        self.told = Told()
        self.began: list[int] = []
        operations = Operations(["/v1/sums"], [Rule("GET", "/v1/sums", Level.BATCH)])
        config = replace(CONFIG, enforced=Enforced(fairness), batch_share=0.25)
        self.wall = Wall(config, operations, lambda _: "s", self.told, clock=lambda: self.now, seed=7, sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    def ask(self, tenant: int, path: str = "/v1/sums") -> Visit:
        plan = self.wall.plan("GET", path, 20.0, self.now)
        return self.wall.ask(TenantContext(tenant, f"t{tenant}", 1, self.now + 20, "r", "free"), plan, 0)

    async def work(self, visit: Visit, parts: int) -> None:
        """Do so many parts of 10 ms, as a handler behind the ingress does."""
        if visit.waits:
            await self.wall.seated(visit)
        await self.wall.rest(visit)
        for part in range(parts):
            if part:
                await visit.context.turn()
            self.began.append(visit.context.tenant)
            self.now += 0.01
            visit.context.cost.database_s += 0.01
        self.wall.leave(visit, usual=True)


async def test_a_light_tenant_would_wait_for_the_end_of_long_work_and_not_for_its_next_part() -> None:
    world = Batch()
    long, short = world.ask(1), world.ask(2)
    await asyncio.wait_for(asyncio.gather(world.work(long, 20), world.work(short, 2)), 5)
    assert world.began.index(2) < 3
    assert world.began[-10:] == [1] * 10
    assert world.wall.seats(Level.BATCH) == (1, 0, 0)


async def test_long_work_would_begin_all_over_before_it_ends_where_a_tenant_has_more_of_it() -> None:
    world = Batch()
    first, second, other = world.ask(1), world.ask(1), world.ask(2)
    order: list[str] = []

    async def named(name: str, visit: Visit, parts: int) -> None:
        await world.work(visit, parts)
        order.append(name)

    await asyncio.wait_for(
        asyncio.gather(named("first", first, 5), named("second", second, 5), named("other", other, 3)), 5
    )
    assert order.index("first") < order.index("second")
    assert order[0] == "other"


async def test_long_work_would_keep_the_shard_busy_while_others_want_it() -> None:
    world = Batch()
    began = world.now
    world.wall.leave(world.ask(9, "/v1/others"), usual=True)
    await world.work(world.ask(1), 10)
    assert world.now - began == pytest.approx(0.1 + 9 * 0.03)  # a part of 10 ms, then a rest of 30


async def test_the_rest_would_be_forgotten_between_two_requests() -> None:
    world = Batch()
    began = world.now
    world.wall.leave(world.ask(9, "/v1/others"), usual=True)
    for _ in range(10):
        await world.work(world.ask(1), 1)
    assert world.now - began == pytest.approx(0.1 + 9 * 0.03)


async def test_rests_would_be_charged_as_time_in_the_seat() -> None:
    world = Batch()
    world.wall.leave(world.ask(9, "/v1/others"), usual=True)
    visit = world.ask(1)
    await world.work(visit, 10)
    assert visit.context.cost.seat_s == pytest.approx(0.1)


async def test_long_work_would_rest_where_the_wall_only_observes_and_not_be_counted() -> None:
    world = Batch(Enforcement.OBSERVE)
    began = world.now
    world.wall.leave(world.ask(9, "/v1/others"), usual=True)
    await world.work(world.ask(1), 10)
    assert world.now - began == pytest.approx(0.1)
    assert world.told.seen["fairness", REST] == 9


async def test_long_work_would_rest_where_the_wall_is_off() -> None:
    world = Batch(Enforcement.OFF)
    began = world.now
    await world.work(world.ask(1), 10)
    assert world.now - began == pytest.approx(0.1)


async def test_a_seat_would_be_lost_when_long_work_is_given_up_while_it_waits_for_its_turn() -> None:
    world = Batch()
    long, short = world.ask(1), world.ask(2)
    holds = asyncio.create_task(world.work(short, 1))
    await asyncio.sleep(0)
    long.context.cost.database_s += 5.0
    turning = asyncio.create_task(long.context.turn())
    await asyncio.sleep(0)
    turning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turning
    world.wall.leave(long, usual=False)
    await asyncio.wait_for(holds, 5)
    assert world.wall.seats(Level.BATCH) == (1, 0, 0)


def large(world: World, tenant: int) -> tuple[TenantContext, Plan]:
    plan = world.wall.plan("POST", "/v1/orders", 20.0, world.now, body=LARGE_BODY + 1)
    return TenantContext(tenant, f"t{tenant}", 1, plan.budget.application_by, "r", "free"), plan


async def test_a_large_body_would_be_read_although_there_is_no_room_for_it() -> None:
    world = World()
    visits = [world.wall.ask(*large(world, 2), caller) for caller in range(9)]  # one seat, and eight places to wait
    with pytest.raises(RefusedError) as full:
        world.wall.foresee(*large(world, 2), 0)
    assert full.value.refusal is Refusal.TENANT_BUSY
    world.wall.foresee(*large(world, 4), 0)
    world.wall.leave(visits[0], usual=True)
    world.wall.foresee(*large(world, 2), 0)
    for visit in visits[1:]:
        world.wall.leave(visit, usual=False)
    assert world.wall.seats(Level.BATCH) == (1, 0, 0)


@pytest.mark.parametrize("mode", [Enforcement.OFF, Enforcement.OBSERVE])
async def test_a_wall_that_does_not_refuse_would_refuse_what_it_foresees(mode: Enforcement) -> None:
    world = World(replace(CONFIG, enforced=Enforced(fairness=mode)))
    for caller in range(20):
        world.wall.ask(*large(world, 2), caller)
    world.wall.foresee(*large(world, 2), 0)


def test_a_large_body_would_take_the_seats_of_what_people_wait_for() -> None:
    wall = World().wall
    small = wall.plan("POST", "/v1/orders", 20.0, 100.0, body=LARGE_BODY)
    large = wall.plan("POST", "/v1/orders", 20.0, 100.0, body=LARGE_BODY + 1)
    assert (small.level, large.level) == (Level.INTERACTIVE, Level.BATCH)
    assert small.operation != large.operation  # what one costs says nothing of the other
