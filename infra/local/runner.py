"""Starting and stopping the processes of one fleet: written down before anything else, ready before it is reported."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGQUIT, SIGTERM
from typing import Final

import httpx

from infra.local.cgroups import Walls
from infra.local.concurrency import finished, together
from infra.local.errors import LocalFleetError, StartFailedError
from infra.local.plan import MARK, Plan
from infra.local.processes import Command, Identity, Process, marked
from infra.local.servers import PostgresServer, RedisServer, last_line, release_shared_memory, wait_ready
from infra.local.state import WAY_OUT, Folder, State

Say = Callable[[str], None]

HEALTH_TIMEOUT_S: Final = 2.0
ONE_SHOT_S: Final = 120.0
SERVICE_GRACE_S: Final = 10.0
SERVER_GRACE_S: Final = 10.0
CRASH_TRIES: Final = 10
CRASH_WAIT_S: Final = 0.2
_NAMED: Final = 3  # folders in a message
_LOST: Final = (
    "the data of {name} is gone: {data} is deleted or empty. Put it back; or give the data up for good, by "
    "`python -m infra.local give-up {name} --state {folder}`: then the next start makes it anew, empty, and its "
    "cell can be removed (`cellctl tenants delete` for each tenant that lived there, `pulumi destroy`)"
)
# What PostgreSQL says while backends of a killed postmaster live, and while the postmaster itself still has its pid.
_STILL_DYING: Final = ("shared memory block", "Is another postmaster")


class Runner:
    """The processes of one fleet by name."""

    def __init__(self, state: State, folder: Folder, walls: Walls, say: Say) -> None:
        self.state = state
        self.folder = folder
        self.walls = walls
        self._say = say
        self._handles: dict[str, Process] = {}

    @property
    def plan(self) -> Plan:
        """What each process is started with."""
        return Plan(self.state, self.folder)

    def save(self) -> None:
        """Write the state down."""
        self.folder.save(self.state)

    def process(self, name: str) -> Process | None:
        """The process of that name, running or not; None where it was never started."""
        identity = self.state.processes.get(name)
        if identity is None:
            return None
        held = self._handles.get(name)
        if held is None or held.identity != identity:
            held = self._handles[name] = Process(identity)
        return held

    def is_alive(self, name: str) -> bool:
        """Whether it runs."""
        process = self.process(name)
        return process is not None and process.alive

    def is_server(self, name: str) -> bool:
        """Whether it is a database server rather than a process of ours."""
        return self.plan.is_server(name)

    async def ensure_server(self, name: str) -> bool:
        """Start a database server unless it runs or is given. True where it was started."""
        if name in self.state.spec.given:
            return False
        server = self.plan.server(name)
        if self.is_alive(name):
            self._has_data(name, server)
            return False
        self.save()  # its password, before a data folder is made with it
        await self._stop_remains(name)
        await self._prepare(name, server)
        for attempt in range(1, CRASH_TRIES + 1):
            try:
                await self._started(name, self.plan.server_command(name), server.answers, self.state.ports[name])
            except StartFailedError as e:
                if not any(words in str(e) for words in _STILL_DYING) or attempt == CRASH_TRIES:
                    raise
                await asyncio.sleep(CRASH_WAIT_S)
            else:
                return True
        return True

    async def _prepare(self, name: str, server: PostgresServer | RedisServer) -> None:
        """Make the data folder, once: a folder that had data is never made anew, empty, as if nothing were lost."""
        if isinstance(server, PostgresServer) and name in self.state.filled and not server.is_filled:
            raise LocalFleetError(_LOST.format(name=name, data=server.spec.data, folder=self.folder.path))
        await finished(asyncio.to_thread(server.prepare))
        self._has_data(name, server)

    def _has_data(self, name: str, server: PostgresServer | RedisServer) -> None:
        if isinstance(server, PostgresServer) and name not in self.state.filled:
            self.state.filled.add(name)
            self.save()

    async def ensure_service(self, name: str) -> bool:
        """Start a process of ours unless it runs and is ready. True where it was started."""
        async with httpx.AsyncClient(timeout=HEALTH_TIMEOUT_S, trust_env=False) as client:
            process = self.process(name)
            if process is not None and process.alive:
                with contextlib.suppress(StartFailedError):
                    await self._ready(name, process, client)
                    return False
                self._say(f"{name} runs but does not become ready; starting it anew")
                await process.stop(grace_s=SERVICE_GRACE_S)
            await self._stop_remains(name)
            await self._start_service(name, client)
        return True

    async def start_beside(self, name: str) -> None:
        """Start a process of ours beside the one that has its name, which goes on; the name means the new one then.

        `StartFailedError` where it does not become ready: it is stopped, and the name still means it.
        """
        async with httpx.AsyncClient(timeout=HEALTH_TIMEOUT_S, trust_env=False) as client:
            await self._start_service(name, client)

    async def _start_service(self, name: str, client: httpx.AsyncClient) -> None:
        url, port = self.plan.health(name), self.state.ports.get(name)
        await self._started(name, self.plan.service(name), lambda: answers(client, url), port)

    async def once(self, name: str, command: Command) -> None:
        """Run a command to its end; `StartFailedError` with its last line where it fails."""
        await self._stop_remains(name)  # of a caller that was killed
        process = self._spawn(name, command)
        try:
            if not await process.wait_ended(ONE_SHOT_S):
                raise StartFailedError(f"{name} did not end within {ONE_SHOT_S:.0f} s; see {command.log}")
            if process.exit_status != 0:
                raise StartFailedError(f"{name} failed with status {process.exit_status}: {last_line(command.log)}")
        finally:
            process.signal(SIGKILL)
            del self.state.processes[name]
            self.save()

    async def stop(self, name: str, *, discard: bool = False) -> None:
        """Stop one process, and what it left. With ``discard`` a PostgreSQL does not write its memory out first: for
        data that is deleted next. What it has acknowledged is in its log all the same.
        """
        process = self.process(name)
        if process is not None:
            server = self.is_server(name)
            postgres = server and isinstance(self.plan.server(name), PostgresServer)
            first = (SIGQUIT if discard else SIGINT) if postgres else SIGTERM
            grace_s = SERVER_GRACE_S if server else SERVICE_GRACE_S
            if not await process.stop(first=first, grace_s=grace_s):
                self._say(f"{name} did not end within {grace_s:.0f} s and was killed")
        await self._stop_remains(name)

    async def stop_everything(self, *, discard: bool = False) -> None:
        """Services first, so that they end in peace; then servers, as `stop` does it."""
        names = list(self.state.processes)
        services = [name for name in names if not self.is_server(name)]
        await together(*(self.stop(name) for name in services))
        await together(*(self.stop(name, discard=discard) for name in names if name not in services))
        self.state.processes.clear()
        self.save()

    async def _started(
        self, name: str, command: Command, ready: Callable[[], Awaitable[bool]], port: int | None
    ) -> None:
        process = self._spawn(name, command)
        try:
            await wait_ready(name, process, ready, command.log, port=port)
        except BaseException:
            await process.stop(first=SIGKILL)
            raise

    def _spawn(self, name: str, command: Command) -> Process:
        process = Process.spawn(command)
        self._handles[name] = process
        self.state.processes[name] = process.identity
        self.save()
        cell = self.plan.cell_of(name)
        if cell is not None:
            self.walls.enclose(cell.name, process.identity)
        return process

    async def _ready(self, name: str, process: Process, client: httpx.AsyncClient) -> None:
        url = self.plan.health(name)
        await wait_ready(name, process, lambda: answers(client, url), self.plan.log(name))

    async def _stop_remains(self, name: str) -> None:
        """Children that outlived their parent and still hold its port."""
        await together(*(Process(found).stop(grace_s=0.5) for found in marked(MARK, self.plan.mark(name))))


def recorded(folder: Folder) -> State | None:
    """The state of the folder's fleet; None where there is no fleet.

    `LocalFleetError` where the file is damaged, or gone while there is something of a fleet: its processes run, or
    its data is there, which may be all that its tenants have.
    """
    state = folder.load()
    if state is None and (remains := _remains(folder)):
        raise LocalFleetError(f"{remains}, but {folder.file} is missing; {WAY_OUT}")
    return state


def _remains(folder: Folder) -> str:
    """What of a fleet is there, in words; empty where there is nothing."""
    found = sorted(path.name for path in folder.data.glob("*"))
    several = f"{', '.join(found[:_NAMED])}{', ...' if len(found) > _NAMED else ''}"
    data = f"data is in {folder.data} ({several})" if found else ""
    running = "processes of this fleet run" if any(marked(MARK, f"{folder.path}:")) else ""
    return " and ".join(filter(None, (running, data)))


async def stop_marked(folder: Folder) -> int:
    """Stop every process that carries the folder's mark, whatever the state file says. Returns how many there were."""
    remains: list[Identity] = list(marked(MARK, f"{folder.path}:"))
    await together(*(Process(found).stop(grace_s=1.0) for found in remains))
    return len(remains)


async def answers(client: httpx.AsyncClient, url: str | None) -> bool:
    """Whether a health URL answers 200. A process without one is ready when it runs."""
    if url is None:
        return True
    try:
        response = await client.get(url)
    except httpx.HTTPError:
        return False
    return response.status_code == httpx.codes.OK


def release_segments(data: Path) -> None:
    """Free what servers that were killed left in shared memory."""
    for pid_file in data.glob("*/postmaster.pid"):
        release_shared_memory(pid_file.parent)
