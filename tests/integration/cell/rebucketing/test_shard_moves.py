"""Buckets that move between the two shards of a cell, on real PostgreSQL, stopped at every step."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from cell.rebucketing import command, shard, store
from cell.rebucketing.mover import Mover
from cell.rebucketing.plan import PlanError, Step
from cell.schema import migrate
from cell.shards import pools
from cell.shards.context import TenantContext
from cell.shards.directory import LiveMap
from cell.shards.session import Pool, Shards
from cell.transfer.fence import ElsewhereError
from contracts import ids
from contracts.transfer import Fence, Freeze, Provision, Restore
from tests.integration.cell.cell_world import EPOCH, PASSWORD, Merchant, World
from tests.integration.cell.platform_parts.two_cells import ADD_COUNTER, COUNTERS

STEPS = ("arriving", "frozen", "settled", "copied", "switched", "here", "away", "cleared")
UNDOING = ("undone", "unfrozen")


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


class Bench:
    """A cell with what moves its buckets. ``at`` is what happens at each step."""

    def __init__(self, world: World, directory: Pool) -> None:
        self.world = world
        self.directory = directory

    def mover(self, at: Callable[[str], Awaitable[None]]) -> Mover:
        return Mover(
            directory=self.directory,
            pools=self.world.transfers,
            clock=asyncio.get_running_loop().time,
            at=at,
        )

    def bucket(self, merchant: Merchant) -> int:
        return ids.bucket_of(merchant.tenant_id)

    def elsewhere(self, merchant: Merchant, *, alone: bool = False) -> Step:
        """A step that moves the merchant's bucket, or it alone, to the shard where it is not."""
        source = self.world.databases.shards.shard_of(merchant.number)
        target = next(name for name in self.world.databases.shards.names if name != source)
        return Step(self.bucket(merchant), merchant.number if alone else 0, source, target)

    async def plan(self, step: Step) -> None:
        await store.plan(self.directory, [step])

    async def due(self) -> None:
        """What rests does so no more."""
        await self.directory.execute("UPDATE shard_moves SET due = now()")

    async def sweep(self, at: Callable[[str], Awaitable[None]] | None = None) -> int:
        await self.due()
        return await self.mover(at or _onwards).sweep()

    async def open(self) -> list[store.Move]:
        return await store.moves(self.directory)

    async def count(self, name: str, merchant: Merchant) -> int:
        """How many rows the merchant has at that shard, whoever asks."""
        connection = await self.world.cell.as_superuser(name)
        try:
            found = await connection.fetchval(
                "SELECT (SELECT count(*) FROM cellwall.tenants WHERE tenant_id = $1)"
                " + (SELECT count(*) FROM product.products WHERE tenant_id = $1)"
                " + (SELECT count(*) FROM cellwall.work WHERE tenant_id = $1)",
                merchant.number,
            )
            return int(found)
        finally:
            await connection.close()


async def _onwards(_step: str) -> None:
    pass


def kill(step: str) -> Callable[[str], Awaitable[None]]:
    async def at(now: str) -> None:
        if now == step:
            raise Killed

    return at


@pytest_asyncio.fixture
async def bench(world: World) -> AsyncIterator[Bench]:
    cell = world.cell
    async with (
        pools.following(world.databases, "test-process"),
        pools.directory_for_transfer(cell.directory_dsn, cell.passwords.transfer, "test-shards") as directory,
    ):
        await directory.execute("UPDATE shard_moves SET state = 'refused' WHERE state IN ('planned', 'copying')")
        yield Bench(world, directory)
    dsn = urlsplit(cell.admin_dsns[min(cell.admin_dsns)])._replace(path=f"/{migrate.DIRECTORY}").geturl()
    admin = await asyncpg.connect(dsn)
    await admin.execute("DELETE FROM tenant_shards")
    await admin.close()
    for name in world.databases.shards.names:  # other tests deal the buckets of these databases out by themselves
        connection = await cell.as_superuser(name)
        try:
            await connection.execute("DELETE FROM cellwall.shard_fences")
        finally:
            await connection.close()


