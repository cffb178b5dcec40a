"""A large customer leaves the old shop while it orders, and comes back with what it wrote: nothing is lost or left."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from cell.shards.context import TenantContext
from cell.shards.errors import FrozenError, NotOursError
from cell.zero import quarantine
from cell.zero.monolith import store
from contracts import ids
from control_plane import move_estimate
from tests.integration.cell.cell_world import World
from tests.integration.cell.zero.transfer.zero_fleet import MODERN, ZERO, asked
from tests.integration.cell.zero.transfer.zero_world import PASSWORD, Zero
from tests.integration.control_plane.plane_world import Plane

PATIENCE_S = 60.0
TO_STANDBY = ("preparing", "copying", "catching_up", "holding", "frozen", "switching", "standby")
BACK = ("catching_up", "holding", "frozen", "switching", "standby", "purging")
Boundary = Callable[[str], Awaitable[None]]


class KilledError(Exception):
    """The leader ends here."""


class Customer:
    """One customer of the old shop, with everything that it ordered there or in the modern cell, by reference."""

    def __init__(self, fleet: Plane, zero: Zero, world: World, knr: int, tenant: int) -> None:
        self.fleet, self.zero, self.world = fleet, zero, world
        self.knr, self.tenant = knr, tenant
        self.ordered: list[str] = []
        self._term = 1

    async def order(self, epoch: int = 1) -> bool:
        """An order at the old shop, through the door; false where that does not let it in."""
        context = TenantContext(self.tenant, str(ids.tenant_of(self.tenant)), epoch, float("inf"), "r", "free")
        if not self.zero.gate.admit(self.tenant):
            return False
        try:
            await self.zero.gate.enter(context)
            async with self.zero.pool.acquire() as connection:
                (article,) = (await store.articles(connection, self.knr))[:1]
                bnr = await connection.fetchval("SELECT min(bnr) FROM ben WHERE knr = $1", self.knr)
                ref = f"here {len(self.ordered)}"
                await store.add_order(connection, store.User(bnr, self.knr, "", 3), ref, [(article["artnr"], 2)])
                self.ordered.append(ref)
        except (FrozenError, NotOursError):
            return False
        finally:
            self.zero.gate.leave(self.tenant)
        return True

    async def order_there(self, epoch: int) -> None:
        """One in the modern cell, by its API."""
        client = self.world.client(f"t{self.tenant}", None, epoch=epoch)
        login = {"email": f"chef@kunde-{self.knr}.test", "password": PASSWORD}
        token = (await client.post("/v1/sessions", json=login)).json()["token"]
        owner = self.world.client(f"t{self.tenant}", token, epoch=epoch)
        product = (await owner.get("/v1/products")).json()["items"][0]
        await owner.patch(f"/v1/products/{product['id']}", json={"name": f"renamed {len(self.ordered)}"})
        ref = f"there {len(self.ordered)}"
        order = {"lines": [{"product_id": product["id"], "quantity": 1}], "reference": ref}
        answer = await owner.post("/v1/orders", json=order, headers={"Idempotency-Key": ref.replace(" ", "-")})
        assert answer.status_code == 201, answer.text
        self.ordered.append(ref)

    async def start(self, **more: object) -> str:
        """A large move of it to the modern cell, planned."""
        body = {"tenant": f"t{self.tenant}", "to": MODERN, "standby": True} | more
        return str((await asked(self.fleet, "POST", "/v1/moves", body, status=201))["id"])

    async def drive(self, move: str, on_boundary: Boundary) -> str:
        """Under a leader of its own."""
        self._term += 1
        return await self.fleet.drive(move, self._term, on_boundary)

    async def view(self, move: str) -> dict[str, Any]:
        return await asked(self.fleet, "GET", f"/v1/moves/{move}")

    @contextlib.asynccontextmanager
    async def following(self, move: str, on_boundary: Boundary) -> AsyncIterator[None]:
        """Drive it until its source follows its target, and as long as the block."""
        driving = asyncio.create_task(self.drive(move, on_boundary))
        try:
            async with asyncio.timeout(PATIENCE_S):
                while (await self.view(move))["progress"]["way_back"] != "following":
                    assert not driving.done(), driving.result()
                    await asyncio.sleep(0.02)
            yield
        finally:
            driving.cancel()
            await asyncio.gather(driving, return_exceptions=True)

    async def back(self, move: str, on_boundary: Boundary) -> str:
        """Roll it back; the state in which that ends."""
        rollback = await asked(self.fleet, "POST", f"/v1/moves/{move}/rollback", status=201)
        return await self.drive(rollback["id"], on_boundary)

    async def in_shop(self) -> list[str]:
        """References of orders in the monolith, but for the seeded ones."""
        return sorted(row.ref for row in (await self.zero.rows(self.knr)).aufk if row.ref and "Best" not in row.ref)

    async def there(self) -> list[str]:
        """The same in the modern cell."""
        query = "SELECT reference FROM product.orders WHERE tenant_id = $1 AND reference NOT LIKE 'Best%' ORDER BY 1"
        connection = await self.world.cell.as_superuser(self.world.databases.shards.shard_of(self.tenant))
        try:
            return sorted(row["reference"] for row in await connection.fetch(query, self.tenant))
        finally:
            await connection.close()

    async def assert_clean(self) -> None:
        """No stream is left in cell zero, and nobody wrote past the ambassador."""
        assert [s for s in await self.zero.streams.list() if s.tenant == f"t{self.tenant}"] == []
        assert (
            await self.zero.pool.fetch("SELECT FROM pg_replication_slots WHERE slot_name ~ $1", f"t{self.tenant}_")
            == []
        )
        await quarantine.look(self.zero.pool)
        assert [q for q in await quarantine.listed(self.zero.pool, 200) if q.customer == self.knr] == []


async def enrolled(fleet: Plane, zero: Zero, world: World, orders: int) -> Customer:
    """A new customer of the shop who is a tenant of the fleet."""
    knr = await zero.stranger(orders)
    await asked(fleet, "POST", f"/v1/zero/{ZERO}/plan", {"owner": "the test"})
    shown = await asked(fleet, "GET", f"/v1/tenants/kunde-{knr}")
    return Customer(fleet, zero, world, knr, ids.tenant_number(shown["id"]))


async def unobserved(_name: str) -> None:
    """Nothing happens at a boundary."""


async def test_a_customer_above_the_limit_leaves_while_it_orders_and_comes_back_with_what_it_wrote(
    fleet: Plane, alone: Zero, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move_estimate, "SMALL_ROWS", 1000)
    customer = await enrolled(fleet, alone, world, 600)
    estimate = await asked(fleet, "POST", "/v1/moves/estimate", {"tenant": f"t{customer.tenant}", "to": MODERN})
    assert (estimate["path"], estimate["rows"] > 1000) == ("large", True)
    before = await alone.rows(customer.knr)

    async def ordering(_name: str) -> None:
        await customer.order()

    move = await customer.start()
    async with customer.following(move, ordering):
        shown = await customer.view(move)
        assert len(customer.ordered) >= 3  # up to the hold; after it the door is shut
        assert await customer.there() == sorted(customer.ordered)
        await customer.order_there(shown["epoch"])
        assert not await customer.order()
    assert await customer.back(move, unobserved) == "done"
    after = await alone.rows(customer.knr)
    assert await customer.in_shop() == sorted(customer.ordered)
    assert set(before.aufk) < set(after.aufk)
    assert set(before.aufp) < set(after.aufp)
    assert {row.artnr for row in before.art} == {row.artnr for row in after.art}
    assert sum("renamed" in row.bez for row in after.art) == 1
    sold = sum(row.mg for row in after.aufp)
    assert sum(row.vk for row in after.art) == sold
    assert await customer.order((await customer.view(move))["epoch"] + 1)  # the shop serves it again
    await customer.assert_clean()


async def test_a_leader_that_dies_at_any_step_leaves_one_owner_and_no_order_behind(
    fleet: Plane, alone: Zero, world: World
) -> None:
    customer = await enrolled(fleet, alone, world, 20)
    move = await customer.start()
    for step in TO_STANDBY[:-1]:

        async def dying(name: str, here: str = step) -> None:
            await customer.order()
            if name == here:
                await alone.streams.shut()  # and the ambassador with it: its snapshot and its readers end
                raise KilledError

        with pytest.raises(KilledError):
            await customer.drive(move, dying)
    async with customer.following(move, unobserved):
        assert await customer.there() == sorted(customer.ordered)
        await customer.order_there((await customer.view(move))["epoch"])
    rollback = (await asked(fleet, "POST", f"/v1/moves/{move}/rollback", status=201))["id"]
    for step in BACK:

        async def dying_back(name: str, here: str = step) -> None:
            if name == here:
                await alone.streams.shut()
                raise KilledError

        with pytest.raises(KilledError):
            await customer.drive(rollback, dying_back)
    assert await customer.drive(rollback, unobserved) == "done"
    assert await customer.in_shop() == sorted(customer.ordered)
    assert (await alone.transfer.status(customer.tenant)).state == "active"
    await customer.assert_clean()


async def test_a_customer_comes_back_after_its_old_home_was_given_up_and_leaves_again_to_a_cell_that_follows_the_shop(
    fleet: Plane, alone: Zero, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move_estimate, "SMALL_ROWS", 10)
    customer = await enrolled(fleet, alone, world, 20)
    before = await alone.rows(customer.knr)
    move = await customer.start(finalize_after_s=0.0)
    assert await customer.drive(move, unobserved) == "done"
    await customer.order_there((await customer.view(move))["epoch"])

    back = await asked(fleet, "POST", f"/v1/moves/{move}/rollback", status=201)
    assert back["path"] == "large"
    async with customer.following(back["id"], unobserved):
        assert await customer.in_shop() == sorted(customer.ordered)
        assert await customer.order((await customer.view(back["id"]))["epoch"])
    assert await customer.back(back["id"], unobserved) == "done"
    assert await customer.there() == sorted(customer.ordered)
    assert set(before.aufk) < set((await alone.rows(customer.knr)).aufk)
    await customer.assert_clean()


async def test_a_write_past_the_ambassador_in_the_hold_sends_a_large_move_back_and_the_customer_keeps_it(
    fleet: Plane, alone: Zero, world: World
) -> None:
    customer = await enrolled(fleet, alone, world, 20)
    move = await customer.start()

    async def cron(name: str) -> None:
        if name == "frozen":
            await alone.pool.execute("UPDATE aufk SET mahn = mahn + 1 WHERE knr = $1 AND lfd = 1", customer.knr)

    assert await customer.drive(move, cron) == "failed"
    assert "somebody wrote past the ambassador" in str((await customer.view(move))["steps"])
    assert (await alone.rows(customer.knr)).aufk[0].mahn == 1
    assert await customer.order((await customer.view(move))["epoch"])


async def test_a_row_that_stops_translating_while_a_customer_is_copied_stops_the_move_and_leaves_nothing(
    fleet: Plane, alone: Zero, world: World
) -> None:
    customer = await enrolled(fleet, alone, world, 20)
    move = await customer.start()

    async def mistyped(name: str) -> None:
        if name == "catching_up":
            await alone.pool.execute(
                "UPDATE art SET pr = 'auf Anfrage' WHERE knr = $1 AND best = 'A-0008'", customer.knr
            )

    assert await customer.drive(move, mistyped) == "failed"
    assert "auf Anfrage' is no amount" in str((await customer.view(move))["steps"])
    assert await customer.order()
    await customer.assert_clean()


async def test_what_was_written_past_the_ambassador_while_it_was_away_is_kept_aside_when_it_comes_back(
    fleet: Plane, alone: Zero, world: World
) -> None:
    customer = await enrolled(fleet, alone, world, 20)
    move = await customer.start()
    async with customer.following(move, unobserved):
        await customer.order_there((await customer.view(move))["epoch"])
        anr = await alone.pool.fetchval(
            "UPDATE aufk SET ref = 'by cron' WHERE knr = $1 AND lfd = 2 RETURNING anr", customer.knr
        )
    assert await customer.back(move, unobserved) == "done"
    found = [q for q in await quarantine.listed(alone.pool, 200) if q.customer == customer.knr]
    assert [(q.table, q.key, (q.row or {})["ref"]) for q in found] == [("aufk", str(anr), "by cron")]
    assert await customer.in_shop() == sorted(customer.ordered)  # the cell's rows have won
