"""``python -m loadtest.bench.cell``: what each kind of request costs a cell, by process, beside a plain shared stack.

A fleet of one cell and the lab's peer answer the same calls of one client, one after the other, in interleaved rounds;
the time is what the kernel counts for each process and all that it has begun, so a machine that is busy with other work
changes it little. The work that a write leaves behind is waited for and counted: the relay of its event, and the
consumers. What a process uses while nobody asks it anything is measured first and taken off.

The goals are ratios to the peer in the same run. Writes ``build/bench/cell.json`` and exits with 1 where a figure does
not hold, with 2 where it could not run.
"""

import asyncio
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import asyncpg
import click
from rich.console import Console
from rich.table import Table

from infra.local.errors import LocalFleetError
from infra.local.spec import CONTROL_PLANE
from loadtest.bench import cpu
from loadtest.bench.figures import Figure, Report
from loadtest.lab.job import Address
from loadtest.lab.local import local_system
from loadtest.lab.peer import peer_system
from loadtest.lab.plan import Tenant
from loadtest.lab.scenario import FleetShape
from loadtest.lab.system import Need
from loadtest.operator import LabError
from loadtest.schedule import WRITES, Intent, Kind
from loadtest.show import console
from loadtest.wire import Pool
from loadtest.workload import call

ROUNDS: Final = 5
ORDERS: Final = 200
IDLE_S: Final = 3.0
REST_S: Final = 60.0
POLL_S: Final = 0.05
API: Final = "API"
DATABASE: Final = "PostgreSQL"
WORKER: Final = "worker"
ANSWERING: Final = (API, DATABASE)
SHAPE: Final = FleetShape(cells=1, cpu_walls=False)
NEED: Final = Need(plan="business", victims=2, victim_orders=ORDERS, aggressors={}, aggressor_orders=0)
_UNFINISHED: Final = "SELECT count(*) FROM cellwall.outbox WHERE finished_at IS NULL"


@dataclass(frozen=True)
class Sort:
    """Requests of one kind: so many in a round. ``goal`` is the most that API and PostgreSQL together may cost, in
    units of the peer's; None where the peer's answer is another one."""

    kind: Kind
    requests: int
    goal: float | None = None
    heavy: bool = False  # of a tenant whose orders have a hundred lines

    @property
    def name(self) -> str:
        """In words."""
        return "page of 500 lines" if self.heavy and self.kind is Kind.BIG_LIST else self.kind.value


SORTS: Final = (
    Sort(Kind.PRODUCT, 100, 0.5),
    Sort(Kind.READ, 100, 0.5),
    Sort(Kind.LIST, 100, 0.5),
    Sort(Kind.BIG_LIST, 30, 0.5),
    Sort(Kind.CREATE, 50, 0.75),
    Sort(Kind.BIG_ORDER, 20, 0.75, heavy=True),
    Sort(Kind.BIG_LIST, 30, heavy=True),
)


@dataclass(frozen=True)
class Stack:
    """One side: where it listens, its processes, two tenants of it, and its database where that has work to finish."""

    name: str
    address: Address
    roots: Mapping[str, int]
    tenants: Sequence[Tenant]
    left: "asyncpg.Connection[asyncpg.Record] | None" = None

    def read(self) -> dict[str, dict[int, float]]:
        """The clocks of its processes; the benchmark's own connection is not of them."""
        return cpu.trees(self.roots, () if self.left is None else (self.left.get_server_pid(),))

    async def rest(self) -> None:
        """Wait until the work that requests have left is done; `LabError` where it is not done in time."""
        until = time.monotonic() + REST_S
        while self.left is not None and await self.left.fetchval(_UNFINISHED):
            if time.monotonic() > until:
                raise LabError(f"{self.name} has events left after {REST_S:.0f} s")
            await asyncio.sleep(POLL_S)


Costs = dict[tuple[str, str, str], list[float]]  # of a sort, on a stack, in a process: microseconds a request, by round


