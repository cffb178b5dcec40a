"""The outside of a fleet, as the load driver uses it: the sandbox gateway with its faults, and its books."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import asyncpg
import httpx
import msgspec

from contracts.ids import tenant_of
from loadtest.effects import Charge, Effects, Paid, Told, audit
from loadtest.ledger import CONNECT_TIMEOUT_S, QUERY_TIMEOUT_S
from loadtest.operator import Product, SignedUp

METHOD = "card-sandbox"  # what customers pay with, unless the card is one that is declined
SETTLE_S = 60.0
POLL_S = 0.2
PAGE = 1000
FAULTS = (  # of a demo: each kind, a few times
    {"operation": "charge", "kind": "slow", "seconds": 1.0, "count": 3},
    {"operation": "charge", "kind": "lost", "count": 3},
    {"operation": "charge", "kind": "late", "seconds": 1.5, "count": 2},
    {"operation": "charge", "kind": "error", "count": 2},
    {"operation": "sink", "kind": "error", "count": 3},
)
# Of tenants that the shard serves: what has not ended yet, of paid orders and of telling their merchants.
_OPEN = """
SELECT (SELECT count(*) FROM product.sagas s WHERE s.finished_at IS NULL AND s.tenant_id = ANY(served))
     + (SELECT count(*) FROM product.webhook_deliveries d WHERE d.finished_at IS NULL AND d.tenant_id = ANY(served))
     + (SELECT count(*) FROM cellwall.outbox o WHERE o.finished_at IS NULL AND o.tenant_id = ANY(served)
          AND o.type IN ('order.confirmed', 'order.cancelled'))
FROM (SELECT array_agg(tenant_id) AS served FROM cellwall.tenants WHERE state = 'active' AND tenant_id = ANY($1)) AS t
"""
_PAID = """
SELECT o.tenant_id, o.order_id::text AS id, o.status, o.total_cents, o.currency
FROM product.orders o JOIN product.sagas USING (tenant_id, order_id) JOIN cellwall.tenants t USING (tenant_id)
WHERE t.state = 'active' AND tenant_id = ANY($1)
"""


class _Key(msgspec.Struct):
    key: str
    charge: str | None
    amount_cents: int
    currency: str
    reference: str
    refunded: bool


class _Came(msgspec.Struct):
    sink: str
    event: str
    body: str
    times: int


class _Data(msgspec.Struct):
    order_id: str


class _Body(msgspec.Struct):
    type: str
    data: _Data


@dataclass(frozen=True)
class Outside:
    """The gateway, opened. ``http`` brings its address and token."""

    http: httpx.AsyncClient

    @classmethod
    def at(cls, url: str, token: str) -> Self:
        """The gateway of a fleet."""
        headers = {"authorization": f"Bearer {token}"}
        return cls(httpx.AsyncClient(base_url=url, headers=headers, trust_env=False))

    async def aclose(self) -> None:
        """Close the connections."""
        await self.http.aclose()

    async def faults(self, faults: Sequence[Mapping[str, Any]] = FAULTS) -> None:
        """Let these go wrong, instead of what was to go wrong before."""
        (await self.http.put("/v1/faults", json=list(faults))).raise_for_status()

    async def listen(self, router: Product, tenant: SignedUp) -> None:
        """Have the tenant's webhooks come here."""
        url = f"{self.http.base_url}/sinks/{tenant.tenant}".replace("//sinks", "/sinks")
        made = (await router.create(tenant, "/v1/webhooks", {"url": url})).json()
        (await self.http.put(f"/v1/sinks/{tenant.tenant}", json={"secret": made["secret"]})).raise_for_status()

    async def settled(
        self,
        shards: Mapping[str, Mapping[str, str]],
        tenants: Collection[int],
        clock: Callable[[], float] = time.monotonic,
    ) -> bool:
        """Wait until every saga and delivery of the tenants has ended; False where some have not in `SETTLE_S`."""
        until = clock() + SETTLE_S
        while any(row[0] for row in await _of_all(shards, _OPEN, tenants) if row[0]):
            if clock() > until:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def books(
        self,
        shards: Mapping[str, Mapping[str, str]],
        tenants: Collection[int],
        promised: Mapping[str, str] = MappingProxyType({}),
    ) -> Effects:
        """What happened outside, against the orders of these tenants. ``shards``: cell -> shard -> superuser's DSN.

        ``promised`` maps orders that clients were told to be on their way to be paid to their tenants.
        """
        rows = await _of_all(shards, _PAID, tenants)
        paid = [Paid(tenant_of(r["tenant_id"]), r["id"], r["status"], r["total_cents"], r["currency"]) for r in rows]
        names = {str(tenant_of(number)) for number in tenants}
        keys = await self._pages("/v1/keys", _Key, lambda each: each.key)
        charges = [
            Charge(each.key, each.reference, each.amount_cents, each.currency, not each.refunded)
            for each in keys
            if each.charge is not None and each.key.partition(":")[0] in names
        ]
        came = await self._pages("/v1/deliveries", _Came, lambda each: f"{each.sink}/{each.event}")
        return audit(paid, charges, [_told(each) for each in came if each.sink in names], names, promised)

    async def _pages(self, path: str, kind: Any, cursor: Callable[[Any], str]) -> list[Any]:
        found: list[Any] = []
        while True:
            after = cursor(found[-1]) if found else ""
            answer = (await self.http.get(path, params={"after": after})).raise_for_status()
            page = msgspec.json.decode(answer.content, type=list[kind])
            found += page
            if len(page) < PAGE:
                return found


def _told(came: _Came) -> Told:
    body = msgspec.json.decode(came.body, type=_Body)
    return Told(came.sink, came.event, body.type, body.data.order_id, came.times)


async def _of_all(
    shards: Mapping[str, Mapping[str, str]], query: str, tenants: Collection[int]
) -> list[asyncpg.Record]:
    async def one(dsn: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=QUERY_TIMEOUT_S)
        try:
            return await connection.fetch(query, list(tenants))
        finally:
            await connection.close()

    pages = await asyncio.gather(*(one(dsn) for cell in shards.values() for dsn in cell.values()))
    return [row for page in pages for row in page]
