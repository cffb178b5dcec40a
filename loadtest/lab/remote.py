"""Any base URL as the system under test: whatever speaks the sign-up and the orders of the product.

Nothing can be broken, moved or switched here, and the books are read through the API alone: what a shard holds beside
that stays unseen, so a misplaced write shows as a lost one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec

from loadtest import books
from loadtest.books import Home, Row
from loadtest.lab.casting import Casting
from loadtest.lab.collect import books_of
from loadtest.lab.job import Address
from loadtest.lab.plan import Tenant
from loadtest.lab.result import Books, Role
from loadtest.lab.system import Need, Written
from loadtest.operator import AskedError, LabError, Product, SignedUp, check
from loadtest.record import Stale
from loadtest.tenants import first_order
from loadtest.workload import Account

PROBES: Final = 6  # tenants that sign up to find out which cells there are; they take part later
AT_ONCE: Final = 4
PAGE: Final = 200

Seeder = Callable[[Account, int], Awaitable[None]]


class _Order(msgspec.Struct):
    id: str
    reference: str | None = None


class _Page(msgspec.Struct):
    items: list[_Order]
    next: str | None = None


@dataclass(frozen=True)
class Remote:
    """Where it is. ``front_door`` is the Host of sign-ups. ``name`` says what it is in results: cellwall or peer."""

    base_url: str
    front_door: str
    name: str = "cellwall"
    cpu_walls: str = "unknown: somebody else's machine"

    @property
    def address(self) -> Address:
        """Host and port; `AskedError` where it is no plain ``http://HOST:PORT``."""
        try:
            parts = urlsplit(self.base_url)
            host, port = parts.hostname, parts.port
        except ValueError as e:
            raise AskedError(f"{self.base_url} is no base URL: {e}") from e
        if parts.scheme != "http" or not host or parts.path not in ("", "/"):
            raise AskedError(f"{self.base_url} is no base URL of the form http://HOST:PORT: the driver speaks no TLS")
        return Address(self.base_url, host, port or 80)


class RemoteSystem:
    """A `System` behind a base URL. ``seed`` gives a tenant orders of the past; through the product by itself."""

    def __init__(self, remote: Remote, run: str, *, seed: Seeder | None = None) -> None:
        self._remote = remote
        self._address = remote.address
        self._product = Product(remote.base_url)
        self.written = Written()
        self._casting = Casting([self._product], remote.front_door, self.written, run)
        self._seed = seed or self._through_the_product
        self._seeded: dict[str, int] = {}
        self._run = run

    async def connect(self, plan: str) -> None:
        """Find out which cells there are, by signing a few tenants up; `LabError` where nothing answers.

        One after the other: placed at one moment, all of them would go to the cell that is the emptiest then.
        """
        try:
            for _ in range(PROBES):
                await self._casting.sign_up(1, plan)
        except* httpx.TransportError as group:
            words = group.exceptions[0]
            raise LabError(f"nothing answers at {self._remote.base_url}: {words or type(words).__name__}") from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._product.aclose()

    @property
    def name(self) -> str:
        """What it is."""
        return self._remote.name

    @property
    def target(self) -> str:
        """Where it is."""
        return self._remote.base_url

    @property
    def cpu_walls(self) -> str:
        """In words."""
        return self._remote.cpu_walls

    @property
    def cells(self) -> Sequence[str]:
        """Those that have served a tenant of ours; one without a name where it has none."""
        return self._casting.cells

    @property
    def targets(self) -> Sequence[Address]:
        """The one."""
        return [self._address]

    async def cast(self, need: Need) -> Sequence[Tenant]:
        """Tenants through the front door, and their orders of the past."""
        tenants = await self._casting.cast(need, self.cells)
        gate = asyncio.Semaphore(AT_ONCE)

        async def give(tenant: Tenant) -> None:
            wanted = need.aggressor_orders if tenant.role is Role.AGGRESSOR else need.victim_orders
            missing = wanted - self._seeded.get(tenant.account.tenant, 0)
            if missing > 0:
                async with gate:
                    await self._seed(tenant.account, missing)
                self._seeded[tenant.account.tenant] = wanted

        async with asyncio.TaskGroup() as group:
            for tenant in tenants:
                group.create_task(give(tenant))
        return tenants

    async def set_walls(self, mode: str) -> None:
        """They are as they are: only scenarios with the walls on can be run."""
        if mode != "on":
            raise LabError(f"the walls of {self.target} cannot be switched to {mode!r} from here: --fleet local")

    async def books(self, tenants: Sequence[Tenant], stale: Sequence[Stale]) -> Books:
        """By listing every order of every tenant that has written."""
        wrote = {ack.tenant for ack in self.written.acknowledged}
        rows: list[Row] = []
        homes: dict[str, Home] = {}
        gate = asyncio.Semaphore(AT_ONCE)

        async def look(account: Account) -> None:
            async with gate:
                found = await self._rows(account)
            rows.extend(found)
            homes[account.tenant] = Home(found[0].cell, found[0].epoch) if found else Home("-", 0)

        async with asyncio.TaskGroup() as group:
            for made in self._casting.everybody:
                if made.account.tenant in wrote:
                    group.create_task(look(made.account))
        written = self.written
        # Not closed: a seeder other than the product's own may have left orders that nobody was told of.
        audit = books.audit(written.acknowledged, written.unacknowledged, rows, homes, closed=False, stale=stale)
        return books_of(audit)

    async def _rows(self, account: Account) -> list[Row]:
        """Every order that the tenant is shown. A cell that changes meanwhile shows as a misplaced one."""
        found: list[Row] = []
        cursor: str | None = ""
        while cursor is not None:
            target = f"/v1/orders?limit={PAGE}" + (f"&cursor={cursor}" if cursor else "")
            answer = check(await self._product.ask(_signed_up(account), "GET", target), 200)
            page = msgspec.json.decode(answer.content, type=_Page)
            cell, _, epoch = answer.headers.get("cell-served", "").partition(";epoch=")
            found += [
                Row(cell or "-", "api", account.tenant, order.id, order.reference or "", "active", int(epoch or 0))
                for order in page.items
            ]
            cursor = page.next
        return found

    async def _through_the_product(self, account: Account, count: int) -> None:
        for number in range(count):
            product = account.products[number % len(account.products)]
            key = f"{self._run}-past-{account.slug}-{number}"
            order = await first_order(self._product, _signed_up(account), product, key)
            self.written.acknowledged.append(order)


def _signed_up(account: Account) -> SignedUp:
    return SignedUp(account.tenant, account.slug, account.host, account.api_key)