class _Client:
    """One client of one stack. Sends one request after the other."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._pool = Pool(stack.address.host, stack.address.port, size=1)
        self._sent = 0
        self._idle: dict[str, float] = {}  # seconds of CPU a second, by process

    def close(self) -> None:
        """Close its connection."""
        self._pool.close()

    async def idle(self) -> Mapping[str, float]:
        """Measure what the stack uses while nobody asks it anything: shares of a processor."""
        before, began = self.stack.read(), time.monotonic()
        await asyncio.sleep(IDLE_S)
        took = time.monotonic() - began
        self._idle = {name: s / took for name, s in cpu.used(before, self.stack.read()).items()}
        return self._idle

    async def cost(self, sort: Sort) -> dict[str, float]:
        """Microseconds a request, by process."""
        before, began = self.stack.read(), time.monotonic()
        await self._send(sort)
        await self.stack.rest()
        took = time.monotonic() - began
        spent = cpu.used(before, self.stack.read())
        return {name: max(0.0, s - self._idle[name] * took) / sort.requests * 1e6 for name, s in spent.items()}

    async def _send(self, sort: Sort) -> None:
        tenant = self.stack.tenants[int(sort.heavy)]
        for _ in range(sort.requests):
            self._sent += 1
            intent = Intent(self._sent, 0.0, 0, sort.kind, (self._sent * 0.618) % 1.0)
            asked = call(tenant.account, intent, tenant.orders, "bench-cell")
            answer = await self._pool.exchange(asked.payload)
            if answer.status != (201 if sort.kind in WRITES else 200):
                raise LabError(f"{self.stack.name}: {sort.name} was answered {answer.status}: {answer.body[:200]!r}")


@asynccontextmanager
async def _cell(folder: Path, screen: Console) -> AsyncIterator[Stack]:
    async with AsyncExitStack() as stack:
        system = await stack.enter_async_context(
            local_system(SHAPE, folder, "bench-cell", lambda line: screen.print(line, style="dim"))
        )
        tenants = await system.cast(NEED)
        fleet = system.fleet
        cell = fleet.spec.cells[0]
        names = {
            API: cell.api,
            DATABASE: cell.server(cell.shard_names[0]),
            WORKER: cell.worker,
            "Redis": cell.redis,
            "router": fleet.spec.router_names[0],
            "control plane": CONTROL_PLANE,
        }
        roots = {name: fleet.state.processes[of].pid for name, of in names.items()}
        left = await asyncpg.connect(next(iter(fleet.cells[cell.name].shards.values())))
        stack.push_async_callback(left.close)
        yield Stack("cell", system.targets[0], roots, tenants, left)


@asynccontextmanager
async def _peer(folder: Path, screen: Console) -> AsyncIterator[Stack]:
    async with peer_system(SHAPE, folder, lambda line: screen.print(line, style="dim")) as system:
        tenants = await system.cast(NEED)
        api, database = system.pids
        yield Stack("peer", system.targets[0], {API: api, DATABASE: database}, tenants)


async def measure(folder: Path, rounds: int, screen: Console) -> tuple[Costs, Mapping[str, float]]:
    """Microseconds of CPU a request, and what an idle cell uses, as shares of a processor."""
    costs: Costs = defaultdict(list)
    async with _cell(folder / "fleet", screen) as cell, _peer(folder / "peer", screen) as peer:
        clients = [_Client(cell), _Client(peer)]
        try:
            for turn in range(rounds + 1):
                idle = [await client.idle() for client in clients]
                screen.print(f"round {turn} of {rounds}" if turn else "a round to warm up", style="dim")
                for sort in SORTS:
                    for client in clients:
                        for process, us in (await client.cost(sort)).items():
                            if turn:
                                costs[sort.name, client.stack.name, process].append(us)
        finally:
            for client in clients:
                client.close()
    return costs, idle[0]


def figures(costs: Costs, idle: Mapping[str, float]) -> list[Figure]:
    """Medians of the rounds; ratios are medians of each round's."""
    found = [
        Figure(f"{sort}, {stack} {process}", round(median(us), 1), "us") for (sort, stack, process), us in costs.items()
    ]
    found += [Figure(f"idle, cell {process}", round(share * 1000, 2), "ms/s") for process, share in idle.items()]
    for sort in SORTS:
        sides = [[costs[sort.name, stack, process] for process in ANSWERING] for stack in ("cell", "peer")]
        ours, theirs = ([sum(each) for each in zip(*side, strict=True)] for side in sides)
        ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
        name = f"{sort.name}: API and PostgreSQL, cell / peer"
        if sort.goal is not None:
            found.append(Figure.at_most(name, ratio, "ratio", sort.goal))
    return found


def _show(screen: Console, costs: Costs, idle: Mapping[str, float], report: Report) -> None:
    processes = list(idle)
    table = Table("request", "stack", *processes, "all", title="CPU a request, microseconds: medians", box=None)
    for sort in SORTS:
        for stack in ("cell", "peer"):
            us = {process: median(costs[sort.name, stack, process] or [0.0]) for process in processes}
            table.add_row(sort.name, stack, *(f"{us[p]:.0f}" for p in processes), f"{sum(us.values()):.0f}")
    table.add_row("idle, us a second", "cell", *(f"{idle[p] * 1e6:.0f}" for p in processes))
    screen.print(table)
    Report([figure for figure in report.figures if figure.goal]).show(screen)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1, 100))
def main(rounds: int) -> None:
    """Run, print a table, write the figures."""
    screen = console()
    try:
        with tempfile.TemporaryDirectory(prefix="cellwall-bench-cell-") as folder:
            Path(folder).chmod(0o711)  # a database account of its own reads what is in there
            costs, idle = asyncio.run(measure(Path(folder), rounds, screen))
    except (LabError, LocalFleetError, OSError, asyncpg.PostgresError) as e:
        screen.print(f"bench-cell: {e}", style="red", highlight=False)
        sys.exit(2)
    report = Report(figures(costs, idle))
    _show(screen, costs, idle, report)
    report.write(screen, "cell")
    sys.exit(0 if report.holds else 1)


if __name__ == "__main__":
    main()
