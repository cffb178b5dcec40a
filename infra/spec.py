"""`CellSpec`: the one description of a cell that every target builds from and that the control plane hears of."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from contracts import ids
from contracts.fleet import Tier

SizeName = Literal["S", "M", "L"]
Role = Literal["api", "worker"]

# A 2, a 1.0 and a 0002 are numbers to YAML and to `pulumi config set`, and as numbers no longer what was written.
_QUOTED: Final = (
    "put it in quotes in a file; on a command line: pulumi config set --type string --path cellwall:cell.{name} VALUE"
)

SHARDS_MAX: Final = 16
CAPACITY_MAX: Final = 1_000_000
CONNECTIONS_MAX: Final = 200
_REGION: Final = re.compile(r"(?:local|[a-z]{2}(?:-[a-z]+)+-[1-9])\Z")
_VERSION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}\Z")
_REVISION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_]{0,63}\Z")
_IMAGE: Final = re.compile(r"[a-z0-9][a-z0-9./:_-]*@sha256:[0-9a-f]{64}\Z")


class SpecError(ValueError):
    """A field of a spec that cannot be built; ``field`` names it, the message says what is allowed."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclass(frozen=True, slots=True)
class Size:
    """What a size means everywhere. CPU in processors, memory in MiB, Aurora and cache in their own capacity units."""

    capacity: int  # tenants
    connections: int  # to each shard, of one process
    local_cpus: float
    api_cpus: float
    api_memory_mib: int
    api_tasks: tuple[int, int]  # least and most
    worker_cpus: float
    worker_memory_mib: int
    worker_tasks: tuple[int, int]
    database_acu: tuple[float, float]  # Aurora capacity units of each shard, least and most
    cache_node: str  # ElastiCache's name of a node's size


SIZES: Final[Mapping[SizeName, Size]] = MappingProxyType(
    {
        "S": Size(500, 10, 1.0, 0.5, 1024, (2, 4), 0.25, 512, (1, 2), (0.5, 4.0), "cache.t4g.small"),
        "M": Size(2_000, 20, 2.0, 1.0, 2048, (3, 12), 0.5, 1024, (2, 4), (2.0, 16.0), "cache.m7g.large"),
        "L": Size(10_000, 40, 4.0, 2.0, 4096, (6, 40), 1.0, 2048, (3, 10), (8.0, 64.0), "cache.r7g.xlarge"),
    }
)


@dataclass(frozen=True, slots=True)
class CellSpec:
    """One cell. Two specs that differ in ``name`` alone give two cells that differ in names and generated ids alone.

    ``capacity`` is in tenants and ``connections`` per shard and process; both come from the size where they are None.
    ``schema`` is the revision that the shards must have: software that brings another one does not start. None:
    whatever it brings. ``images`` maps api and worker to ``NAME@sha256:...``; a local cell runs the checkout and has
    none.
    """

    name: str
    region: str = "local"
    tier: Tier = "shared"
    size: SizeName = "S"
    shards: int = 2
    version: str = "0.1.0"
    schema: str | None = None
    images: Mapping[str, str] = field(default_factory=dict)
    capacity: int | None = None
    connections: int | None = None

    def __post_init__(self) -> None:
        try:
            ids.cell_name(self.name)
        except ValueError as e:
            raise SpecError("name", str(e)) from None
        _matches("region", self.region, _REGION, "local, or a region such as eu-central-1")
        _one_of("tier", self.tier, get_args(Tier))
        _one_of("size", self.size, tuple(SIZES))
        _between("shards", self.shards, 1, SHARDS_MAX)
        _matches("version", self.version, _VERSION, "a version such as 1.4.2")
        if self.schema is not None:
            _matches("schema", self.schema, _REVISION, "a schema revision such as 0003")
        for role, image in self.images.items():
            _one_of("images", role, get_args(Role))
            check_image(f"images.{role}", image)
        if self.capacity is not None:
            _between("capacity", self.capacity, 1, CAPACITY_MAX)
        if self.connections is not None:
            _between("connections", self.connections, 1, CONNECTIONS_MAX)

    @property
    def sized(self) -> Size:
        """What its size means."""
        return SIZES[self.size]

    @property
    def tenants_max(self) -> int:
        """How many tenants it takes."""
        return self.sized.capacity if self.capacity is None else self.capacity

    @property
    def pool_size(self) -> int:
        """Connections of one process to each shard."""
        return self.sized.connections if self.connections is None else self.connections

    @property
    def shard_names(self) -> tuple[str, ...]:
        """``shard-1``, ``shard-2``, ..."""
        return tuple(f"shard-{n}" for n in range(1, self.shards + 1))

    @classmethod
    def parse(cls, told: Mapping[str, Any]) -> "CellSpec":
        """From configuration: whole numbers may come as floats or text. `SpecError` names the field and the choices."""
        known = tuple(each.name for each in fields(cls))
        for name in told:
            if name not in known:
                raise SpecError(str(name), f"unknown; the fields of a cell are {', '.join(known)}")
        if told.get("name") is None:
            raise SpecError("name", "missing")
        values = {name: value for name, value in told.items() if value is not None}
        for name in ("shards", "capacity", "connections"):
            if name in values:
                values[name] = _whole(name, values[name])
        for name in ("name", "region", "tier", "size", "version", "schema"):
            if name in values and not isinstance(values[name], str):
                raise SpecError(name, f"{values[name]!r} is not text; {_QUOTED.format(name=name)}")
        images = values.get("images", {})
        if not isinstance(images, Mapping) or not all(isinstance(image, str) for image in images.values()):
            raise SpecError("images", f"must map each of {', '.join(get_args(Role))} to an image by digest")
        return cls(**values)

    def mapping(self) -> dict[str, Any]:
        """The inverse of `parse`, without what was left to the defaults of the size."""
        told = asdict(self) | {"images": dict(self.images)}
        return {name: value for name, value in told.items() if value is not None and value != {}}


def check_image(field: str, image: str) -> None:
    """`SpecError` for ``field`` where ``image`` does not name one by its digest."""
    _matches(field, image, _IMAGE, "an image by digest, NAME@sha256:<64 hexadecimal digits>")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SpecError(name, f"{value!r} is none of {', '.join(allowed)}")


def _matches(name: str, value: str, pattern: re.Pattern[str], rule: str) -> None:
    if not pattern.match(value):
        raise SpecError(name, f"{value!r} is not {rule}")


def _between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise SpecError(name, f"{value} is not between {low} and {high}")


def _whole(name: str, value: Any) -> int:
    """Pulumi's configuration and state hold numbers as text or as floats."""
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not number.is_integer():
        raise SpecError(name, f"{value!r} is not a whole number")
    return int(number)
