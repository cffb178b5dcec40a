"""A real fleet with an old shop: its customers leave while they order, its ambassador dies, one of them comes back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from infra.local.fleet import Fleet
from infra.local.spec import ZERO, FleetSpec, LocalCellSpec, ZeroSpec
from loadtest.leaving import Leaving
from loadtest.oldshop import Customer, OldShop, Seen
from loadtest.operator import ControlPlane
from tests.system.leftovers import Snapshot
from tests.system.product import Product
from tests.system.waiting import until

RATE = 30.0
TRIES = 5
OVER = {"done", "incomplete", "stopped", "cancelled"}
STANDBY = ("standby", "large")
SPEC = FleetSpec(
    cells=(LocalCellSpec("cell-1", shards=1), LocalCellSpec("cell-2", shards=1)),
    workers=1,
    router_arguments=("--hold-s", "60", "--request-s", "80"),
    zero=ZeroSpec(customers=3, longest_s=2),
)


@pytest_asyncio.fixture
async def old_fleet(system_folder: Path) -> AsyncIterator[Fleet]:
    """A small fleet with cell zero, of this test alone."""
    async with Fleet.start(SPEC, system_folder / "old", lambda _: None) as running:
        async with Product.at(running) as client:
            await client.leave_noise_alone()
        snapshot = Snapshot.of(running)
        yield running
    assert snapshot.left() == []


class Way:
    """What the test does and sees of the way out."""

    def __init__(self, product: Product, shop: OldShop) -> None:
        self.product = product
        self.shop = shop

    async def ask(self, method: str, path: str, **more: Any) -> Any:
        return (await self.product.operate(method, path, **more)).json()

    async def written(self, seen: Seen, customers: Sequence[Customer], cell: str | None = None, more: int = 2) -> None:
        """Wait for more orders of each of these customers; of that cell, or of wherever they live now."""
        cells = {c.tenant: cell or (await self.ask("GET", f"/v1/tenants/{c.tenant}"))["cell"] for c in customers}
        want = {tenant: seen.written(tenant, home) + more for tenant, home in cells.items()}

        async def reached() -> bool:
            return all(seen.written(tenant, cells[tenant]) >= count for tenant, count in want.items())

        await until(reached, f"{more} more orders of each customer, in {cells}")

    async def moved(self, count: int) -> None:
        async def reached() -> bool:
            return bool((await self.ask("GET", f"/v1/zero/{ZERO}"))["moved"] >= count)

        await until(reached, f"{count} customers to leave {ZERO}")

    async def over(self, batch: str) -> dict[str, Any]:
        async def ended() -> dict[str, Any] | None:
            view: dict[str, Any] = await self.ask("GET", f"/v1/batches/{batch}")
            return view if view["state"] in OVER else None

        return await until(ended, f"the end of batch {batch}", timeout_s=120)

    async def emptied(self, batch: str) -> None:
        """Wait until nobody is left: a batch whose moves met a dead ambassador too often is begun again."""
        for _ in range(TRIES):
            if (await self.over(batch))["state"] == "done":
                return
            batch = (await self.ask("POST", f"/v1/zero/{ZERO}/migrate", json={"limits": {"max_errors": 1}}))["id"]
        raise AssertionError(f"customers are left in {ZERO} after {TRIES} batches")

    async def followed(self, tenant: str) -> None:
        """Move it as a large one, and wait until the shop follows its new home."""
        move = await self.ask("POST", "/v1/moves", json={"tenant": tenant, "to": "cell-2", "standby": True})

        async def following() -> bool:
            view = await self.ask("GET", f"/v1/moves/{move['id']}")
            assert view["state"] not in ("failed", "cancelled"), view
            return bool(view["progress"]["way_back"] == "following")

        await until(following, f"{ZERO} to follow {tenant}", timeout_s=120)

    async def mended(self, batch: str, customers: Sequence[Customer]) -> None:
        """Start the ambassador anew, and let nobody more leave before every router comes to it again: one that met it
        dead stays away for seconds, and with nobody left there it would refuse the first one who comes back."""
        await self.ask("POST", f"/v1/batches/{batch}/pause")
        await self.product.fleet.revive("cell-zero-ambassador")

        async def served() -> bool:
            homes = {c.tenant: (await self.ask("GET", f"/v1/tenants/{c.tenant}"))["cell"] for c in customers}
            left = next(c for c in customers if homes[c.tenant] == ZERO)
            fields, page = {"Host": left.host, "Cookie": left.cookie}, f"/auftrag.php?anr={left.anr}"
            answers = [await self.product.client.get(url + page, headers=fields) for url in self.product.routers]
            return all((a.status_code, a.headers.get("cell-served", "")[: len(ZERO)]) == (200, ZERO) for a in answers)

        await until(served, f"every router to come to {ZERO} again")
        await self.ask("POST", f"/v1/batches/{batch}/resume")

    async def rolled_back(self, tenant: str) -> None:
        async def left() -> dict[str, Any] | None:
            """A customer who left is served before the move is over; a small one has no way back until then."""
            moves = (await self.ask("GET", "/v1/moves", params={"tenant": tenant}))["moves"]
            ways = (each for each in moves if each["state"] == "done" or (each["state"], each["path"]) == STANDBY)
            return next((each for each in ways if each["source"] == ZERO), None)

        move = await until(left, f"a move of {tenant} that can be undone")
        back = await self.ask("POST", f"/v1/moves/{move['id']}/rollback")

        async def ended() -> str | None:
            state: str = (await self.ask("GET", f"/v1/moves/{back['id']}"))["state"]
            assert state not in ("failed", "cancelled"), await self.ask("GET", f"/v1/moves/{back['id']}")
            return state if state == "done" else None

        await until(ended, f"the way back of {tenant}")


@contextlib.asynccontextmanager
async def ordering(shop: OldShop, customers: Sequence[Customer]) -> AsyncIterator[Seen]:
    """The customers use the shop for as long as the block runs; then every answer is waited for."""
    seen, stop = Seen(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(shop.traffic(customers, RATE, seen, stop))
        try:
            yield seen
        finally:
            stop.set()


@pytest.mark.invariant(1)
@pytest.mark.invariant(2)
async def test_customers_leave_the_old_shop_though_its_ambassador_is_killed_and_one_comes_back_and_nothing_is_lost(
    old_fleet: Fleet,
) -> None:
    async with Product.at(old_fleet) as product, contextlib.AsyncExitStack() as stack:
        shop = OldShop.of(old_fleet)
        stack.push_async_callback(shop.aclose)
        way = Way(product, shop)
        await way.ask("POST", f"/v1/zero/{ZERO}/plan", json={"owner": "the test"})
        customers = await shop.log_in()
        assert len(customers) == 3
        async with ordering(shop, customers) as seen:
            await way.written(seen, customers, ZERO)
            large = customers[2]
            await way.followed(large.tenant)
            await way.written(seen, [large], "cell-2")
            await way.rolled_back(large.tenant)
            await way.written(seen, [large], ZERO)
            assert seen.failures == [], "a customer saw how one was copied while it worked, or how it came back"
            limits = {"at_once": 1, "max_errors": 1}
            batch = await way.ask("POST", f"/v1/zero/{ZERO}/migrate", json={"limits": limits})
            await way.moved(1)
            assert seen.failures == [], "a customer saw the first of them leave"
            await old_fleet.kill("cell-zero-ambassador")
            await way.mended(batch["id"], customers)
            await way.emptied(batch["id"])
            unseen = len(seen.failures)
            await way.written(seen, customers)
            back = customers[0]
            await way.rolled_back(back.tenant)
            await way.written(seen, [back], ZERO)
            assert seen.failures[unseen:] == [], "a customer saw the way back"

        control = ControlPlane(old_fleet.control_plane.url, old_fleet.control_plane.operator_key)
        stack.push_async_callback(control.aclose)
        homes = await control.homes()
        async with old_fleet.operator() as operator:
            books = await Leaving(old_fleet, shop, operator, lambda _: None).settled(customers, seen, homes)
        assert books.balanced, books.words()
        assert {homes[c.tenant].cell == ZERO for c in customers[1:]} == {False}
        assert homes[back.tenant].cell == ZERO
        status = await way.ask("GET", f"/v1/zero/{ZERO}")
        assert (status["moved"], status["left"], status["quarantined"]) == (2, 1, 0)
