"""Clients of one tenant that write without a pause, through every router, and remember what they were told."""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx

from loadtest.books import Audit, Home, audit
from loadtest.ledger import read
from loadtest.record import Acknowledged
from tests.system.product import Product, Tenant
from tests.system.waiting import until


@dataclass
class Writers:
    """What was acknowledged, what was not, and why not."""

    product: Product
    tenant: Tenant
    item: str
    acknowledged: list[Acknowledged] = field(default_factory=list)
    open: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    served_by: list[str] = field(default_factory=list)

    async def write(self, router: int) -> None:
        """One order; its reference is its key, so that the books can find it."""
        key = secrets.token_hex(12)
        self.open[key] = self.tenant.id
        body = {"lines": [{"product_id": self.item, "quantity": 1}], "reference": key}
        answer = await self.product.ask(
            self.tenant, "POST", "/v1/orders", router=router, json=body, headers={"Idempotency-Key": key}
        )
        if answer.status_code != 201:
            self.failures.append(f"{answer.status_code} {answer.text}")
            return
        del self.open[key]
        cell, _, epoch = answer.headers["Cell-Served"].partition(";epoch=")
        self.served_by.append(cell)
        made = answer.json()["id"]
        self.acknowledged.append(Acknowledged(self.tenant.id, made, key, len(self.served_by), cell, int(epoch)))

    async def more(self, count: int) -> None:
        """Wait until ``count`` more writes were acknowledged than now."""
        want = len(self.acknowledged) + count

        async def reached() -> bool:
            assert not self.failures, self.failures[:3]
            return len(self.acknowledged) >= want

        await until(reached, f"{count} more writes")

    async def audit(self) -> Audit:
        """Settle the books of this tenant against every shard of every cell."""
        view = (await self.product.operate("GET", f"/v1/tenants/{self.tenant.id}")).json()
        homes = {self.tenant.id: Home(view["cell"], view["epoch"])}
        rows = await read({name: cell.shards for name, cell in self.product.fleet.cells.items()})
        return audit(self.acknowledged, self.open, rows, homes)


@contextlib.asynccontextmanager
async def writing(product: Product, tenant: Tenant, *, clients: int = 4) -> AsyncIterator[Writers]:
    """Write for as long as the block runs, then let every client finish its last write."""
    writers = Writers(product, tenant, await product.product(tenant))
    stop = asyncio.Event()

    async def client(number: int) -> None:
        for turn in itertools.count(number):
            if stop.is_set():
                return
            try:
                await writers.write(turn % len(product.routers))
            except httpx.HTTPError as e:
                writers.failures.append(repr(e))

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
        try:
            yield writers
        finally:
            stop.set()