async def switch_late(bench: Bench, move: store.Move) -> None:
    async with bench.directory.acquire() as connection:
        await store.switch(connection, move)


def stale(world: World) -> Shards:
    """The sessions of a process that has not heard of what moves from now on."""
    live = world.databases.shard_map
    assert isinstance(live, LiveMap)
    copied = LiveMap(live._directory, live._map, live._revision)
    return Shards(copied, {name: world.databases.shards.pool(name) for name in world.databases.shards.names})


async def test_a_moved_bucket_leaves_nothing_behind_and_is_served_where_it_came(
    bench: Bench, merchant: Merchant
) -> None:
    await merchant.product()
    step = bench.elsewhere(merchant)
    before = await bench.count(step.source, merchant)
    behind = stale(bench.world)
    await bench.plan(step)
    assert await bench.sweep() == 1
    assert await bench.count(step.source, merchant) == 0
    assert await bench.count(step.target, merchant) == before > 1
    async with behind.enter(merchant.context()) as session:  # its map is of before
        assert await session.fetch(COUNTERS) == []
    assert behind.shard_of(merchant.number) == step.target
    assert (await merchant.owner.get("/v1/products")).status_code == 200
    assert (await bench.world.transfer.status(merchant.number)).shard == step.target
    assert await bench.open() == []


async def test_a_stale_process_is_sent_on_while_the_old_rows_still_lie_there(bench: Bench, merchant: Merchant) -> None:
    behind = stale(bench.world)
    step = bench.elsewhere(merchant)
    await bench.plan(step)
    with pytest.raises(Killed):
        await bench.sweep(kill("away"))
    assert await bench.count(step.source, merchant) > 0
    async with behind.enter(merchant.context()) as session:
        await session.execute(ADD_COUNTER, name="after", value=1)
    assert behind.shard_of(merchant.number) == step.target
    await bench.sweep()
    assert await bench.count(step.source, merchant) == 0


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_any_step_the_next_process_ends_it_and_loses_nothing(
    bench: Bench, merchant: Merchant, step: str, alone: bool
) -> None:
    product = await merchant.product()
    wish = bench.elsewhere(merchant, alone=alone)
    await bench.plan(wish)
    with pytest.raises(Killed):
        await bench.sweep(kill(step))
    assert len(await bench.open()) == 1
    assert await bench.sweep() == 1
    assert await bench.open() == []
    assert await bench.count(wish.source, merchant) == 0
    answer = await merchant.owner.get(f"/v1/products/{product}")
    assert answer.status_code == 200, answer.text
    assert bench.world.databases.shards.shard_of(merchant.number) == wish.target


@pytest.mark.parametrize("step", UNDOING)
async def test_killed_while_it_is_undone_the_bucket_is_not_frozen_for_ever(
    bench: Bench, merchant: Merchant, step: str
) -> None:
    wish = bench.elsewhere(merchant)
    shards = bench.world.databases.shards
    await bench.plan(wish)
    async with shards.enter(merchant.context()) as session:  # somebody who does not leave
        await session.fetch(COUNTERS)
        with pytest.raises(Killed):
            await bench.mover(kill(step)).sweep()
    assert await bench.sweep() == 1
    async with shards.enter(merchant.context()) as session:
        await session.execute(ADD_COUNTER, name="after", value=1)
    assert shards.shard_of(merchant.number) == wish.target


async def test_who_came_before_the_fence_is_waited_for_and_what_it_wrote_moves_along(
    bench: Bench, merchant: Merchant
) -> None:
    wish = bench.elsewhere(merchant)
    await bench.plan(wish)
    frozen = asyncio.Event()

    async def at(step: str) -> None:
        if step == "frozen":
            frozen.set()

    async with bench.world.databases.shards.enter(merchant.context()) as session:
        moving = asyncio.create_task(bench.sweep(at))
        await frozen.wait()
        await session.execute(ADD_COUNTER, name="in time", value=1)
    assert await moving == 1
    async with bench.world.databases.shards.enter(merchant.context()) as session:
        assert [row["name"] for row in await session.fetch(COUNTERS)] == ["in time"]


