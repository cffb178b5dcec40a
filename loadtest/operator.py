"""What the lab asks of the control plane and of the product outside the measured traffic. httpx: not the hot path."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from loadtest.books import Home

POLL_S = 0.05
PLAN = "business"  # its limits are beyond what one machine can offer: limits are not what is measured
TIMEOUT_S = 15.0
ENDED = frozenset({"done", "cancelled", "failed", "rolled_back"})
AWAY_STATUSES = frozenset({502, 503, 504})


class LabError(Exception):
    """The lab cannot go on; the message says what was asked and what came back."""


class AskedError(LabError):
    """What was asked for cannot be meant: the options are wrong, whatever is there to be measured."""


class Tenant(msgspec.Struct, frozen=True):
    """The part of a tenant's view that the lab needs."""

    id: str
    slug: str
    cell: str
    epoch: int
    state: str


class Move(msgspec.Struct, frozen=True):
    """The part of a move's view that the lab needs."""

    id: str
    tenant: str
    source: str
    target: str
    state: str
    reason: str = ""
    rows: int | None = None
    hold_ms: float | None = None

    @property
    def ended(self) -> bool:
        """It will not change any more."""
        return self.state in ENDED


class _Tenants(msgspec.Struct):
    tenants: list[Tenant]
    next: str | None = None


@dataclass(frozen=True)
class SignedUp:
    """A tenant fresh from the front door."""

    tenant: str
    slug: str
    host: str
    api_key: str


def check(answer: httpx.Response, *expected: int) -> httpx.Response:
    """``answer``, or `LabError` where its status is another one."""
    if answer.status_code not in expected:
        asked = f"{answer.request.method} {answer.request.url}"
        raise LabError(f"{asked} answered {answer.status_code}: {answer.text[:300]}")
    return answer


class ControlPlane:
    """The operators' API, with an operator's key."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, timeout=TIMEOUT_S, trust_env=False, headers={"Authorization": f"Bearer {key}"}
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def tenant(self, name: str) -> Tenant:
        """By id or slug."""
        return msgspec.json.decode(check(await self._http.get(f"/v1/tenants/{name}"), 200).content, type=Tenant)

    async def homes(self) -> Mapping[str, Home]:
        """Where every tenant lives."""
        homes: dict[str, Home] = {}
        cursor: str | None = ""
        while cursor is not None:
            query = {"limit": "200"} | ({"cursor": cursor} if cursor else {})
            page = check(await self._http.get("/v1/tenants", params=query), 200)
            tenants = msgspec.json.decode(page.content, type=_Tenants)
            homes |= {t.id: Home(t.cell, t.epoch) for t in tenants.tenants if t.state in ("active", "suspended")}
            cursor = tenants.next
        return homes

    async def leave_noise_alone(self) -> None:
        """No throttling and no moves of noisy tenants by the control plane: the walls are measured without its help."""
        check(await self._http.patch("/v1/noisy/policy", json={"mode": "off"}), 200)

    async def cells(self) -> list[str]:
        """The names of all cells."""
        answer = check(await self._http.get("/v1/cells"), 200)
        return sorted(cell["name"] for cell in answer.json()["cells"])

    async def start_move(self, tenant: str, to: str) -> Move:
        """Begin a move."""
        answer = check(await self._http.post("/v1/moves", json={"tenant": tenant, "to": to}), 201)
        return msgspec.json.decode(answer.content, type=Move)

    async def move(self, move: str) -> Move:
        """The state of a move."""
        return msgspec.json.decode(check(await self._http.get(f"/v1/moves/{move}"), 200).content, type=Move)

    async def wait_move(self, move: Move, *, timeout_s: float) -> Move:
        """Wait for the move's end, through absences of the control plane; `LabError` after ``timeout_s``."""
        until = time.monotonic() + timeout_s
        last: Move = move
        while time.monotonic() < until:
            try:
                answer = await self._http.get(f"/v1/moves/{move.id}")
            except httpx.TransportError:  # it is away: that is part of the demo
                await asyncio.sleep(POLL_S)
                continue
            if answer.status_code not in AWAY_STATUSES:
                last = msgspec.json.decode(check(answer, 200).content, type=Move)
            if last.ended:
                return last
            await asyncio.sleep(POLL_S)
        raise LabError(f"move {move.id} is still {last.state} after {timeout_s:.0f} s ({last.reason})")

    async def delete_tenant(self, tenant: str) -> None:
        """Delete a tenant and its rows."""
        check(await self._http.delete(f"/v1/tenants/{tenant}"), 200, 202, 204)


class Product:
    """The product and the front door as a client sees them: through one router."""

    def __init__(self, router_url: str) -> None:
        self._http = httpx.AsyncClient(base_url=router_url, timeout=TIMEOUT_S, trust_env=False)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def sign_up(self, front_door_host: str, slug: str, name: str, password: str) -> SignedUp:
        """A new tenant at the front door."""
        answer = check(await self.try_sign_up(front_door_host, slug, name, password, PLAN), 201).json()
        return SignedUp(answer["tenant"], answer["slug"], answer["host"], answer["api_key"])

    async def try_sign_up(self, front_door_host: str, slug: str, name: str, password: str, plan: str) -> httpx.Response:
        """A new tenant at the front door, or why not."""
        body = {"slug": slug, "name": name, "email": f"owner@{slug}.example", "password": password, "plan": plan}
        return await self._http.post("/v1/signup", json=body, headers={"Host": front_door_host})

    async def wait_routed(self, tenant: SignedUp, *, timeout_s: float) -> None:
        """Wait until this router serves the tenant; `LabError` after ``timeout_s``."""
        until = time.monotonic() + timeout_s
        while True:
            answer = await self.ask(tenant, "GET", "/v1/me")
            if answer.status_code == 200:
                return
            if answer.status_code != 404 or time.monotonic() > until:
                check(answer, 200)
            await asyncio.sleep(POLL_S)

    async def create(self, tenant: SignedUp, target: str, body: Mapping[str, Any], key: str = "") -> httpx.Response:
        """A create by the tenant's owner."""
        fields = {"Idempotency-Key": key} if key else {}
        return check(await self.ask(tenant, "POST", target, json=body, fields=fields), 201)

    async def ask(
        self,
        tenant: SignedUp,
        method: str,
        target: str,
        *,
        json: Mapping[str, Any] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Any request of the tenant's owner."""
        head = {"Host": tenant.host, "Authorization": f"Bearer {tenant.api_key}", **(fields or {})}
        return await self._http.request(method, target, json=json, headers=head)
