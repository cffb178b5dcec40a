"""Buckets that move between the two shards of a cell, on real PostgreSQL, stopped at every step."""

import asyncio

import httpx
import pytest

from cell.rebucketing import mover as mover_module
from cell.rebucketing import shard, store
from cell.rebucketing.plan import Step
from cell.shards.directory import LiveMap
from cell.transfer.fence import ElsewhereError
from contracts.transfer import Fence, Freeze, Restore
from tests.integration.cell.cell_world import EPOCH, Merchant
from tests.integration.cell.platform_parts.two_cells import ADD_COUNTER, COUNTERS
from tests.integration.cell.rebucketing.shard_bench import (
    ADD_TO_COUNTER,
    DELETE_COUNTER,
    DELETE_SOME,
    MANY,
    VALUES,
    Bench,
    Killed,
    kill,
)

STEPS = (
    "begun", "arriving", "copied", "followed", "frozen", "settled", "equal", "switched", "here", "away", "cleared",
)  # fmt: skip
UNDOING = ("unfrozen", "undone")


async def switch_late(bench: Bench, move: store.Move) -> None:
    async with bench.directory.acquire() as connection:
        await store.switch(connection, move)


@pytest.mark.parametrize("alone", [False, True])
async def test_killed_at_any_step_the_next_process_ends_it_and_loses_nothing(
    bench: Bench, merchant: Merchant, alone: bool
) -> None:
    product = await merchant.product()
    for step in STEPS:
        await bench.world.databases.shard_map.refresh()
        wish = bench.elsewhere(merchant, alone=alone)
        await bench.plan(wish)
        with pytest.raises(Killed):
            await bench.sweep(kill(step))
        assert len(await bench.open()) == 1, step
        assert await bench.sweep() == 1, step
        assert await bench.open() == []
        assert await bench.count(wish.source, merchant) == 0, step
        answer = await merchant.owner.get(f"/v1/products/{product}")
        assert answer.status_code == 200, (step, answer.text)
        assert bench.world.databases.shards.shard_of(merchant.number) == wish.target
        assert await bench.fences(merchant) == {wish.source: "away", wish.target: "here"}


@pytest.mark.parametrize("step", ["arriving", "frozen", "equal"])
async def test_killed_before_the_decision_nobody_waits_once_somebody_looks_at_it(
    bench: Bench, merchant: Merchant, step: str
) -> None:
    wish = bench.elsewhere(merchant)
    await bench.plan(wish)
    with pytest.raises(Killed):
        await bench.sweep(kill(step))
    with pytest.raises(Killed):
        await bench.sweep(kill("begun"))
    assert (await bench.fences(merchant))[wish.source] == "here"
    assert (await merchant.owner.get("/v1/products")).status_code == 200
    assert bench.world.databases.shards.shard_of(merchant.number) == wish.source
    assert await bench.sweep() == 1


async def test_killed_while_it_is_undone_the_bucket_is_not_frozen_for_ever(bench: Bench, merchant: Merchant) -> None:
    shards = bench.world.databases.shards
    for step in UNDOING:
        await bench.world.databases.shard_map.refresh()
        wish = bench.elsewhere(merchant)
        await bench.plan(wish)
        async with shards.enter(merchant.context()) as session:  # somebody who does not leave
            await session.fetch(COUNTERS)
            with pytest.raises(Killed):
                await bench.mover(kill(step)).sweep()
        assert await bench.sweep() == 1
        async with shards.enter(merchant.context()) as session:
            await session.execute(ADD_COUNTER, name=step, value=1)
        assert shards.shard_of(merchant.number) == wish.target


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


