"""Tenants leave cell zero under their own traffic, by what `cellctl zero plan` and `migrate` ask for."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx

from infra.local.fleet import Fleet
from infra.local.spec import ZERO
from loadtest import ledger
from loadtest.books import Audit, Finding, Home, Row, Wrong, audit
from loadtest.oldshop import Customer, OldShop, Seen
from loadtest.operator import LabError, check

OWNER: Final = "the demo"
RATE: Final = 40.0  # requests a second over all customers
WARM: Final = 3  # orders of each customer before anybody moves, and in the new cell afterwards
PATIENCE_S: Final = 60.0
SHOWN: Final = 5
BAR: Final = 20  # characters
_POLL_S: Final = 0.05
_OVER: Final = ("done", "incomplete", "cancelled", "stopped", "paused")


@dataclass(frozen=True)
class Left:
    """What came of it. ``homes`` is where the customers' tenants live afterwards."""

    customers: Sequence[Customer]
    homes: Mapping[str, Home]
    seen: Seen
    audit: Audit
    status: Mapping[str, Any] = field(repr=False)

    @property
    def moved(self) -> int:
        """How many live in a modern cell now."""
        return sum(self.homes[each.tenant].cell != ZERO for each in self.customers)

    @property
    def good(self) -> bool:
        """All but one moved, nothing failed, and every order exists exactly once, where its tenant lives."""
        return self.moved == len(self.customers) - 1 and not self.seen.failures and self.audit.balanced

    def words(self) -> str:
        """One sentence."""
        requests = f"{self.seen.sent} requests to old URLs, {len(self.seen.failures)} failed"
        longest = f"longest {self.seen.longest_s * 1000:.0f} ms"
        return f"{self.moved} of {len(self.customers)} customers left {ZERO}; {requests}, {longest}"

    def burn_down(self) -> str:
        """How far the way out is, and who stays."""
        moved, every = self.status["moved"], self.status["customers"]
        full = BAR * moved // every
        stays = "".join(f"; {b['slug']} stays: {b['reason']}" for b in self.status["blockers"])
        return f"{ZERO} [{'#' * full}{'.' * (BAR - full)}] {moved} of {every} moved{stays}"

    def books(self) -> list[str]:
        """What the books say, and the first failures."""
        return [*self.audit.words(), *self.seen.failures[:SHOWN]]


class Leaving:
    """One run of it on a fleet that is up and has a cell zero."""

    def __init__(self, fleet: Fleet, shop: OldShop, http: httpx.AsyncClient, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._shop = shop
        self._http = http
        self._say = say

    async def run(self, homes: Callable[[], Any]) -> Left:
        """Everything; `LabError` where the control plane refuses. ``homes`` asks it where every tenant lives."""
        await self._ask("POST", "/plan", json={"owner": OWNER})
        customers = await self._shop.log_in()
        stays = customers[-1]
        await self._shop.spoil(stays.knr)
        orders = sum(each.orders for each in customers)
        self._say(f"{len(customers)} customers with {orders} orders are tenants of {ZERO}, and use it by its old URLs")
        seen, stop = Seen(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._shop.traffic(customers, RATE, seen, stop))
            try:
                await self._written(seen, customers, {each.tenant: ZERO for each in customers})
                await self._migrated()
                at = await homes()
                await self._written(seen, customers, {each.tenant: at[each.tenant].cell for each in customers})
            finally:
                stop.set()
        at = await homes()
        status = (await self._ask("GET", "")).json()
        return Left(customers, at, seen, await self.settled(customers, seen, at), status)

    async def _written(self, seen: Seen, customers: Sequence[Customer], cells: Mapping[str, str]) -> None:
        """Wait until each customer has some orders more, acknowledged by that cell."""
        until = time.monotonic() + PATIENCE_S
        want = {each.tenant: seen.written(each.tenant, cells[each.tenant]) + WARM for each in customers}
        while any(seen.written(tenant, cells[tenant]) < count for tenant, count in want.items()):
            if time.monotonic() > until or seen.failures:
                raise LabError(f"customers of the old shop cannot order: {seen.failures[:SHOWN] or 'no answer'}")
            await asyncio.sleep(_POLL_S)

    async def _migrated(self) -> None:
        began, until = time.monotonic(), time.monotonic() + PATIENCE_S
        batch = (await self._ask("POST", "/migrate", json={"limits": {"first_wave": 3}})).json()
        self._say("moving out everybody who can be moved, while they order (cellctl zero migrate)")
        while batch["state"] not in _OVER:
            if time.monotonic() > until:
                raise LabError(f"the batch {batch['id']} is still {batch['state']}: {batch['reason']}")
            await asyncio.sleep(_POLL_S)
            batch = check(await self._http.get(f"/v1/batches/{batch['id']}", timeout=PATIENCE_S), 200).json()
        self._say(f"{batch['counts'].get('done', 0)} moved in {time.monotonic() - began:.1f} s")

    async def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return check(await self._http.request(method, f"/v1/zero/{ZERO}{path}", timeout=PATIENCE_S, **more), 200, 201)

    async def settled(self, customers: Sequence[Customer], seen: Seen, homes: Mapping[str, Home]) -> Audit:
        """The books: the shop's own tables and every shard of every cell, past the product."""
        shards = {cell.name: cell.shards for cell in self._fleet.cells.values()}
        modern = [replace(row, order=row.reference) for row in await ledger.read(shards)]
        rows = [*await self._shop.rows(ZERO), *modern]
        mine = {each.tenant: homes[each.tenant] for each in customers}
        found = audit(seen.acknowledged, seen.unknown, rows, mine, closed=False)
        return replace(found, findings=(*found.findings, *miscounted(customers, seen, rows, mine, found.silent)))


def miscounted(
    customers: Sequence[Customer], seen: Seen, rows: Sequence[Row], homes: Mapping[str, Home], silent: int
) -> list[Finding]:
    """Who has not as many orders at home as there were at first and were acknowledged; ``silent`` more may be."""
    found = []
    for each in customers:
        there = sum(r.tenant == each.tenant and r.cell == homes[each.tenant].cell for r in rows)
        want = each.orders + sum(a.tenant == each.tenant for a in seen.acknowledged)
        if not want <= there <= want + silent:
            words = f"{each.slug} has {there} orders in {homes[each.tenant].cell} instead of {want}"
            found.append(Finding(Wrong.LOST if there < want else Wrong.DOUBLED, each.tenant, words))
    return found
