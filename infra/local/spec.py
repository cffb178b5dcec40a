"""What a local fleet consists of. The description says nothing about ports, paths or secrets: those are state."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from contracts import ids
from infra.spec import SIZES, CellSpec, SizeName, SpecError

FLEET_DIR: Final = "CELLWALL_FLEET_DIR"
CHECKOUT: Final = Path(__file__).resolve().parents[2]

CONTROL_PLANE: Final = "control-plane"
CONTROL_PLANE_DB: Final = "control-plane-db"
GATEWAY: Final = "gateway"  # where orders are paid: one for the fleet, and no part of it
ZERO: Final = "cell-zero"


@dataclass(frozen=True, slots=True)
class LocalCellSpec:
    """One cell: ``shards`` PostgreSQL servers, a Redis, an API process and a worker. ``capacity`` is in tenants.

    ``cpus`` is the share of processors that its processes may use together; it counts only where the fleet's
    ``cpu_walls`` are on. ``version`` is the release that it reports, and ``connections`` what each of its processes
    opens to each shard; None leaves both to the software.
    """

    name: str
    shards: int = 2
    region: str = "local"
    tier: Literal["shared", "dedicated", "canary"] = "shared"
    capacity: int = 1000
    cpus: float = 1.0
    version: str | None = None
    connections: int | None = None

    def __post_init__(self) -> None:
        ids.cell_name(self.name)
        if self.shards < 1:
            raise ValueError(f"{self.name} needs at least one shard")

    @classmethod
    def of(cls, spec: CellSpec) -> "LocalCellSpec":
        """What a spec means on one machine. `SpecError` where one machine cannot do it."""
        if spec.region != "local":
            raise SpecError("region", f"{spec.region!r} is not to be had on this machine; leave it at local")
        if spec.images:
            raise SpecError("images", "a local cell runs this checkout and takes no images")
        if spec.schema is not None and spec.schema != (brings := _schema()):
            raise SpecError(
                "schema", f"{spec.schema!r} is not this checkout's {brings!r}; name that one, or leave it out"
            )
        return cls(
            spec.name,
            shards=spec.shards,
            region=spec.region,
            tier=spec.tier,
            capacity=spec.tenants_max,
            cpus=spec.sized.local_cpus,
            version=spec.version,
            connections=spec.pool_size,
        )

    def described(self) -> CellSpec:
        """A spec that means this cell: the inverse of `of`."""
        sizes: list[SizeName] = [name for name, size in SIZES.items() if size.local_cpus == self.cpus]
        told = CellSpec(self.name, region=self.region, tier=self.tier, size=(*sizes, "S")[0], shards=self.shards)
        return replace(
            told,
            version=self.version or told.version,
            capacity=None if self.capacity == told.tenants_max else self.capacity,
            connections=None if self.connections in (None, told.pool_size) else self.connections,
        )

    @property
    def shard_names(self) -> tuple[str, ...]:
        """``shard-1``, ``shard-2``, ..."""
        return tuple(f"shard-{n}" for n in range(1, self.shards + 1))

    def server(self, shard: str) -> str:
        """The fleet's name of the server of that shard."""
        return f"{self.name}-{shard}"

    @property
    def redis(self) -> str:
        """The fleet's name of its Redis."""
        return f"{self.name}-redis"

    @property
    def api(self) -> str:
        """The fleet's name of its API process."""
        return f"{self.name}-api"

    @property
    def worker(self) -> str:
        """The fleet's name of its worker process."""
        return f"{self.name}-worker"

    @property
    def processes(self) -> tuple[str, ...]:
        """Every process of the cell, servers first."""
        return (*(self.server(shard) for shard in self.shard_names), self.redis, self.api, self.worker)


def _schema() -> str:
    """The revision to which this checkout brings a shard. Alembic is slow to load, and few specs name a schema."""
    from cell.schema import migrate

    return migrate.head(migrate.SHARD)


@dataclass(frozen=True, slots=True)
class ZeroSpec:
    """Cell zero: an old shop with its database and its cron job, and the ambassador before it.

    The shop begins with so many ``customers`` of so many ``orders``; its cron job runs at the start and then every
    ``cron_s`` seconds, and none of its requests takes longer than ``longest_s``. Old URLs are served by the cells
    that its customers go to.
    """

    customers: int = 4
    orders: int = 20
    cron_s: float = 300.0
    longest_s: int = 5

    @property
    def server(self) -> str:
        """The fleet's name of the shop's PostgreSQL server."""
        return f"{ZERO}-db"

    @property
    def shop(self) -> str:
        """The fleet's name of the shop's process."""
        return f"{ZERO}-shop"

    @property
    def cron(self) -> str:
        """The fleet's name of the process that runs the shop's cron job."""
        return f"{ZERO}-cron"

    @property
    def ambassador(self) -> str:
        """The fleet's name of the ambassador."""
        return f"{ZERO}-ambassador"

    @property
    def processes(self) -> tuple[str, ...]:
        """Every process of it, the server first."""
        return (self.server, self.shop, self.cron, self.ambassador)


DEFAULT_CELLS: Final = (LocalCellSpec("cell-1"), LocalCellSpec("cell-2"))


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """A fleet on loopback.

    ``given`` maps a server's fleet name to a superuser DSN (or Redis URL) to use instead of a server of ours.
    ``modules`` maps ``router``, ``cell`` or ``control_plane`` to another module to run with ``python -m`` in its place.
    ``cell_environment`` is added to that of every cell's processes, ``router_arguments`` to the routers' command lines.
    ``zero`` None: there is no old shop to leave.
    """

    cells: tuple[LocalCellSpec, ...] = DEFAULT_CELLS
    routers: int = 2
    workers: int = 2
    base_domain: str = "cellwall.localhost"
    cpu_walls: bool = False
    given: Mapping[str, str] = field(default_factory=dict, repr=False)
    modules: Mapping[str, str] = field(default_factory=dict)
    cell_environment: Mapping[str, str] = field(default_factory=dict)
    router_arguments: tuple[str, ...] = ()
    zero: ZeroSpec | None = None

    def __post_init__(self) -> None:
        ids.host(self.base_domain)
        names = [cell.name for cell in self.cells]
        if len(set(names)) != len(names):
            raise ValueError(f"two cells of one name among {', '.join(names)}")
        if self.zero is not None and ZERO in names:
            raise ValueError(f"{ZERO} is the old shop in this fleet; give the other cell another name")
        if unknown := sorted(set(self.given) - set(self.servers)):
            known = ", ".join(self.servers)
            raise ValueError(f"there is no server {', '.join(unknown)} to give; this fleet has {known}")

    @property
    def servers(self) -> tuple[str, ...]:
        """The fleet's names of all database servers, each of which can be given."""
        cells = ((*map(cell.server, cell.shard_names), cell.redis) for cell in self.cells)
        old = () if self.zero is None else (self.zero.server,)
        return (CONTROL_PLANE_DB, *(name for servers in cells for name in servers), *old)

    @property
    def router_names(self) -> tuple[str, ...]:
        """``router-1``, ``router-2``, ..."""
        return tuple(f"router-{n}" for n in range(1, self.routers + 1))

    @property
    def front_door_host(self) -> str:
        """The host at which tenants sign up."""
        return f"start.{self.base_domain}"


def default_folder() -> Path:
    """``CELLWALL_FLEET_DIR``, or a folder of this checkout and user that an unprivileged account can reach."""
    if given := os.environ.get(FLEET_DIR):
        return Path(given).resolve()
    mark = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()).resolve() / f"cellwall-{os.geteuid()}-{mark}"
