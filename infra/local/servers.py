"""Real database servers on loopback: PostgreSQL and Redis, each a child process with a data folder of its own."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
from redis import asyncio as redis
from redis.exceptions import RedisError

from infra.local.binaries import PostgresPrograms, find_postgres, find_redis, reachable
from infra.local.concurrency import finished
from infra.local.errors import LocalFleetError, PortTakenError, StartFailedError
from infra.local.ports import LOOPBACK, is_free
from infra.local.processes import POLL_S, Command, Process

READY_S: Final = 60.0  # generous: on a busy machine Python takes many seconds to start
STOP_GRACE_S: Final = 10.0
SUPERUSER: Final = "postgres"
_OURS: Final = "# cellwall"  # in postgresql.conf, once initdb has ended
_NO_ANSWER: Final = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.InvalidPasswordError,
)

# Small in memory, because a fleet has many; durable, because the books are checked after kill -9.
POSTGRES_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": f"'{LOOPBACK}'",
    "unix_socket_directories": "''",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_slot_wal_keep_size": "2GB",  # a slot that nobody reads is given up before it fills the disk
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "max_prepared_transactions": "0",
    "autovacuum_naptime": "30s",
    "jit": "off",
    "fsync": "on",
    "synchronous_commit": "on",
    "log_line_prefix": "'%m [%p] %q%u@%d '",
    "log_timezone": "'UTC'",
    "timezone": "'UTC'",
}
# By the major version that knows them first. A stream of a large move is a slot and a sender at one end and an origin
# at the other; before 18 the number of slots is that of origins, too.
SETTINGS_SINCE: Final[Mapping[int, Mapping[str, str]]] = {18: {"max_active_replication_origins": "20"}}


class Server(Protocol):
    """One server process, before, while and after it runs."""

    name: str
    port: int
    log: Path

    def prepare(self) -> None:
        """Make the data folder. Repeating it changes nothing."""

    def command(self) -> Command:
        """What to start."""

    async def answers(self) -> bool:
        """Whether it takes an authenticated connection now."""


@dataclass(frozen=True, slots=True)
class PostgresSpec:
    """A PostgreSQL server of ours. ``password`` is its superuser's; ``settings`` are added to `POSTGRES_SETTINGS`."""

    name: str
    data: Path
    log: Path
    port: int
    password: str = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)


