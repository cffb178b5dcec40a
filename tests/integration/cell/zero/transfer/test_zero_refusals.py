"""What stops a move of cell zero: named, before anything is lost, and only for the tenant that it concerns."""

import asyncio

import asyncpg
import pytest

from cell.transfer import fence as fences
from cell.zero import carry, preflight, quarantine, staging, writers
from cell.zero.monolith import cron
from contracts import ids
from contracts.problems import ProblemError
from contracts.transfer import Abort, Activate, Fence, Freeze, OpenStream, Provision, Restore, stream_name
from tests.integration.cell.cell_world import World
from tests.integration.cell.zero.transfer.zero_world import Journey, Move, Zero

ELSEWHERE = 10**17 + 5


async def refused(slug: str, doing: object) -> str:
    with pytest.raises(ProblemError) as caught:
        await doing  # type: ignore[misc]
    assert caught.value.problem.slug == slug
    return caught.value.detail


async def put_back(move: Move) -> None:
    """What the mover does with a move that was refused."""
    await move.target.abort(move.tenant, move.fence(), Abort(move.epoch))
    await move.source.restore(move.tenant, move.fence(), Restore(move.epoch + 1))


async def test_a_row_that_does_not_translate_stops_its_tenant_only_and_is_named(zero: Zero, world: World) -> None:
    (bad, knr), (good, _) = await zero.customer(), await zero.customer()
    artnr = (await zero.rows(knr)).art[0].artnr
    await zero.pool.execute("UPDATE art SET pr = 'auf Anfrage' WHERE artnr = $1", artnr)
    found = await preflight.check(zero.pool, knr)
    assert [f.faults[0] for f in found.customers] == [f"art artnr {artnr}: 'auf Anfrage' is no amount (12,50)"]
    move = Journey(zero, world, bad).out()
    await move.freeze()
    detail = await refused("untranslatable", zero.transfer.export(bad, move.fence()))
    assert f"art artnr {artnr}" in detail
    await put_back(move)
    assert (await zero.transfer.status(bad)).state == "active"
    await Journey(zero, world, good).out().whole()
    await zero.pool.execute("UPDATE art SET pr = '12,50' WHERE artnr = $1", artnr)
    again = Move(bad, zero.transfer, world.transfer, 9, 9)
    await again.whole()


async def test_a_write_past_the_ambassador_under_the_freeze_sends_the_move_back(zero: Zero, world: World) -> None:
    tenant, knr = await zero.customer()
    move = Journey(zero, world, tenant).out()
    await move.freeze()
    await world.transfer.import_(tenant, move.fence(), await zero.transfer.export(tenant, move.fence()))
    anr = (await zero.rows(knr)).aufk[0].anr
    await zero.pool.execute("UPDATE aufk SET ref = 'by cron' WHERE anr = $1", anr)
    detail = await refused("conflict", zero.transfer.checksum(tenant, move.fence()))
    assert f"aufk {anr}" in detail
    await put_back(move)


async def test_the_cron_job_of_a_tenant_that_left_is_quarantined_once_and_never_applied(
    zero: Zero, world: World
) -> None:
    tenant, knr = await zero.customer(orders=2)
    journey = Journey(zero, world, tenant)
    await journey.out().whole()
    await quarantine.look(zero.pool)
    async with zero.pool.acquire() as connection:
        assert [q for q in await quarantine.listed(zero.pool, 200) if q.customer == knr] == []
        await cron.run(connection)  # counts what was sold, reminds of old orders, forgets sessions
        anr = (await zero.rows(knr)).aufk[0].anr
        await connection.execute("DELETE FROM aufp WHERE anr = $1", anr)
    for _ in range(2):
        await quarantine.look(zero.pool)
    found = {(q.table, q.key): q.row for q in await quarantine.listed(zero.pool, 200) if q.customer == knr}
    assert found["aufk", str(anr)]["mahn"] == 1  # type: ignore[index]
    assert found["aufp", f"{anr}/1"] is None
    await journey.back().whole()  # the cell's rows win; the positions are there again
    assert {line.anr for line in (await zero.rows(knr)).aufp} >= {anr}
    async with zero.pool.acquire() as connection:
        assert not await quarantine.are_marked(connection, tenant)  # active: marked no more
    assert await quarantine.look(zero.pool) == 0


