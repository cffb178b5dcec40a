"""Networks and processes that fail inside of large moves: one owner afterwards, nothing left behind, nobody's help."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
import pytest_asyncio

from infra.local.fleet import Fleet
from infra.local.servers import with_database
from infra.local.spec import CONTROL_PLANE, CONTROL_PLANE_DB
from tests.system import advertised_cell, paused_control_plane
from tests.system.fault_proxy import Fault, ProxyThread
from tests.system.hooked import Hooked
from tests.system.product import PATIENCE_S, Product, Tenant
from tests.system.test_large_moves import grow, no_streams, shard_of
from tests.system.test_moves import assert_one_clean_owner, ended, fences
from tests.system.waiting import until
from tests.system.watchers import watched
from tests.system.writers import writing

ROWS = 2_000
CONNECTIONS = 16  # to each router: one to each of its workers, but for a chance of one in thirty thousand
pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Network:
    """A fleet whose internal connections pass through proxies, and a control plane that waits where it is told to."""

    fleet: Fleet
    proxies: ProxyThread
    folder: Path

    def wait_at(self, state: str) -> None:
        """Let the next move that reaches this state wait there until `go_on`; one that waits elsewhere goes on."""
        (self.folder / "reached").unlink(missing_ok=True)
        (self.folder / "at").write_text(state)

    def go_on(self) -> None:
        """Nobody waits any more."""
        (self.folder / "at").write_text("")

    async def reached(self, state: str) -> None:
        """Until a move waits at that state."""
        await until(lambda: says(self.folder / "reached", state), state)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Network]:
    """Proxies before both listeners of each cell, between its API and its databases, and before the control plane's."""
    folder = tmp_path_factory.mktemp("network")
    hooked = Hooked(fleet)
    with ProxyThread.running() as proxies:
        try:
            for name, cell in fleet.cells.items():
                proxies.add(name, cell.internal_address)
                proxies.add(f"{name}.public", cell.address)
                for shard, dsn in cell.shards.items():
                    parts = urlsplit(dsn)
                    proxy = proxies.add(f"{name}-{shard}", f"{parts.hostname}:{parts.port}")
                    await direct(fleet, name, shard, proxy.port)
            ends = [name + end for name in fleet.cells for end in ("", ".public")]
            os.environ[advertised_cell.VARIABLE] = ",".join(f"{n}={proxies.proxies[n].address}" for n in ends)
            database = urlsplit(fleet.control_plane.dsn)
            proxy = proxies.add(CONTROL_PLANE_DB, f"{database.hostname}:{database.port}")
            os.environ[paused_control_plane.DATABASE] = proxy.address
            fleet.state.spec = replace(fleet.state.spec, modules={"cell": "tests.system.advertised_cell"})
            fleet.runner.save()
            await restarted(fleet)
            watching = Hooked(fleet)
            await watching.start(f"watch:{folder}")
            yield Network(fleet, proxies, folder)
        finally:
            for variable in (advertised_cell.VARIABLE, paused_control_plane.DATABASE):
                os.environ.pop(variable, None)
            for name, cell in fleet.cells.items():
                for shard, dsn in cell.shards.items():
                    await direct(fleet, name, shard, urlsplit(dsn).port or 0)
            fleet.state.spec = hooked.plain
            fleet.runner.save()
            await restarted(fleet)
            await hooked.plainly()


async def restarted(fleet: Fleet) -> None:
    """The API of every cell, with what is written now."""
    for name in fleet.cells:
        await fleet.stop(f"{name}-api")
        await fleet.revive(f"{name}-api")


async def direct(fleet: Fleet, cell: str, shard: str, port: int) -> None:
    """Where processes of the cell that start from now on look for a shard."""
    first = next(iter(fleet.cells[cell].shards.values()))
    connection = await asyncpg.connect(with_database(first, "directory"))
    try:
        await connection.execute("UPDATE shards SET port = $1 WHERE name = $2", port, shard)
    finally:
        await connection.close()


@pytest_asyncio.fixture(loop_scope="module")
async def product(fleet: Fleet) -> AsyncIterator[Product]:
    async with Product.at(fleet) as client:
        yield client


async def settler(product: Product) -> Tenant:
    """A tenant with rows in cell-1, once every cell and router is well again."""
    await product.well()
    tenant = await product.tenant_in("cell-1")
    await until(lambda: served_by_all(product, tenant), f"every worker of every router to serve {tenant.slug}")
    await grow(product, tenant, "cell-1", ROWS)
    return tenant


