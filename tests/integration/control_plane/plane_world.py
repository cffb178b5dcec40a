"""A control plane with its real database and both of its apps, beside cells that keep the transfer rules in memory."""

import asyncio
import random
from email.message import EmailMessage
from time import monotonic
from typing import Any

import httpx
import msgspec
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import create_async_engine

from contracts import envelope, problems, routes, transfer
from contracts.keys import Purpose, bearer
from control_plane.app import Services, compose, create_app, create_front_door
from control_plane.auth import create_key
from control_plane.cell_client import CellClient
from control_plane.move import Budgets
from control_plane.move_metrics import MoveMetrics
from control_plane.mover import Boundary, Mover, Tuning, unobserved
from control_plane.roles import ROLES
from tests.integration.control_plane.fake_cell import FLEET_ROOT, SCHEMA, FakeCell, FakeFleet, Refused, Row

DOMAIN = "example.test"
ENVELOPE_KEY = b"e" * 32
CELLS = ("cell-1", "cell-2")


class Cell(FakeCell):
    """A cell that also creates tenants."""

    def _provision(self, row: Row, body: bytes) -> transfer.Provisioned:
        command = msgspec.json.decode(body, type=transfer.Provision)
        if row.state != "none":
            raise Refused(problems.WRONG_STATE, row.state)
        row.state, row.epoch = "active", command.epoch
        return transfer.Provisioned("user-1", "cwk_key")


class Fleet(FakeFleet):
    """Cells that may also keep a caller waiting."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self.cells = {name: Cell(name) for name in names}
        self.arrived = asyncio.Event()
        self.stall_after: str | None = None  # the command takes effect, then nothing is heard

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        if self.stall_after is not None and request.url.path.endswith(f"/{self.stall_after}"):
            self.arrived.set()
            await asyncio.Event().wait()
        return answer


class Mailbox:
    """Keeps what was sent."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []

    async def send(self, message: EmailMessage) -> None:
        self.messages.append(message)


class Plane:
    """The control plane under test. ``call`` speaks HTTP to the API, ``knock`` to the front door through a router."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.engine = create_async_engine(sa.make_url(dsn).set(drivername="postgresql+asyncpg"), pool_size=25)
        self.fleet = Fleet(*CELLS)
        self.mailbox = Mailbox()
        self.http = httpx.AsyncClient(transport=self.fleet)
        self.services: Services
        self.keys: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.restart()

    def restart(self, seed: int = 7) -> None:
        """A new process, as far as memory goes: nothing listens for notices until `listen`."""
        for task in self._tasks:
            task.cancel()
        self.services = compose(
            self.engine, self.http, fleet_root=FLEET_ROOT, base_domain=DOMAIN, mailer=self.mailbox,
            clock=monotonic, rng=random.Random(seed),
        )  # fmt: skip
        api = create_app(self.services, FLEET_ROOT)
        front_door = create_front_door(self.services, ENVELOPE_KEY)
        self._api = httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://control.test")
        self._front_door = httpx.AsyncClient(transport=httpx.ASGITransport(front_door), base_url="http://start.test")

    def listen(self) -> None:
        self._tasks.append(asyncio.create_task(self.services.signals.run(self.dsn)))

    async def begin(self) -> None:
        async with self.engine.begin() as conn:
            for role in ROLES:
                self.keys[role] = (await create_key(conn, f"test {role}", role))[1]
        for name in CELLS:
            await self.register(name)
        # A slow machine must not let a lease run out in the middle of a test; tests about leases set their own.
        await self.rows("UPDATE cells SET last_seen = clock_timestamp() + interval '1 hour'")
        self.listen()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.services.tenancy.drain()
        for client in (self._api, self._front_door, self.http):
            await client.aclose()
        await self.engine.dispose()

    async def call(
        self, method: str, path: str, body: object = None, *, role: str | None = "admin", token: str | None = None
    ) -> httpx.Response:
        token = self.keys[role] if role else token
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return await self._api.request(method, path, json=body, headers=headers)

    async def knock(self, method: str, path: str, body: object = None, *, key: bytes = ENVELOPE_KEY) -> httpx.Response:
        fields = [b"-", b"1", b"5000", b"r-1", b"-"]
        signature = envelope.signer(key)(envelope.message(*fields, method.encode(), path.encode()))
        headers = [
            (name.decode(), value.decode()) for name, value in zip(envelope.FIELDS, [*fields, signature], strict=True)
        ]
        return await self._front_door.request(method, path, json=body, headers=headers)

    async def register(self, name: str, **changes: Any) -> httpx.Response:
        told = {
            "address": f"{name}.test:2", "internal_address": f"{name}.test:1", "region": "eu", "tier": "shared",
            "capacity": 100, "shards": ["shard-1"], "schema": SCHEMA, "version": "1",
        }  # fmt: skip
        token = bearer(FLEET_ROOT, Purpose.AGENT, name)
        answer = await self.call("PUT", f"/v1/agent/cells/{name}", told | changes, role=None, token=token)
        if answer.status_code == 200:
            await self.beat(name)
        return answer

    async def beat(self, name: str, *, ready: bool = True) -> httpx.Response:
        told = {"schema": SCHEMA, "version": "1", "tenants": 0, "in_flight": 0, "ready": ready}
        token = bearer(FLEET_ROOT, Purpose.AGENT, name)
        return await self.call("POST", f"/v1/agent/cells/{name}/heartbeat", told, role=None, token=token)

    async def sign_up(self, slug: str, **changes: Any) -> httpx.Response:
        return await self.call("POST", "/v1/tenants", sign_up(slug, **changes))

    async def drive(self, move_id: str, term: int, on_boundary: Boundary = unobserved) -> str:
        """Carry a move on as the leader of that term; the state in which it ends."""
        mover = Mover(
            self.engine, self.services.route_log, CellClient(self.http, FLEET_ROOT), b"h" * 32,
            MoveMetrics(CollectorRegistry()), budgets=Budgets(hold_s=60.0), tuning=Tuning(routers_s=0.01),
            on_boundary=on_boundary,
        )  # fmt: skip
        async with asyncio.timeout(60):
            return (await mover.drive(move_id, term)).state.value

    async def rows(self, statement: str, **values: Any) -> list[Any]:
        async with self.engine.begin() as conn:
            result = await conn.execute(sa.text(statement), values)
            return list(result.all()) if result.returns_rows else []

    async def log(self) -> tuple[routes.Header, list[routes.Record]]:
        """The snapshot that a new router gets."""
        answer = await self.call("GET", "/v1/routes", role="router")
        return routes.decode(answer.content.splitlines())

    async def routed(self) -> dict[str, routes.Route]:
        """Routes by their first host."""
        return {r.hosts[0]: r for r in (await self.log())[1] if isinstance(r, routes.Route)}


def sign_up(slug: str, **changes: Any) -> dict[str, Any]:
    """The body of a sign-up."""
    body = {"slug": slug, "name": "A Ltd", "email": f"owner@{slug}.test", "password": "correct horse"}
    return body | changes
