"""The books' own reader and the switching of the fence, on real databases with the tables as the cells declare them."""

import uuid
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from cell.modules.orders.tables import orders
from cell.shards.tables import metadata, shard_fences, tenants
from infra.local.servers import GivenPostgres, PostgresServer
from loadtest import ledger, negative
from loadtest.books import Home, Wrong, audit
from loadtest.negative import FENCE, FenceError, purge_delayed, sweep, without_fence
from loadtest.record import Acknowledged

MakeShard = Callable[[], Awaitable[str]]


@pytest.fixture
def make_shard(postgres: PostgresServer | GivenPostgres) -> MakeShard:
    """Makes an empty shard database with the fence in it; returns the superuser's DSN."""

    async def make() -> str:
        dsn = await postgres.create_database(f"ledger_{uuid.uuid4().hex[:8]}")
        engine = create_async_engine(sa.make_url(dsn).set(drivername="postgresql+asyncpg"))
        async with engine.begin() as connection:
            for schema in ("cellwall", "product"):
                await connection.execute(sa.schema.CreateSchema(schema))
            await connection.run_sync(metadata.create_all, tables=[tenants, shard_fences, orders])
            await connection.execute(sa.text("ALTER TABLE product.orders FORCE ROW LEVEL SECURITY"))
        await engine.dispose()
        await execute(dsn, FENCE.read_text())
        return dsn

    return make


async def execute(dsn: str, sql: str, *values: object) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql, *values)
    finally:
        await connection.close()


async def fence_row(dsn: str, tenant: int, state: str, epoch: int) -> None:
    sql = "INSERT INTO cellwall.tenants (tenant_id, bucket, epoch, state) VALUES ($1, 0, $2, $3)"
    await execute(dsn, sql, tenant, epoch, state)


async def order(dsn: str, tenant: int, reference: str) -> str:
    name = uuid.uuid4()
    columns = "tenant_id, order_id, number, reference, status, total_cents, currency, created_by"
    number = "(SELECT count(*) + 1 FROM product.orders)"
    sql = f"INSERT INTO product.orders ({columns}) VALUES ($1, $2, {number}, $3, 'open', 1, 'EUR', $2)"
    await execute(dsn, sql, tenant, name, reference)
    return str(name)


async def test_the_reader_misses_a_shard_a_row_or_its_fence(make_shard: MakeShard) -> None:
    """Two cells: the tenant has moved from one to the other, and one write was taken where it no longer lives."""
    old, new = await make_shard(), await make_shard()
    await fence_row(old, 7, "moved", 1)
    await fence_row(new, 7, "active", 2)
    good = await order(new, 7, "run-1")
    stray = await order(old, 7, "run-2")
    rows = await ledger.read({"cell-1": {"shard-1": old}, "cell-2": {"shard-1": new}})
    assert {(r.cell, r.order, r.reference, r.state, r.epoch) for r in rows} == {
        ("cell-2", good, "run-1", "active", 2),
        ("cell-1", stray, "run-2", "moved", 1),
    }
    told = [Acknowledged("t7", good, "run-1", 1.0, "cell-2", 2), Acknowledged("t7", stray, "run-2", 2.0, "cell-1", 1)]
    result = audit(told, {}, rows, {"t7": Home("cell-2", 2)})
    assert [f.wrong for f in result.findings] == [Wrong.MISPLACED]
    assert stray in result.words()[1]


async def test_a_shard_that_cannot_be_read_is_left_out(make_shard: MakeShard) -> None:
    dsn = await make_shard()
    with pytest.raises(asyncpg.PostgresError):
        await ledger.read({"cell-1": {"shard-1": dsn, "shard-2": dsn + "_not_there"}})


async def entered(dsn: str) -> str:
    """The SQLSTATE with which a tenant that is not there is refused, or nothing where it is let in."""
    try:
        await execute(dsn, "SELECT cellwall.enter_tenant(9, 1)")
    except asyncpg.PostgresError as e:
        return str(e.sqlstate)
    return ""


