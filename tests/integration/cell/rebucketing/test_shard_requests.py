"""What requests meet while their bucket moves between shards: a wait, and nothing else."""

import asyncio

import pytest

from cell.rebucketing import shard
from cell.rebucketing.mover import HOLD_S
from cell.shards.context import TenantContext
from cell.shards.errors import NotOursError
from cell.shards.session import Shards
from contracts import ids
from contracts.transfer import Fence, Provision
from tests.integration.cell.cell_world import EPOCH, PASSWORD, Merchant
from tests.integration.cell.platform_parts.two_cells import ADD_COUNTER, COUNTERS
from tests.integration.cell.rebucketing.shard_bench import (
    PATIENT_S,
    Bench,
    Killed,
    kill,
    stale,
)


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


async def test_who_came_before_the_fence_is_waited_for_and_what_it_wrote_moves_along(
    bench: Bench, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "DRAIN_S", PATIENT_S)
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

    async with asyncio.timeout(120), asyncio.TaskGroup() as users:  # who fails ends the others, and the test
        for user in (write(shards, 1), write(behind, 2), ask()):
            users.create_task(user)
        for _ in range(4):
            seen = len(written)
            await bench.plan(bench.elsewhere(merchant))
            while await bench.open():
                await bench.sweep(hold_s=HOLD_S)
            while len(written) < seen + 4:
                await asyncio.sleep(0.01)
        stop.set()
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


async def test_however_many_wait_one_of_them_looks(bench: Bench, merchant: Merchant) -> None:
    passage = bench.world.databases.shards._passage
    real, at_once, looks = passage._look, 0, 0

    async def counted(shard: str, tenant: int) -> str:
        nonlocal at_once, looks
        at_once, looks = at_once + 1, looks + 1
        assert at_once == 1
        try:
            return await real(shard, tenant)
        finally:
            at_once -= 1

    passage._look = counted  # type: ignore[method-assign]
    users: list[asyncio.Task[int]] = []

    async def at(step: str) -> None:
        if step == "frozen":
            users.extend(asyncio.create_task(_products(merchant)) for _ in range(5))
            while looks < 10:
                await asyncio.sleep(0.005)

    await bench.plan(bench.elsewhere(merchant))
    assert await bench.sweep(at) == 1
    assert await asyncio.gather(*users) == [200] * 5


async def _products(merchant: Merchant) -> int:
    return (await merchant.owner.get("/v1/products")).status_code


async def test_nobody_is_not_ours_because_a_bucket_came_back_meanwhile(bench: Bench, merchant: Merchant) -> None:
    """A process whose map is two moves behind meets the shard between the fence of the second and its rows."""
    behind = stale(bench.world)
    there = bench.elsewhere(merchant)
    await bench.plan(there)
    assert await bench.sweep() == 1
    await bench.world.databases.shard_map.refresh()
    answers: list[asyncio.Task[str]] = []

    async def entered() -> str:
        async with behind.enter(merchant.context()) as session:
            await session.execute(ADD_COUNTER, name="through", value=1)
        return behind.shard_of(merchant.number)

    async def at(step: str) -> None:
        if step == "arriving":
            answers.append(asyncio.create_task(entered()))
            await asyncio.sleep(0.02)

    await bench.plan(bench.elsewhere(merchant))
    assert await bench.sweep(at) == 1
    await answers[0]
    async with bench.world.databases.shards.enter(merchant.context()) as session:
        assert [row["name"] for row in await session.fetch(COUNTERS)] == ["through"]


async def test_who_is_nobody_here_is_told_so_without_a_wait(bench: Bench, merchant: Merchant) -> None:
    number = next(n for n in range(10**15, 10**16) if ids.bucket_of(f"t{n}") == bench.bucket(merchant))
    stranger = TenantContext(number, f"t{number}", EPOCH, 0.0, "stranger", "free")
    with pytest.raises(NotOursError):
        async with bench.world.databases.shards.enter(stranger):
            pass
    await bench.plan(bench.elsewhere(merchant))
    assert await bench.sweep() == 1
    with pytest.raises(NotOursError):
        async with stale(bench.world).enter(stranger):
            pass


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