async def test_what_happens_while_it_is_copied_arrives_too(bench: Bench, merchant: Merchant) -> None:
    """New rows, changed ones, deleted ones, and one that goes away and comes back, in the middle of the copy."""
    shards = bench.world.databases.shards
    async with shards.enter(merchant.context()) as session:
        for name in ("stays", "changes", "goes", "returns"):
            await session.execute(ADD_COUNTER, name=name, value=1)
    product = await merchant.product(price_cents=100)
    other: list[httpx.AsyncClient] = []

    async def at(step: str) -> None:
        if step != "copied":
            return
        async with shards.enter(merchant.context()) as session:
            await session.execute(ADD_COUNTER, name="new", value=7)
            await session.execute(ADD_TO_COUNTER, name="changes", value=5)
            await session.execute(DELETE_COUNTER, name="goes")
            await session.execute(DELETE_COUNTER, name="returns")
        async with shards.enter(merchant.context()) as session:
            await session.execute(ADD_COUNTER, name="returns", value=3)
        other.append(await bench.neighbour(merchant))
        await bench.keep_key(merchant, b"wrapped")
        answer = await merchant.owner.patch(f"/v1/products/{product}", json={"price_cents": 333})
        assert answer.status_code == 200, answer.text

    wish = bench.elsewhere(merchant)
    await bench.plan(wish)
    assert await bench.sweep(at) == 1
    async with shards.enter(merchant.context()) as session:
        counters = {row["name"]: row["value"] for row in await session.fetch(VALUES)}
    assert counters == {"stays": 1, "changes": 6, "new": 7, "returns": 3}
    assert (await merchant.owner.get(f"/v1/products/{product}")).json()["price_cents"] == 333
    assert (await other[0].get("/v1/products")).status_code == 200
    [kept] = await merchant.rows("SELECT wrapped FROM cellwall.tenant_keys WHERE tenant_id = $1")
    assert kept["wrapped"] == b"wrapped"
    assert await bench.count(wish.source, merchant) == 0


async def test_a_bucket_of_many_rows_moves_while_it_is_written_to(bench: Bench, merchant: Merchant) -> None:
    shards = bench.world.databases.shards
    await bench.fill(merchant, MANY)
    gone = 0

    async def at(step: str) -> None:
        nonlocal gone
        if step == "copied":
            async with shards.enter(merchant.context()) as session:
                gone = await session.execute(DELETE_SOME)
                await session.execute(ADD_COUNTER, name="late", value=1)

    wish = bench.elsewhere(merchant)
    await bench.plan(wish)
    assert await bench.sweep(at) == 1
    assert 0 < gone < MANY
    async with shards.enter(merchant.context()) as session:
        assert len(await session.fetch(COUNTERS)) == MANY - gone + 1
    assert await bench.count(wish.source, merchant) == 0


async def test_a_hold_that_takes_too_long_is_given_up_and_nobody_waits_on(
    bench: Bench, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover_module, "ROUND_PART", 1000.0)  # however long a round takes here
    wish = bench.elsewhere(merchant)
    await bench.plan(wish)

    async def at(step: str) -> None:
        if step == "settled":
            await asyncio.Event().wait()

    assert await bench.sweep(at, hold_s=0.2) == 0
    [move] = await bench.open()
    assert "kept waiting" in move.reason
    assert (await merchant.owner.get("/v1/products")).status_code == 200
    assert bench.world.databases.shards.shard_of(merchant.number) == wish.source
    assert await bench.count(wish.target, merchant) == 0


async def test_rounds_that_do_not_grow_short_keep_nobody_waiting(
    bench: Bench, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover_module, "ROUND_PART", -1.0)
    steps: list[str] = []

    async def at(step: str) -> None:
        steps.append(step)

    await bench.plan(bench.elsewhere(merchant))
    assert await bench.sweep(at) == 0
    assert "frozen" not in steps
    [move] = await bench.open()
    assert "to find what changed" in move.reason
    assert (await merchant.owner.get("/v1/products")).status_code == 200


async def test_a_switch_whose_answer_is_lost_is_asked_about(
    bench: Bench, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.switch

    async def lost(connection: object, move: store.Move) -> None:
        await real(connection, move)
        raise OSError("the answer was lost")

    async def never_sent(_connection: object, _move: store.Move) -> None:
        raise OSError("it was not sent")

    wish = bench.elsewhere(merchant)
    await bench.plan(wish)
    monkeypatch.setattr(store, "switch", never_sent)
    assert await bench.sweep() == 0
    assert (await merchant.owner.get("/v1/products")).status_code == 200
    assert await bench.count(wish.target, merchant) == 0
    monkeypatch.setattr(store, "switch", lost)
    assert await bench.sweep() == 1
    assert (await merchant.owner.get("/v1/products")).status_code == 200
    assert await bench.count(wish.source, merchant) == 0


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


async def test_a_move_from_where_a_bucket_is_not_deletes_nothing(bench: Bench, merchant: Merchant) -> None:
    there = bench.elsewhere(merchant)
    await bench.plan(there)
    assert await bench.sweep() == 1
    await bench.plan(there)  # again, though it lies at the target by now
    assert await bench.sweep() == 0
    assert await bench.open() == []
    assert (await merchant.owner.get("/v1/products")).status_code == 200
