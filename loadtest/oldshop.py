"""Customers of the old shop: they log in, look at old URLs and order by the old form, whichever cell serves them.

Open loop as everywhere in the lab: a request is due at its time, whatever became of those before it.
"""

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, Self

import asyncpg
import httpx

from contracts.ids import tenant_of
from infra.local.errors import LocalFleetError
from infra.local.fleet import Fleet
from loadtest.books import Row
from loadtest.operator import check
from loadtest.record import Acknowledged
from loadtest.tenants import ROUTED_TIMEOUT_S

WRITES_EVERY: Final = 3  # one request of so many of a customer is an order
TIMEOUT_S: Final = 60.0  # longer than a router tries: what a customer gets is an answer
SHOP: Final = "the old shop"
_ARTICLE: Final = re.compile(r"artnr=(\d+)")
_POLL_S: Final = 0.05
_CUSTOMERS: Final = (
    "SELECT k.knr, k.kz, c.tenant_id, min(a.anr) AS anr, count(*) AS orders FROM knd k"
    " JOIN cellwall_zero.customers c USING (knr) JOIN aufk a USING (knr) GROUP BY k.knr, k.kz, c.tenant_id ORDER BY knr"
)
_ORDERS: Final = (
    "SELECT c.tenant_id, coalesce(a.ref, '') AS ref, t.state, t.epoch FROM aufk a"
    " JOIN cellwall_zero.customers c USING (knr) JOIN cellwall.tenants t USING (tenant_id)"
)


@dataclass(frozen=True)
class Customer:
    """Somebody with a session of the old shop. ``page`` is what the old URL of order ``anr`` showed at first;
    ``orders`` is how many orders there were.
    """

    knr: int
    slug: str
    tenant: str
    host: str
    anr: int
    orders: int
    cookie: str = field(repr=False)
    articles: tuple[str, ...] = field(repr=False)
    page: bytes = field(repr=False)


@dataclass
class Seen:
    """What the customers saw. ``unknown`` are references of orders whose answer never came, by tenant."""

    acknowledged: list[Acknowledged] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    sent: int = 0
    answered: int = 0
    longest_s: float = 0.0  # from when it was due to the whole answer

    def written(self, tenant: str, cell: str) -> int:
        """How many of the tenant's orders that cell has acknowledged."""
        return sum(each.tenant == tenant and each.cell == cell for each in self.acknowledged)


