"""The peer as a system under test: one process and one PostgreSQL, with the processors of all the cells together.

Its tenants are spread over as many groups as the fleet has cells, so that a run on it has the same shape: who would
sit beside an aggressor in a cell is counted apart from the others, although here they all share everything.
"""

import asyncio
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import httpx

from infra.local.cgroups import Walls
from infra.local.concurrency import finished, together
from infra.local.plan import MARK, base_environment
from infra.local.ports import LOOPBACK, reserved
from infra.local.processes import Command, Identity, Process, marked
from infra.local.runner import Say
from infra.local.servers import PostgresServer, PostgresSpec, wait_ready
from infra.local.spec import CHECKOUT
from loadtest import books
from loadtest.books import Home, Row
from loadtest.lab.collect import books_of
from loadtest.lab.job import Address
from loadtest.lab.plan import Tenant
from loadtest.lab.result import Books, Role
from loadtest.lab.scenario import FleetShape
from loadtest.lab.seed import DAYS, SEEDED
from loadtest.lab.system import Need, Written
from loadtest.operator import LabError, Product, SignedUp
from loadtest.record import Acknowledged, Stale
from loadtest.tenants import PRODUCTS
from loadtest.workload import Account

NAME: Final = "peer"
DATABASE: Final = "peer"
DOMAIN: Final = "peer.localhost"
SIGN_UP_AT_ONCE: Final = 4
STOP_GRACE_S: Final = 20.0
FIRST_NUMBER: Final = 1_000_000_000
WALL: Final = "peer"

_ROWS: Final = "SELECT tenant_id, id::text AS id, coalesce(reference, '') AS reference FROM orders"
_SEED: Final = """
WITH goods AS (
  SELECT array_agg(id ORDER BY sku) AS ids, array_agg(price_cents ORDER BY sku) AS prices, min(currency) AS currency
  FROM products WHERE tenant_id = $1
), counted AS (
  UPDATE tenants SET orders_made = orders_made + $2 WHERE id = $1 RETURNING orders_made - $2 AS first
), planned AS (
  SELECT gen_random_uuid() AS id, first + g AS number, 1 + g % cardinality(ids) AS pick, 1 + g % 5 AS quantity,
         now() - make_interval(days => (g % $3)::int) AS created_at, ids, prices, currency
  FROM generate_series(1, $2) AS g, goods, counted
), made AS (
  INSERT INTO orders (id, tenant_id, number, reference, status, total_cents, currency, created_at)
  SELECT id, $1, number, $4 || number, 'created', quantity * prices[pick], currency, created_at FROM planned
  RETURNING id
)
INSERT INTO order_lines (order_id, line, product_id, quantity, unit_price_cents)
SELECT planned.id, 1, ids[pick], quantity, prices[pick] FROM planned JOIN made USING (id)
"""


@dataclass(frozen=True)
class _Made:
    account: Account
    group: str
    order: str


class PeerSystem:
    """A `System`. Walls cannot be turned off where there are none."""

    def __init__(
        self, groups: Sequence[str], port: int, token: str, dsn: str, walls: str, pids: tuple[int, int]
    ) -> None:
        """``pids`` are of the application and of its database."""
        self.pids = pids
        self._groups = tuple(groups)
        self._port = port
        self._token = token
        self._dsn = dsn
        self._walls = walls
        self._made: list[_Made] = []
        self._seeded: dict[str, int] = {}
        self.written = Written()

    @property
    def name(self) -> str:
        """Not ours."""
        return NAME

    @property
    def target(self) -> str:
        """In words."""
        return "one FastAPI process and one PostgreSQL"

    @property
    def cpu_walls(self) -> str:
        """In words."""
        return self._walls

    @property
    def cells(self) -> Sequence[str]:
        """The groups of its tenants."""
        return self._groups

    @property
    def targets(self) -> Sequence[Address]:
        """One."""
        return [Address(NAME, LOOPBACK, self._port)]

    async def set_walls(self, mode: str) -> None:
        """Only ``on``, which is what a run without a choice says."""
        if mode != "on":
            raise LabError("the peer has no walls: run its cases with walls: [on]")

    async def cast(self, need: Need) -> Sequence[Tenant]:
        """Tenants by sign-up, orders of the past by SQL."""
        client = Product(f"http://{LOOPBACK}:{self._port}")
        try:
            for group in self._groups:
                have = sum(made.group == group for made in self._made)
                await self._sign_up(client, group, need.of_cell(group) - have)
        finally:
            await client.aclose()
        found = [tenant for group in self._groups for tenant in self._roles(need, group)]
        for tenant in found:
            wanted = need.aggressor_orders if tenant.role is Role.AGGRESSOR else need.victim_orders
            await self._seed(tenant.account.tenant, wanted)
        return found

    async def books(self, tenants: Sequence[Tenant], stale: Sequence[Stale]) -> Books:
        """From the one database. Every row is served, and at home: there is one place only."""
        connection = await asyncpg.connect(self._dsn)
        try:
            records = await connection.fetch(_ROWS)
        finally:
            await connection.close()
        rows = [
            Row(NAME, DATABASE, f"t{r['tenant_id']}", r["id"], r["reference"], books.SERVED, 1)
            for r in records
            if not r["reference"].startswith(SEEDED)
        ]
        homes = {made.account.tenant: Home(NAME, 1) for made in self._made}
        return books_of(books.audit(self.written.acknowledged, self.written.unacknowledged, rows, homes, stale=stale))

    async def _sign_up(self, client: Product, group: str, count: int) -> None:
        gate = asyncio.Semaphore(SIGN_UP_AT_ONCE)
        first = FIRST_NUMBER + len(self._made)

        async def one(number: int) -> _Made:
            async with gate:
                return await self._one(client, group, number)

        self._made += await together(*(one(first + n) for n in range(count)))

    async def _one(self, client: Product, group: str, number: int) -> _Made:
        slug = f"lab-{secrets.token_hex(5)}"
        host = f"{slug}.{DOMAIN}"
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.post(
                f"http://{LOOPBACK}:{self._port}/v1/signup",
                json={"id": number, "slug": slug, "host": host},
                headers={"Authorization": f"Bearer {self._token}"},
            )
        if answer.status_code != httpx.codes.CREATED:
            raise LabError(f"the peer refused a sign-up: {answer.status_code} {answer.text[:200]}")
        made = SignedUp(f"t{number}", slug, host, answer.json()["api_key"])
        products = []
        for n in range(1, PRODUCTS + 1):
            body = {"sku": f"SKU-{n}", "name": f"Product {n}", "price_cents": 990 * n, "currency": "EUR"}
            products.append((await client.create(made, "/v1/products", body)).json()["id"])
        account = Account(made.tenant, slug, host, made.api_key, tuple(products))
        key = f"peer-first-{slug}"
        body = {"lines": [{"product_id": products[0], "quantity": 1}], "reference": key}
        order = (await client.create(made, "/v1/orders", body, key)).json()["id"]
        self.written.acknowledged.append(Acknowledged(made.tenant, order, key, 0.0, NAME, 1))
        return _Made(account, group, order)

    def _roles(self, need: Need, group: str) -> list[Tenant]:
        people = [made for made in self._made if made.group == group]
        roles = [Role.AGGRESSOR] * need.aggressors.get(group, 0) + [Role.VICTIM] * need.victims
        return [
            Tenant(self._made.index(made), made.account, group, role, (made.order,))
            for made, role in zip(people, roles, strict=False)
        ]

    async def _seed(self, tenant: str, wanted: int) -> None:
        missing = wanted - self._seeded.get(tenant, 0)
        if missing <= 0:
            return
        connection = await asyncpg.connect(self._dsn, command_timeout=120)
        try:
            await connection.execute(_SEED, int(tenant.removeprefix("t")), missing, DAYS, SEEDED)
        finally:
            await connection.close()
        self._seeded[tenant] = wanted