async def test_a_bucket_that_somebody_does_not_leave_is_served_again_and_nobody_is_ended(
    bench: Bench, merchant: Merchant
) -> None:
    wish = bench.elsewhere(merchant)
    shards = bench.world.databases.shards
    await bench.plan(wish)
    async with shards.enter(merchant.context()) as long:
        assert await bench.sweep() == 0
        async with shards.enter(merchant.context()) as session:
            await session.execute(ADD_COUNTER, name="meanwhile", value=1)
        await long.execute(ADD_COUNTER, name="long", value=1)
    [move] = await bench.open()
    assert move.state == "planned"
    assert "lock" in move.reason
    assert await bench.sweep() == 1
    async with shards.enter(merchant.context()) as session:
        assert [row["name"] for row in await session.fetch(COUNTERS)] == ["long", "meanwhile"]


async def test_no_request_fails_while_its_bucket_goes_to_and_fro(bench: Bench, merchant: Merchant) -> None:
    shards, behind = bench.world.databases.shards, stale(bench.world)
    written: list[str] = []
    stop = asyncio.Event()

    async def write(sessions: Shards, who: int) -> None:
        count = 0
        while not stop.is_set():
            name = f"{who}-{count}"
            context = TenantContext(merchant.number, merchant.tenant_id, EPOCH, 0.0, name, "free")
            async with sessions.enter(context) as session:
                await session.execute(ADD_COUNTER, name=name, value=1)
            written.append(name)
            count += 1

    async def ask() -> None:
        while not stop.is_set():
            answer = await merchant.owner.get("/v1/products")
            assert answer.status_code == 200, answer.text

    users = [asyncio.create_task(each) for each in (write(shards, 1), write(behind, 2), ask())]
    for _ in range(4):
        seen = len(written)
        await bench.plan(bench.elsewhere(merchant))
        while await bench.open():
            await bench.sweep()
        while len(written) < seen + 4:
            await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*users)
    async with shards.enter(merchant.context()) as session:
        assert sorted(row["name"] for row in await session.fetch(COUNTERS)) == sorted(written)


async def test_a_sign_up_waits_for_its_bucket_and_lands_where_it_went(bench: Bench, merchant: Merchant) -> None:
    wish = bench.elsewhere(merchant)
    number = next(n for n in range(10**15, 10**16) if ids.bucket_of(f"t{n}") == wish.bucket)
    await bench.plan(wish)
    started: list[asyncio.Task[object]] = []

    async def at(step: str) -> None:
        if step == "settled":
            provision = Provision(EPOCH, "New", f"new-{number}@example.test", PASSWORD)
            fence = Fence(1, 1, f"provision-{number}")
            started.append(asyncio.create_task(bench.world.transfer.provision(number, fence, provision)))
            await asyncio.sleep(0)

    assert await bench.sweep(at) == 1
    await started[0]
    status = await bench.world.transfer.status(number)
    assert (status.state, status.shard) == ("active", wish.target)


async def test_a_tenant_that_moves_between_cells_keeps_its_bucket_and_the_other_way_round(
    bench: Bench, merchant: Merchant
) -> None:
    transfer, wish = bench.world.transfer, bench.elsewhere(merchant)
    await transfer.freeze(merchant.number, Fence(1, 2, "move-1"), Freeze(0, 2000))
    await bench.plan(wish)
    assert await bench.sweep() == 0
    [move] = await bench.open()
    assert "moves between cells" in move.reason
    await transfer.restore(merchant.number, Fence(1, 3, "move-1"), Restore(EPOCH + 1))

    with pytest.raises(Killed):
        await bench.sweep(kill("settled"))
    with pytest.raises(ElsewhereError):
        await transfer.freeze(merchant.number, Fence(1, 4, "move-2"), Freeze(0, 2000))
    assert await bench.sweep() == 1
    await transfer.freeze(merchant.number, Fence(1, 4, "move-2"), Freeze(0, 2000))
    assert (await transfer.status(merchant.number)).shard == wish.target