class OldShop:
    """The shop through every router of a fleet, and its books: ``dsn`` is the superuser's of its database."""

    def __init__(self, routers: Sequence[str], base_domain: str, dsn: str, password: str) -> None:
        self._routers = [
            # A browser for each customer would keep its own cookies; here each request says its own.
            httpx.AsyncClient(
                base_url=url,
                timeout=TIMEOUT_S,
                trust_env=False,
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            )
            for url in routers
        ]
        self._domain = base_domain
        self._dsn = dsn
        self._password = password

    @classmethod
    def of(cls, fleet: Fleet) -> Self:
        """The shop of a fleet; `LocalFleetError` where it has none."""
        zero = fleet.zero
        if zero is None:
            raise LocalFleetError("this fleet has no cell zero; start one with it (make up ZERO=1)")
        return cls(fleet.router_urls, fleet.spec.base_domain, zero.dsn, zero.password)

    async def aclose(self) -> None:
        """Close the connections."""
        for client in self._routers:
            await client.aclose()

    async def log_in(self) -> list[Customer]:
        """Every customer who is a tenant, logged in by the old form; `LabError` where one cannot."""
        connection = await asyncpg.connect(self._dsn)
        try:
            rows = await connection.fetch(_CUSTOMERS)
        finally:
            await connection.close()
        return list(await asyncio.gather(*(self._log_in(*row) for row in rows)))

    async def _log_in(self, knr: int, slug: str, tenant: int, anr: int, orders: int) -> Customer:
        host = f"{slug}.{self._domain}"
        await self._routed(host)
        form = {"knr": str(knr), "login": f"chef@{slug}.test", "pwd": self._password}
        client = self._routers[knr % len(self._routers)]
        answer = check(await client.post("/anmelden.php", data=form, headers={"Host": host}), 302)
        cookie = answer.headers.get("set-cookie", "").partition(";")[0]
        fields = {"Host": host, "Cookie": cookie}
        listed = check(await client.get("/artikel.php", headers=fields), 200)
        articles = tuple(sorted(set(_ARTICLE.findall(listed.text))))
        page = check(await client.get(f"/auftrag.php?anr={anr}", headers=fields), 200).content
        return Customer(knr, slug, tenant_of(tenant), host, anr, orders, cookie, articles, page)

    async def _routed(self, host: str) -> None:
        """Wait until every router serves the host."""
        until = time.monotonic() + ROUTED_TIMEOUT_S
        for client in self._routers:
            while (answer := await client.get("/anmelden.php", headers={"Host": host})).status_code == 404:
                if time.monotonic() > until:
                    check(answer, 200)
                await asyncio.sleep(_POLL_S)

    async def traffic(self, customers: Sequence[Customer], rate: float, seen: Seen, stop: asyncio.Event) -> None:
        """So many requests a second over all customers until ``stop``; then every answer is waited for."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                due = began + number / rate
                await asyncio.sleep(max(0.0, due - loop.time()))
                if stop.is_set():
                    return
                turn, who = divmod(number, len(customers))
                group.create_task(self._one(customers[who], turn, due, seen))

    async def _one(self, customer: Customer, turn: int, due: float, seen: Seen) -> None:
        loop, client = asyncio.get_running_loop(), self._routers[(customer.knr + turn) % len(self._routers)]
        fields = {"Host": customer.host, "Cookie": customer.cookie}
        reference = f"old-{secrets.token_hex(8)}" if turn % WRITES_EVERY == 0 else ""
        seen.sent += 1
        try:
            if reference:
                seen.unknown[reference] = customer.tenant
                form = {"ref": reference, "artnr": customer.articles[turn % len(customer.articles)], "mg": "2"}
                answer = await client.post("/auftrag.php", data=form, headers=fields)
                good = answer.status_code == 302 and answer.headers.get("location", "").startswith("/auftrag.php?")
            else:
                answer = await client.get(f"/auftrag.php?anr={customer.anr}", headers=fields)
                good = answer.status_code == 200 and answer.content == customer.page
        except httpx.HTTPError as e:
            seen.failures.append(f"{customer.slug}: {e!r}")
            return
        finally:
            seen.longest_s = max(seen.longest_s, loop.time() - due)
        if not good:
            seen.failures.append(f"{customer.slug}: {answer.status_code} {answer.text[:200]}")
            return
        seen.answered += 1
        if reference:
            cell, _, epoch = answer.headers.get("cell-served", "").partition(";epoch=")
            del seen.unknown[reference]
            acknowledged = Acknowledged(customer.tenant, reference, reference, loop.time(), cell, int(epoch or 0))
            seen.acknowledged.append(acknowledged)

    async def rows(self, cell: str) -> list[Row]:
        """Every order in the shop's own tables, also of customers who have left; an order goes by its reference."""
        connection = await asyncpg.connect(self._dsn)
        try:
            found = await connection.fetch(_ORDERS)
        finally:
            await connection.close()
        return [Row(cell, SHOP, tenant_of(r["tenant_id"]), r["ref"], r["ref"], r["state"], r["epoch"]) for r in found]

    async def spoil(self, knr: int) -> None:
        """Give a customer a row that nobody can translate, as somebody once typed it in by hand."""
        connection = await asyncpg.connect(self._dsn)
        try:
            await connection.execute(
                "INSERT INTO art (knr, best, bez, pr, anl, aend) SELECT $1, 'A-9999', 'Sonderposten', 'auf Anfrage',"
                " anl, anl FROM knd WHERE knr = $1",
                knr,
            )
        finally:
            await connection.close()
