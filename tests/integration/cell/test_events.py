"""Events: told with the change, delivered in spite of crashes and losses, with their effect exactly once."""

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterable, Sequence
from uuid import UUID

import msgspec
import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.dialects.postgresql import ARRAY, insert

from cell import redrive
from cell.events import deadletters, inbox, outbox, relay, retry
from cell.events.inbox import Consumer, Inbox, Outcome, subscriptions
from cell.events.metrics import EventMetrics
from cell.events.outbox import Event
from cell.events.stream import Message, Stream, connect
from cell.shards.session import TenantSession
from cell.shards.sql import prepare
from cell.shards.tables import counters
from cell.shards.tables import outbox as outbox_table
from cell.work import Claims
from contracts.transfer import Fence, Freeze
from tests.integration.cell.cell_world import CELL, Merchant, World

_upsert = insert(counters).values(tenant_id=sa.bindparam("tenant_id"), name="effects", value=sa.literal(1))
COUNT_EFFECT = prepare(
    _upsert.on_conflict_do_update(
        index_elements=[counters.c.tenant_id, counters.c.name],
        set_={"value": counters.c.value + sa.literal_column("1")},
    )
)


class Told(msgspec.Struct):
    word: str


class Recorder:
    """A consumer with an effect in the tenant's rows, which can be told to fail after it."""

    def __init__(self, name: str = "test.recorder") -> None:
        self.failing = False
        self.calls = 0
        self.consumer = Consumer(name, frozenset({"test.told"}), self.handle)

    async def handle(self, session: TenantSession, event: Event) -> None:
        self.calls += 1
        await session.execute(COUNT_EFFECT)
        if self.failing:
            raise ValueError(f"no {event.payload['word']}")


class Plant:
    """Relay and inbox of one cell, each step by hand."""

    def __init__(self, world: World, consumers: Sequence[Consumer], stream: Stream) -> None:
        self.metrics = EventMetrics(CollectorRegistry())
        self.stream = stream
        self.relay = relay.Relay(world.databases.shards, stream, subscriptions(consumers), self.metrics)
        self.inbox = Inbox(world.databases.shards, consumers, self.metrics, chance=lambda: 0.0)

    def deliveries(self, consumer: str, outcome: Outcome) -> float:
        return float(self.metrics.consumed.labels(consumer=consumer, outcome=outcome)._value.get())


async def tell(merchant: Merchant, word: str = "news") -> UUID:
    async with merchant.world.databases.shards.enter(merchant.context()) as session:
        return await outbox.emit(session, "test.told", Told(word))


async def effects(merchant: Merchant) -> int:
    query = "SELECT value FROM cellwall.counters WHERE tenant_id = $1 AND name = 'effects'"
    rows = await merchant.rows(query)
    return int(rows[0]["value"]) if rows else 0


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


async def pass_time(merchant: Merchant, seconds: float) -> None:
    """Make everything that the tenant's events wait for older."""
    for table, column in (("outbox", "relayed_at"), ("outbox", "finished_at"), ("inbox", "due"), ("work", "due")):
        await merchant.rows(
            f"UPDATE cellwall.{table} SET {column} = {column} - make_interval(secs => {seconds}) WHERE tenant_id = $1"
        )


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def redis(world: World) -> Redis:
    return connect(world.cell.redis_url)


@pytest.fixture
async def plant(world: World, recorder: Recorder, redis: Redis) -> Plant:
    return Plant(world, [recorder.consumer], Stream(redis, CELL))


async def test_an_order_is_counted_as_sold(merchant: Merchant) -> None:
    product, other = await merchant.product(), await merchant.product()
    async with merchant.world.worker():
        for quantity in (1, 2, 3):
            assert (await merchant.order((product, quantity), (other, 1), (product, 10))).status_code == 201

        async def counted() -> bool:
            views = [(await merchant.owner.get(f"/v1/products/{p}")).json() for p in (product, other)]
            return [view["units_sold"] for view in views] == [36, 3]

        await until(counted)

        async def finished() -> bool:
            return not await merchant.rows("SELECT FROM cellwall.outbox WHERE tenant_id=$1 AND finished_at IS NULL")

        await until(finished)
    views = (await merchant.owner.get("/v1/products")).json()["items"]
    assert [view["version"] for view in views] == [1, 1], "counting is no change that a PATCH could conflict with"