@asynccontextmanager
async def peer_system(shape: FleetShape, folder: Path, say: Say) -> AsyncIterator[PeerSystem]:
    """The peer for as long as the block lasts; nothing of it is left afterwards.

    It starts without a quota, as cells do, and gets that of all cells together before it is used.
    """
    cpus = shape.cells * shape.cpus
    walls = Walls.of(folder) if shape.cpu_walls else Walls.off()
    await _clear(folder)
    token = secrets.token_urlsafe(32)
    with reserved(2) as ports:
        database_port, port = ports
    spec = PostgresSpec(
        "peer-database", folder / "database", folder / "database.log", database_port, secrets.token_hex(16)
    )
    server = PostgresServer(spec)
    process: Process | None = None
    try:
        say(f"starting the peer: one process and one PostgreSQL, {cpus:g} processors together")
        await server.start()
        dsn = await server.create_database(DATABASE)
        process = await _start(folder, port, dsn, token)
        walls.build(WALL, cpus)
        for identity in (process.identity, Identity.of(server.pid)):
            if identity is not None:
                _enclose(walls, identity)
        groups = [f"peer-{n}" for n in range(1, shape.cells + 1)]
        pids = process.pid, server.pid
        yield PeerSystem(groups, port, token, dsn, f"{walls.reason}; {cpus:g} processors for all", pids)
    finally:
        await finished(_stop(process, server))
        walls.remove()
        shutil.rmtree(folder, ignore_errors=True)


async def _start(folder: Path, port: int, dsn: str, token: str) -> Process:
    environment = {
        **base_environment(),
        MARK: f"{folder}:{NAME};",
        "CELLWALL_PEER_DSN": dsn,
        "CELLWALL_PEER_TOKEN": token,
        "CELLWALL_PEER_PORT": str(port),
    }
    log = folder / "peer.log"
    process = Process.spawn(Command((sys.executable, "-m", "loadtest.peer.app"), log, env=environment, cwd=CHECKOUT))

    async def answers() -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=2) as http:
                return (await http.get(f"http://{LOOPBACK}:{port}/health")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    try:
        await wait_ready(NAME, process, answers, log, port=port)
    except BaseException:
        await process.stop(grace_s=STOP_GRACE_S)
        raise
    return process


async def _stop(process: Process | None, server: PostgresServer) -> None:
    if process is not None:
        await process.stop(grace_s=STOP_GRACE_S)
    await server.stop()


async def _clear(folder: Path) -> None:
    """End what a run that was killed with SIGKILL left, and make the folder anew, open to a database account."""
    left = [*marked(MARK, f"{folder}:"), *_postmaster(folder / "database")]
    await together(*(Process(identity).stop(grace_s=STOP_GRACE_S) for identity in left))

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        folder.chmod(0o711)

    await asyncio.to_thread(fresh)


def _postmaster(data: Path) -> list[Identity]:
    """The server that still works on that folder, if there is one."""
    try:
        pid = int((data / "postmaster.pid").read_text().split()[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return []
    identity = Identity.of(pid) if str(data).encode() in command else None
    return [identity] if identity is not None else []


def _enclose(walls: Walls, identity: Identity) -> None:
    """The process and the children that it has by now: connections of the server's start belong to it too."""
    walls.enclose(WALL, identity)
    children = Path(f"/proc/{identity.pid}/task/{identity.pid}/children")
    for pid in children.read_text().split() if children.exists() else ():
        child = Identity.of(int(pid))
        if child is not None:
            walls.enclose(WALL, child)
