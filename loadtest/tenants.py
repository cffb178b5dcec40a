"""Makes the tenants of a run: sign-up at the front door, products, and a first order of each to read."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.operator import Product, SignedUp
from loadtest.outside import METHOD, Outside
from loadtest.record import Acknowledged
from loadtest.workload import Account

PRODUCTS = 3
AT_ONCE = 3  # a sign-up hashes a password: more at once only queue for the processors
ROUTED_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Cast:
    """The tenants, busiest first, and what they had written before the traffic began."""

    accounts: tuple[Account, ...]
    first_orders: tuple[Acknowledged, ...]

    @property
    def orders(self) -> dict[str, list[str]]:
        """Known orders per tenant."""
        return {a.tenant: [a.order] for a in self.first_orders}


async def sign_up(
    routers: Sequence[Product], front_door: str, slugs: Sequence[str], run: str, outside: Outside | None = None
) -> Cast:
    """Sign all of them up, a few at a time. Returns when every router serves every one of them.

    With an ``outside`` their customers pay, and their servers are told.
    """
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(slug: str) -> tuple[Account, Acknowledged]:
        async with gate:
            return await _one(routers, front_door, slug, run, outside)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(slug)) for slug in slugs]
    made = [task.result() for task in tasks]
    return Cast(tuple(account for account, _ in made), tuple(order for _, order in made))


async def _one(
    routers: Sequence[Product], front_door: str, slug: str, run: str, outside: Outside | None
) -> tuple[Account, Acknowledged]:
    password = secrets.token_urlsafe(16)
    tenant = await routers[0].sign_up(front_door, slug, slug.replace("-", " ").title(), password)
    for router in routers:
        await router.wait_routed(tenant, timeout_s=ROUTED_TIMEOUT_S)
    method = ""
    if outside is not None:
        method = METHOD
        await outside.listen(routers[0], tenant)
    account = Account(tenant.tenant, slug, tenant.host, tenant.api_key, await _products(routers[0], tenant), method)
    return account, await first_order(routers[-1], tenant, account.products[0], f"{run}-first-{slug}")


async def _products(router: Product, tenant: SignedUp) -> tuple[str, ...]:
    made = []
    for n in range(1, PRODUCTS + 1):
        body = {"sku": f"SKU-{n}", "name": f"Product {n}", "price_cents": 990 * n, "currency": "EUR"}
        made.append((await router.create(tenant, "/v1/products", body)).json()["id"])
    return tuple(made)


async def first_order(router: Product, tenant: SignedUp, product: str, key: str) -> Acknowledged:
    """One order outside the measured traffic; the books count it like all others."""
    body = {"lines": [{"product_id": product, "quantity": 1}], "reference": key}
    answer = await router.create(tenant, "/v1/orders", body, key)
    cell, _, epoch = answer.headers.get("cell-served", "").partition(";epoch=")
    return Acknowledged(tenant.tenant, answer.json()["id"], key, 0.0, cell, int(epoch or 0))
