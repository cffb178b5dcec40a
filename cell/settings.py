"""Settings of a cell's processes, from the environment: ``CELLWALL_CELL_*``. No default for a secret or an address.

A bad setting is one line on stderr and exit status 2.
"""

import re
import sys
from typing import Annotated, Final, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

import pydantic
from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from cell import blobs, errands
from cell.fairness import pace
from cell.fairness.levels import Enforcement
from contracts import ids, keys, logs, routes
from contracts.fleet import Tier

PREFIX: Final = "CELLWALL_CELL_"
EXIT_MISCONFIGURED: Final = 2
_S = TypeVar("_S", bound=BaseSettings)


def _address(text: str) -> str:
    routes.split_address(text)
    return text


def _key(text: SecretStr) -> SecretStr:
    keys.parse_root(text.get_secret_value())
    return text


def _postgres(text: SecretStr) -> SecretStr:
    parts = urlsplit(text.get_secret_value())
    if parts.scheme not in {"postgresql", "postgres"} or not parts.hostname:
        raise ValueError("must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    return text


def _http(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be http://HOST:PORT or https://HOST")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must hold no credential, query or fragment")
    return text


BlobsUrl = Annotated[str, AfterValidator(blobs.check_url)]
HttpUrl = Annotated[str, AfterValidator(_http)]
Address = Annotated[str, AfterValidator(_address)]
Key = Annotated[SecretStr, AfterValidator(_key)]
Token = Annotated[SecretStr, Field(min_length=32)]
Password = Annotated[SecretStr, Field(min_length=8)]
Dsn = Annotated[SecretStr, AfterValidator(_postgres)]


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, hide_input_in_errors=True, extra="ignore")


class _SchemaSettings(_Settings):
    # The revision of the shards that the operator deploys; software that brings another one does not start.
    wanted_schema: str | None = Field(None, validation_alias=f"{PREFIX}SCHEMA")


class MigrateSettings(_SchemaSettings):
    """``python -m cell migrate``: superuser access to each shard's server, and the passwords of the three roles."""

    shard_admin_dsns: Annotated[dict[str, Dsn], Field(min_length=1)]
    owner_password: Password
    app_password: Password
    transfer_password: Password

    @pydantic.field_validator("shard_admin_dsns")
    @classmethod
    def _one_server_each(cls, dsns: dict[str, SecretStr]) -> dict[str, SecretStr]:
        servers = [urlsplit(d.get_secret_value()).netloc.rpartition("@")[2] for d in dsns.values()]
        if len(set(servers)) != len(servers):
            raise ValueError("every shard needs a server of its own")
        return dsns


class Walls(pydantic.BaseModel, extra="forbid", frozen=True):
    """What each wall between tenants does: ``on``, ``off``, or ``observe``, which only counts what it would refuse."""

    fairness: Enforcement = Enforcement.ON  # seats and queues by tenant
    limits: Enforcement = Enforcement.ON  # of users and API keys inside a tenant
    reports: Enforcement = Enforcement.ON  # the bulkhead of the worker's heavy work
    timeouts: Enforcement = Enforcement.ON  # of the application and of statements, inside the router's deadline


class CellSettings(_SchemaSettings):
    """What the API process and the worker share."""

    name: Annotated[str, AfterValidator(ids.cell_name)]
    directory_dsn: Dsn
    app_password: Password
    redis_url: SecretStr
    transfer_token: Token  # opens everything but health on the internal listener and on the worker's
    pool_size: Annotated[int, Field(ge=1, le=200)] = 10  # connections per shard
    walls: Walls = Walls()
    # Of each shard's time, while others want it: what summaries may take together, and as much again what reports may.
    batch_share: Annotated[float, Field(gt=0, le=1)] = pace.SHARE
    payments_url: HttpUrl | None = None  # the fleet's gateway; without it no order can be paid here
    webhooks_private: bool = False  # whether webhooks may go to private addresses and by http://, as on a laptop


class ApiSettings(CellSettings):
    """``python -m cell api``."""

    listen: Address  # envelope only: routers
    internal_listen: Address  # the transfer API and metrics: the control plane
    transfer_password: Password
    envelope_key: Key
    secrets_key: Key  # wraps the tenants' keys; the same as the worker's, and no other cell's. Lost, so are the secrets
    blobs: BlobsUrl  # file:///FOLDER or s3://BUCKET/PREFIX, the same as the worker's
    # What becomes of the URLs of cell zero's old shop, for tenants that came from there (docs/cell-zero.md).
    old_urls: Literal["off", "serve", "redirect"] = "off"
    region: str = "local"
    tier: Tier = "shared"
    capacity: Annotated[int, Field(ge=0)] = 1000
    version: str | None = None  # the release that it was deployed as; without it the package's own version
    control_plane_url: str | None = None  # without it the cell reports to nobody
    agent_token: Token | None = None
    advertise: Address | None = None
    internal_advertise: Address | None = None

    # Seats of each shard; without them they follow from pool_size (docs/fairness.md).
    seats_interactive: Annotated[int, Field(ge=1, le=200)] | None = None
    seats_batch: Annotated[int, Field(ge=1, le=200)] | None = None
    waiting_per_tenant: Annotated[int, Field(ge=1, le=10_000)] = 64  # requests of one tenant in the queues of a shard
    waiting: Annotated[int, Field(ge=1, le=100_000)] = 256  # ... and of all its tenants
    key_requests_per_s: Annotated[float, Field(ge=0)] = 1_000.0  # of one API key, and of one user; 0: no such limit
    key_burst: Annotated[int, Field(ge=1)] = 2_000
    interactive_s: Annotated[float, Field(gt=0, le=3600)] = 15.0  # the most that a request of that level may take

    @pydantic.model_validator(mode="after")
    def _agent_is_complete(self) -> "ApiSettings":
        if self.control_plane_url is not None and self.agent_token is None:
            raise ValueError(f"{PREFIX}CONTROL_PLANE_URL needs {PREFIX}AGENT_TOKEN")
        return self


class ShardsSettings(_Settings):
    """``python -m cell shards``: plans moves between shards in the directory."""

    name: Annotated[str, AfterValidator(ids.cell_name)]
    directory_dsn: Dsn
    transfer_password: Password


class WorkerSettings(CellSettings):
    """``python -m cell worker``."""

    worker_listen: Address  # health, and metrics behind the transfer token
    secrets_key: Key  # the same as the API's
    blobs: BlobsUrl  # file:///FOLDER or s3://BUCKET/PREFIX, the same as the API's
    reports_at_once: Annotated[int, Field(ge=1, le=16)] = 2  # of the cell, over all its workers
    payments_token: Token | None = None
    payments_timeout_s: Annotated[float, Field(gt=0, le=errands.CALL_S_MAX / 2)] = 10.0  # of one call of the gateway

    @pydantic.model_validator(mode="after")
    def _gateway_is_complete(self) -> "WorkerSettings":
        if (self.payments_url is None) != (self.payments_token is None):
            raise ValueError(f"{PREFIX}PAYMENTS_URL and {PREFIX}PAYMENTS_TOKEN need each other")
        return self


def load(kind: type[_S]) -> _S:
    """The settings, or the end of the process with one line that names the variable and the rule, never the value."""
    try:
        return kind()
    except pydantic.ValidationError as e:
        first = e.errors(include_url=False, include_input=False, include_context=False)[0]
        name = PREFIX + str(first["loc"][0]).upper() if first["loc"] else "settings"
        within = "".join(f"{part}: " for part in first["loc"][1:])
        misconfigured(f"{name}: {within}{first['msg']}")
    except ValueError as e:  # a variable that should hold JSON and does not
        named = re.search(r'field "(\w+)"', str(e))
        misconfigured(f"{PREFIX}{named[1].upper()}: not valid JSON" if named else str(e))


def misconfigured(reason: str) -> NoReturn:
    """One line on stderr, exit status 2."""
    sys.stderr.write(f"cell: {' '.join(reason.split())}\n")
    raise SystemExit(EXIT_MISCONFIGURED)


class _LogSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="CELLWALL_")

    log_level: Literal["debug", "info", "warning", "error"] = "info"


def configure_logging(**bound: str) -> None:
    """Log to stderr; ``bound`` fields stand on every line."""
    logs.configure(sys.stderr, load(_LogSettings).log_level, **bound)
