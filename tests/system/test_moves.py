"""Moves of a real tenant in a real fleet, while it writes, while the control plane dies, and while people cancel."""

import contextlib
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from contracts.ids import tenant_number
from infra.local.errors import LocalFleetError
from infra.local.fleet import Fleet
from infra.local.spec import CONTROL_PLANE
from tests.system.hooked import Hooked
from tests.system.product import Product, Tenant
from tests.system.waiting import until
from tests.system.writers import writing

FORWARD = ["preparing", "holding", "frozen", "switching", "standby", "purging"]
BACKWARD = ["aborting", "restoring"]
ENDED = {"done", "cancelled", "failed", "rolled_back"}


async def ended(product: Product, move: str) -> dict[str, Any]:
    """The move once it has ended, however often the control plane is away meanwhile."""

    async def look() -> dict[str, Any] | None:
        try:
            view: dict[str, Any] = (await product.operate("GET", f"/v1/moves/{move}")).json()
        except httpx.TransportError:
            return None
        return view if view["state"] in ENDED else None

    # A large one copies, follows and compares; on a busy machine that takes its time.
    return await until(look, f"the end of move {move}", timeout_s=240)


async def fences(fleet: Fleet, tenant: Tenant) -> dict[str, tuple[str, int, int]]:
    """Per cell that knows the tenant: the fence's state and epoch, and how many rows of the tenant are there."""
    found = {}
    for name, cell in fleet.cells.items():
        for dsn in cell.shards.values():
            connection = await asyncpg.connect(dsn)
            try:
                number = tenant_number(tenant.id)
                row = await connection.fetchrow(
                    "SELECT state, epoch FROM cellwall.tenants WHERE tenant_id = $1", number
                )
                if row is not None:
                    rows = await connection.fetchval(
                        "SELECT (SELECT count(*) FROM product.orders WHERE tenant_id = $1)"
                        " + (SELECT count(*) FROM product.users WHERE tenant_id = $1)",
                        number,
                    )
                    found[name] = (row["state"], row["epoch"], rows)
            finally:
                await connection.close()
    return found


async def assert_one_clean_owner(product: Product, tenant: Tenant, cell: str) -> None:
    """One active cell with the rows, none elsewhere, no hold, and the control plane agrees."""
    view = (await product.operate("GET", f"/v1/tenants/{tenant.id}")).json()
    assert (view["cell"], view["state"], view["move"]) == (cell, "active", None)
    found = await fences(product.fleet, tenant)
    state, epoch, rows = found.pop(cell)
    assert (state, epoch) == ("active", view["epoch"])
    assert rows > 0
    for name, (state, _epoch, rows) in found.items():
        assert (state in ("gone", "aborted"), rows) == (True, 0), f"{name} still has the tenant as {state}: {rows} rows"
    explained = (await product.operate("GET", f"/v1/routes/{tenant.id}")).json()
    assert "held" not in str(explained), explained


async def start_move(product: Product, tenant: Tenant, to: str) -> str:
    made: str = (await product.operate("POST", "/v1/moves", json={"tenant": tenant.slug, "to": to})).json()["id"]
    return made


@pytest.mark.invariant(1)
@pytest.mark.invariant(2)
async def test_a_tenant_that_writes_is_moved_forth_and_back_without_an_error(product: Product) -> None:
    tenant = await product.tenant_in("cell-1")
    async with writing(product, tenant) as writers:
        await writers.more(20)
        move = await start_move(product, tenant, "cell-2")
        view = await ended(product, move)
        assert view["state"] == "done", view
        await writers.more(20)
        back = (await product.operate("POST", f"/v1/moves/{move}/rollback")).json()["id"]
        assert (await ended(product, back))["state"] == "done"
        await writers.more(20)
    assert writers.failures == []
    assert set(writers.served_by) == {"cell-1", "cell-2"}
    verdict = await writers.audit()
    assert verdict.balanced, verdict.words()
    assert (await product.operate("GET", f"/v1/moves/{move}")).json()["state"] == "rolled_back"
    await assert_one_clean_owner(product, tenant, "cell-1")


@pytest.mark.invariant(6)
@pytest.mark.invariant(1)
@pytest.mark.parametrize("state", FORWARD)
async def test_a_control_plane_killed_in_a_move_finishes_it_after_its_return(
    product: Product, hooked: Hooked, state: str
) -> None:
    tenant = await product.tenant_in("cell-1")
    await hooked.start(f"kill:{state}")
    async with writing(product, tenant, clients=2) as writers:
        await writers.more(5)
        move = await start_move(product, tenant, "cell-2")
        killed = product.fleet.runner.process(CONTROL_PLANE)
        assert killed is not None
        assert await killed.wait_ended(180), f"the control plane never reached {state}"
        await hooked.plainly()
        view = await ended(product, move)
        await writers.more(5)
    # A hold that outlived its budget while nobody was at the wheel goes back; after the decision it never does.
    expected = {"done"} if state in ("switching", "standby", "purging") else {"done", "failed"}
    assert view["state"] in expected, view
    assert writers.failures == []
    verdict = await writers.audit()
    assert verdict.balanced, verdict.words()
    await assert_one_clean_owner(product, tenant, "cell-2" if view["state"] == "done" else "cell-1")


