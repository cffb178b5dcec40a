"""Whose request is this, and which cell owns it: identify and locate, without I/O and without doubt.

A tenant is named by the host, by a credential of ours, or (where the listener trusts it) by ``X-Tenant-ID``. Sources
that disagree are refused. No failure ever falls to a default cell: strangler mode is a setting and applies only while
the table is known to be complete.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from contracts import credentials, problems
from contracts.envelope import FRONT_DOOR, NO_TENANT
from contracts.problems import Problem
from contracts.routes import RouteHint
from router.settings import FrontDoor
from router.table import Caps, CellEntry, Located, PlanEntry, RouteState, tenant_key

UNKNOWN_EPOCH: Final = 1  # of the front door and of tenants that the table does not know
FRONT_DOOR_PLAN: Final = PlanEntry(FRONT_DOOR, requests_per_s=100.0, burst=200, in_flight=64)
_FRONT_DOOR_CAPS: Final = Caps(connections=64, pending=128, in_flight=64)
_DEFAULT_PLAN: Final = PlanEntry("default", requests_per_s=500.0, burst=1000, in_flight=256)
# Requests to cell zero that name no tenant share no bucket: the cell's caps and the address limits bound them.
_UNNAMED_PLAN: Final = PlanEntry("default", requests_per_s=1e9, burst=1_000_000_000, in_flight=1_000_000)
_RETRY_S: Final = 1
_HINTS_LIMIT: Final = 10_000


class Table(Protocol):
    """What the locator asks of a route table (`router.table.RouteTable`)."""

    @property
    def complete(self) -> bool:
        """Whether it was made from a whole snapshot. Where not, an unknown key means nothing."""

    def lookup(self, key: bytes) -> Located | None:
        """The newest route of a host (lower case, no port) or of a `tenant_key`; None where there is none."""

    def cell(self, name: str) -> CellEntry | None:
        """A cell by its name; None where the table has none."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The router's own answer. ``retry_after`` is in seconds; 0 sends no such field."""

    problem: Problem
    detail: str = ""
    retry_after: int = 0


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request for one tenant or host would meet, in words and in fields."""

    name: str
    decision: str  # forward, hold or refuse
    words: str
    status: int = 0
    problem: str = ""
    tenant: str = ""
    cell: str = ""
    address: str = ""
    epoch: int = 0
    state: str = ""
    plan: str = ""


class Locator:
    """Pure decisions over one table, plus the newer routes that cells told this worker about."""

    def __init__(
        self,
        table: Table,
        *,
        trust_tenant_header: bool = False,
        unknown_tenants_to: str | None = None,
        front_door: FrontDoor | None = None,
    ) -> None:
        self._table = table
        self._trust = trust_tenant_header
        self._unknown_to = unknown_tenants_to
        self._hints: dict[bytes, RouteHint] = {}
        self._front_host = front_door.host if front_door else None
        self._front = _front_route(front_door) if front_door else None

    def decide(self, host: bytes, authorization: bytes | None, tenant_header: bytes | None) -> Located | Refused:
        """The route of a request, or why there is none. ``host`` is the Host field's value as it came.

        The state of a route may be held: then the caller holds. Everything else that is not to be sent is `Refused`.
        """
        name = host_name(host)
        if self._front is not None and name == self._front_host:
            return self._front
        named = credentials.tenant_in(authorization) if authorization is not None else None
        if self._trust and tenant_header is not None:
            if named is not None and named != tenant_header:
                return Refused(problems.TENANT_AMBIGUOUS, "the credential and X-Tenant-ID name different tenants")
            named = tenant_header
        route = self._table.lookup(name)
        if route is None:
            return self._by_name(name, named)
        if named is not None and named != route.tenant:
            return Refused(problems.TENANT_AMBIGUOUS, "the host belongs to another tenant than the one named")
        return self._serve(route)

    def adopt(self, hint: RouteHint) -> bool:
        """Keep a verified hint until the table is as new. False where it tells nothing newer than what is known.

        Hints stay in this worker and are never kept on disk. Beyond 10,000 the oldest is forgotten, which costs one
        more 421 and nothing else.
        """
        tenant = hint.tenant.encode()
        route = self._table.lookup(tenant_key(tenant))
        known = self._hints.get(tenant)
        if (route is not None and route.epoch >= hint.epoch) or (known is not None and known.epoch >= hint.epoch):
            return False
        self._hints.pop(tenant, None)
        while len(self._hints) >= _HINTS_LIMIT:
            del self._hints[next(iter(self._hints))]
        self._hints[tenant] = hint
        return True

    def again(self, tenant: bytes) -> Located | Refused:
        """The route by now of a tenant that was located before (a replay, the end of a hold)."""
        route = self._table.lookup(tenant_key(tenant))
        return self._serve(route) if route is not None else self._unknown(b"", tenant)

    def explain(self, name: str) -> Explanation:
        """What would happen to a request whose host is ``name``, or that names the tenant ``name``."""
        raw = name.encode("utf-8", "replace")
        as_host = self.decide(raw, None, None)
        if isinstance(as_host, Refused) and self._table.lookup(tenant_key(raw)) is not None:
            return _explained(name, self.again(raw), "tenant id")
        return _explained(name, as_host, "host")

    def _by_name(self, host: bytes, named: bytes | None) -> Located | Refused:
        if named is not None:
            route = self._table.lookup(tenant_key(named))
            if route is not None:
                return self._serve(route)
        return self._unknown(host, named)

    def _serve(self, route: Located) -> Located | Refused:
        if self._hints:
            route = self._newer(route)
        if route.state is RouteState.SUSPENDED:
            return Refused(problems.TENANT_SUSPENDED)
        if not route.cell.address or route.cell.state == "closed":
            return Refused(problems.CELL_UNAVAILABLE, f"{route.cell.name} is not open", _RETRY_S)
        return route

    def _newer(self, route: Located) -> Located:
        hint = self._hints.get(route.tenant)
        if hint is None:
            return route
        if hint.epoch <= route.epoch:
            del self._hints[route.tenant]
            return route
        cell = self._table.cell(hint.cell) or CellEntry(hint.cell, "", route.cell.caps)
        return Located(route.tenant, cell, hint.epoch, RouteState.ACTIVE, route.plan)

    def _unknown(self, host: bytes, named: bytes | None) -> Located | Refused:
        if not self._table.complete:
            return Refused(problems.NOT_READY, retry_after=_RETRY_S)
        if self._unknown_to is not None:
            return self._strangle(self._unknown_to, named)
        if named is None and not host:
            return Refused(problems.TENANT_MISSING)
        what = f"tenant {_text(named)}" if named is not None else f"host {_text(host)}"
        return Refused(problems.TENANT_UNKNOWN, f"no route for {what}")

    def _strangle(self, name: str, named: bytes | None) -> Located | Refused:
        cell = self._table.cell(name)
        if cell is None:
            return Refused(problems.CELL_UNAVAILABLE, f"{name} is not in the route table", _RETRY_S)
        plan = _UNNAMED_PLAN if named is None else _DEFAULT_PLAN
        return self._serve(Located(named or NO_TENANT, cell, UNKNOWN_EPOCH, RouteState.ACTIVE, plan))


def host_name(value: bytes) -> bytes:
    """The name in a Host field value: lower case, without port and final dot."""
    name = value.lower()
    if b":" in name:
        name = name[: name.rfind(b":")]
    return name[:-1] if name.endswith(b".") else name


def _front_route(front_door: FrontDoor) -> Located:
    cell = CellEntry(FRONT_DOOR, front_door.address, _FRONT_DOOR_CAPS)
    return Located(NO_TENANT, cell, UNKNOWN_EPOCH, RouteState.ACTIVE, FRONT_DOOR_PLAN)


def _text(name: bytes) -> str:
    return name[:100].decode("latin-1")


_STATE_WORDS: Final[Mapping[RouteState, str]] = {
    RouteState.ACTIVE: "is sent to",
    RouteState.HELD: "waits, because the tenant moves, and then goes to",
}


def _explained(name: str, decision: Located | Refused, kind: str) -> Explanation:
    if isinstance(decision, Refused):
        problem = decision.problem
        words = f"A request for the {kind} {name} is refused with {problem.status}: {problem.title}"
        words += f" ({decision.detail})." if decision.detail else "."
        return Explanation(name, "refuse", words, problem.status, problem.type)
    where = f"{decision.cell.name} at {decision.cell.address}"
    words = f"A request for the {kind} {name} {_STATE_WORDS[decision.state]} {where}"
    words += f" as tenant {_text(decision.tenant)}, epoch {decision.epoch}, plan {decision.plan.name}."
    return Explanation(
        name,
        "hold" if decision.state is RouteState.HELD else "forward",
        words,
        tenant=_text(decision.tenant),
        cell=decision.cell.name,
        address=decision.cell.address,
        epoch=decision.epoch,
        state=decision.state.name.lower(),
        plan=decision.plan.name,
    )
