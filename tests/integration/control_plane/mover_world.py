"""What the mover's tests share: the control plane's real database, fake cells, a tenant, and movers that can be killed.

`conftest` brings its fixtures ``control_plane_dsn`` and ``world`` to every test of this folder.
"""

import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic

import httpx
import pytest_asyncio
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from contracts import routes, transfer
from contracts.ids import tenant_of
from control_plane.auth import Actor
from control_plane.cell_client import CellClient
from control_plane.models import Tenant, cells, route_log, tenants
from control_plane.move import TERMINAL, Budgets, State
from control_plane.move_metrics import MoveMetrics
from control_plane.move_service import Moves
from control_plane.move_store import Move, moves
from control_plane.mover import Boundary, Mover, Tuning, unobserved
from control_plane.reconciler import Reconciler
from control_plane.routes import RouteLog, publish, route_of
from control_plane.schema import upgrade
from control_plane.seed import seed
from control_plane.signals import Signals
from tests.integration.control_plane.fake_cell import FLEET_ROOT, SCHEMA, FakeFleet, Killed, Row

HINT_KEY = b"h" * 32
OPERATOR = Actor("key:test", "operator")
ROWS = [f"order {n}".encode() for n in range(50)]
SOURCE, TARGET = "cell-1", "cell-2"
HOLD_S = 60.0  # a slow disk must not end a hold; tests about holds that are too long set their own

_numbers = itertools.count(10**9)


def engine_for(dsn: str) -> AsyncEngine:
    return create_async_engine(sa.make_url(dsn).set(drivername="postgresql+asyncpg"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def control_plane_dsn(postgres: object) -> str:
    """A migrated control-plane database with two cells."""
    dsn: str = await postgres.create_database(f"mover_{secrets.token_hex(4)}")  # type: ignore[attr-defined]
    engine = engine_for(dsn)
    await upgrade(engine)
    await seed(engine)
    async with engine.begin() as conn:
        for name in (SOURCE, TARGET):
            await conn.execute(
                cells.insert().values(
                    name=name, region="local", tier="shared", capacity=1000, address=f"{name}.test:2",
                    internal_address=f"{name}.test:1", schema_revision=SCHEMA, version="1", shards=["shard-1"],
                    ready=True, last_seen=sa.func.clock_timestamp(),
                )
            )  # fmt: skip
    await engine.dispose()
    return dsn


def killed_at(name: str) -> Boundary:
    """An observer that ends the mover once this state is committed."""

    async def on_boundary(reached: str) -> None:
        if reached == name:
            raise Killed(name)

    return on_boundary


class World:
    """One tenant in `SOURCE`, two cells, one control-plane database; as many movers as a test likes."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.engine = engine_for(dsn)
        self.fleet = FakeFleet(SOURCE, TARGET)
        self.source, self.target = self.fleet.cells[SOURCE], self.fleet.cells[TARGET]
        self.http = httpx.AsyncClient(transport=self.fleet)
        self.client = CellClient(self.http, FLEET_ROOT)
        self.signals = Signals()
        self.route_log = RouteLog(self.engine, self.signals, monotonic)
        self.moves = Moves(self.engine, self.client)
        self.metrics = CollectorRegistry()
        self.number = next(_numbers)
        self.id = tenant_of(self.number)
        self.slug = f"tenant-{self.number}"
        self.rows = list(ROWS)  # every write that was acknowledged

    async def begin(self) -> None:
        self.source.tenants[self.id] = Row("active", 1, rows=list(ROWS))
        async with self.engine.begin() as conn:
            # What tests of before left under way would be driven by the runners of this one, into its cells.
            left = moves.update().where(moves.c.state.not_in([state.value for state in TERMINAL]))
            await conn.execute(left.values(state=State.CANCELLED.value, finished_at=sa.func.now()))
            insert = tenants.insert().values(
                number=self.number, slug=self.slug, name="A tenant", cell=SOURCE, state="active", plan="free",
                region="local", hosts=[f"{self.slug}.example.test"], email_digest=b"",
            )  # fmt: skip
            row = (await conn.execute(insert.returning(tenants))).one()
            await publish(conn, [route_of(Tenant.of(row), "active")])

    async def end(self) -> None:
        await self.http.aclose()
        await self.engine.dispose()

    def mover(
        self,
        on_boundary: Boundary = unobserved,
        budgets: Budgets | None = None,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        *,
        routers_s: float = 0.01,
        route_log: RouteLog | None = None,
    ) -> Mover:
        async def at_once(_s: float) -> None:
            return None

        return Mover(
            self.engine, route_log or self.route_log, self.client, HINT_KEY, MoveMetrics(CollectorRegistry()),
            budgets=budgets or Budgets(hold_s=HOLD_S), tuning=Tuning(routers_s=routers_s, soft_ms=10, hard_ms=50),
            on_boundary=on_boundary, sleep=sleep or at_once,
        )  # fmt: skip

    def reconciler(self) -> Reconciler:
        return Reconciler(self.engine, self.client, HINT_KEY)

    async def start(self, to: str = TARGET, *, standby: bool = False, finalize_after_s: float | None = None) -> str:
        if standby:
            for cell in self.fleet.cells.values():
                cell.weight = transfer.Preflight(len(ROWS), 1000, 0, 0)
        history = await self.moves.start(self.slug, to, OPERATOR, standby=standby, finalize_after_s=finalize_after_s)
        return history.move.id

    async def move(self, move_id: str) -> Move:
        return (await self.moves.one(move_id)).move

    async def tenant(self) -> Tenant:
        async with self.engine.connect() as conn:
            return Tenant.of((await conn.execute(sa.select(tenants).where(tenants.c.number == self.number))).one())

    async def published(self) -> list[routes.Route]:
        """Every route of the tenant that was ever published, oldest first."""
        query = sa.select(route_log.c.record).where(route_log.c.subject == f"tenant:{self.id}")
        async with self.engine.connect() as conn:
            lines = (await conn.execute(query.order_by(route_log.c.revision))).scalars().all()
        return [r for r in map(routes.decode_line, (line.encode() for line in lines)) if isinstance(r, routes.Route)]

    def write(self) -> None:
        """A user's write, where the tenant is served at the moment."""
        for name, _epoch in self.fleet.owners(self.id):
            line = f"order {len(self.rows)}".encode()
            self.fleet.cells[name].write(self.id, line)
            self.rows.append(line)

    def streams(self) -> list[str]:
        """What is left of any stream, anywhere."""
        return [s.stream for cell in self.fleet.cells.values() for s in cell.statuses()]

    async def assert_settled(self, home: str) -> None:
        """One owner, which is where the control plane and the newest route say, and nothing left elsewhere."""
        assert self.streams() == []
        tenant = await self.tenant()
        route = (await self.published())[-1]
        assert self.fleet.owners(self.id) == [(home, tenant.epoch)]
        assert (route.cell, route.epoch, route.state) == (home, tenant.epoch, "active")
        assert (tenant.cell, tenant.move_id, tenant.move_target) == (home, None, None)
        assert sorted(self.fleet.cells[home].tenants[self.id].rows) == sorted(self.rows)
        for name, cell in self.fleet.cells.items():
            left = cell.tenants.get(self.id)
            assert name == home or left is None or (left.state in ("none", "gone", "aborted") and not left.rows)


@pytest_asyncio.fixture
async def world(control_plane_dsn: str) -> AsyncIterator[World]:
    made = World(control_plane_dsn)
    await made.begin()
    yield made
    await made.end()
