"""A person's view of the fleet: sign up at the front door, then use the product through whichever router."""

import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from infra.local.fleet import Fleet
from tests.system.waiting import until

_numbers = itertools.count(1)
PATIENCE_S = 90  # longer than the routers of these tests try: what a client gets is always an answer


@dataclass(frozen=True)
class Tenant:
    """A tenant as its owner knows it."""

    id: str
    slug: str
    host: str
    key: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"Host": self.host, "Authorization": f"Bearer {self.key}"}


class Product:
    """Requests through the routers, and an operator's requests to the control plane."""

    def __init__(self, fleet: Fleet, client: httpx.AsyncClient) -> None:
        self.fleet = fleet
        self.client = client
        self.routers = fleet.router_urls

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, fleet: Fleet) -> AsyncIterator[Self]:
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
            yield cls(fleet, client)

    async def sign_up(self, router: str | None = None, **more: str) -> Tenant:
        """A new tenant by the front door, which every router knows by now."""
        slug = f"shop-{next(_numbers)}-{secrets.token_hex(3)}"
        body = {
            "slug": slug,
            "name": "A shop",
            "email": f"ada@{slug}.test",
            "password": "correct-horse",
            "plan": "business",
            **more,
        }
        host = {"Host": self.fleet.spec.front_door_host}
        answer = await self.client.post(f"{router or self.routers[0]}/v1/signup", json=body, headers=host)
        assert answer.status_code == 201, answer.text
        made = answer.json()
        return await self._known(Tenant(made["tenant"], slug, made["host"], made["api_key"]))

    async def tenant_in(self, cell: str) -> Tenant:
        """A new tenant in that cell, by an operator; every router knows it by now."""
        slug = f"shop-{next(_numbers)}-{secrets.token_hex(3)}"
        body = {
            "slug": slug,
            "name": "A shop",
            "email": f"ada@{slug}.test",
            "password": "correct-horse",
            "plan": "business",
            "cell": cell,
        }
        made = (await self.operate("POST", "/v1/tenants", json=body)).json()
        return await self._known(Tenant(made["tenant"], slug, made["host"], made["api_key"]))

    async def _known(self, tenant: Tenant) -> Tenant:
        """A router that hears of a new tenant a moment later than another answers 404 until then."""

        async def by_all() -> bool:
            answers = [await self.ask(tenant, "GET", "/v1/me", router=n) for n in range(len(self.routers))]
            return all(answer.status_code == httpx.codes.OK for answer in answers)

        await until(by_all, f"every router to know {tenant.slug}")
        return tenant

    async def operate(self, method: str, path: str, **more: Any) -> httpx.Response:
        """A request to the control plane that must succeed."""
        control = self.fleet.control_plane
        headers = {"Authorization": f"Bearer {control.operator_key}"}
        answer = await self.client.request(method, control.url + path, headers=headers, **more)
        assert answer.is_success, answer.text
        return answer

    async def leave_noise_alone(self) -> None:
        """No throttling: where a machine is slow, one of two busy tenants looks noisy, and the other one its victim."""
        await self.operate("PATCH", "/v1/noisy/policy", json={"mode": "off"})

    async def well(self) -> None:
        """Wait until every cell is healthy and every router live; the failure names who is not, with its log's end."""
        ailing: list[str] = []

        async def nobody_ails() -> bool:
            cells = (await self.operate("GET", "/v1/cells")).json()["cells"]
            routers = (await self.operate("GET", "/v1/routers")).json()["routers"]
            ailing[:] = [f"{cell['name']}-api" for cell in cells if not cell["healthy"]]
            ailing.extend(router["name"] for router in routers if not router["live"])
            return not ailing

        try:
            await until(nobody_ails, "the health of every cell and router")
        except AssertionError as e:
            logs = {name: self.fleet.folder.logs / f"{name}.log" for name in ailing}
            ends = [f"{name}:\n{path.read_text()[-4000:]}" for name, path in logs.items() if path.exists()]
            raise AssertionError("\n".join([f"{e}: {', '.join(ailing)}", *ends])) from None

    async def ask(self, tenant: Tenant, method: str, path: str, *, router: int = 0, **more: Any) -> httpx.Response:
        """A request of the tenant's owner."""
        headers = tenant.headers | more.pop("headers", {})
        return await self.client.request(method, self.routers[router] + path, headers=headers, **more)

    async def product(self, tenant: Tenant, *, router: int = 0) -> str:
        """A new thing to sell; returns its id."""
        body = {"sku": secrets.token_hex(4), "name": "Cup", "price_cents": 1250, "currency": "EUR"}
        answer = await self.ask(tenant, "POST", "/v1/products", router=router, json=body)
        assert answer.status_code == 201, answer.text
        found: str = answer.json()["id"]
        return found

    async def order(self, tenant: Tenant, product: str, *, router: int = 0, key: str | None = None) -> httpx.Response:
        """An order of two pieces."""
        body = {"lines": [{"product_id": product, "quantity": 2}], "reference": None}
        headers = {"Idempotency-Key": key or secrets.token_hex(8)}
        return await self.ask(tenant, "POST", "/v1/orders", router=router, json=body, headers=headers)
