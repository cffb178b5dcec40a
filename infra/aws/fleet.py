"""What every stack of one fleet on AWS shares, checked before anything is created, and the tags that all carry."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from contracts import ids
from infra.spec import CellSpec, SpecError

ZONES: Final = 3
CELL_NAME_MAX: Final = 16  # load balancers and target groups have names of 32, with our suffix and a generated one

Part = Literal["platform", "control-plane", "router", "cell"]

_ACCOUNT: Final = re.compile(r"[0-9]{12}\Z")
_REGION: Final = re.compile(r"[a-z]{2}(?:-[a-z]+)+-[1-9]\Z")
_ENVIRONMENT: Final = re.compile(r"[a-z][a-z0-9-]{0,15}\Z")
_OPTIONAL: Final = ("platform_cidr", "cell_cidr", "payments_url", "payments_service")
_SERVICE: Final = re.compile(r"com\.amazonaws\.vpce\.[a-z0-9-]+\.vpce-svc-[0-9a-f]{8,17}\Z")
_PRINCIPAL: Final = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:(?:root|role/[A-Za-z0-9+=,.@_/-]+)\Z")


@dataclass(frozen=True, slots=True)
class Tags:
    """The tags of one stack. A component cannot be made without them; cost, policies and roles go by them."""

    environment: str
    part: Part
    cell: str | None = None

    def __post_init__(self) -> None:
        if (self.part == "cell") != (self.cell is not None):
            raise SpecError("tags.cell", "belongs to the stacks of cells, each of which has one")

    def named(self, name: str) -> dict[str, str]:
        """The tags of one resource."""
        told = {"Name": name, "cellwall:environment": self.environment, "cellwall:part": self.part}
        return told if self.cell is None else told | {"cellwall:cell": self.cell}

    @property
    def path(self) -> str:
        """Where names with slashes live: ``cellwall/cells/cell-1``. Policies tell cells apart by it."""
        return f"cellwall/cells/{self.cell}" if self.cell else f"cellwall/{self.part}"


@dataclass(frozen=True, slots=True)
class Fleet:
    """One fleet in one account and region.

    ``router_principal`` is the role that deploys the router (or its account's root): the only one that may make an
    endpoint to a cell. ``cell_principal`` is the same for cells' endpoints to the control plane. Every cell has
    ``cell_cidr``; ``platform_cidr`` is where router and control plane live. ``payments_url`` is the gateway of all
    cells and ``payments_service`` the endpoint service behind which its name answers: a cell has no way to the
    internet. Without them no order can be paid.
    """

    environment: str
    account: str
    region: str
    zones: tuple[str, str, str]
    base_domain: str
    router_principal: str
    cell_principal: str
    platform_cidr: str = "10.0.0.0/16"
    cell_cidr: str = "10.64.0.0/16"
    payments_url: str | None = None
    payments_service: str | None = None

    def __post_init__(self) -> None:
        _matches("environment", self.environment, _ENVIRONMENT, "up to 16 lower-case letters, digits and hyphens")
        _matches("account", self.account, _ACCOUNT, "an AWS account number of 12 digits, in quotes")
        _matches("region", self.region, _REGION, "a region such as eu-central-1")
        _matches("router_principal", self.router_principal, _PRINCIPAL, "the ARN of one role, or of an account's root")
        _matches("cell_principal", self.cell_principal, _PRINCIPAL, "the ARN of one role, or of an account's root")
        if len(set(self.zones)) != ZONES or not all(zone.startswith(self.region) for zone in self.zones):
            raise SpecError("zones", f"{', '.join(self.zones)}: must be {ZONES} zones of {self.region}")
        try:
            ids.host(self.base_domain)
        except ValueError as e:
            raise SpecError("base_domain", str(e)) from None
        cell, platform = _network("cell_cidr", self.cell_cidr), _network("platform_cidr", self.platform_cidr)
        if cell.overlaps(platform):
            raise SpecError(
                "cell_cidr", f"{cell} overlaps the platform's {platform}; take another, such as 10.64.0.0/16"
            )
        self._check_payments()

    def _check_payments(self) -> None:
        url, service = self.payments_url, self.payments_service
        if (url is None) != (service is None):
            missing = "payments_url" if url is None else "payments_service"
            raise SpecError(missing, "missing; a gateway needs both its URL and the endpoint service that leads there")
        if url is not None:
            parts = urlsplit(url)
            if parts.scheme != "https" or not parts.hostname or parts.netloc != parts.hostname or parts.query:
                raise SpecError("payments_url", f"{url!r} is not https://HOST, with a path or none, on port 443")
        if service is not None:
            _matches("payments_service", service, _SERVICE, "the name of an endpoint service, com.amazonaws.vpce.…")

    @classmethod
    def parse(cls, told: Mapping[str, Any]) -> "Fleet":
        """From configuration; `SpecError` names what is missing, unknown or wrong."""
        known = {each.name for each in fields(cls)}
        if unknown := sorted(set(told) - known):
            raise SpecError(unknown[0], f"unknown; the fields of a fleet are {', '.join(sorted(known))}")
        if missing := sorted(known - set(told) - set(_OPTIONAL)):
            raise SpecError(missing[0], "missing")
        for name in known & set(told) - {"zones"}:
            if not isinstance(told[name], str):
                raise SpecError(name, f"{told[name]!r} is not text; put it in quotes")
        zones = told["zones"]
        if not isinstance(zones, (list, tuple)) or len(zones) != ZONES:
            raise SpecError("zones", f"must be a list of {ZONES} zones")
        return cls(**{**told, "zones": tuple(str(zone) for zone in zones)})

    def mapping(self) -> dict[str, Any]:
        """The inverse of `parse`."""
        told = asdict(self) | {"zones": list(self.zones)}
        return {name: value for name, value in told.items() if value is not None}

    def tags(self, part: Part, cell: str | None = None) -> Tags:
        """The tags of a stack of this fleet."""
        return Tags(self.environment, part, cell)

    @property
    def cells_domain(self) -> str:
        """The private zone in which routers and control plane find cells."""
        return f"cells.{self.base_domain}"

    @property
    def registry(self) -> str:
        """Where the ARNs of the fleet's image repositories begin."""
        return f"arn:aws:ecr:{self.region}:{self.account}:repository/cellwall/"


def check_cell(spec: CellSpec, fleet: Fleet) -> None:
    """Refuse, with `SpecError`, a cell that is well described but cannot be built in this fleet."""
    if spec.region != fleet.region:
        raise SpecError("region", f"{spec.region!r} is not the fleet's {fleet.region}; each region has its own fleet")
    if len(spec.name) > CELL_NAME_MAX:
        raise SpecError("name", f"{spec.name!r} has more than {CELL_NAME_MAX} characters, the most on AWS")
    if missing := [role for role in ("api", "worker") if role not in spec.images]:
        raise SpecError(f"images.{missing[0]}", "missing; on AWS every service runs an image by digest")


def _matches(name: str, value: str, pattern: re.Pattern[str], rule: str) -> None:
    if not pattern.match(value):
        raise SpecError(name, f"{value!r} is not {rule}")


def _network(name: str, text: str) -> ipaddress.IPv4Network:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as e:
        raise SpecError(name, str(e)) from None
    if network.prefixlen != 16 or not network.is_private:
        raise SpecError(name, f"{text} must be a private network of 16 bits, such as 10.64.0.0/16")
    return network