async def test_a_paused_process_that_comes_back_changes_nothing(bench: Bench, merchant: Merchant) -> None:
    wish = bench.elsewhere(merchant)
    await bench.plan(wish)
    [planned] = await bench.open()
    old = await store.begin(bench.directory, planned.id)
    assert old is not None
    source, target = bench.world.transfers[wish.source], bench.world.transfers[wish.target]
    await shard.fence(target, old, "arriving")
    assert await bench.sweep() == 1  # another process took over
    for attempt in (
        shard.fence(source, old, "frozen"),
        shard.fence(target, old, "arriving"),
        shard.clear(target, old, [], "arriving"),
        switch_late(bench, old),
    ):
        with pytest.raises(store.SupersededError):
            await attempt
    assert not await store.undo(bench.directory, old, "late")
    assert (await merchant.owner.get("/v1/products")).status_code == 200


async def test_a_bucket_that_is_too_large_is_refused_before_anybody_waits(
    bench: Bench, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "ROWS_MAX", 0)
    steps: list[str] = []

    async def at(step: str) -> None:
        steps.append(step)

    await bench.plan(bench.elsewhere(merchant))
    assert await bench.sweep(at) == 1
    assert "frozen" not in steps
    assert await bench.open() == []
    assert "at most 0" in (await store.refused(bench.directory))[0].reason
    assert (await merchant.owner.get("/v1/products")).status_code == 200


async def test_nothing_moves_to_a_shard_that_a_living_process_does_not_know(bench: Bench, merchant: Merchant) -> None:
    wish = bench.elsewhere(merchant)
    live = bench.world.databases.shard_map
    assert isinstance(live, LiveMap)
    await live.report("old-worker", [wish.source])
    await bench.plan(wish)
    try:
        assert await bench.sweep() == 0
        [move] = await bench.open()
        assert "old-worker has no connections" in move.reason
    finally:
        await live.leave("old-worker")
    assert await bench.sweep() == 1


async def test_a_tenant_with_a_shard_of_its_own_stays_there_when_its_bucket_moves(
    bench: Bench, merchant: Merchant
) -> None:
    alone = bench.elsewhere(merchant, alone=True)
    await bench.plan(alone)
    assert await bench.sweep() == 1
    for source, target in ((alone.source, alone.target), (alone.target, alone.source)):
        await bench.plan(Step(alone.bucket, 0, source, target))
        assert await bench.sweep() == 1
        assert (await bench.world.transfer.status(merchant.number)).shard == alone.target
        assert (await merchant.owner.get("/v1/products")).status_code == 200


async def test_without_the_wait_for_tenants_inside_a_write_is_lost(
    bench: Bench, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation: with the lock off, what the test of the wait proves is no longer so."""

    async def no_lock(*_: object) -> None:
        pass

    monkeypatch.setattr(shard, "_pass", no_lock)
    wish = bench.elsewhere(merchant)
    await bench.plan(wish)
    async with bench.world.databases.shards.enter(merchant.context()) as session:
        await session.execute(ADD_COUNTER, name="in time", value=1)
        assert await bench.sweep() == 1
    async with bench.world.databases.shards.enter(merchant.context()) as session:
        assert await session.fetch(COUNTERS) == []


async def test_the_command_plans_once_and_shows_what_is_open(bench: Bench, merchant: Merchant) -> None:
    out = io.StringIO()
    drain = command.planner("drain", "shard-2", "")
    assert drain is not None
    await command.planned(bench.directory, drain, out, look=True)
    assert out.getvalue().endswith(" to move\n")
    assert await bench.open() == []
    await bench.plan(bench.elsewhere(merchant))
    with pytest.raises(PlanError, match="under way"):
        await command.planned(bench.directory, drain, out, look=False)
    await command.shown(bench.directory, out)
    assert "1 moves open" in out.getvalue()
    assert await bench.sweep() == 1
    unknown = command.planner("isolate", "shard-9", merchant.tenant_id)
    assert unknown is not None
    with pytest.raises(PlanError, match="there is no shard 'shard-9'"):
        await command.planned(bench.directory, unknown, out, look=False)
    assert await bench.open() == []
