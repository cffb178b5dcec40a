"""Settings of the control plane: typed, from the environment (prefix ``CELLWALL_CP_``), checked before anything starts.

No secret and no public address has a default; listeners default to loopback.
"""

import sys
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from contracts import ids, keys, logs, routes
from control_plane.move_runner import CONCURRENT_MOVES

STATEMENT_TIMEOUT_MS = 10_000
IDLE_IN_TRANSACTION_MS = 30_000


class SettingsError(ValueError):
    """A setting that is missing or wrong, in one line that names its variable."""


def _address(text: str) -> str:
    routes.split_address(text)
    return text


def _dsn(secret: SecretStr) -> SecretStr:
    try:
        url = make_url(secret.get_secret_value())
    except ArgumentError:
        raise ValueError("is not a postgresql:// URL") from None
    if url.get_backend_name() != "postgresql":
        raise ValueError("is not a postgresql:// URL")
    return secret


def _root_key(secret: SecretStr) -> SecretStr:
    keys.parse_root(secret.get_secret_value())
    return secret


Address = Annotated[str, AfterValidator(_address)]
RootKey = Annotated[SecretStr, AfterValidator(_root_key)]


class DatabaseSettings(BaseSettings):
    """What ``migrate``, ``create-key`` and everything else needs."""

    model_config = SettingsConfigDict(env_prefix="CELLWALL_CP_")

    database_dsn: Annotated[SecretStr, AfterValidator(_dsn)]

    def plain_dsn(self) -> str:
        """The DSN as asyncpg takes it, for connections of our own (notices, leadership)."""
        url = make_url(self.database_dsn.get_secret_value()).set(drivername="postgresql")
        return url.render_as_string(hide_password=False)

    def engine(self, *, pool_size: int = 10) -> AsyncEngine:
        """An engine on asyncpg whose statements and idle transactions are bounded by the server."""
        return create_async_engine(
            make_url(self.database_dsn.get_secret_value()).set(drivername="postgresql+asyncpg"),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=5,
            connect_args={
                "timeout": 5,
                "server_settings": {
                    "application_name": "cellwall-control-plane",
                    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS),
                },
            },
        )


class FleetSettings(DatabaseSettings):
    """What commands that talk to cells need as well."""

    fleet_root: RootKey

    def fleet_key(self) -> bytes:
        """The fleet root, from which every cell's transfer and agent token derive."""
        return keys.parse_root(self.fleet_root.get_secret_value())


class PlaneSettings(FleetSettings):
    """What whoever may lead needs as well."""

    base_domain: Annotated[str, AfterValidator(ids.host)]
    concurrent_moves: Annotated[int, Field(ge=1, le=64)] = CONCURRENT_MOVES  # executed at once; others wait their turn


class MoverSettings(PlaneSettings):
    """What ``mover`` needs."""

    mover_listen: Address = "127.0.0.1:8702"


class Settings(PlaneSettings):
    """What ``serve`` needs. Without ``mover`` it never leads: processes of the command ``mover`` do its work."""

    listen: Address = "127.0.0.1:8700"
    front_door_listen: Address = "127.0.0.1:8701"
    front_door_key: RootKey
    mail_dir: Path | None = None
    mover: bool = True

    def envelope_key(self) -> bytes:
        """The key under which routers sign envelopes for the front door."""
        return keys.parse_root(self.front_door_key.get_secret_value())


_S = TypeVar("_S", bound=BaseSettings)


def load(kind: type[_S]) -> _S:
    """The settings, or `SettingsError` with one line that names every wrong variable and shows no value."""
    try:
        return kind()
    except ValidationError as e:
        faults = (f"CELLWALL_CP_{'_'.join(map(str, f['loc'])).upper()}: {f['msg']}" for f in e.errors())
        raise SettingsError("; ".join(faults)) from None


class LogSettings(BaseSettings):
    """``CELLWALL_LOG_LEVEL``, for every process of the fleet."""

    model_config = SettingsConfigDict(env_prefix="CELLWALL_")

    log_level: str = "info"


def set_up_logging(level: str) -> None:
    """Log to stderr; `SettingsError` for an unknown level."""
    try:
        logs.configure(sys.stderr, level)
    except ValueError as e:
        raise SettingsError(str(e)) from None
