"""From the state of a fleet to the command line and environment of each of its processes. Starts nothing."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec

from contracts.envelope import FRONT_DOOR
from infra.local import zero
from infra.local.binaries import PostgresPrograms, find_postgres, find_redis
from infra.local.errors import LocalFleetError
from infra.local.ports import LOOPBACK
from infra.local.processes import Command
from infra.local.servers import PostgresServer, PostgresSpec, RedisServer, RedisSpec, with_database
from infra.local.spec import CHECKOUT, CONTROL_PLANE, CONTROL_PLANE_DB, GATEWAY, FleetSpec, LocalCellSpec, ZeroSpec
from infra.local.state import Folder, State

MARK: Final = "CELLWALL_LOCAL_PROCESS"  # in the environment of every process: FOLDER:NAME;
CONTROL_PLANE_ROLE: Final = "control_plane"
ROUTER_DRAIN_S: Final = 5  # below the grace that a stopped process has before it is killed
_OURS: Final = ("CELLWALL_CELL_", "CELLWALL_ZERO_", "SHOP_", "CELLWALL_CP_", "CELLWALL_ROUTER_", "PG", "PULUMI_")


def port_names(spec: FleetSpec) -> Iterator[str]:
    """Every port that a fleet of this shape listens on."""
    yield from (CONTROL_PLANE_DB, CONTROL_PLANE, f"{CONTROL_PLANE}.front-door", GATEWAY)
    for router in spec.router_names:
        yield from (router, f"{router}.admin")
    for cell in spec.cells:
        yield from cell.processes
        yield f"{cell.api}.internal"
    if spec.zero is not None:
        yield from zero.port_names(spec.zero)


@dataclass(frozen=True)
class Plan:
    """What each process of this fleet is started with."""

    state: State
    folder: Folder

    def cell(self, name: str) -> LocalCellSpec:
        """The cell of that name; `LocalFleetError` where there is none."""
        for cell in self.state.spec.cells:
            if cell.name == name:
                return cell
        raise LocalFleetError(f"this fleet has no cell {name!r}")

    def at(self, name: str) -> str:
        """``HOST:PORT`` of a listener."""
        return f"{LOOPBACK}:{self.state.ports[name]}"

    def url(self, name: str) -> str:
        """The base URL of a listener."""
        return f"http://{self.at(name)}"

    def health(self, name: str) -> str | None:
        """The readiness URL of a Python process; None where it listens nowhere."""
        if (old := self._zero(name)) is not None:
            return zero.health(self, old, name)
        if name in self.state.spec.router_names:
            return f"{self.url(f'{name}.admin')}/ready"
        return f"{self.url(name)}/health/ready"

    def log(self, name: str) -> Path:
        """Where its output goes."""
        return self.folder.logs / f"{name}.log"

    def blobs(self, cell: str) -> Path:
        """The folder of what a cell stores as files."""
        return self.folder.data / f"{cell}-blobs"

    def mark(self, name: str) -> str:
        """The value of `MARK` for that process. All of the folder share the part up to the colon; the semicolon
        keeps one name from being the beginning of another.
        """
        return f"{self.folder.path}:{name};"

    def is_server(self, name: str) -> bool:
        """Whether that process is a database server."""
        return name in self.state.spec.servers

    def cell_of(self, name: str) -> LocalCellSpec | None:
        """The cell that a process belongs to."""
        return next((cell for cell in self.state.spec.cells if name in cell.processes), None)

    def server(self, name: str) -> PostgresServer | RedisServer:
        """The database server of that name."""
        cell = self.cell_of(name)
        return self.redis(name) if cell is not None and name == cell.redis else self.postgres(name)

    def server_command(self, name: str) -> Command:
        """What starts the database server of that name, with the fleet's mark."""
        command = self.server(name).command()
        return replace(command, env={**(command.env or {}), MARK: self.mark(name)})

    def postgres(self, name: str) -> PostgresServer:
        """A PostgreSQL server of ours."""
        data, port = self.folder.data / name, self.state.ports[name]
        return PostgresServer(PostgresSpec(name, data, self.log(name), port, self.state.password(name)), self._postgres)

    def redis(self, name: str) -> RedisServer:
        """A Redis of ours."""
        data, port = self.folder.data / name, self.state.ports[name]
        return RedisServer(RedisSpec(name, data, self.log(name), port, self.state.password(name)), find_redis())

    def superuser_dsn(self, server: str) -> str:
        """The superuser's DSN of a PostgreSQL server, ours or given."""
        return self.state.spec.given.get(server) or self.postgres(server).superuser_dsn

    def redis_url(self, cell: LocalCellSpec) -> str:
        """The URL of a cell's Redis, ours or given."""
        return self.state.spec.given.get(cell.redis) or self.redis(cell.redis).url

    def shard_dsn(self, cell: str, shard: str) -> str:
        """The superuser's DSN of a shard's database, for people and tests that look for themselves."""
        return with_database(self.superuser_dsn(self.cell(cell).server(shard)), "shard")

    def python(self, name: str, module: str, *arguments: str, **environment: str) -> Command:
        """A Python process: ``python -m module arguments``; keyword arguments become its environment."""
        argv = (sys.executable, "-m", self.state.spec.modules.get(module, module), *arguments)
        env = base_environment() | {MARK: self.mark(name)} | environment
        return Command(argv, self.log(name), env=env, cwd=CHECKOUT)

    def service(self, name: str) -> Command:
        """The long-running Python process of that name."""
        if name == CONTROL_PLANE:
            return self.control_plane(name, "serve")
        if name == GATEWAY:
            return self._gateway(name)
        if name in self.state.spec.router_names:
            return self._router(name)
        if (old := self._zero(name)) is not None:
            return zero.service(self, old, name)
        for cell in self.state.spec.cells:
            if name in (cell.api, cell.worker):
                return self.cell_command(cell, name, "api" if name == cell.api else "worker")
        raise LocalFleetError(f"this fleet has no process {name!r}")

    def control_plane(self, name: str, *arguments: str) -> Command:
        """A command of the control plane."""
        state = self.state
        return self.python(
            name,
            "control_plane",
            *arguments,
            CELLWALL_CP_DATABASE_DSN=self.control_plane_dsn(),
            CELLWALL_CP_LISTEN=self.at(CONTROL_PLANE),
            CELLWALL_CP_FRONT_DOOR_LISTEN=self.at(f"{CONTROL_PLANE}.front-door"),
            CELLWALL_CP_FLEET_ROOT=state.fleet_root,
            CELLWALL_CP_FRONT_DOOR_KEY=state.envelope_key(FRONT_DOOR),
            CELLWALL_CP_BASE_DOMAIN=state.spec.base_domain,
            CELLWALL_CP_MAIL_DIR=str(self.folder.data / "mail"),
        )

    def control_plane_admin_dsn(self) -> str:
        """The superuser's DSN of the control plane's database, for people and tests that look for themselves."""
        return with_database(self.superuser_dsn(CONTROL_PLANE_DB), CONTROL_PLANE_ROLE)

    def control_plane_dsn(self) -> str:
        """The DSN of the control plane's own database and role."""
        password = self.state.password(CONTROL_PLANE_ROLE)
        server = self.superuser_dsn(CONTROL_PLANE_DB)
        return _as_user(with_database(server, CONTROL_PLANE_ROLE), CONTROL_PLANE_ROLE, password)

    def cell_command(self, cell: LocalCellSpec, name: str, command: str) -> Command:
        """A command of one cell. Only ``migrate`` gets the owner's password and the superusers' DSNs."""
        state = self.state
        first = self.superuser_dsn(cell.server(cell.shard_names[0]))
        app_password = state.password(f"{cell.name}.app")
        env = {
            "NAME": cell.name,
            "REGION": cell.region,
            "TIER": cell.tier,
            "CAPACITY": str(cell.capacity),
            "LISTEN": self.at(cell.api),
            "INTERNAL_LISTEN": self.at(f"{cell.api}.internal"),
            "WORKER_LISTEN": self.at(cell.worker),
            "DIRECTORY_DSN": _as_user(with_database(first, "directory"), "cellwall_app", app_password),
            "APP_PASSWORD": app_password,
            "TRANSFER_PASSWORD": state.password(f"{cell.name}.transfer"),
            "REDIS_URL": self.redis_url(cell),
            "BLOBS": self.blobs(cell.name).as_uri(),
            "ENVELOPE_KEY": state.envelope_key(cell.name),
            "SECRETS_KEY": state.secrets_key(cell.name),
            "TRANSFER_TOKEN": state.transfer_token(cell.name),
            "AGENT_TOKEN": state.agent_token(cell.name),
            "CONTROL_PLANE_URL": self.url(CONTROL_PLANE),
            "PAYMENTS_URL": self.url(GATEWAY),
            "WEBHOOKS_PRIVATE": "true",  # a merchant's server is on this machine too
        }
        if state.spec.zero is not None:
            env["OLD_URLS"] = "serve"
        if command == "worker":
            env["PAYMENTS_TOKEN"] = state.gateway_token()
        if cell.version is not None:
            env["VERSION"] = cell.version
        if cell.connections is not None:
            env["POOL_SIZE"] = str(cell.connections)
        if command == "migrate":
            shards = {shard: self.superuser_dsn(cell.server(shard)) for shard in cell.shard_names}
            env["OWNER_PASSWORD"] = state.password(f"{cell.name}.owner")
            env["SHARD_ADMIN_DSNS"] = msgspec.json.encode(shards).decode()
        ours = {f"CELLWALL_CELL_{key}": value for key, value in env.items()}
        return self.python(name, "cell", command, **(ours | dict(state.spec.cell_environment)))

    def _zero(self, name: str) -> ZeroSpec | None:
        """Cell zero, where that process is one of its own."""
        old = self.state.spec.zero
        return old if old is not None and name in old.processes else None

    def _gateway(self, name: str) -> Command:
        data = self.folder.data / f"{name}.db"
        arguments = ("--listen", self.at(name), "--data", str(data))
        return self.python(name, "loadtest.gateway", *arguments, CELLWALL_GATEWAY_TOKEN=self.state.gateway_token())

    def _router(self, name: str) -> Command:
        state = self.state
        arguments = ["--name", name, "--listen", self.at(name), "--admin", self.at(f"{name}.admin")]
        arguments += ["--workers", str(state.spec.workers), "--control-plane", self.url(CONTROL_PLANE)]
        arguments += ["--drain-s", str(ROUTER_DRAIN_S), "--state-dir", str(self.folder.data / name)]
        arguments += ["--front-door", f"{state.spec.front_door_host}={self.at(f'{CONTROL_PLANE}.front-door')}"]
        return self.python(
            name,
            "router",
            *arguments,
            *state.spec.router_arguments,
            CELLWALL_ROUTER_ENVELOPE_ROOT=state.envelope_root,
            CELLWALL_ROUTER_ROUTE_HINT_KEY=state.route_hint_key(),
            CELLWALL_ROUTER_CONTROL_PLANE_TOKEN=state.router_keys[name],
            CELLWALL_ROUTER_ADMIN_TOKEN=state.router_admin_token,
        )

    @cached_property
    def _postgres(self) -> PostgresPrograms:
        return find_postgres()


def base_environment() -> dict[str, str]:
    """Our own environment without what would configure a process behind the fleet's back."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}


def _as_user(dsn: str, user: str, password: str) -> str:
    server = dsn.rpartition("@")[2]
    return f"postgresql://{user}:{password}@{server}"
