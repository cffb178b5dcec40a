"""From a client through a router to a cell and back, on a real fleet; and what must go on when a part is dead."""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from infra.local.fleet import Fleet
from infra.local.spec import CONTROL_PLANE, LocalCellSpec
from infra.local.stamp import Stamps
from tests.system.product import PATIENCE_S, Product, Tenant
from tests.system.waiting import until

PROBLEM = "application/problem+json"


def problem(answer: httpx.Response, status: int, kind: str) -> None:
    """The answer is this problem and nothing else."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == f"urn:cellwall:problem:{kind}"
    assert not [name for name in answer.headers if name in ("cell-refused", "cell-route")]


@dataclass
class Traffic:
    """Reads and writes of one tenant without pause, until the block ends."""

    answers: dict[int, list[int]]  # by the router that was asked
    errors: list[str] = field(default_factory=list)

    @property
    def statuses(self) -> set[int]:
        return set().union(*self.answers.values())


@asynccontextmanager
async def traffic(product: Product, tenant: Tenant, *, routers: Sequence[int] = (0, 1)) -> AsyncIterator[Traffic]:
    thing = await product.product(tenant)
    seen, stop = Traffic({router: [] for router in routers}), asyncio.Event()

    async def work(router: int) -> None:
        while not stop.is_set():
            try:
                made = await product.order(tenant, thing, router=router)
                read = await product.ask(tenant, "GET", f"/v1/orders/{made.json().get('id')}", router=router)
                seen.answers[router] += [made.status_code, read.status_code]
            except (httpx.HTTPError, ValueError) as e:
                seen.errors.append(repr(e))

    tasks = [asyncio.create_task(work(router)) for router in routers]
    try:
        yield seen
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def more(seen: Traffic, count: int) -> None:
    """Wait until that many more answers have come from each router: there is none that makes its client wait."""
    wanted = {router: len(answers) + count for router, answers in seen.answers.items()}

    async def enough() -> bool:
        return all(len(seen.answers[router]) >= wanted[router] for router in wanted) or bool(seen.errors)

    await until(enough, f"{count} more answers")


async def test_a_tenant_signs_up_and_orders_through_both_routers(product: Product) -> None:
    tenant = await product.sign_up()
    thing = await product.product(tenant, router=1)
    made = await product.order(tenant, thing, router=0)
    assert made.status_code == 201, made.text
    for router in range(len(product.routers)):
        read = await product.ask(tenant, "GET", f"/v1/orders/{made.json()['id']}", router=router)
        assert read.status_code == 200, read.text
        assert read.json()["total_cents"] == 2500
        assert read.headers["cell-served"].startswith("cell-")


async def test_the_same_idempotency_key_makes_one_order_at_whichever_router(product: Product) -> None:
    tenant = await product.sign_up()
    thing = await product.product(tenant)
    key = secrets.token_hex(8)
    first = await product.order(tenant, thing, router=0, key=key)
    again = await product.order(tenant, thing, router=1, key=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["id"] == again.json()["id"]
    listed = await product.ask(tenant, "GET", "/v1/orders?limit=10")
    assert len(listed.json()["items"]) == 1


@pytest.mark.parametrize("host", ["nobody.cellwall.localhost", "cellwall.localhost", "example.test"])
async def test_an_unknown_host_is_404_and_reaches_no_cell(product: Product, host: str) -> None:
    for router in product.routers:
        answer = await product.client.get(f"{router}/v1/orders", headers={"Host": host})
        problem(answer, 404, "tenant-unknown")
        assert "cell-served" not in answer.headers


async def test_two_tenants_named_in_one_request_are_refused(product: Product) -> None:
    one, other = await product.sign_up(), await product.sign_up()
    headers = {"Host": one.host, "Authorization": f"Bearer {other.key}"}
    problem(await product.client.get(f"{product.routers[0]}/v1/orders", headers=headers), 400, "tenant-ambiguous")


@pytest.mark.invariant(3)
async def test_a_key_of_one_tenant_opens_nothing_of_another(product: Product) -> None:
    one, other = await product.sign_up(), await product.sign_up()
    made = await product.order(one, await product.product(one))
    read = await product.ask(other, "GET", f"/v1/orders/{made.json()['id']}")
    problem(read, 404, "not-found")
    listed = await product.ask(other, "GET", "/v1/orders?limit=10")
    assert listed.json()["items"] == []


async def test_a_suspended_tenant_is_403_until_it_is_resumed(product: Product) -> None:
    tenant = await product.sign_up()
    await product.operate("POST", f"/v1/tenants/{tenant.id}/suspend")

    async def suspended() -> bool:
        return {(await product.ask(tenant, "GET", "/v1/me", router=n)).status_code for n in (0, 1)} == {403}

    await until(suspended, "both routers to refuse the tenant")
    problem(await product.ask(tenant, "GET", "/v1/me"), 403, "tenant-suspended")
    await product.operate("POST", f"/v1/tenants/{tenant.id}/resume")

    async def resumed() -> bool:
        return {(await product.ask(tenant, "GET", "/v1/me", router=n)).status_code for n in (0, 1)} == {200}

    await until(resumed, "both routers to serve the tenant again")


async def test_a_client_cannot_bring_an_envelope_of_its_own(product: Product) -> None:
    one, other = await product.sign_up(), await product.sign_up()
    forged = {"Cell-Tenant": other.id, "Cell-Epoch": "1", "Cell-Signature": "A" * 43}
    answer = await product.ask(one, "GET", "/v1/me", headers=forged)
    assert answer.status_code == 200, answer.text
    direct = await product.client.get(
        f"http://{product.fleet.cells['cell-1'].address}/v1/me", headers=one.headers | forged
    )
    assert direct.status_code == 403
    assert direct.headers["cell-refused"] == "envelope"


@pytest.mark.invariant(5)
async def test_a_dead_cell_is_503_for_its_tenants_and_nothing_for_the_others(fleet: Fleet, product: Product) -> None:
    hurt, spared = await product.tenant_in("cell-1"), await product.tenant_in("cell-2")
    async with traffic(product, spared) as seen:
        await more(seen, 20)
        try:
            await fleet.kill("cell-1")
            for router in range(len(product.routers)):
                answer = await product.ask(hurt, "GET", "/v1/me", router=router)
                problem(answer, 503, "cell-unavailable")
                assert int(answer.headers["retry-after"]) >= 1
            await more(seen, 80)
        finally:
            await fleet.revive("cell-1")
    assert seen.errors == []
    assert seen.statuses <= {200, 201}, "a tenant of the living cell was refused"

    async def back() -> bool:
        return (await product.ask(hurt, "GET", "/v1/me")).status_code == 200

    await until(back, "the revived cell to serve its tenant")


@pytest.mark.invariant(4)
async def test_routing_goes_on_and_a_router_restarts_while_the_control_plane_is_dead(
    fleet: Fleet, product: Product
) -> None:
    tenant = await product.sign_up()
    thing = await product.product(tenant)
    kept = fleet.folder.data / "router-2" / "routes.ndjson"  # written once a second at the most

    async def on_disk() -> bool:
        return kept.exists() and f'"{tenant.id}"' in kept.read_text()

    await until(on_disk, "the tenant's route in the file of the router that is restarted from it")
    async with traffic(product, tenant, routers=(0,)) as seen:
        await more(seen, 20)
        try:
            await fleet.kill(CONTROL_PLANE)
            await fleet.kill("control-plane-db")
            await more(seen, 40)
            await fleet.kill("router-2")
            await fleet.revive("router-2")
            made = await product.order(tenant, thing, router=1)
            assert made.status_code == 201, "a router that was restarted from its file does not serve"
            closed = await product.client.get(
                f"{product.routers[1]}/v1/plans", headers={"Host": fleet.spec.front_door_host}
            )
            assert closed.status_code == 503
            assert closed.headers["content-type"] == PROBLEM
            await more(seen, 40)
        finally:
            await fleet.revive("control-plane-db")
            await fleet.revive(CONTROL_PLANE)
        await more(seen, 20)
    assert seen.errors == []
    assert seen.statuses <= {200, 201}, "a request was refused while the control plane was dead, or as it returned"

    async def cells_reported() -> bool:
        return all(cell["healthy"] for cell in (await product.operate("GET", "/v1/cells")).json()["cells"])

    await until(cells_reported, "the cells to report to the control plane again")
    later = await product.sign_up(product.routers[1])

    async def caught_up() -> bool:
        return {(await product.ask(later, "GET", "/v1/me", router=n)).status_code for n in (0, 1)} == {200}

    await until(caught_up, "both routers to follow the route log again")


async def test_a_new_cell_takes_tenants_without_a_restart_of_anything(fleet: Fleet, product: Product) -> None:
    before = dict(fleet.state.processes)
    new = LocalCellSpec(f"cell-{len(fleet.spec.cells) + 1}")
    added = await Stamps(fleet, "a test").ensure(new)
    assert {name: fleet.state.processes[name] for name in before} == before
    tenant = await product.tenant_in(added.name)
    for router in range(len(product.routers)):
        answer = await product.ask(tenant, "GET", "/v1/me", router=router)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cell-served"].startswith(f"{added.name};")


async def test_a_killed_router_worker_is_replaced_and_the_router_goes_on(fleet: Fleet, product: Product) -> None:
    tenant = await product.sign_up()
    before = fleet.worker_pids("router-1")
    assert len(before) == fleet.spec.workers

    os.kill(before[0], signal.SIGKILL)

    async def replaced() -> bool:
        now = fleet.worker_pids("router-1")
        return len(now) == fleet.spec.workers and before[0] not in now

    await until(replaced, "the supervisor to start another worker")
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as fresh:
        answer = await fresh.get(f"{product.routers[0]}/v1/me", headers=tenant.headers)
    assert answer.status_code == 200