async def test_an_event_of_a_change_that_was_rolled_back_was_never_told(merchant: Merchant) -> None:
    async def change() -> None:
        async with merchant.world.databases.shards.enter(merchant.context()) as session:
            await outbox.emit(session, "test.told", Told("x"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await change()
    assert not await merchant.rows("SELECT FROM cellwall.outbox WHERE tenant_id = $1")
    assert not await merchant.rows("SELECT FROM cellwall.work WHERE tenant_id = $1")


async def check_an_event_seen_many_times_has_one_effect(merchant: Merchant, plant: Plant, recorder: Recorder) -> None:
    event_id = await tell(merchant)
    deliver = plant.inbox.deliver
    outcomes = await asyncio.gather(*(deliver(recorder.consumer, merchant.number, event_id) for _ in range(4)))
    assert await effects(merchant) == 1
    assert sorted(outcomes) == [Outcome.DONE] + [Outcome.SKIPPED] * 3


@pytest.mark.invariant(1)
async def test_an_event_that_is_seen_many_times_at_once_has_one_effect(
    merchant: Merchant, plant: Plant, recorder: Recorder
) -> None:
    await check_an_event_seen_many_times_has_one_effect(merchant, plant, recorder)


@pytest.mark.mutation(1)
async def test_without_the_inbox_an_event_has_more_effects(
    merchant: Merchant, plant: Plant, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = sa.select(outbox_table.c.type, outbox_table.c.payload, outbox_table.c.created_at).where(
        outbox_table.c.event_id == sa.bindparam("event_id"),
        outbox_table.c.type == sa.any_(sa.bindparam("types", type_=ARRAY(sa.Text))),
        sa.bindparam("consumer", type_=sa.Text).is_not(None),
    )
    monkeypatch.setattr(inbox, "_CLAIM", prepare(every))
    with pytest.raises(AssertionError):
        await check_an_event_seen_many_times_has_one_effect(merchant, plant, recorder)


class FailingStream(Stream):
    """Redis has the messages, and then something else goes wrong."""

    def __init__(self, redis: Redis, error: BaseException) -> None:
        super().__init__(redis, CELL)
        self._error = error

    async def publish(self, messages: Iterable[Message]) -> None:
        await super().publish(messages)
        raise self._error


@pytest.mark.invariant(1)
async def test_a_crash_of_the_relay_repeats_the_event_and_not_its_effect(
    world: World, merchant: Merchant, plant: Plant, recorder: Recorder, redis: Redis
) -> None:
    await tell(merchant)
    crashing = Plant(world, [recorder.consumer], FailingStream(redis, SystemExit("killed")))
    with pytest.raises(SystemExit):
        await crashing.relay.relay(merchant.number)
    await pass_time(merchant, outbox.REDELIVER_AFTER.total_seconds() + 1)
    await plant.relay.relay(merchant.number)
    assert await redis.xlen(f"cellwall:{CELL}:events") == 2
    await plant.stream.ensure(recorder.consumer.name)
    messages = await plant.stream.read(recorder.consumer.name, 10)
    outcomes = [await plant.inbox.deliver(recorder.consumer, m.tenant, m.event_id) for m in messages]
    assert outcomes == [Outcome.DONE, Outcome.SKIPPED]
    assert await effects(merchant) == 1


async def test_an_event_that_redis_did_not_take_is_due_again_at_once(
    world: World, merchant: Merchant, plant: Plant, recorder: Recorder, redis: Redis
) -> None:
    await tell(merchant)
    failing = Plant(world, [recorder.consumer], FailingStream(redis, RedisError("away")))
    with pytest.raises(RedisError):
        await failing.relay.relay(merchant.number)
    assert await plant.relay.relay(merchant.number)
    assert await redis.xlen(f"cellwall:{CELL}:events") == 2


async def test_an_event_costs_a_consumer_that_it_does_not_concern_no_look_at_the_database(
    merchant: Merchant, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, looked = Recorder("test.other"), []
    other.consumer = Consumer("test.other", frozenset({"test.never-told"}), other.handle)
    deliver = Inbox.deliver

    async def counting(self: Inbox, consumer: Consumer, tenant: int, event_id: UUID) -> Outcome:
        looked.append(consumer.name)
        return await deliver(self, consumer, tenant, event_id)

    monkeypatch.setattr(Inbox, "deliver", counting)
    async with merchant.world.worker(recorder.consumer, other.consumer):
        for count in (1, 2, 3):
            await tell(merchant)
            await until(lambda count=count: _is(effects(merchant), count))  # type: ignore[misc]
    assert set(looked) == {"test.recorder"}


async def test_what_a_flushed_redis_lost_is_relayed_again(
    merchant: Merchant, plant: Plant, recorder: Recorder, redis: Redis
) -> None:
    await tell(merchant)
    assert await plant.relay.relay(merchant.number)
    await redis.flushall()
    async with merchant.world.worker(recorder.consumer):
        # The wake-up is lost too: only the sweep can find the event, once its last relay is long ago.
        await merchant.rows("DELETE FROM cellwall.work WHERE tenant_id = $1")
        await pass_time(merchant, outbox.REDELIVER_AFTER.total_seconds() + 1)
        await until(lambda: _is(effects(merchant), 1))


async def test_a_redis_that_is_flushed_while_the_worker_reads_costs_no_event(
    merchant: Merchant, recorder: Recorder, redis: Redis
) -> None:
    async with merchant.world.worker(recorder.consumer):
        await tell(merchant)
        await until(lambda: _is(effects(merchant), 1))
        await redis.flushall()
        await tell(merchant)
        await until(lambda: _is(effects(merchant), 2))


async def _is(value: Awaitable[int], expected: int) -> bool:
    return await value == expected


async def test_the_effect_of_a_failed_attempt_is_rolled_back_and_the_next_one_waits(
    merchant: Merchant, plant: Plant, recorder: Recorder
) -> None:
    event_id, deliver = await tell(merchant), plant.inbox.deliver
    recorder.failing = True
    assert await deliver(recorder.consumer, merchant.number, event_id) is Outcome.FAILED
    assert await effects(merchant) == 0
    recorder.failing = False
    assert await deliver(recorder.consumer, merchant.number, event_id) is Outcome.SKIPPED, "before its time"
    await pass_time(merchant, retry.FIRST_DELAY_S)
    assert await deliver(recorder.consumer, merchant.number, event_id) is Outcome.DONE
    assert await effects(merchant) == 1


async def test_a_failed_event_comes_back_by_itself(merchant: Merchant, recorder: Recorder) -> None:
    recorder.failing = True
    async with merchant.world.worker(recorder.consumer):
        await tell(merchant)

        async def failed() -> bool:
            return bool(await merchant.rows("SELECT FROM cellwall.inbox WHERE tenant_id = $1 AND state = 'failed'"))

        await until(failed)
        recorder.failing = False
        await pass_time(merchant, retry.FIRST_DELAY_S)
        await until(lambda: _is(effects(merchant), 1))


async def test_an_event_that_always_fails_dies_and_can_be_redriven(
    world: World, merchant: Merchant, plant: Plant, recorder: Recorder
) -> None:
    event_id = await tell(merchant, "cake")
    recorder.failing = True
    outcomes = []
    for _ in range(retry.ATTEMPTS_MAX):
        outcomes.append(await plant.inbox.deliver(recorder.consumer, merchant.number, event_id))
        await pass_time(merchant, retry.DELAY_MAX_S)
    assert outcomes == [Outcome.FAILED] * (retry.ATTEMPTS_MAX - 1) + [Outcome.DEAD]
    assert not await plant.relay.relay(merchant.number), "a dead letter waits for an operator"
    (letter,) = await deadletters.letters(world.databases.shards, merchant.number)
    assert (letter.event_id, letter.attempts, letter.error) == (event_id, retry.ATTEMPTS_MAX, "ValueError: no cake")
    recorder.failing = False
    out = io.StringIO()
    assert await redrive.every(world.databases.shards, redrive.Choice(consumer="somebody else"), out) == 0
    assert await redrive.one(world.databases.shards, merchant.number, redrive.Choice(look=True), out) == 1
    assert await plant.inbox.deliver(recorder.consumer, merchant.number, event_id) is Outcome.SKIPPED
    assert await redrive.every(world.databases.shards, redrive.Choice(), out) == 1
    assert f"t{merchant.number} test.recorder {event_id} test.told" in out.getvalue()
    async with world.worker(recorder.consumer):
        await until(lambda: _is(effects(merchant), 1))
    assert not await deadletters.letters(world.databases.shards, merchant.number)


async def test_an_event_is_finished_only_when_every_consumer_has_it(
    world: World, merchant: Merchant, redis: Redis
) -> None:
    first, second = Recorder("test.first"), Recorder("test.second")
    plant = Plant(world, [first.consumer, second.consumer], Stream(redis, CELL))
    event_id = await tell(merchant)
    unfinished = "SELECT FROM cellwall.outbox WHERE tenant_id = $1 AND finished_at IS NULL"
    await plant.inbox.deliver(first.consumer, merchant.number, event_id)
    assert await merchant.rows(unfinished)
    assert await plant.relay.relay(merchant.number), "one of two has it: outstanding"
    await plant.inbox.deliver(second.consumer, merchant.number, event_id)
    assert not await merchant.rows(unfinished)
    assert not await plant.relay.relay(merchant.number)


async def test_an_event_whose_consumers_end_at_the_same_moment_is_finished_by_the_later_one(
    world: World, merchant: Merchant, redis: Redis
) -> None:
    first, second = Recorder("test.first"), Recorder("test.second")
    consumers = [first.consumer, second.consumer]
    plant = Plant(world, consumers, Stream(redis, CELL))
    event_id = await tell(merchant)
    waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'cellwall_app' AND $1::int8 > 0"
    async with world.databases.shards.enter(merchant.context()) as session:
        await session.execute(inbox._CLAIM, consumer="test.first", event_id=event_id, types=["test.told"])
        assert not await outbox.finish(session, subscriptions(consumers), event_id), "the other has not seen it"
        later = asyncio.create_task(plant.inbox.deliver(second.consumer, merchant.number, event_id))

        async def waiting() -> bool:
            return later.done() or bool(await merchant.rows(waits))

        await until(waiting)
    assert await later is Outcome.DONE
    assert not await merchant.rows("SELECT FROM cellwall.outbox WHERE tenant_id = $1 AND finished_at IS NULL")


async def test_finished_events_are_pruned_with_their_inbox_and_others_are_not(
    merchant: Merchant, plant: Plant, recorder: Recorder
) -> None:
    done, waiting = await tell(merchant), await tell(merchant)
    await plant.inbox.deliver(recorder.consumer, merchant.number, done)
    await pass_time(merchant, outbox.RETENTION.total_seconds() + 1)
    async with merchant.world.databases.shards.enter(merchant.context()) as session:
        assert await outbox.prune(session) == 1
    left = await merchant.rows("SELECT event_id FROM cellwall.outbox WHERE tenant_id = $1")
    assert [row["event_id"] for row in left] == [waiting]
    assert not await merchant.rows("SELECT FROM cellwall.inbox WHERE tenant_id = $1")
    late = await plant.inbox.deliver(recorder.consumer, merchant.number, done)
    assert late is Outcome.SKIPPED, "a message that outlived its event must not run again"
    assert await effects(merchant) == 1


@pytest.mark.invariant(3)
async def test_a_forged_message_reaches_no_event_of_another_tenant(
    world: World, merchant: Merchant, plant: Plant, recorder: Recorder
) -> None:
    other = await world.merchant()
    event_id = await tell(other)
    assert await plant.inbox.deliver(recorder.consumer, merchant.number, event_id) is Outcome.SKIPPED
    assert recorder.calls == 0


@pytest.mark.invariant(2)
async def test_a_worker_touches_no_tenant_that_is_frozen_and_counts_no_attempt(
    world: World, merchant: Merchant, plant: Plant, recorder: Recorder
) -> None:
    event_id = await tell(merchant)
    await world.transfer.freeze(merchant.number, Fence(2, 1, "move"), Freeze(0, 1000))
    assert await plant.inbox.deliver(recorder.consumer, merchant.number, event_id) is Outcome.REFUSED
    shard = world.databases.shards.shard_of(merchant.number)
    for claim in await plant.relay.claim(shard):
        await plant.relay.attend(shard, claim)
    (row,) = await merchant.rows("SELECT relayed_at FROM cellwall.outbox WHERE tenant_id = $1")
    assert row["relayed_at"] is None
    assert not await merchant.rows("SELECT FROM cellwall.inbox WHERE tenant_id = $1")
    assert recorder.calls == 0


async def test_the_wake_up_goes_when_nothing_is_outstanding(
    merchant: Merchant, plant: Plant, recorder: Recorder
) -> None:
    event_id = await tell(merchant)
    shard = merchant.world.databases.shards.shard_of(merchant.number)
    waiting = "SELECT FROM cellwall.work WHERE tenant_id = $1"

    async def attend() -> None:
        for claim in await plant.relay.claim(shard):
            await plant.relay.attend(shard, claim)

    await attend()
    assert await merchant.rows(waiting), "kept as a lease until the consumers have it"
    await plant.inbox.deliver(recorder.consumer, merchant.number, event_id)
    await pass_time(merchant, outbox.REDELIVER_AFTER.total_seconds() + 1)
    await attend()
    assert not await merchant.rows(waiting)


async def test_an_event_told_while_its_tenant_is_attended_keeps_the_wake_up(merchant: Merchant, plant: Plant) -> None:
    shard = merchant.world.databases.shards.shard_of(merchant.number)
    await tell(merchant)
    (claim,) = [c for c in await plant.relay.claim(shard) if c.tenant == merchant.number]
    await tell(merchant)
    await Claims(merchant.world.databases.shards, outbox.WORK_KIND).drop(shard, claim)
    assert await merchant.rows("SELECT FROM cellwall.work WHERE tenant_id = $1 AND due <= now()")


async def test_two_workers_do_not_attend_a_tenant_at_the_same_time(merchant: Merchant, plant: Plant) -> None:
    shard = merchant.world.databases.shards.shard_of(merchant.number)
    await tell(merchant)
    claims = await asyncio.gather(*(plant.relay.claim(shard) for _ in range(2)))
    assert [c.tenant for claim in claims for c in claim].count(merchant.number) == 1