async def test_a_transaction_that_began_before_the_freeze_is_waited_for(zero: Zero, world: World) -> None:
    tenant, knr = await zero.customer()
    move = Journey(zero, world, tenant).out()
    other = await asyncpg.connect(zero.dsn)
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("UPDATE aufk SET ref = 'late' WHERE knr = $1", knr)
        await refused("freeze-budget-exceeded", move.freeze(soft_ms=0, hard_ms=50))
        freezing = asyncio.create_task(zero.transfer.freeze(tenant, move.fence(), Freeze(0, 30_000)))
        await asyncio.sleep(0.05)
        assert not freezing.done()
        await transaction.commit()
        await freezing
    finally:
        await other.close()
    ours, theirs = await move.copy()
    assert ours == theirs
    await move.switch()
    connection = await world.cell.as_superuser(world.databases.shards.shard_of(tenant))
    try:
        query = "SELECT DISTINCT reference FROM product.orders WHERE tenant_id = $1"
        assert [row["reference"] for row in await connection.fetch(query, tenant)] == ["late"]
    finally:
        await connection.close()


async def test_what_the_monolith_cannot_say_stops_the_way_back_and_the_tenant_stays(zero: Zero, world: World) -> None:
    tenant, knr = await zero.customer()
    before = await zero.rows(knr)
    journey = Journey(zero, world, tenant)
    await journey.out().whole()
    connection = await world.cell.as_superuser(world.databases.shards.shard_of(tenant))
    try:
        await connection.execute("UPDATE product.products SET currency = 'CHF' WHERE tenant_id = $1", tenant)
    finally:
        await connection.close()
    move = journey.back()
    await move.freeze()
    pieces = await world.transfer.export(tenant, move.fence())
    detail = await refused("untranslatable", zero.transfer.import_(tenant, move.fence(), pieces))
    assert "no letter for the currency CHF" in detail
    await put_back(move)
    assert (await world.transfer.status(tenant)).state == "active"
    assert await zero.rows(knr) == before


async def test_an_import_that_broke_off_leaves_no_row_and_the_next_one_gives_the_same_numbers(
    zero: Zero, world: World
) -> None:
    tenant, knr = await zero.customer()
    journey = Journey(zero, world, tenant)
    await journey.out().whole()
    before = await zero.rows(knr)
    move = journey.back()
    await move.freeze()
    stream = await world.transfer.export(tenant, move.fence())
    pieces = [piece async for piece in stream]

    async def cut() -> object:
        for piece in pieces[:-1]:
            yield piece

    await refused("invalid-input", zero.transfer.import_(tenant, move.fence(), cut()))  # type: ignore[arg-type]
    assert await zero.rows(knr) == before
    ours, theirs = await move.copy()
    assert ours == theirs
    await move.switch()
    assert await zero.rows(knr) == before


async def test_a_late_activation_of_an_import_that_was_given_up_is_refused(zero: Zero, world: World) -> None:
    tenant, _ = await zero.customer()
    journey = Journey(zero, world, tenant)
    await journey.out().whole()
    move = journey.back()
    await move.freeze()
    await move.copy()
    late = move.fence()
    await put_back(move)
    await refused("fenced", zero.transfer.activate(tenant, late, Activate(move.epoch)))
    assert (await zero.transfer.status(tenant)).state == "aborted"


async def test_who_never_was_a_customer_does_not_come_to_the_monolith(zero: Zero, world: World) -> None:
    merchant = await world.merchant()
    move = Move(merchant.number, world.transfer, zero.transfer, 2, 2)
    await refused("conflict", move.freeze())
    provision = Provision(1, "New", "new@example.test", "a long password")
    await refused("wrong-state", zero.transfer.provision(ELSEWHERE, move.fence(), provision))