@pytest.mark.invariant(6)
@pytest.mark.parametrize("state", BACKWARD)
async def test_a_control_plane_killed_on_the_way_back_gives_the_tenant_back(
    product: Product, hooked: Hooked, tmp_path: Path, state: str
) -> None:
    tenant = await product.tenant_in("cell-1")
    before = (await product.operate("GET", f"/v1/tenants/{tenant.id}")).json()["epoch"]
    await hooked.start(f"pause:frozen:{tmp_path}")
    async with writing(product, tenant, clients=2) as writers:
        await writers.more(5)
        move = await start_move(product, tenant, "cell-2")
        await until(lambda: exists(tmp_path / "reached"), "the freeze")
        await product.operate("POST", f"/v1/moves/{move}/cancel")
        with contextlib.suppress(LocalFleetError, httpx.TransportError):  # it may die before it was seen to be ready
            await hooked.start(f"kill:{state}")
        killed = product.fleet.runner.process(CONTROL_PLANE)
        assert killed is not None
        assert await killed.wait_ended(180), f"the control plane never reached {state}"
        await hooked.plainly()
        view = await ended(product, move)
        await writers.more(5)
    assert view["state"] == "cancelled", view
    assert writers.failures == []
    verdict = await writers.audit()
    assert verdict.balanced, verdict.words()
    await assert_one_clean_owner(product, tenant, "cell-1")
    after = (await product.operate("GET", f"/v1/tenants/{tenant.id}")).json()["epoch"]
    assert after > before + 1, "the source must come back above every epoch that the target could be activated with"


@pytest.mark.invariant(5)
@pytest.mark.invariant(6)
async def test_a_target_that_dies_under_the_hold_does_not_take_the_source_down(
    product: Product, hooked: Hooked, tmp_path: Path
) -> None:
    tenant = await product.tenant_in("cell-1")
    await hooked.start(f"pause:frozen:{tmp_path}")
    async with writing(product, tenant, clients=2) as writers:
        await writers.more(5)
        move = await start_move(product, tenant, "cell-2")
        await until(lambda: exists(tmp_path / "reached"), "the freeze")
        await product.fleet.kill("cell-2-api")
        try:
            (tmp_path / "go").touch()
            assert (await ended(product, move))["state"] == "failed"
            await writers.more(5)
        finally:
            await product.fleet.revive("cell-2-api")
    assert writers.failures == []
    verdict = await writers.audit()
    assert verdict.balanced, verdict.words()

    async def clean() -> bool:
        left = (await fences(product.fleet, tenant)).get("cell-2")
        return left is None or (left[0], left[2]) == ("aborted", 0)

    await until(clean, "the reconciler's cleaning of what the target held")
    await assert_one_clean_owner(product, tenant, "cell-1")


@pytest.mark.parametrize("state", ["preparing", "holding", "frozen"])
async def test_a_move_cancelled_before_its_decision_puts_everything_back(
    product: Product, hooked: Hooked, tmp_path: Path, state: str
) -> None:
    tenant = await product.tenant_in("cell-1")
    await hooked.start(f"pause:{state}:{tmp_path}")
    async with writing(product, tenant, clients=2) as writers:
        await writers.more(5)
        move = await start_move(product, tenant, "cell-2")
        await until(lambda: exists(tmp_path / "reached"), f"the boundary {state}")
        await product.operate("POST", f"/v1/moves/{move}/cancel")
        (tmp_path / "go").touch()
        assert (await ended(product, move))["state"] == "cancelled"
        await writers.more(5)
    assert writers.failures == []
    verdict = await writers.audit()
    assert verdict.balanced, verdict.words()
    await assert_one_clean_owner(product, tenant, "cell-1")


async def test_a_move_cannot_be_cancelled_after_its_decision(product: Product, hooked: Hooked, tmp_path: Path) -> None:
    tenant = await product.tenant_in("cell-1")
    await hooked.start(f"pause:switching:{tmp_path}")
    move = await start_move(product, tenant, "cell-2")
    await until(lambda: exists(tmp_path / "reached"), "the decision")
    with pytest.raises(AssertionError, match="move-decided"):
        await product.operate("POST", f"/v1/moves/{move}/cancel")
    (tmp_path / "go").touch()
    assert (await ended(product, move))["state"] == "done"
    await assert_one_clean_owner(product, tenant, "cell-2")


async def test_moves_that_make_no_sense_are_refused_with_a_way_out(
    product: Product, hooked: Hooked, tmp_path: Path
) -> None:
    tenant = await product.tenant_in("cell-1")
    with pytest.raises(AssertionError, match="already-there"):
        await start_move(product, tenant, "cell-1")
    with pytest.raises(AssertionError, match="cell-2"):  # the valid choices are named
        await start_move(product, tenant, "cell-9")
    await hooked.start(f"pause:preparing:{tmp_path}")
    move = await start_move(product, tenant, "cell-2")
    await until(lambda: exists(tmp_path / "reached"), "the preparation")
    with pytest.raises(AssertionError, match="move-running"):
        await start_move(product, tenant, "cell-2")
    (tmp_path / "go").touch()
    assert (await ended(product, move))["state"] == "done"


async def exists(path: Path) -> bool:
    return path.exists()
