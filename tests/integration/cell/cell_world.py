"""A cell in the test's own process: the composed applications on real databases, called without a network between."""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
from litestar import Litestar, Router

from cell import app, blobs, worker
from cell.access import Role
from cell.events.inbox import Consumer
from cell.events.pump import Pace
from cell.fairness.wall import Config, Wall
from cell.gate import Gate
from cell.health import Health
from cell.ingress import Ingress
from cell.metering import Meter
from cell.metrics import CellMetrics
from cell.modules.accounts.public import create_owner
from cell.schema import migrate
from cell.settings import WorkerSettings
from cell.shards import pools
from cell.shards.context import TenantContext
from cell.shards.pools import Databases
from cell.shards.session import Pool
from cell.transfer.service import Transfer
from cell.vault import Vault
from contracts import envelope, ids, keys
from contracts.transfer import Fence, Provision

CELL = "cell-1"
EPOCH = 1
SECRETS_KEY = keys.text_of(b"s" * 32)
QUICK = Pace(poll_s=0.02, sweep_s=0.2, sweep_gap_s=0.0)
PASSWORD = "correct horse battery staple"

_numbers = itertools.count(secrets.randbelow(10**11) + 10**9)


@dataclass(frozen=True)
class CellDatabases:
    """The migrated databases of one cell, and who may log in to them."""

    admin_dsns: dict[str, str]
    passwords: migrate.Passwords
    redis_url: str = ""
    blobs_url: str = ""

    @property
    def directory_dsn(self) -> str:
        """As the application's role."""
        first = urlsplit(self.admin_dsns[min(self.admin_dsns)])
        return f"postgresql://{pools.APP_ROLE}:{self.passwords.app}@{first.hostname}:{first.port}/{migrate.DIRECTORY}"

    def worker_settings(self, **more: Any) -> WorkerSettings:
        """The settings of a worker of this cell."""
        values: dict[str, Any] = {
            "name": CELL,
            "directory_dsn": self.directory_dsn,
            "app_password": self.passwords.app,
            "redis_url": self.redis_url,
            "blobs": self.blobs_url,
            "transfer_token": "t" * 43,
            "pool_size": 4,
            "worker_listen": "127.0.0.1:1",
            "secrets_key": SECRETS_KEY,
        }
        return WorkerSettings(**values | more)

    async def as_superuser(self, shard: str) -> "asyncpg.Connection[asyncpg.Record]":
        """A connection that no wall holds, to look at what is there. Close it."""
        dsn = urlsplit(self.admin_dsns[shard])._replace(path=f"/{migrate.SHARD}").geturl()
        return await asyncpg.connect(dsn)


def wall_of(product: Litestar, shard_of: Callable[[int], str], metrics: CellMetrics, size: int = 6) -> Wall:
    """The wall for so many connections, all of it on."""
    return Wall(Config.fit(size), app.operations(product), shard_of, metrics, clock=time.monotonic, seed=7)


class Enveloped(httpx.Auth):
    """What the router does: puts the envelope around a request."""

    def __init__(self, key: bytes, tenant: str, epoch: int = EPOCH, timeout_ms: int = 20_000) -> None:
        self._sign = envelope.signer(key)
        self._tenant = tenant
        self._epoch = epoch
        self._timeout_ms = timeout_ms

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        values = (self._tenant, str(self._epoch), str(self._timeout_ms), secrets.token_hex(8), "free")
        names = (envelope.TENANT, envelope.EPOCH, envelope.TIMEOUT_MS, envelope.REQUEST_ID, envelope.PLAN)
        fields = [value.encode() for value in values]
        message = envelope.message(*fields, request.method.encode(), request.url.raw_path)
        for name, value in zip((*names, envelope.SIGNATURE), (*fields, self._sign(message)), strict=True):
            request.headers[name.decode()] = value.decode()
        yield request