async def served_by_all(product: Product, tenant: Tenant) -> bool:
    """A worker that met the cell dead, in the test before, refuses for seconds after the cell came back."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as fresh:
        asked = [fresh.get(f"{router}/v1/me", headers=tenant.headers) for router in product.routers * CONNECTIONS]
        return all(answer.is_success for answer in await asyncio.gather(*asked))


LARGE = {"standby": True, "finalize_after_s": 0.0}
SMALL: dict[str, Any] = {}


async def moving(
    network: Network, product: Product, tenant: Tenant, state: str, how: dict[str, Any] | None = None
) -> str:
    """Its move to cell-2, large unless told otherwise, which waits at that state."""
    # What a boundary's next step is told of the hold was read before the boundary: `frozen` would be too late.
    first = {"aborting": "frozen", "restoring": "frozen", "thawing": "holding"}.get(state, state)
    network.wait_at(first)
    body = {"tenant": tenant.slug, "to": "cell-2", **(LARGE if how is None else how)}
    move: str = (await product.operate("POST", "/v1/moves", json=body)).json()["id"]
    await network.reached(first)
    if state == "thawing":
        await outlive(network.fleet, move)
    elif first != state:
        await product.operate("POST", f"/v1/moves/{move}/cancel")
    if first != state:
        network.wait_at(state)
        await network.reached(state)
    return move


async def outlive(fleet: Fleet, move: str) -> None:
    """Its hold began longer ago than a hold may last."""
    connection = await asyncpg.connect(fleet.control_plane.dsn)
    try:
        query = "UPDATE moves SET held_at = held_at - interval '1 minute' WHERE id = $1 RETURNING true"
        assert await connection.fetchval(query, move)
    finally:
        await connection.close()


async def suffer(network: Network, link: str, fault: Fault, *, before: bool = False) -> None:
    """Let the move go on under a fault, which heals as soon as something has felt it: ``before`` it goes on, where
    nobody comes this way any more afterwards."""
    proxy = network.proxies.proxies[link]
    network.proxies.set(link, fault)
    try:
        if before:
            await until(lambda: met(proxy), f"something that felt the {fault}")
        network.go_on()
        await until(lambda: met(proxy), f"something that felt the {fault}")
    finally:
        network.proxies.set(link, Fault.NONE)


ENDS = {
    **{state: {"done"} for state in ("switching", "standby", "purging")},
    **{state: {"cancelled"} for state in ("aborting", "restoring")},
}


async def settled(product: Product, tenant: Tenant, move: str, state: str) -> dict[str, Any]:
    """The move's end: done, or undone where it was not decided; nothing of it is left anywhere."""
    await until(lambda: answers(product), "the control plane's answer")
    view = await ended(product, move)
    assert view["state"] in ENDS.get(state, {"done", "failed"}), view
    await no_streams(product)
    home = "cell-2" if view["state"] == "done" else "cell-1"

    async def cleaned() -> bool:
        """A target that was away is told later that it holds nothing."""
        found = await fences(product.fleet, tenant)
        return all(rows == 0 and left in ("gone", "aborted") for name, (left, _, rows) in found.items() if name != home)

    await until(cleaned, "the end of every copy", timeout_s=90)
    await assert_one_clean_owner(product, tenant, home)
    return view


CONTROL_FAULTS = [
    ("cell-1", "copying", Fault.CUT), ("cell-2", "copying", Fault.HALF_OPEN), ("cell-1", "catching_up", Fault.DELAY),
    ("cell-2", "catching_up", Fault.CUT), ("cell-1", "frozen", Fault.HALF_OPEN), ("cell-2", "frozen", Fault.CUT),
    ("cell-2", "switching", Fault.HALF_OPEN), ("cell-1", "standby", Fault.CUT),
]  # fmt: skip


@pytest.mark.invariant(1)
@pytest.mark.invariant(6)
@pytest.mark.parametrize(("link", "state", "fault"), CONTROL_FAULTS)
async def test_a_fault_between_control_plane_and_cell_fails_no_request_and_leaves_one_owner(
    network: Network, product: Product, link: str, state: str, fault: Fault
) -> None:
    tenant = await settler(product)
    async with writing(product, tenant, clients=1) as writers, watched(product, tenant) as watchers:
        await writers.more(2)
        move = await moving(network, product, tenant, state)
        await suffer(network, link, fault)
        await settled(product, tenant, move, state)
        await writers.more(3)
        await watchers.more(5)
    assert writers.failures == []
    verdict = await writers.audit()
    assert verdict.balanced, verdict.words()
    watchers.agree()


DATABASE_FAULTS = [
    ("cell-1", "copying", Fault.HALF_OPEN), ("cell-2", "catching_up", Fault.HALF_OPEN),
    ("cell-1", "frozen", Fault.CUT), ("cell-2", "switching", Fault.CUT), ("cell-2", "frozen", Fault.DELAY),
]  # fmt: skip


@pytest.mark.invariant(1)
@pytest.mark.parametrize(("cell", "state", "fault"), DATABASE_FAULTS)
async def test_a_fault_between_a_cell_and_its_database_leaves_one_owner_and_loses_nothing(
    network: Network, product: Product, cell: str, state: str, fault: Fault
) -> None:
    tenant = await settler(product)
    before = (await fences(product.fleet, tenant))["cell-1"][2]
    link = f"{cell}-{await shard_of(product, tenant)}"
    async with watched(product, tenant) as watchers:
        move = await moving(network, product, tenant, state)
        await suffer(network, link, fault)
        await settled(product, tenant, move, state)
        await watchers.more(5)
    watchers.agree()
    assert sum(rows for _, _, rows in (await fences(product.fleet, tenant)).values()) == before


