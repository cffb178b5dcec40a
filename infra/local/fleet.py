"""The fleet as one thing: up, down, and its processes by name. Every step can be repeated, also after a crash."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Final, Self

import asyncpg
import httpx
import msgspec

from infra.local import zero
from infra.local.cgroups import Walls
from infra.local.concurrency import finished, together
from infra.local.errors import LocalFleetError, PortTakenError, StartFailedError
from infra.local.plan import CONTROL_PLANE_ROLE, Plan, port_names
from infra.local.ports import is_free, reserved
from infra.local.processes import POLL_S, Identity
from infra.local.runner import Runner, Say, recorded, release_segments, stop_marked
from infra.local.spec import CONTROL_PLANE, CONTROL_PLANE_DB, GATEWAY, ZERO, FleetSpec, LocalCellSpec
from infra.local.state import Folder, State
from infra.local.zero import ZeroHandle

START_TRIES: Final = 3
REGISTERED_S: Final = 30.0
OPERATOR_TIMEOUT_S: Final = 30.0  # while a whole fleet starts
KILL_WAIT_S: Final = 5.0
_KEY: Final = re.compile(r"\bcwo_[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class ControlPlaneHandle:
    """Where the control plane listens; an operator's key for it; the superuser's DSN of its database."""

    url: str
    front_door: str
    operator_key: str = field(repr=False)
    dsn: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CellHandle:
    """Where a cell listens. ``shards`` maps a shard to the superuser's DSN of its database."""

    name: str
    address: str
    internal_address: str
    worker_address: str
    processes: tuple[str, ...]
    transfer_token: str = field(repr=False)
    redis_url: str = field(repr=False)
    shards: dict[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class GatewayHandle:
    """Where the sandbox gateway listens, and what opens it."""

    url: str
    token: str = field(repr=False)


class _Started(msgspec.Struct):
    """What a router's supervisor logs when it starts a child."""

    event: str = ""
    process: str = ""
    pid: int = 0


class Fleet:
    """A fleet in one folder. Commands of several programs on the same folder are serialised by a lock."""

    def __init__(self, spec: FleetSpec, folder: Path, progress: Say) -> None:
        self._wanted = spec
        self.folder = Folder(folder.absolute())
        self._say = progress
        self._runner: Runner | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, spec: FleetSpec, folder: Path, progress: Say, *, keep: bool = False) -> AsyncIterator[Self]:
        """A fleet for the ``async with`` block; stopped at its end, its data removed unless ``keep``."""
        fleet = cls(spec, folder, progress)
        await fleet.up()
        try:
            yield fleet
        finally:
            await finished(fleet.down(keep=keep))

    # The whole fleet.

    async def up(self) -> None:
        """Start what does not run; repeat at will.

        When a first start fails or is cancelled, everything that it started is stopped and removed; of one that
        failed the logs stay. A fleet that was up before is left as it is: only what was being started is stopped.
        """
        async with self.locked():
            for attempt in range(1, START_TRIES + 1):
                self._load_or_make()
                first = not self.state.complete
                try:
                    await self._start_everything()
                except BaseException as e:
                    if first:
                        self._say("stopping what was started")
                        await finished(self._stop_everything(keep_logs=isinstance(e, Exception)))
                    if not (first and isinstance(e, PortTakenError)) or attempt == START_TRIES:
                        raise
                else:
                    return

    async def down(self, *, keep: bool = False, keep_logs: bool = False) -> None:
        """Stop everything and remove the data unless ``keep``. Works after a crash, and where nothing runs.

        With ``keep_logs`` the logs stay, until the next command on this folder.
        """
        if not self.folder.lock.exists():
            return
        async with self.locked():
            self._runner = None
            try:
                if (state := recorded(self.folder)) is not None:
                    self._adopt(state)
            except LocalFleetError as e:
                self._say(str(e))
            await self._stop_everything(keep=keep, keep_logs=keep_logs)

    def attach(self) -> None:
        """Take over the fleet of the folder, whatever of it runs; `LocalFleetError` where there is none."""
        self._adopt(self._recorded())

    def reload(self) -> None:
        """Read what other programs have done to this fleet since; call it under `locked`."""
        self.runner.state = self._recorded()

    def _recorded(self) -> State:
        state = recorded(self.folder)
        if state is None:
            raise LocalFleetError(f"there is no fleet in {self.folder.path}; start one first (make up)")
        return state

    # One process, or one cell.

    async def kill(self, name: str, number: Signals = SIGKILL) -> None:
        """Send a signal to a process, or to every process of a cell; waits for the end where it is SIGKILL."""
        found = [process for each in self.expand(name) if (process := self.runner.process(each)) is not None]
        for process in found:
            process.signal(number)
        if number == SIGKILL:
            await together(*(process.wait_ended(KILL_WAIT_S) for process in found))

    async def stop(self, name: str) -> None:
        """Stop a process, or every process of a cell, services first."""
        servers, services = self._split(self.expand(name))
        await together(*map(self.runner.stop, services))
        await together(*map(self.runner.stop, servers))

    async def revive(self, name: str) -> None:
        """Start a process that was stopped or killed, or whatever does not run of a cell; ready when this returns."""
        async with self.locked():
            self.reload()
            servers, services = self._split(self.expand(name))
            await together(*map(self.runner.ensure_server, servers))
            await together(*map(self.runner.ensure_service, services))

    async def give_up(self, server: str) -> None:
        """Accept that the data of a PostgreSQL server is gone: its next start makes it anew, empty."""
        async with self.locked():
            self.reload()
            if server not in self.state.filled:
                raise LocalFleetError(f"this fleet has no data of a server {server!r}")
            if self.plan.postgres(server).is_filled:
                raise LocalFleetError(f"the data of {server} is there; nothing is given up")
            self.state.filled.remove(server)
            self.runner.save()

    def set_cells(self, cells: tuple[LocalCellSpec, ...]) -> None:
        """Change what the fleet consists of, before anything is started or after it was stopped; hold `locked`."""
        self.state.spec = replace(self.spec, cells=cells)
        self._wanted = self.state.spec
        self.add_ports()

    def expand(self, name: str) -> tuple[str, ...]:
        """A cell's name stands for all of its processes; any other name for itself."""
        for cell in self.spec.cells:
            if cell.name == name:
                return tuple(each for each in cell.processes if each not in self.spec.given)
        if name == ZERO and self.spec.zero is not None:
            return tuple(each for each in self.spec.zero.processes if each not in self.spec.given)
        if name not in self.names:
            raise LocalFleetError(f"this fleet has no process or cell {name!r}")
        return (name,)

    def worker_pids(self, router: str) -> list[int]:
        """The live workers of a router, as its supervisor's log names them: the last one started in each place."""
        pids: dict[str, int] = {}
        with self.plan.log(router).open("rb") as lines:
            for line in lines:
                with contextlib.suppress(msgspec.DecodeError):
                    event = msgspec.json.decode(line, type=_Started)
                    if event.event == "process_started" and event.process.startswith("worker-"):
                        pids[event.process] = event.pid
        return [pid for pid in pids.values() if Identity.of(pid) is not None]

    # What is where.

    @property
    def runner(self) -> Runner:
        """The processes; `LocalFleetError` before `up` or `attach`."""
        if self._runner is None:
            raise LocalFleetError("the fleet is not up")
        return self._runner

    @property
    def state(self) -> State:
        """The written state."""
        return self.runner.state

    @property
    def spec(self) -> FleetSpec:
        """What the fleet consists of."""
        return self.state.spec

    @property
    def plan(self) -> Plan:
        """Command lines, addresses and DSNs."""
        return self.runner.plan

    @property
    def names(self) -> tuple[str, ...]:
        """Every process of the fleet but given servers, in words of the spec."""
        cells = (name for cell in self.spec.cells for name in cell.processes)
        old = () if self.spec.zero is None else self.spec.zero.processes
        every = (CONTROL_PLANE_DB, CONTROL_PLANE, GATEWAY, *cells, *old, *self.spec.router_names)
        return tuple(name for name in every if name not in self.spec.given)

    @property
    def router_urls(self) -> list[str]:
        """The base URLs of the routers, for clients."""
        return [self.plan.url(name) for name in self.spec.router_names]

    @property
    def control_plane(self) -> ControlPlaneHandle:
        """The control plane."""
        door = self.plan.url(f"{CONTROL_PLANE}.front-door")
        dsn = self.plan.control_plane_admin_dsn()
        return ControlPlaneHandle(self.plan.url(CONTROL_PLANE), door, self.state.operator_key, dsn)

    @property
    def gateway(self) -> GatewayHandle:
        """The sandbox gateway."""
        return GatewayHandle(self.plan.url(GATEWAY), self.state.gateway_token())

    @property
    def zero(self) -> ZeroHandle | None:
        """Cell zero; None where the fleet has none."""
        return None if self.spec.zero is None else ZeroHandle.of(self.plan, self.spec.zero)

    @property
    def cells(self) -> dict[str, CellHandle]:
        """The cells by name."""
        plan = self.plan
        return {
            cell.name: CellHandle(
                name=cell.name,
                address=plan.at(cell.api),
                internal_address=plan.at(f"{cell.api}.internal"),
                worker_address=plan.at(cell.worker),
                processes=cell.processes,
                transfer_token=self.state.transfer_token(cell.name),
                redis_url=plan.redis_url(cell),
                shards={shard: plan.shard_dsn(cell.name, shard) for shard in cell.shard_names},
            )
            for cell in self.spec.cells
        }

    def admin_dsn(self, cell: str, shard: str) -> str:
        """The superuser's DSN of a shard's database."""
        return self.plan.shard_dsn(cell, shard)

    @property
    def walls(self) -> str:
        """Whether CPU walls stand, in words."""
        return self.runner.walls.reason

    # How it starts and stops.

    def locked(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold the folder against other programs."""
        return self.folder.locked(lambda: self._say("another command works on this fleet; waiting for it"))

    def _adopt(self, state: State) -> None:
        walls = Walls.of(self.folder.path) if state.spec.cpu_walls else Walls.off()
        self._runner = Runner(state, self.folder, walls, self._say)

    def _load_or_make(self) -> None:
        state = recorded(self.folder)
        if state is not None:  # the cells that were added since are a part of it
            own = tuple(cell for cell in self._wanted.cells if cell.name not in state.stamps)
            added = tuple(cell for cell in state.spec.cells if cell.name in state.stamps)
            self._wanted = replace(self._wanted, cells=(*own, *added))
        if state is not None and state.spec != self._wanted and state.complete:
            raise LocalFleetError(
                f"a fleet of another shape is in {self.folder.path}: `up` without options starts what of it died,"
                " `down` stops it and removes its data"
            )
        if state is None:
            self.folder.clear()
        self._adopt(state or State.fresh(self._wanted))
        if not any(map(self.runner.is_alive, self.names)):  # nobody uses a port that somebody else took meanwhile
            self.state.ports = {name: port for name, port in self.state.ports.items() if is_free(port)}
        self.add_ports()

    def add_ports(self) -> None:
        """Find a port for every listener that has none yet, and write them down."""
        given = self.spec.given
        missing = [name for name in port_names(self.spec) if name not in self.state.ports and name not in given]
        with reserved(len(missing), avoid=frozenset(self.state.ports.values())) as ports:
            self.state.ports.update(zip(missing, ports, strict=True))
        self.runner.save()

    async def _start_everything(self) -> None:
        began = time.monotonic()
        down = [name for name in self.names if not self.runner.is_alive(name)]
        if down == list(self.names):
            self._say(f"starting {len(down)} processes, logs in {self.folder.logs}")
        elif down:
            self._say(f"starting what does not run: {', '.join(down)}; logs in {self.folder.logs}")
        else:
            self._say("every process runs; looking whether each is ready")
        old = [zero.start(self.runner, self.spec.zero, self._say)] if self.spec.zero is not None else []
        cells = map(self.start_cell, self.spec.cells)
        await together(self._control(), self.runner.ensure_service(GATEWAY), *cells, *old)
        await self.wait_registered([*(cell.name for cell in self.spec.cells), *(ZERO for _ in old)])
        self.state.complete = True
        self.runner.save()
        self._say(f"the fleet is up ({time.monotonic() - began:.1f} s)")

    async def _control(self) -> None:
        """The control plane, then the routers, whose keys it makes."""
        await self._control_plane()
        await together(*map(self._router, self.spec.router_names))

    async def _control_plane(self) -> None:
        began = time.monotonic()
        runner, plan = self.runner, self.plan
        await runner.ensure_server(CONTROL_PLANE_DB)
        if not runner.is_alive(CONTROL_PLANE):
            await self._ensure_database()
            await runner.once(f"{CONTROL_PLANE}-migrate", plan.control_plane(f"{CONTROL_PLANE}-migrate", "migrate"))
        started, _ = await together(runner.ensure_service(CONTROL_PLANE), self._operator_key())
        if started:
            self._say(f"control plane: answers on {plan.at(CONTROL_PLANE)} ({time.monotonic() - began:.1f} s)")
        await self._router_keys()

    async def _ensure_database(self) -> None:
        """The control plane's own role and database, made once."""
        password = self.state.password(CONTROL_PLANE_ROLE)
        connection = await asyncpg.connect(self.plan.superuser_dsn(CONTROL_PLANE_DB))
        try:
            if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", CONTROL_PLANE_ROLE):
                await connection.execute(f"CREATE ROLE {CONTROL_PLANE_ROLE} LOGIN PASSWORD '{password}'")
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", CONTROL_PLANE_ROLE):
                await connection.execute(f"CREATE DATABASE {CONTROL_PLANE_ROLE} OWNER {CONTROL_PLANE_ROLE}")
        finally:
            await connection.close()

    async def _operator_key(self) -> bool:
        """The first API key, made by the control plane's own command because no other key can ask for it.

        True where it was made now.
        """
        if self.state.operator_key:
            return False
        label = f"{CONTROL_PLANE}-key"
        answer = self.folder.path / f"{label}.out"
        command = self.plan.control_plane(label, "create-key", "--name", "local-operator", "--role", "admin")
        try:
            await self.runner.once(label, replace(command, stdout=answer))
            found = _KEY.search(answer.read_text())
        finally:
            answer.unlink(missing_ok=True)
        if found is None:
            raise StartFailedError(f"create-key printed no key; see {command.log}")
        self.state.operator_key = found[0]
        self.runner.save()
        return True

    async def _router_keys(self) -> None:
        async with self.operator() as client:
            for router in self.spec.router_names:
                if router not in self.state.router_keys:
                    answer = await client.post("/v1/keys", json={"name": router, "role": "router"})
                    if answer.is_error:
                        raise StartFailedError(f"the control plane gave no key to {router}: {answer.text}")
                    self.state.router_keys[router] = answer.json()["key"]
                    self.runner.save()

    def operator(self) -> httpx.AsyncClient:
        """A client of the control plane with the operator's key."""
        headers = {"Authorization": f"Bearer {self.state.operator_key}"}
        return httpx.AsyncClient(
            base_url=self.control_plane.url, headers=headers, trust_env=False, timeout=OPERATOR_TIMEOUT_S
        )

    async def start_cell(self, cell: LocalCellSpec) -> None:
        """Start what of the cell does not run, servers first; the schema is brought up to date before the API."""
        began = time.monotonic()
        runner = self.runner
        runner.walls.build(cell.name, cell.cpus)
        servers, services = self._split(self.expand(cell.name))
        await together(*map(runner.ensure_server, servers))
        if not runner.is_alive(cell.api):
            migrate = f"{cell.name}-migrate"
            await runner.once(migrate, self.plan.cell_command(cell, migrate, "migrate"))
            self._say(f"{cell.name}: {len(servers)} database servers run, the schema is there")
        if any(await together(*map(runner.ensure_service, services))):
            self._say(f"{cell.name}: answers on {self.plan.at(cell.api)} ({time.monotonic() - began:.1f} s)")

    async def _router(self, name: str) -> None:
        if await self.runner.ensure_service(name):
            self._say(f"{name}: {self.spec.workers} workers answer on {self.plan.at(name)}")

    async def wait_registered(self, names: Iterable[str]) -> None:
        """Wait until the control plane knows these cells as healthy: only then can a tenant sign up."""
        missing = set(names)
        until = time.monotonic() + REGISTERED_S
        async with self.operator() as client:
            while missing:
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.get("/v1/cells")
                    if answer.status_code == httpx.codes.OK:
                        missing -= {cell["name"] for cell in answer.json()["cells"] if cell["healthy"]}
                if missing and time.monotonic() > until:
                    raise StartFailedError(
                        f"{', '.join(sorted(missing))} did not register with the control plane; where that does not "
                        "run, `make up` starts it"
                    )
                if missing:
                    await asyncio.sleep(POLL_S)

    async def _stop_everything(self, *, keep: bool = False, keep_logs: bool = False) -> None:
        if self._runner is not None:
            await self._runner.stop_everything(discard=not keep)
        left = await stop_marked(self.folder)
        if left:
            self._say(f"stopped {left} processes that no record named")
        release_segments(self.folder.data)
        Walls.of(self.folder.path).remove()
        if keep:
            self._say(f"everything is stopped; the data stays in {self.folder.path}")
        else:
            self.folder.remove(keep_logs=keep_logs)
            self._runner = None

    def _split(self, names: tuple[str, ...]) -> tuple[list[str], list[str]]:
        servers = [name for name in names if self.runner.is_server(name)]
        return servers, [name for name in names if name not in servers]
