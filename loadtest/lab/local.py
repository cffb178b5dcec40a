"""A local fleet as the system under test: the lab's own, so it may be broken, moved about and asked for its rows."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from contracts.routes import split_address
from infra.local.cgroups import Walls as CpuWalls
from infra.local.concurrency import finished, together
from infra.local.fleet import Fleet
from infra.local.plan import base_environment
from infra.local.runner import Say
from infra.local.spec import CHECKOUT, FleetSpec
from loadtest import books, ledger
from loadtest.history.judge import judge
from loadtest.lab import walls
from loadtest.lab.casting import Casting
from loadtest.lab.collect import books_of
from loadtest.lab.job import Address
from loadtest.lab.plan import Tenant
from loadtest.lab.result import Books, Role
from loadtest.lab.scenario import FleetShape, Walls
from loadtest.lab.seed import SEEDED, seed
from loadtest.lab.system import Need, Written
from loadtest.operator import ControlPlane, Product
from loadtest.record import Stale

SEEDING_AT_ONCE: Final = 4
WHOLE: Final = float(os.cpu_count() or 1)


def cpu_words(cgroups: CpuWalls, cpus: float) -> str:
    """Whether each cell has processors of its own, and how many; or why not."""
    return cgroups.reason if cgroups.base is None else f"{cgroups.reason}; {cpus:g} processors a cell"


class LocalSystem:
    """A `System` on this machine.

    A cell has its share of the processors while traffic is measured; while it starts, and while tenants sign up, it has
    all of them: with half a processor a cell takes a minute to start.
    """

    def __init__(self, fleet: Fleet, stack: AsyncExitStack, run: str, cpus: float) -> None:
        self.fleet = fleet
        self._cpus = cpus
        self.written = Written()
        self.control_plane = ControlPlane(fleet.control_plane.url, fleet.control_plane.operator_key)
        stack.push_async_callback(self.control_plane.aclose)
        routers = [Product(url) for url in fleet.router_urls]
        for router in routers:
            stack.push_async_callback(router.aclose)
        self._casting = Casting(routers, fleet.spec.front_door_host, self.written, run)
        self._seeded: dict[str, int] = {}
        self._mode = Walls.ON
        self._target = "local fleet"

    @property
    def name(self) -> str:
        """Our own."""
        return "cellwall"

    @property
    def target(self) -> str:
        """In words, with what of it stays as it is whatever the walls are set to."""
        return self._target

    @property
    def cpu_walls(self) -> str:
        """In words."""
        return cpu_words(self.fleet.runner.walls, self._cpus)

    @property
    def cells(self) -> Sequence[str]:
        """In order."""
        return [cell.name for cell in self.fleet.spec.cells]

    @property
    def targets(self) -> Sequence[Address]:
        """The routers."""
        pairs = zip(self.fleet.spec.router_names, self.fleet.router_urls, strict=True)
        return [Address(name, *split_address(url.removeprefix("http://"))) for name, url in pairs]

    async def cast(self, need: Need) -> Sequence[Tenant]:
        """Tenants by the front door; orders of the past by SQL. A tenant that was moved is where it lives now."""
        self.share(WHOLE)
        homes = await self.control_plane.homes()
        self._casting.settle({tenant: home.cell for tenant, home in homes.items()})
        tenants = await self._casting.cast(need, self.cells)
        gate = asyncio.Semaphore(SEEDING_AT_ONCE)

        async def give(tenant: Tenant) -> None:
            wanted = need.aggressor_orders if tenant.role is Role.AGGRESSOR else need.victim_orders
            name = tenant.account.tenant
            missing = wanted - self._seeded.get(name, 0)
            if missing > 0:
                async with gate:
                    await seed(self.fleet.cells[tenant.cell].shards, name, missing)
                self._seeded[name] = wanted

        await together(*map(give, tenants))
        self.share(self._cpus)
        return tenants

    async def set_walls(self, mode: str) -> None:
        """Start cells' processes and routers anew where the mode changes; data stays, connections do not."""
        if (wanted := Walls(mode)) is self._mode:
            return
        fleet = self.fleet
        arguments = walls.router_arguments(wanted, await _router_help())
        if wanted is not Walls.ON and not arguments:
            self._target = "local fleet; its routers cannot switch their walls, which stay on"
        self.share(WHOLE)
        async with fleet.locked():
            fleet.reload()
            fleet.state.spec = replace(
                fleet.spec,
                cell_environment=walls.cell_environment(wanted),
                router_arguments=arguments,
            )
            fleet.runner.save()
        services = [name for cell in fleet.spec.cells for name in (cell.api, cell.worker)]
        services += fleet.spec.router_names
        await together(*map(fleet.stop, services))
        for name in services:
            await fleet.revive(name)
        await fleet.wait_registered(self.cells)
        self.share(self._cpus)
        self._mode = wanted

    def share(self, cpus: float) -> None:
        """Give every cell so many processors from now on."""
        for cell in self.fleet.spec.cells:
            self.fleet.runner.walls.build(cell.name, cpus)

    async def books(self, tenants: Sequence[Tenant], stale: Sequence[Stale]) -> Books:
        """From every shard of every cell, as superuser."""
        rows = await ledger.read({cell.name: cell.shards for cell in self.fleet.cells.values()})
        homes = await self.control_plane.homes()
        mine = {tenant.account.tenant for tenant in tenants} | {ack.tenant for ack in self.written.acknowledged}
        audit = books.audit(
            self.written.acknowledged,
            self.written.unacknowledged,
            [row for row in rows if not row.reference.startswith(SEEDED)],
            {tenant: home for tenant, home in homes.items() if tenant in mine},
            stale=stale,
        )
        return books_of(audit, judge(self.written.histories))


async def _router_help() -> str:
    command = [sys.executable, "-m", "router", "--help"]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, cwd=CHECKOUT, env=base_environment())
    text, _ = await process.communicate()
    return text.decode("utf-8", "replace")


@asynccontextmanager
async def local_system(shape: FleetShape, folder: Path, run: str, say: Say) -> AsyncIterator[LocalSystem]:
    """A fleet for as long as the block lasts; nothing of it is left but, where something failed, its logs."""
    cells = tuple(replace(cell, cpus=WHOLE) for cell in shape.cell_specs)
    spec = FleetSpec(cells=cells, routers=shape.routers, workers=shape.workers, cpu_walls=shape.cpu_walls)
    fleet = Fleet(spec, folder, say)
    await fleet.down()  # what a run that was killed with SIGKILL left behind
    failed = False
    try:
        await fleet.up()
        async with AsyncExitStack() as stack:
            system = LocalSystem(fleet, stack, run, shape.cpus)
            await system.control_plane.leave_noise_alone()
            stack.callback(system.share, WHOLE)  # with half a processor a cell does not end in time either
            yield system
    except Exception:
        failed = True
        raise
    finally:
        await finished(fleet.down(keep_logs=failed))
        if failed and fleet.folder.logs.exists():
            say(f"the logs of this fleet are in {fleet.folder.logs}, until the next run or `down` there")
