"""Settings of cell zero's processes, from the environment: ``CELLWALL_ZERO_*``. No default for a secret or an address.

A bad setting is one line on stderr and exit status 2.
"""

import re
import sys
from typing import Annotated, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

import pydantic
from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from cell.settings import Address, Dsn, Key, Token
from contracts import ids

PREFIX: Final = "CELLWALL_ZERO_"
EXIT_MISCONFIGURED: Final = 2
_S = TypeVar("_S", bound=BaseSettings)


def _http(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError("must be http://HOST:PORT")
    return text.rstrip("/")


def _path(text: str) -> str:
    if not text.startswith("/") or "?" in text or "#" in text:
        raise ValueError("a path begins with / and has no query")
    return text


Url = Annotated[str, AfterValidator(_http)]
Path = Annotated[str, AfterValidator(_path)]


class ModernCellSettings(pydantic.BaseModel, extra="forbid", frozen=True):
    """A modern cell that paths or shadow reads go to."""

    address: Address
    envelope_key: Key


class DatabaseSettings(BaseSettings):
    """``python -m cell.zero install`` and ``enrol``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, hide_input_in_errors=True, extra="ignore")

    dsn: Dsn  # the monolith's database, as a role that owns our schemas and may read its tables


class AmbassadorSettings(DatabaseSettings):
    """``python -m cell.zero ambassador``."""

    name: Annotated[str, AfterValidator(ids.cell_name)] = "cell-zero"
    listen: Address  # envelope only: routers
    internal_listen: Address  # the control plane's
    envelope_key: Key
    secrets_key: Key  # wraps the keys of tenants that came back with secrets; lost, so are these
    transfer_token: Token  # opens everything but health on the internal listener
    monolith: Url
    # No request of the monolith takes longer. Its server has to see to that; the ambassador relies on it for freezing.
    longest_request_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    at_once: Annotated[int, Field(ge=3, le=1000)] = 16  # requests that the monolith gets at a time
    body_bytes: Annotated[int, Field(ge=1 << 16)] = 64 << 20  # of one request
    cells: dict[str, ModernCellSettings] = {}  # modern cells by name
    paths: dict[Path, str] = {}  # path -> the modern cell that serves it already, for every tenant
    region: str = "local"
    control_plane_url: str | None = None  # without it cell zero reports to nobody
    agent_token: Token | None = None
    advertise: Address | None = None
    internal_advertise: Address | None = None

    @pydantic.model_validator(mode="after")
    def _is_complete(self) -> "AmbassadorSettings":
        if self.control_plane_url is not None and self.agent_token is None:
            raise ValueError(f"{PREFIX}CONTROL_PLANE_URL needs {PREFIX}AGENT_TOKEN")
        unknown = {cell for cell in self.paths.values() if cell not in self.cells}
        if unknown:
            raise ValueError(f"{PREFIX}PATHS names cells that {PREFIX}CELLS does not: {', '.join(sorted(unknown))}")
        return self


def load(kind: type[_S]) -> _S:
    """The settings, or the end of the process with one line that names the variable and the rule, never the value."""
    try:
        return kind()
    except pydantic.ValidationError as e:
        first = e.errors(include_url=False, include_input=False, include_context=False)[0]
        name = PREFIX + str(first["loc"][0]).upper() if first["loc"] else "settings"
        within = "".join(f"{part}: " for part in first["loc"][1:])
        stop(f"{name}: {within}{first['msg']}")
    except ValueError as e:  # a variable that should hold JSON and does not
        named = re.search(r'field "(\w+)"', str(e))
        stop(f"{PREFIX}{named[1].upper()}: not valid JSON" if named else str(e))


def stop(reason: str, status: int = EXIT_MISCONFIGURED) -> NoReturn:
    """One line on stderr, and the end."""
    sys.stderr.write(f"cell zero: {' '.join(reason.split())}\n")
    raise SystemExit(status)
