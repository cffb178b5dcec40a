"""Makes the tenants of scenarios through the front door, and finds out where each of them lives."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import httpx

from loadtest.lab.plan import Tenant
from loadtest.lab.result import Role
from loadtest.lab.system import Need, Written
from loadtest.operator import LabError, Product, SignedUp, check
from loadtest.tenants import PRODUCTS, ROUTED_TIMEOUT_S, first_order
from loadtest.workload import Account

AT_ONCE: Final = 6
AGAIN_S: Final = 0.5
SIGN_UP_TRIES: Final = 240  # the front door lets an address sign up only so often
SPARE: Final = 3  # sign-ups for each tenant that is needed, at most: placement decides where they go


@dataclass(frozen=True)
class Made:
    """A tenant that has signed up, and its cell: that which served its first order, until told otherwise."""

    number: int
    account: Account
    cell: str
    order: str


class Casting:
    """All tenants of one system. Those that were made for one scenario serve the next."""

    def __init__(self, routers: Sequence[Product], front_door: str, written: Written, run: str) -> None:
        self._routers = routers
        self._door = front_door
        self._written = written
        self._run = run
        self._made: list[Made] = []

    async def cast(self, need: Need, cells: Sequence[str]) -> list[Tenant]:
        """Sign up whoever is missing, and give everybody a role."""
        limit = SPARE * sum(need.of_cell(cell) for cell in cells) + len(self._made) + SPARE * len(cells)
        while missing := self._missing(need, cells):
            if len(self._made) >= limit:
                where = ", ".join(f"{count} in {cell}" for cell, count in missing.items())
                raise LabError(f"{len(self._made)} tenants have signed up, and still {where} are missing")
            await self.sign_up(sum(missing.values()), need.plan)
        return [tenant for cell in cells for tenant in self._give_roles(need, cell)]

    @property
    def everybody(self) -> Sequence[Made]:
        """All that have signed up, in the order of their numbers."""
        return self._made

    @property
    def cells(self) -> list[str]:
        """The cells that they live in."""
        return sorted({made.cell for made in self._made})

    def of_cell(self, cell: str) -> list[Made]:
        """Everybody who lives there."""
        return [made for made in self._made if made.cell == cell]

    def _missing(self, need: Need, cells: Sequence[str]) -> dict[str, int]:
        missing = {cell: need.of_cell(cell) - len(self.of_cell(cell)) for cell in cells}
        return {cell: count for cell, count in missing.items() if count > 0}

    def _give_roles(self, need: Need, cell: str) -> list[Tenant]:
        people = self.of_cell(cell)
        roles = [Role.AGGRESSOR] * need.aggressors.get(cell, 0) + [Role.VICTIM] * need.victims
        pairs = zip(people, roles, strict=False)
        return [Tenant(made.number, made.account, cell, role, (made.order,)) for made, role in pairs]

    def settle(self, homes: Mapping[str, str]) -> None:
        """Where tenants live by now: tenant -> cell."""
        self._made = [replace(made, cell=homes.get(made.account.tenant, made.cell)) for made in self._made]

    async def sign_up(self, count: int, plan: str) -> None:
        """So many more, wherever placement puts them."""
        gate, first = asyncio.Semaphore(AT_ONCE), len(self._made)

        async def one(number: int) -> Made:
            async with gate:
                return await self._one(number, plan)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(first, first + count)]
        self._made += [task.result() for task in tasks]

    async def _one(self, number: int, plan: str) -> Made:
        slug = f"lab-{secrets.token_hex(5)}"
        tenant = await self._through_the_door(slug, plan)
        for router in self._routers:
            await router.wait_routed(tenant, timeout_s=ROUTED_TIMEOUT_S)
        products = []
        for n in range(1, PRODUCTS + 1):
            body = {"sku": f"SKU-{n}", "name": f"Product {n}", "price_cents": 990 * n, "currency": "EUR"}
            products.append((await self._routers[0].create(tenant, "/v1/products", body)).json()["id"])
        account = Account(tenant.tenant, slug, tenant.host, tenant.api_key, tuple(products))
        order = await first_order(self._routers[-1], tenant, products[0], f"{self._run}-first-{slug}")
        self._written.acknowledged.append(order)
        return Made(number, account, order.cell or "-", order.order)

    async def _through_the_door(self, slug: str, plan: str) -> SignedUp:
        password = secrets.token_urlsafe(16)
        for _ in range(SIGN_UP_TRIES):
            answer = await self._routers[0].try_sign_up(self._door, slug, slug, password, plan)
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                made = check(answer, 201).json()
                return SignedUp(made["tenant"], made["slug"], made["host"], made["api_key"])
            await asyncio.sleep(AGAIN_S)
        raise LabError(f"the front door {self._door} refuses sign-ups with 429 for too long")
