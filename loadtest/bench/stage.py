"""A fleet under steady load from tenants of its own, for benchmarks that do something to one of them meanwhile."""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from contracts.routes import split_address
from infra.local.fleet import Fleet
from loadtest import books, ledger
from loadtest.bench.figures import BenchError, Figure
from loadtest.books import Audit
from loadtest.driver import Driver
from loadtest.lab.seed import SEEDED
from loadtest.operator import ENDED, ControlPlane, Product, check
from loadtest.record import Gap, Latency, Record, write_gap
from loadtest.schedule import Intent, Kind, Stream, arrivals, beside
from loadtest.tenants import Cast, sign_up
from loadtest.wire import Pool
from loadtest.workload import Account

CONNECTIONS: Final = 8  # to each router
SLICE_S: Final = 1.0  # of load that is planned at a time
AHEAD_S: Final = 0.3
POLL_S: Final = 0.01
MOVING_MIX: Final[Mapping[Kind, float]] = {Kind.CREATE: 0.7, Kind.READ: 0.3}  # whose gap is measured writes often
OTHERS_MIX: Final[Mapping[Kind, float]] = {Kind.CREATE: 0.3, Kind.READ: 0.5, Kind.LIST: 0.2}
_APART: Final = 100_000  # between the numbers of one slice and the next; no slice has as many requests of a tenant