@pytest.mark.invariant(1)
@pytest.mark.invariant(6)
@pytest.mark.parametrize(
    ("process", "state"),
    [
        ("cell-1-api", "catching_up"), ("cell-1-{shard}", "catching_up"),
        ("cell-1-api", "frozen"), ("cell-2-{shard}", "frozen"), ("cell-1-{shard}", "frozen"),
        ("cell-2-api", "switching"), ("cell-2-{shard}", "switching"), ("cell-1-{shard}", "standby"),
    ],
)  # fmt: skip
async def test_a_process_killed_before_inside_of_the_hold_or_after_it_leaves_one_owner_and_loses_nothing(
    network: Network, product: Product, process: str, state: str
) -> None:
    tenant = await settler(product)
    before = (await fences(product.fleet, tenant))["cell-1"][2]
    process = process.format(shard=await shard_of(product, tenant))
    async with watched(product, tenant) as watchers:
        move = await moving(network, product, tenant, state)
        await product.fleet.kill(process)
        network.go_on()
        await product.fleet.revive(process)
        await settled(product, tenant, move, state)
        await watchers.more(5)
    watchers.agree()
    assert sum(rows for _, _, rows in (await fences(product.fleet, tenant)).values()) == before


# Each kind of victim and each step of a move at least once, on both sides of it; what others kill is not repeated.
SMALL_KILLS = [
    ("cell-1-api", "preparing"), ("cell-2-{shard}", "preparing"), ("router-1", "holding"),
    ("cell-1-{shard}", "holding"), ("control-plane-db", "frozen"), ("cell-1-redis", "frozen"),
    ("router-2", "switching"), ("control-plane-db", "switching"), ("cell-2-api", "standby"),
    ("cell-1-{shard}", "purging"), ("cell-2-{shard}", "aborting"), ("cell-1-api", "restoring"),
]  # fmt: skip
LARGE_KILLS = [
    ("control-plane-db", "copying"), ("router-1", "catching_up"), ("cell-1-{shard}", "thawing"),
    ("cell-2-api", "thawing"), ("cell-1-api", "purging"),
]  # fmt: skip


@pytest.mark.invariant(1)
@pytest.mark.invariant(6)
@pytest.mark.parametrize(
    ("path", "process", "state"),
    [*(("small", *case) for case in SMALL_KILLS), *(("large", *case) for case in LARGE_KILLS)],
)
async def test_whatever_is_killed_at_a_step_of_a_move_leaves_one_owner_and_no_order_broken(
    network: Network, product: Product, path: str, process: str, state: str
) -> None:
    tenant = await settler(product)
    process = process.format(shard=await shard_of(product, tenant))
    async with watched(product, tenant) as watchers:
        move = await moving(network, product, tenant, state, SMALL if path == "small" else LARGE)
        await product.fleet.kill(process)
        network.go_on()
        await product.fleet.revive(process)
        await product.fleet.revive(CONTROL_PLANE)
        view = await settled(product, tenant, move, state)
        assert view["path"] == path
        await watchers.more(5)
    watchers.agree()


LINK_FAULTS = [
    ("cell-1.public", "holding", Fault.CUT), ("cell-1.public", "preparing", Fault.HALF_OPEN),
    ("cell-2.public", "switching", Fault.DELAY), (CONTROL_PLANE_DB, "holding", Fault.CUT),
    (CONTROL_PLANE_DB, "frozen", Fault.DELAY), (CONTROL_PLANE_DB, "switching", Fault.HALF_OPEN),
]  # fmt: skip


@pytest.mark.invariant(1)
@pytest.mark.invariant(6)
@pytest.mark.parametrize(("link", "state", "fault"), LINK_FAULTS)
async def test_a_fault_of_a_router_s_or_the_control_plane_s_database_link_breaks_no_order(
    network: Network, product: Product, link: str, state: str, fault: Fault
) -> None:
    tenant = await settler(product)
    async with watched(product, tenant) as watchers:
        move = await moving(network, product, tenant, state, SMALL)
        await suffer(network, link, fault, before=state == "preparing")
        await product.fleet.revive(CONTROL_PLANE)
        await settled(product, tenant, move, state)
        await watchers.more(5)
    watchers.agree()


async def met(proxy: Any) -> bool:
    return bool(proxy.met)


async def says(file: Path, text: str) -> bool:
    return file.exists() and file.read_text() == text


async def answers(product: Product) -> bool:
    """Whether the control plane has its database again."""
    control = product.fleet.control_plane
    try:
        headers = {"Authorization": f"Bearer {control.operator_key}"}
        return (await product.client.get(f"{control.url}/v1/cells", headers=headers)).is_success
    except httpx.TransportError:
        return False
