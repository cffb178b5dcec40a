"""`pulumi up` on a running local fleet, by the real CLI: a cell comes, changes, is repaired and leaves."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from infra.local.fleet import Fleet
from infra.local.ports import is_free
from infra.local.processes import Identity
from infra.local.spec import FleetSpec, LocalCellSpec
from tests.infra.stack import PATIENCE_S, Stack
from tests.system.leftovers import Snapshot
from tests.system.product import Product
from tests.system.waiting import PATIENT_ROUTERS
from tests.system.writers import writing

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOTHING_CHANGED = "4 unchanged"
SMALL = FleetSpec(cells=(LocalCellSpec("cell-1", shards=1),), workers=1, router_arguments=PATIENT_ROUTERS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(infra_folder: Path) -> AsyncIterator[Fleet]:
    async with Fleet.start(SMALL, infra_folder / "fleet", lambda _: None) as running:
        yield running
        running.attach()
        snapshot = Snapshot.of(running)
    assert snapshot.left() == []


@pytest.fixture
def stacks(fleet: Fleet, infra_folder: Path, pulumi_environment: dict[str, str]) -> Callable[[str], Stack]:
    """Stacks of the local target in that fleet."""

    def stack(name: str) -> Stack:
        made = Stack("local", name, infra_folder, pulumi_environment)
        made.run("config", "set", "cellwall:fleet", str(fleet.folder.path)).ok()
        made.configure(shards=1)
        return made

    return stack


def processes(fleet: Fleet, cell: str) -> dict[str, Identity]:
    """The processes of a cell, by the fleet's own books."""
    fleet.attach()
    return {name: known for name, known in fleet.state.processes.items() if name.startswith(f"{cell}-")}


async def test_a_cell_comes_by_up_changes_without_a_failed_request_is_repaired_and_leaves(
    fleet: Fleet, stacks: Callable[[str], Stack]
) -> None:
    stack = stacks("cell-3")
    (await asyncio.to_thread(stack.do, "up")).ok()
    fleet.attach()
    async with Product.at(fleet) as product:
        tenant = await product.tenant_in("cell-3")
        answer, patience = await product.ask(tenant, "GET", "/v1/me"), time.monotonic() + PATIENCE_S
        while answer.status_code == 404 and time.monotonic() < patience:  # the router has not heard yet
            answer = await product.ask(tenant, "GET", "/v1/me")
        assert answer.status_code == 200, answer.text
        assert answer.headers["cell-served"].startswith("cell-3;")

        first = processes(fleet, "cell-3")
        again = (await asyncio.to_thread(stack.do, "up")).ok()
        assert NOTHING_CHANGED in again.said
        assert processes(fleet, "cell-3") == first

        stack.configure(version="0.2.0", capacity=77)
        async with writing(product, tenant, clients=1) as writers:
            await writers.more(5)
            updated = (await asyncio.to_thread(stack.do, "up")).ok()
            await writers.more(5)
        assert "1 updated" in updated.said
        assert writers.failures == []
        second = processes(fleet, "cell-3")
        assert {name for name in second if second[name] != first[name]} == {"cell-3-api", "cell-3-worker"}
        view = (await product.operate("GET", "/v1/cells/cell-3")).json()
        assert (view["version"], view["capacity"]) == ("0.2.0", 77)
        assert stack.outputs()["address"] == view["address"]

        os.kill(second["cell-3-worker"].pid, signal.SIGKILL)
        assert "1 updated" in (await asyncio.to_thread(stack.do, "refresh")).ok().said
        assert "1 updated" in (await asyncio.to_thread(stack.do, "up")).ok().said
        third = processes(fleet, "cell-3")
        assert {name for name in third if third[name] != second[name]} == {"cell-3-worker"}
        assert NOTHING_CHANGED in (await asyncio.to_thread(stack.do, "up")).ok().said

        refused = await asyncio.to_thread(stack.do, "destroy")
        refused.refused(f"cellctl moves start {tenant.slug} CELL").refused("cell-3 holds 1 tenant and is not destroyed")
        assert (await product.ask(tenant, "GET", "/v1/me")).status_code == 200
        await product.operate("DELETE", f"/v1/tenants/{tenant.id}")
        ports = {name: port for name, port in fleet.state.ports.items() if name.startswith("cell-3-")}
        (await asyncio.to_thread(stack.do, "destroy")).ok()
        assert processes(fleet, "cell-3") == {}
        assert [name for name, port in ports.items() if not is_free(port)] == []
        assert list(fleet.folder.data.glob("cell-3-*")) == []
        assert [cell["name"] for cell in (await product.operate("GET", "/v1/cells")).json()["cells"]] == ["cell-1"]


async def test_after_a_failure_and_a_ctrl_c_in_the_middle_up_goes_on(
    fleet: Fleet, stacks: Callable[[str], Stack]
) -> None:
    stack = stacks("cell-4")
    obstacle = fleet.folder.data / "cell-4-redis"
    obstacle.touch()
    failed = (await asyncio.to_thread(stack.do, "up")).refused("cell-4-redis")
    assert "Traceback" not in failed.said
    obstacle.unlink()

    with stack.start("up") as running:
        deadline = time.monotonic() + PATIENCE_S
        while processes(fleet, "cell-4").keys().isdisjoint({"cell-4-migrate", "cell-4-api"}):
            assert time.monotonic() < deadline, "the cell's servers are not ready"
            await asyncio.sleep(0.02)
        os.killpg(running.pid, signal.SIGINT)
        said, _ = await asyncio.to_thread(running.communicate, timeout=PATIENCE_S)
    assert "interrupted; the next `up` goes on" in said, "Ctrl-C did not reach the work"
    async with fleet.locked():  # nobody works on the fleet any more
        before = processes(fleet, "cell-4")

    (await asyncio.to_thread(stack.do, "up")).ok()
    after = processes(fleet, "cell-4")
    servers = ("cell-4-shard-1", "cell-4-redis")
    assert [after[name] for name in servers] == [before[name] for name in servers], "what ran was started again"
    assert NOTHING_CHANGED in (await asyncio.to_thread(stack.do, "up")).ok().said
    (await asyncio.to_thread(stack.do, "destroy")).ok()


@pytest.mark.parametrize(
    ("cell", "settings", "words"),
    [
        ("cell-1", {}, "this fleet has a cell cell-1 already"),
        ("cell-5", {"size": "XL"}, "size: 'XL' is none of S, M, L"),
        ("cell-6", {"region": "eu-central-1"}, "region: 'eu-central-1' is not to be had on this machine"),
        ("cell-8", {"schema": "next"}, "schema: 'next' is not this checkout's"),
    ],
)
async def test_a_bad_spec_is_refused_in_the_preview(
    fleet: Fleet, stacks: Callable[[str], Stack], cell: str, settings: dict[str, str], words: str
) -> None:
    stack = stacks(cell)
    fleet.attach()
    stack.configure(**settings)
    before = dict(fleet.state.processes)
    (await asyncio.to_thread(stack.run, "preview")).refused(words)
    fleet.attach()
    assert fleet.state.processes == before


async def test_without_a_fleet_the_message_says_how_to_start_one(
    stacks: Callable[[str], Stack], infra_folder: Path
) -> None:
    stack = stacks("cell-7")
    stack.run("config", "set", "cellwall:fleet", str(infra_folder / "nowhere")).ok()
    (await asyncio.to_thread(stack.run, "preview")).refused("start one first (make up)")