class PostgresServer:
    """PostgreSQL as a child process. Data survives `stop`; `remove` deletes it.

    As root it runs under an unprivileged account, so every folder above ``data`` must let that account pass.
    """

    def __init__(self, spec: PostgresSpec, programs: PostgresPrograms | None = None) -> None:
        self.spec = spec
        self.name, self.port, self.log = spec.name, spec.port, spec.log
        self.programs = programs or find_postgres()
        self._running = Running(self)

    @property
    def superuser_dsn(self) -> str:
        """Connects as the superuser to the maintenance database."""
        return self.dsn("postgres")

    def dsn(self, database: str, user: str = SUPERUSER, password: str | None = None) -> str:
        """A DSN of one database of this server."""
        secret = quote(self.spec.password if password is None else password, safe="")
        return f"postgresql://{user}:{secret}@{LOOPBACK}:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return self._running.pid

    def prepare(self) -> None:
        """Create the data folder where there is none, or what an interrupted initdb left."""
        password = self._password_file
        if self.is_filled:
            password.unlink(missing_ok=True)
            return
        run_as = self.programs.run_as
        self.spec.data.parent.mkdir(parents=True, exist_ok=True)
        if run_as is not None and not reachable(self.spec.data.parent, run_as):
            raise LocalFleetError(
                f"the account {run_as.name} cannot reach {self.spec.data.parent}; choose another folder"
            )
        try:
            password.touch(mode=0o600)
            password.write_text(self.spec.password)
            shutil.rmtree(self.spec.data, ignore_errors=True)  # what an interrupted initdb left
            self.spec.data.mkdir(mode=0o700)
            if run_as is not None:
                os.chown(self.spec.data, run_as.uid, run_as.gid)
                os.chown(password, run_as.uid, run_as.gid)
            self._initdb(password)
        finally:
            password.unlink(missing_ok=True)

    @property
    def is_filled(self) -> bool:
        """Whether the data folder was made to its end, or was ever served: an initdb that was killed left less."""
        data = self.spec.data
        if not (data / "PG_VERSION").exists():
            return False
        served, conf = data / "postmaster.opts", data / "postgresql.conf"
        return served.exists() or (conf.exists() and _OURS in conf.read_text())

    @property
    def _password_file(self) -> Path:
        """There while initdb runs."""
        return self.spec.data.parent / f".{self.spec.data.name}.password"

    def command(self) -> Command:
        """The postmaster."""
        argv = (str(self.programs.postgres), "-D", str(self.spec.data), "-p", str(self.port))
        return Command(argv, self.log, env=_clean_environment(), run_as=self.programs.run_as)

    async def answers(self) -> bool:
        """Whether the superuser can connect. Somebody else's server on the port refuses the password: no answer."""
        try:
            connection = await asyncpg.connect(self.superuser_dsn, timeout=2.0)
        except _NO_ANSWER:
            return False
        await connection.close()
        return True

    async def start(self) -> None:
        """Start and wait until it answers; `StartFailedError` names the log."""
        await self._running.start()

    async def stop(self) -> None:
        """Fast shutdown, then SIGKILL."""
        await self._running.stop(signal.SIGINT)

    def remove(self) -> None:
        """Delete the data folder of a stopped server."""
        release_shared_memory(self.spec.data)
        shutil.rmtree(self.spec.data, ignore_errors=True)
        self._password_file.unlink(missing_ok=True)

    async def create_database(self, name: str) -> str:
        """A new empty database; returns the superuser's DSN of it."""
        return await create_database(self.superuser_dsn, name)

    def _initdb(self, password: Path) -> None:
        argv = [str(self.programs.initdb), "-D", str(self.spec.data), "-U", SUPERUSER, "-A", "scram-sha-256"]
        argv += ["--pwfile", str(password), "-E", "UTF8", "--no-locale", "--no-sync", "--wal-segsize=4"]
        run_as = self.programs.run_as
        done = subprocess.run(
            argv,
            user=None if run_as is None else run_as.uid,
            group=None if run_as is None else run_as.gid,
            extra_groups=None if run_as is None else (),
            env=_clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            shutil.rmtree(self.spec.data, ignore_errors=True)
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise StartFailedError(f"initdb for {self.name} failed: {reason[-1] if reason else done.returncode}")
        version = int((self.spec.data / "PG_VERSION").read_text())
        since = {key: value for first, settings in SETTINGS_SINCE.items() if version >= first
                 for key, value in settings.items()}  # fmt: skip
        with (self.spec.data / "postgresql.conf").open("a") as conf:
            conf.write(f"\n{_OURS}\n")
            for key, value in {**POSTGRES_SETTINGS, **since, **self.spec.settings}.items():
                conf.write(f"{key} = {value}\n")


class GivenPostgres:
    """A PostgreSQL server that somebody else runs: its superuser's DSN is all that is known of it."""

    def __init__(self, dsn: str) -> None:
        self.superuser_dsn = dsn

    async def create_database(self, name: str) -> str:
        """A new empty database; returns the superuser's DSN of it."""
        return await create_database(self.superuser_dsn, name)


@dataclass(frozen=True, slots=True)
class RedisSpec:
    """A Redis of ours, without persistence: what it holds may be lost."""

    name: str
    data: Path
    log: Path
    port: int
    password: str = field(repr=False)


class RedisServer:
    """Redis as a child process on loopback with a password."""

    def __init__(self, spec: RedisSpec, program: Path | None = None) -> None:
        self.spec = spec
        self.name, self.port, self.log = spec.name, spec.port, spec.log
        self.program = program or find_redis()
        self._running = Running(self)

    @property
    def url(self) -> str:
        """A client's URL, with the password."""
        return f"redis://:{quote(self.spec.password, safe='')}@{LOOPBACK}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._running.pid

    def prepare(self) -> None:
        """Write the configuration; the password is in it and in no argument that ``ps`` shows."""
        self.spec.data.mkdir(parents=True, exist_ok=True)
        lines = [f"bind {LOOPBACK}", f"port {self.port}", f"requirepass {self.spec.password}", f"dir {self.spec.data}"]
        lines.append("set-proc-title no")  # a title is written over the environment, and the fleet's mark is there
        lines += ['save ""', "appendonly no", "daemonize no", "maxmemory 64mb", "maxmemory-policy noeviction"]
        conf = self._conf
        conf.touch(mode=0o600)
        conf.write_text("\n".join(lines) + "\n")

    def command(self) -> Command:
        """The server."""
        return Command((str(self.program), str(self._conf)), self.log, env=_clean_environment())

    async def answers(self) -> bool:
        """Whether it answers an authenticated PING."""
        client = redis.Redis.from_url(self.url, socket_connect_timeout=2.0, socket_timeout=2.0)
        try:
            return bool(await client.ping())
        except (RedisError, OSError):
            return False
        finally:
            await client.aclose()

    async def start(self) -> None:
        """Start and wait until it answers; `StartFailedError` names the log."""
        await self._running.start()

    async def stop(self) -> None:
        """Stop without saving."""
        await self._running.stop(signal.SIGTERM)

    def remove(self) -> None:
        """Delete the data folder of a stopped server."""
        shutil.rmtree(self.spec.data, ignore_errors=True)

    @property
    def _conf(self) -> Path:
        return self.spec.data / "redis.conf"


class Running:
    """The process of one server object."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """The process id; `LocalFleetError` where it was never started."""
        if self._process is None:
            raise LocalFleetError(f"{self._server.name} is not running")
        return self._process.pid

    async def start(self) -> None:
        """Prepare, start, wait."""
        await finished(asyncio.to_thread(self._server.prepare))
        self._process = Process.spawn(self._server.command())
        try:
            await wait_ready(
                self._server.name, self._process, self._server.answers, self._server.log, port=self._server.port
            )
        except BaseException:
            await self.stop(signal.SIGKILL)
            raise

    async def stop(self, first: signal.Signals) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            await self._process.stop(first=first, grace_s=STOP_GRACE_S)


async def wait_ready(
    name: str,
    process: Process,
    answers: Callable[[], Awaitable[bool]],
    log: Path,
    *,
    port: int | None = None,
    timeout_s: float = READY_S,
) -> None:
    """Wait until ``answers`` says so; `StartFailedError` as soon as the process ends, or after ``timeout_s``."""
    until = time.monotonic() + timeout_s
    while True:
        if not process.alive:
            if port is not None and not is_free(port):
                raise PortTakenError(f"{name}: port {port} is taken by another program")
            raise StartFailedError(f"{name} ended with status {process.exit_status} while it started: {last_line(log)}")
        if await answers():
            return
        if time.monotonic() > until:
            raise StartFailedError(f"{name} did not become ready within {timeout_s:.0f} s; see {log}")
        await asyncio.sleep(POLL_S)


def last_line(log: Path) -> str:
    """The end of a log, for a message; names the file."""
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return f"{lines[-1][:300]} (see {log})"
    return f"see {log}"


def with_database(dsn: str, database: str) -> str:
    """The same server and user, another database."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


async def create_database(superuser_dsn: str, name: str) -> str:
    """A new empty database on that server; returns its DSN for the same user."""
    if not name.replace("_", "").isalnum():
        raise LocalFleetError(f"{name!r} is not a plain database name")
    connection = await asyncpg.connect(superuser_dsn)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    return with_database(superuser_dsn, name)


def release_shared_memory(data: Path) -> None:
    """Free the System V segment that a PostgreSQL killed with SIGKILL leaves; the next start would have done it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        segment = (data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        subprocess.run(["ipcrm", "-m", segment], capture_output=True, check=False)


def _clean_environment() -> dict[str, str]:
    """Without the PG* variables of the shell, which would change what a server or initdb does, nor Pulumi's secrets."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PG", "PULUMI_"))} | {"TZ": "UTC"}
