"""A cell is emptied while its tenants write: nobody sees an error, no write is lost, a killed control plane goes on."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from infra.local.fleet import Fleet
from infra.local.spec import CONTROL_PLANE
from tests.system.product import Product
from tests.system.waiting import until
from tests.system.writers import writing

TENANTS = 6
OVER = {"done", "incomplete", "stopped", "cancelled"}


@pytest_asyncio.fixture
async def emptied(product: Product) -> AsyncIterator[str]:
    """A cell that may be emptied: it takes tenants again afterwards."""
    yield "cell-1"
    await product.operate("PATCH", "/v1/cells/cell-1", json={"state": "active"})


async def look(product: Product, batch: str) -> dict[str, Any] | None:
    """The batch, or None while the control plane is away."""
    try:
        view: dict[str, Any] = (await product.operate("GET", f"/v1/batches/{batch}")).json()
    except httpx.TransportError:
        return None
    return view


@pytest.mark.invariant(1)
@pytest.mark.invariant(6)
async def test_a_cell_is_emptied_under_writes_though_the_control_plane_is_killed_on_the_way(
    fleet: Fleet, product: Product, emptied: str
) -> None:
    tenants = [await product.tenant_in(emptied) for _ in range(TENANTS)]
    async with contextlib.AsyncExitStack() as clients:
        writers = [await clients.enter_async_context(writing(product, t, clients=1)) for t in tenants[:2]]
        for each in writers:
            await each.more(5)
        started = await product.operate("POST", "/v1/batches", json={"kind": "evacuate", "cell": emptied})
        batch = started.json()["id"]

        async def some_moved() -> bool:
            view = await look(product, batch)
            return view is not None and view["counts"].get("done", 0) >= 2

        await until(some_moved, "the second move of the batch")
        await fleet.kill(CONTROL_PLANE)
        await fleet.revive(CONTROL_PLANE)

        async def over() -> dict[str, Any] | None:
            view = await look(product, batch)
            return view if view is not None and view["state"] in OVER else None

        view = await until(over, "the end of the batch", timeout_s=240)
        for each in writers:
            await each.more(5)
    assert (view["state"], view["counts"]) == ("done", {"done": view["total"]}), view
    assert view["total"] >= TENANTS
    for each in writers:
        assert each.failures == []
        verdict = await each.audit()
        assert verdict.balanced, verdict.words()
    left = (await product.operate("GET", "/v1/tenants", params={"cell": emptied})).json()["tenants"]
    assert left == []
    homes = {(await product.operate("GET", f"/v1/tenants/{t.id}")).json()["cell"] for t in tenants}
    assert homes == {"cell-2"}