async def test_the_fence_stays_off_after_a_negative_control_that_failed(make_shard: MakeShard) -> None:
    shards = [await make_shard(), await make_shard()]
    seen: list[str] = []

    async def fail_in_the_middle() -> None:
        async with without_fence(shards):
            seen.extend([await entered(dsn) for dsn in shards])
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        await fail_in_the_middle()
    assert seen == ["", ""]
    assert [await entered(dsn) for dsn in shards] == ["CW421", "CW421"]


async def test_a_fence_that_came_back_different_passes(make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = await make_shard()
    monkeypatch.setattr(negative, "FENCE", negative.NO_FENCE)
    with pytest.raises(FenceError):
        async with without_fence([shard]):
            pass


async def test_the_purge_wins_the_race_against_the_stale_router(make_shard: MakeShard) -> None:
    shard = await make_shard()
    await order(shard, 9, "run-1")
    async with purge_delayed([shard], "t9"):
        with pytest.raises(asyncpg.LockNotAvailableError):
            await execute(shard, "SET lock_timeout = '20ms'; DELETE FROM product.orders")
        await order(shard, 9, "run-2")
    await execute(shard, "SET lock_timeout = '20ms'; DELETE FROM product.orders")


async def test_rows_of_the_scratch_tenant_stay(make_shard: MakeShard) -> None:
    shard = await make_shard()
    await order(shard, 9, "run-1")
    kept = await order(shard, 10, "run-1")
    await sweep(shard, "t9")
    assert [r.order for r in await ledger.read_shard("cell-1", "shard-1", shard)] == [kept]


class Books:
    """Two shards of two cells: tenant 8 lives in the first, tenant 7 in the second, with 20 acknowledged orders."""

    def __init__(self, first: str, second: str) -> None:
        self.first = first
        self.second = second
        self.told: list[Acknowledged] = []

    async def fill(self) -> None:
        await fence_row(self.first, 7, "moved", 1)
        await fence_row(self.first, 8, "active", 1)
        await fence_row(self.second, 7, "active", 2)
        for n in range(20):
            name = await order(self.second, 7, f"run-{n}")
            self.told.append(Acknowledged("t7", name, f"run-{n}", 1.0, "cell-2", 2))

    async def findings(self) -> list[Wrong]:
        rows = await ledger.read({"cell-1": {"shard-1": self.first}, "cell-2": {"shard-1": self.second}})
        found = audit(self.told, {}, rows, {"t7": Home("cell-2", 2), "t8": Home("cell-1", 1)})
        return [finding.wrong for finding in found.findings]

    async def lose(self) -> None:
        await execute(self.second, "DELETE FROM product.orders WHERE reference = 'run-7'")

    async def double(self) -> None:
        await order(self.second, 7, "run-7")

    async def misplace(self) -> None:
        await self.lose()
        name = next(ack.order for ack in self.told if ack.key == "run-7")
        columns = "tenant_id, order_id, number, reference, status, total_cents, currency, created_by"
        sql = f"INSERT INTO product.orders ({columns}) VALUES (7, $1, 1, 'run-7', 'open', 1, 'EUR', $1)"
        await execute(self.first, sql, uuid.UUID(name))

    async def leak(self) -> None:
        await order(self.first, 8, "run-7")

    async def invent(self) -> None:
        await order(self.first, 8, "of nobody")


@pytest.mark.parametrize(
    ("tamper", "wrong"),
    [
        (Books.lose, Wrong.LOST),
        (Books.double, Wrong.DOUBLED),
        (Books.misplace, Wrong.MISPLACED),
        (Books.leak, Wrong.FOREIGN),
        (Books.invent, Wrong.FOREIGN),
    ],
)
async def test_the_books_balance_over_rows_that_were_tampered_with(
    make_shard: MakeShard, tamper: Callable[[Books], Awaitable[None]], wrong: Wrong
) -> None:
    """The negative controls: one write of twenty is made wrong in each way, in the database itself.

    The control of `Wrong.STALE` is in test_lab_driver.py: a stale read leaves no trace in any row.
    """
    books = Books(await make_shard(), await make_shard())
    await books.fill()
    assert await books.findings() == []
    await tamper(books)
    assert await books.findings() == [wrong]
