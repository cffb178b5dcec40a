"""What a router is told at its start, checked before anything is opened, and what it hands to each worker."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from contracts import ids, keys
from contracts.routes import split_address
from router.board import Board
from router.walls import ALL_ON, Mode, Modes, Wall, parse_all

ENV_PREFIX: Final = "CELLWALL_ROUTER_"
SECRETS: Final = frozenset({"envelope_root", "route_hint_key", "control_plane_token", "admin_token"})


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """Times in seconds, sizes in bytes. The data path obeys them; nothing in a router waits without one."""

    request_s: float = 30.0  # the whole request, holds and replays included
    hold_s: float = 10.0  # how long a held tenant's request waits at most
    held_requests: int = 1024  # waiting in holds, of all tenants of one worker
    held_bytes: int = 16 << 20
    replay_bytes: int = 64 << 10  # a request body up to this size is kept, so that it can be sent again
    gathered_bytes: int = 32 << 20  # of bodies that one worker waits for before it takes a connection to a cell
    connect_s: float = 2.0
    upstream_idle_s: float = 55.0  # below the cell's keep-alive of 75 s
    client_idle_s: float = 75.0  # between requests of one connection
    client_head_s: float = 10.0  # from the first byte of a request to the end of its head
    client_stall_s: float = 20.0  # a body or an answer that makes no progress
    drain_s: float = 30.0  # from SIGTERM to the end of the last request
    # The least that a client has to send of a request, or to take of an answer, as a mean over each window. As in
    # Kestrel (MinDataRate: 240 bytes/s after 5 s of grace).
    client_bytes_per_s: float = 240.0
    client_window_s: float = 5.0


@dataclass(frozen=True, slots=True)
class AddressLimits:
    """What one client address may use at one router. A rate of 0 turns the rate off."""

    requests_per_s: float = 5000.0
    burst: int = 10000
    in_flight: int = 2048
    connections: int = 1024  # open at a time


@dataclass(frozen=True, slots=True)
class FrontDoor:
    """The host of requests that have no tenant yet, and the control plane's public listener behind it."""

    host: bytes
    address: str


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """All that a worker gets. Descriptors are inherited; the worker owns its copies."""

    index: int  # 0 .. workers - 1
    workers: int
    name: str  # of the router
    listen_fd: int  # listening already; the supervisor keeps it open for a replacement
    backlog: int  # connections that may wait there
    table_path: Path  # always there: before the first snapshot as an empty table that is not complete
    wake_fd: int  # readable when the table changed: hand it to `wake.WakeLink`
    ack_fd: int
    board: Board  # shared memory: `board.slot(index)` for metrics, and the usage that admission sums
    envelope_root: bytes | None = None
    hint_key: bytes | None = None
    trust_tenant_header: bool = False
    unknown_tenants_to: str | None = None
    front_door: FrontDoor | None = None
    budgets: Budgets = field(default_factory=Budgets)
    address_limits: AddressLimits = field(default_factory=AddressLimits)
    connections: int = 8192  # open client connections of this worker, at most
    walls: Modes = field(default_factory=dict)


_BUDGETS: Final = Budgets()
_ADDRESS_LIMITS: Final = AddressLimits()


def _address(text: str) -> str:
    split_address(text)
    return text


def _cell(text: str) -> str:
    return ids.cell_name(text)


def _front_door(text: str) -> str:
    host, _, address = text.partition("=")
    ids.host(host)
    split_address(address)
    return text


def _root(secret: SecretStr) -> SecretStr:
    keys.parse_root(secret.get_secret_value())
    return secret


Address = Annotated[str, AfterValidator(_address)]
Root = Annotated[SecretStr, AfterValidator(_root)]


class Settings(BaseSettings):
    """The router's settings: command line first, then the environment. No secret and no address has a default."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", hide_input_in_errors=True)

    listen: Address
    admin: Address
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    routes: Path | None = None
    control_plane: Annotated[str, Field(pattern=r"^https?://[^/]+/?$")] | None = None
    state_dir: Path | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "router"
    trust_tenant_header: bool = False
    unknown_tenants_to: Annotated[str, AfterValidator(_cell)] | None = None
    front_door: Annotated[str, AfterValidator(_front_door)] | None = None
    backlog: Annotated[int, Field(ge=16, le=65535)] = 4096
    drain_s: Annotated[float, Field(gt=0, le=600)] = _BUDGETS.drain_s
    request_s: Annotated[float, Field(gt=0, le=3600)] = _BUDGETS.request_s
    hold_s: Annotated[float, Field(gt=0, le=60)] = _BUDGETS.hold_s
    address_requests_per_s: Annotated[float, Field(ge=0)] = _ADDRESS_LIMITS.requests_per_s
    address_burst: Annotated[int, Field(ge=1)] = _ADDRESS_LIMITS.burst
    address_in_flight: Annotated[int, Field(ge=1)] = _ADDRESS_LIMITS.in_flight
    address_connections: Annotated[int, Field(ge=1)] = _ADDRESS_LIMITS.connections
    connections: Annotated[int, Field(ge=16)] = 8192
    client_bytes_per_s: Annotated[float, Field(gt=0)] = _BUDGETS.client_bytes_per_s
    client_window_s: Annotated[float, Field(ge=0.1, le=60)] = _BUDGETS.client_window_s
    walls: Annotated[dict[Wall, Mode], NoDecode, BeforeValidator(parse_all)] = dict(ALL_ON)
    envelope_root: Root | None = None
    route_hint_key: Root | None = None
    control_plane_token: SecretStr | None = None
    admin_token: SecretStr | None = None

    @model_validator(mode="after")
    def _belongs_together(self) -> "Settings":
        if (self.routes is None) == (self.control_plane is None):
            raise ValueError("give either --routes FILE or --control-plane URL")
        if self.control_plane is not None:
            if self.envelope_root is None:
                raise ValueError(f"--control-plane needs {ENV_PREFIX}ENVELOPE_ROOT: cells refuse unsigned requests")
            if self.control_plane_token is None:
                raise ValueError(f"--control-plane needs {ENV_PREFIX}CONTROL_PLANE_TOKEN (a key of the role router)")
            if self.state_dir is None:
                raise ValueError("--control-plane needs --state-dir: the last good table is kept there")
        return self

    def budgets(self) -> Budgets:
        """The budgets of a worker."""
        return Budgets(
            request_s=self.request_s,
            hold_s=self.hold_s,
            drain_s=self.drain_s,
            client_bytes_per_s=self.client_bytes_per_s,
            client_window_s=self.client_window_s,
        )

    def address_limits(self) -> AddressLimits:
        """The limits of one client address."""
        return AddressLimits(
            self.address_requests_per_s, self.address_burst, self.address_in_flight, self.address_connections
        )

    def hint_key(self) -> bytes | None:
        """The key under which newer routes are signed, where one is set."""
        return keys.parse_root(self.route_hint_key.get_secret_value()) if self.route_hint_key else None

    def root(self) -> bytes | None:
        """The root of the envelope keys, where one is set."""
        return keys.parse_root(self.envelope_root.get_secret_value()) if self.envelope_root else None

    def front(self) -> FrontDoor | None:
        """The front door, where one is set."""
        if self.front_door is None:
            return None
        host, _, address = self.front_door.partition("=")
        return FrontDoor(host.encode(), address)