@dataclass
class Merchant:
    """A tenant with its owner's client, and one for each role that was asked for."""

    number: int
    owner: httpx.AsyncClient
    key: str
    user_id: str
    world: "World" = field(repr=False)

    @property
    def tenant_id(self) -> str:
        """As it is written outside of the cell."""
        return f"t{self.number}"

    def client(self, key: str | None) -> httpx.AsyncClient:
        """A client of this tenant with another credential, or with none."""
        return self.world.client(self.tenant_id, key)

    async def user(self, role: Role) -> httpx.AsyncClient:
        """A client with the role."""
        name = f"{role}-{secrets.token_hex(4)}"
        body = {"email": f"{name}@example.test", "name": name, "role": role, "password": PASSWORD}
        assert (await self.owner.post("/v1/users", json=body)).status_code == 201
        login = await self.client(None).post("/v1/sessions", json={"email": body["email"], "password": PASSWORD})
        assert login.status_code == 201, login.text
        return self.client(login.json()["token"])

    async def product(self, price_cents: int = 250, currency: str = "EUR") -> str:
        """The id of a new product."""
        sku = secrets.token_hex(6)
        body = {"sku": sku, "name": f"Product {sku}", "price_cents": price_cents, "currency": currency}
        answer = await self.owner.post("/v1/products", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def order(self, *lines: tuple[str, int], key: str | None = None, **body: Any) -> httpx.Response:
        """Create an order."""
        asked = {"lines": [{"product_id": p, "quantity": q} for p, q in lines], **body}
        headers = {"Idempotency-Key": key or secrets.token_hex(8)}
        return await self.owner.post("/v1/orders", json=asked, headers=headers)

    def context(self) -> TenantContext:
        """For a session beside the API."""
        return TenantContext.for_worker(self.number, 0.0, "test")

    async def rows(self, query: str, *values: Any) -> list[asyncpg.Record]:
        """Rows of the tenant's shard, read past all walls; ``$1`` is the tenant."""
        connection = await self.world.cell.as_superuser(self.world.databases.shards.shard_of(self.number))
        try:
            return await connection.fetch(query, self.number, *values)
        finally:
            await connection.close()


class World:
    """One cell, opened in the loop of one test."""

    def __init__(
        self,
        cell: CellDatabases,
        databases: Databases,
        transfer: Transfer,
        ingress: Ingress,
        key: bytes,
        meter: Meter,
        transfers: Mapping[str, Pool],
    ) -> None:
        self.cell = cell
        self.databases = databases
        self.transfer = transfer
        self.ingress = ingress
        self.key = key
        self.meter = meter
        self.transfers = transfers
        self._clients: list[httpx.AsyncClient] = []

    def client(self, tenant: str, key: str | None, **enveloped: Any) -> httpx.AsyncClient:
        """A client of the data listener that speaks for one tenant."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        auth = Enveloped(self.key, tenant, **enveloped)
        transport = httpx.ASGITransport(self.ingress)  # type: ignore[arg-type]
        client = httpx.AsyncClient(transport=transport, base_url="http://cell.test", auth=auth, headers=headers)
        self._clients.append(client)
        return client

    async def merchant(self) -> Merchant:
        """A new tenant, provisioned as the control plane does it."""
        number = next(_numbers)
        email = f"owner-{number}@example.test"
        fence = Fence(1, 1, f"provision-{number}")
        provision = Provision(EPOCH, f"Merchant {number}", email, PASSWORD)
        provisioned = await self.transfer.provision(number, fence, provision)
        tenant = str(ids.tenant_of(number))
        return Merchant(
            number, self.client(tenant, provisioned.api_key), provisioned.api_key, provisioned.user_id, self
        )

    @contextlib.asynccontextmanager
    async def worker(self, *consumers: Consumer, pace: Pace = QUICK, **more: Any) -> AsyncIterator[worker.Worker]:
        """A running worker: the product's consumers, or those that are given; ``more`` are settings."""
        chosen = consumers or worker.CONSUMERS
        async with worker.composed(self.cell.worker_settings(**more), chosen, pace) as running:
            tasks = [asyncio.create_task(each.run()) for each in (running.pump, *running.rooms)]
            try:
                yield running
            finally:
                running.stop()
                await asyncio.gather(*tasks)

    async def close(self) -> None:
        """Close the clients."""
        for client in self._clients:
            await client.aclose()


@contextlib.asynccontextmanager
async def opened(cell: CellDatabases, routers: Sequence[Router] = app.PRODUCT) -> AsyncIterator[World]:
    """The API process of the cell, as `cell.app` composes it, without its listeners."""
    clock = asyncio.get_running_loop().time
    meter = Meter("test-api")
    async with (
        pools.opened(cell.directory_dsn, cell.passwords.app, 6, "test-api", meter.spent) as databases,
        pools.transfer_pools(databases.shard_map.shards, cell.passwords.transfer, 3, "test-transfer") as transfers,
    ):
        gate, vault = Gate(clock), Vault(keys.cell_key(SECRETS_KEY))
        health = Health(databases, (migrate.head(migrate.DIRECTORY), migrate.head(migrate.SHARD)), clock)
        schema, shard_of = migrate.head(migrate.SHARD), databases.shard_map.shard_of
        transfer = Transfer(
            cell=CELL,
            schema=schema,
            pools=transfers,
            shard_of=shard_of,
            gate=gate,
            create_owner=create_owner,
            clock=clock,
            vault=vault,
            kinds=app.KINDS,
            refresh=databases.shard_map.refresh,
        )
        key = secrets.token_bytes(32)
        metrics = CellMetrics(CELL, lambda: gate.in_flight)
        files = blobs.opened(cell.blobs_url)
        product = app.product(
            databases.shards, health, files, routers, vault=vault, takes_payments=True, webhooks_private=True
        )
        wall = wall_of(product, shard_of, metrics)
        ingress = Ingress(
            product, cell=CELL, envelope_key=key, gate=gate, metrics=metrics, meter=meter, wall=wall, clock=clock
        )
        world = World(cell, databases, transfer, ingress, key, meter, transfers)
        try:
            yield world
        finally:
            await world.close()