async def test_a_table_that_the_translation_does_not_know_is_named_before_anything_is_touched(zero: Zero) -> None:
    await zero.pool.execute("ALTER TABLE art ADD COLUMN farbe text")
    try:
        found = await preflight.check(zero.pool)
        assert found.blockers == ("art has columns that the translation does not know: farbe",)
    finally:
        await zero.pool.execute("ALTER TABLE art DROP COLUMN farbe")
    await zero.pool.execute("ALTER TABLE sess DROP CONSTRAINT sess_pkey")
    try:
        (blocker,) = (await preflight.check(zero.pool)).blockers
        assert blocker.startswith("sess has no primary key")
    finally:
        await zero.pool.execute("ALTER TABLE sess ADD PRIMARY KEY (sid)")
    assert (await preflight.check(zero.pool)).warnings == (
        "prot, has no primary key, stays behind: it belongs to no customer",
    )


@pytest.mark.parametrize(
    ("change", "undo", "said"),
    [
        (
            "ALTER TABLE knd ADD COLUMN kredit text",
            "ALTER TABLE knd DROP COLUMN kredit",
            "knd has columns that the translation does not know: kredit",
        ),
        (
            "ALTER TABLE sess DROP CONSTRAINT sess_pkey",
            "ALTER TABLE sess ADD PRIMARY KEY (sid)",
            "sess has no primary key",
        ),
    ],
)
async def test_no_way_out_loses_a_column_that_came_or_finds_no_row_again(
    zero: Zero, world: World, change: str, undo: str, said: str
) -> None:
    tenant, _ = await zero.customer()
    move = Journey(zero, world, tenant).out()
    large = OpenStream(stream_name(ids.tenant_of(tenant), "m1", "out"))
    await zero.pool.execute(change)
    try:
        assert said in await refused("untranslatable", zero.streams.preflight(tenant))  # start, and its dry run
        assert said in await refused("untranslatable", zero.streams.senders.open(tenant, move.fence(), large))
        await move.freeze()
        assert said in await refused("untranslatable", zero.transfer.export(tenant, move.fence()))
    finally:
        await zero.pool.execute(undo)
    await move.copy()
    await zero.pool.execute(change)  # after the snapshot that was translated
    try:
        assert said in await refused("untranslatable", zero.transfer.checksum(tenant, move.fence()))
    finally:
        await zero.pool.execute(undo)
    await put_back(move)


async def test_the_fence_refuses_direct_writers_of_a_tenant_that_left_and_nobody_else(zero: Zero, world: World) -> None:
    (left, knr), (_, stays) = await zero.customer(), await zero.customer()
    journey = Journey(zero, world, left)
    async with zero.pool.acquire() as connection:
        await writers.refuse(connection)
    try:
        await journey.out().whole()
        anr = (await zero.rows(knr)).aufk[0].anr
        for statement in (
            f"UPDATE aufk SET mahn = mahn + 1 WHERE knr = {knr}",
            f"DELETE FROM aufp WHERE anr = {anr}",
            f"UPDATE art SET knr = {knr} WHERE knr = {stays}",
            f"INSERT INTO ben (knr, login, pwd, adr, anl) VALUES ({knr}, 'x', '', 'x', '')",
        ):
            with pytest.raises(asyncpg.PostgresError, match=f"customer {knr} is gone here"):
                await zero.pool.execute(statement)
        await zero.pool.execute("UPDATE aufk SET mahn = mahn + 1 WHERE knr = $1", stays)
        await journey.back().whole()
        await zero.pool.execute("UPDATE aufk SET mahn = mahn + 1 WHERE knr = $1", knr)
    finally:
        async with zero.pool.acquire() as connection:
            await writers.allow(connection)


async def test_a_translation_that_a_newer_command_overtook_stages_nothing(zero: Zero) -> None:
    tenant, _ = await zero.customer()
    old, new = Fence(1, 1, "m1"), Fence(2, 1, "m1")
    await fences.arrive(zero.pool, tenant, old, "stream-open")

    async def overtaken() -> None:
        clock = asyncio.get_running_loop().time
        async with carry.beside(zero.pool, tenant, old, "changes", clock) as (connection, _row):
            assert await carry.out(connection, tenant, anew=True) > 0
            await fences.arrive(zero.pool, tenant, new, "stream-open")

    await refused("fenced", overtaken())
    async with zero.pool.acquire() as connection:
        assert (await staging.read(connection, tenant)).orders == ()
        assert not await quarantine.are_marked(connection, tenant)