class Timed(Record):
    """A `Record` that also knows when each request was due, of which account, and how long it took. Seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[tuple[float, int, float]] = []

    def answered(self, intent: Intent, cell: str, now: float) -> None:
        """The expected answer."""
        super().answered(intent, cell, now)
        self.samples.append((intent.at, intent.tenant, now - intent.at))

    def latency_of_others(self, since: float, until: float) -> Latency:
        """Of all accounts but the first, due within that time of the run."""
        found = Latency()
        for at, account, seconds in self.samples:
            if account and since <= at < until:
                found.add(seconds)
        return found


@dataclass(frozen=True)
class Stage:
    """Tenants of a fleet, the first of which is moved; their load, and what became of it."""

    fleet: Fleet
    control: ControlPlane
    http: httpx.AsyncClient  # an operator's
    routers: Sequence[Product]
    cast: Cast
    driver: Driver
    record: Timed

    @property
    def moving(self) -> Account:
        """The tenant that is moved."""
        return self.cast.accounts[0]

    @contextlib.asynccontextmanager
    async def load(self, moving: float, others: float) -> AsyncIterator[None]:
        """Load for as long as the block runs: so many requests a second of the first tenant, and of each other one."""
        streams = [
            Stream(n, n, moving if n == 0 else others, 0.0, SLICE_S, OTHERS_MIX if n else MOVING_MIX)
            for n in range(len(self.cast.accounts))
        ]
        stop = asyncio.Event()
        await self.driver.run(())
        offering = asyncio.create_task(self._offer(streams, stop))
        try:
            yield
        finally:
            stop.set()
            await offering

    async def _offer(self, streams: Sequence[Stream], stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as slices:
            for turn in itertools.count():
                at = turn * SLICE_S
                await asyncio.sleep(max(0.0, at - AHEAD_S - self.driver.seconds_in()))
                if stop.is_set():
                    return
                intents = beside(arrivals(streams, turn), number=turn * _APART, at=at, tenant=0)
                slices.create_task(self.driver.also(intents))

    async def operate(self, method: str, path: str, **more: Any) -> Any:
        """What the control plane answers; `LabError` where it refuses."""
        return check(await self.http.request(method, path, **more), 200, 201).json()

    async def move(self, to: str, tenant: str = "", **more: Any) -> dict[str, Any]:
        """Move a tenant, the first one by default, and wait for the end."""
        body = {"tenant": tenant or self.moving.tenant, "to": to, **more}
        return await self.until(await self.operate("POST", "/v1/moves", json=body), ENDED)

    async def until(self, move: dict[str, Any], states: frozenset[str]) -> dict[str, Any]:
        """The move once it is in one of the states; `BenchError` where it ended otherwise or not at all."""
        end = time.monotonic() + 600.0
        while move["state"] not in states:
            if move["state"] in ENDED or time.monotonic() > end:
                raise BenchError(ill(move))
            await asyncio.sleep(POLL_S)
            move = await self.operate("GET", f"/v1/moves/{move['id']}")
        if move["state"] in ("failed", "cancelled"):
            raise BenchError(ill(move))
        return move

    def elsewhere(self, cell: str) -> str:
        """Another cell."""
        return next(name for name in self.fleet.cells if name != cell)

    def gap(self, during: tuple[float, float]) -> Gap:
        """The longest silence for writes of the moved tenant that overlaps this time."""
        return write_gap(self.record.writes.get(self.moving.tenant, []), during=during)

    async def books(self) -> Audit:
        """Every write of this stage against the rows of every shard."""
        shards = {cell.name: cell.shards for cell in self.fleet.cells.values()}
        homes, mine = await self.control.homes(), {account.tenant for account in self.cast.accounts}
        return books.audit(
            [*self.cast.first_orders, *self.record.acknowledged],
            self.record.unacknowledged,
            await ledger.read(shards, leave_out=SEEDED),
            {tenant: home for tenant, home in homes.items() if tenant in mine},
            stale=self.record.stale,
        )

    async def right(self, what: str) -> list[Figure]:
        """The figures that must be 0 of whatever was done."""
        audit = await self.books()
        wrong, failed = len(audit.findings), len(self.record.failures)
        told = "; ".join([*(f.words() for f in self.record.failures[:2]), *(f.words for f in audit.findings[:2])])
        return [
            Figure(f"{what}: failed requests of {self.record.sent}", failed, "", "== 0", not failed),
            Figure(f"{what}: lost, doubled or misplaced writes of {audit.acknowledged}{told and f' ({told})'}", wrong,
                   "", "== 0", not wrong),
        ]  # fmt: skip


def ill(move: dict[str, Any]) -> str:
    """Where a move that did not end well went, and why."""
    way = "; ".join(f"{step['state']}: {step['detail']}" for step in move["steps"] if step["detail"])
    return f"the move of {move['slug']} is {move['state']}: {way}"


@contextlib.asynccontextmanager
async def staged(fleet: Fleet, tenants: int) -> AsyncIterator[Stage]:
    """So many tenants, signed up at the front door, with nothing going on yet.

    Until the end of the block the control plane leaves noisy tenants alone: load is what they are there for.
    """
    run = f"bench-{secrets.token_hex(3)}"
    async with contextlib.AsyncExitStack() as stack:
        control = ControlPlane(fleet.control_plane.url, fleet.control_plane.operator_key)
        stack.push_async_callback(control.aclose)
        http = await stack.enter_async_context(fleet.operator())
        mode = check(await http.get("/v1/noisy", params={"limit": 1}), 200).json()["policy"]["mode"]
        await control.leave_noise_alone()
        stack.push_async_callback(http.patch, "/v1/noisy/policy", json={"mode": mode})
        routers = [Product(url) for url in fleet.router_urls]
        pools = []
        for name, url, router in zip(fleet.spec.router_names, fleet.router_urls, routers, strict=True):
            stack.push_async_callback(router.aclose)
            pools.append(Pool(*split_address(url.removeprefix("http://")), name=name, size=CONNECTIONS))
            stack.callback(pools[-1].close)
        slugs = [f"{run}-{number}" for number in range(tenants)]
        cast = await sign_up(routers, fleet.spec.front_door_host, slugs, run)
        for pool in pools:
            await pool.warm()
        record = Timed()
        driver = Driver(pools, cast.accounts, cast.orders, run, record, clock=time.monotonic)
        yield Stage(fleet, control, http, routers, cast, driver, record)
