"""Usage as cells tell it, and what the control plane does about a noisy tenant: on the real database and apps."""

import asyncio
from typing import Any

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts import routes
from contracts.keys import Purpose, bearer
from contracts.names import THROTTLED_PLAN
from contracts.usage import ShardUsage, TenantUsage, Window, added
from control_plane import noisy_store
from control_plane.noisy import Policy
from control_plane.usage import KEEP_S
from tests.integration.control_plane.fake_cell import FLEET_ROOT
from tests.integration.control_plane.plane_world import Plane

SPENT_MS = 3000.0


class Cell:
    """Tells usage for a cell; ``loud`` names the tenant that takes four fifths of it."""

    def __init__(self, plane: Plane, name: str) -> None:
        self.plane, self.name, self.told = plane, name, 0

    def window(self, loud: str, p99_ms: float, *, share: float = 0.8) -> Window:
        self.told += 1
        lines = (
            TenantUsage(loud, 100, {"overloaded": 5}, SPENT_MS * share, others_requests=200, others_p99_ms=p99_ms),
            TenantUsage("t9", 200, {}, SPENT_MS * (1 - share), others_requests=100, others_p99_ms=5.0),
        )
        shard = ShardUsage("shard-1", SPENT_MS + 50, SPENT_MS, 20.0, 30.0)
        window_id = f"{self.name}-{self.told:010}"
        rest = added("rest", ())
        return Window(window_id, self.name, 0.0, 5.0, ("api",), 300, 1.0, p99_ms, (shard,), lines, rest)

    async def tell(self, window: Window, *, cell: str | None = None, token: str | None = None) -> int:
        token = token or bearer(FLEET_ROOT, Purpose.AGENT, self.name)
        body = msgspec.to_builtins(window)
        path = f"/v1/agent/cells/{cell or self.name}/usage"
        return (await self.plane.call("POST", path, body, role=None, token=token)).status_code

    async def suffers(self, loud: str, *, before: bool = True) -> None:
        """Calm, then three windows in which the tenant is loud and the neighbours are slow."""
        for _ in range(6 if before else 0):
            assert await self.tell(self.window(loud, 10.0, share=0.05)) == 200
        for _ in range(3):
            assert await self.tell(self.window(loud, 120.0)) == 200

    async def recovers(self, loud: str) -> None:
        for _ in range(3):
            await self.tell(self.window(loud, 10.0, share=0.1))


@pytest.fixture
def cell(plane: Plane) -> Cell:
    return Cell(plane, "cell-1")


async def signed_up(plane: Plane, slug: str = "acme", cell: str = "cell-1") -> str:
    answer = await plane.sign_up(slug, cell=cell)
    assert answer.status_code == 201, answer.text
    plane.fleet.cells[cell].tenants[answer.json()["tenant"]].rows = [b"a row"]
    return str(answer.json()["tenant"])


async def policy(plane: Plane, **change: Any) -> None:
    assert (await plane.call("PATCH", "/v1/noisy/policy", change)).status_code == 200


async def route(plane: Plane, slug: str = "acme") -> routes.Route:
    return (await plane.routed())[f"{slug}.example.test"]


async def noisy(plane: Plane) -> dict[str, Any]:
    return dict((await plane.call("GET", "/v1/noisy", role="viewer")).json())


async def events(plane: Plane) -> list[str]:
    """Oldest first."""
    return [event["event"] for event in reversed((await noisy(plane))["events"])]


async def expire(plane: Plane) -> None:
    await plane.rows("UPDATE tenants SET throttled_until = now() - interval '1 second' WHERE throttled_until > now()")


async def test_sums_are_over_the_windows_and_a_window_told_twice_counts_once(plane: Plane, cell: Cell) -> None:
    tenant = await signed_up(plane)
    first = cell.window(tenant, 10.0)
    for window in (first, first, cell.window(tenant, 30.0)):
        assert await cell.tell(window) == 200
    (told,) = (await plane.call("GET", "/v1/usage?cell=cell-1&window=600", role="viewer")).json()["cells"]
    assert (told["seconds"], told["requests"], told["rejected"], told["p99_ms"]) == (10.0, 600, 10, 30.0)
    assert (told["active_ms"], told["platform_ms"], told["other_ms"]) == (2 * (SPENT_MS + 50), 40.0, 60.0)
    costliest = told["tenants"][0]
    assert (costliest["tenant"], costliest["slug"], costliest["requests"]) == (tenant, "acme", 200)
    assert costliest["share"] == pytest.approx(0.8)
    assert sum(line["database_ms"] for line in told["tenants"]) == pytest.approx(2 * SPENT_MS)


async def test_top_leaves_tenants_out_and_no_sum(plane: Plane, cell: Cell) -> None:
    await cell.tell(cell.window("t7", 10.0))
    (told,) = (await plane.call("GET", "/v1/usage?top=1&window=600")).json()["cells"]
    assert [line["tenant"] for line in told["tenants"]] == ["t7"]
    assert told["requests"] == 300


async def test_a_cell_tells_of_itself_only(plane: Plane, cell: Cell) -> None:
    window = cell.window("t7", 10.0)
    assert await cell.tell(window, cell="cell-2") == 401
    assert await cell.tell(window, cell="cell-2", token=bearer(FLEET_ROOT, Purpose.AGENT, "cell-2")) == 400
    assert (await plane.rows("SELECT count(*) AS n FROM usage_windows"))[0].n == 0


async def test_old_windows_go(plane: Plane, cell: Cell) -> None:
    await cell.tell(cell.window("t7", 10.0))
    await plane.rows(f"UPDATE usage_windows SET at = at - make_interval(secs => {KEEP_S + 1})")
    await cell.tell(cell.window("t7", 10.0))

    class Enough(BaseException):
        pass

    async def once(_s: float) -> None:
        raise Enough

    with pytest.raises(Enough):
        await plane.services.watcher.run(once)
    assert (await plane.rows("SELECT count(*) AS n FROM usage_windows"))[0].n == 1


async def test_a_noisy_tenant_is_throttled_by_its_route_and_its_own_plan_comes_back(plane: Plane, cell: Cell) -> None:
    tenant = await signed_up(plane)
    await cell.suffers(tenant)
    assert await plane.services.watcher.once() == 2
    assert (await route(plane)).plan == THROTTLED_PLAN
    assert (await plane.call("GET", "/v1/tenants/acme")).json()["plan"] == "free"
    told = await noisy(plane)
    assert [(t["slug"], t["cell"]) for t in told["throttled"]] == [("acme", "cell-1")]
    assert "80% of what cell-1 spends" in told["events"][0]["reason"]
    assert await plane.services.watcher.once() == 0, "nothing more while it runs"
    await cell.recovers(tenant)
    await expire(plane)
    assert await plane.services.watcher.once() == 1
    assert (await route(plane)).plan == "free"
    assert await events(plane) == ["throttled", "move_proposed", "throttle_lifted"]
    audited = (await plane.call("GET", "/v1/audit")).json()["entries"]
    assert {"throttled", "move_proposed", "throttle_lifted"} <= {entry["action"] for entry in audited}


async def test_routers_know_the_throttled_plan_and_nobody_can_sign_up_with_it(plane: Plane) -> None:
    plans = {r.plan: r for r in (await plane.log())[1] if isinstance(r, routes.Plan)}
    assert plans[THROTTLED_PLAN].requests_per_s == 10.0
    assert (await plane.sign_up("acme", plan=THROTTLED_PLAN)).status_code == 400
    offered = (await plane.knock("GET", "/v1/plans")).json()["plans"]
    assert THROTTLED_PLAN not in {plan["name"] for plan in offered}


async def test_a_changed_limit_reaches_routers_with_the_next_throttle(plane: Plane, cell: Cell) -> None:
    tenant = await signed_up(plane)
    await policy(plane, requests_per_s=3.5, in_flight=1)
    await cell.suffers(tenant)
    await plane.services.watcher.once()
    plans = {r.plan: r for r in (await plane.log())[1] if isinstance(r, routes.Plan)}
    assert (plans[THROTTLED_PLAN].requests_per_s, plans[THROTTLED_PLAN].in_flight) == (3.5, 1)


async def test_a_tenant_that_goes_on_stays_throttled(plane: Plane, cell: Cell) -> None:
    tenant = await signed_up(plane)
    await cell.suffers(tenant)
    await plane.services.watcher.once()
    await expire(plane)
    await cell.suffers(tenant, before=False)
    await plane.services.watcher.once()
    assert (await events(plane))[-1] == "throttle_prolonged"
    assert (await route(plane)).plan == THROTTLED_PLAN


async def test_a_move_of_a_throttled_tenant_keeps_the_throttle_until_it_has_arrived(plane: Plane, cell: Cell) -> None:
    tenant = await signed_up(plane)
    await policy(plane, mode="move")
    await cell.suffers(tenant)
    await plane.services.watcher.once()
    (move,) = (await plane.call("GET", "/v1/moves")).json()["moves"]
    assert (move["slug"], move["target"]) == ("acme", "cell-2")
    assert await events(plane) == ["throttled", "move_started"]
    await expire(plane)
    assert await plane.services.watcher.once() == 0, "its route belongs to the move"
    assert await plane.drive(move["id"], 1) == "done"
    arrived = await route(plane)
    assert (arrived.cell, arrived.plan) == ("cell-2", THROTTLED_PLAN)
    await plane.services.watcher.once()
    assert ((await route(plane)).plan, (await route(plane)).state) == ("free", "active")
    assert (await noisy(plane))["events"][0]["reason"] == "it lives in cell-2 now"


async def test_a_move_that_cannot_be_is_said_and_the_throttle_stays(plane: Plane, cell: Cell) -> None:
    tenant = await signed_up(plane)
    await policy(plane, mode="move")
    plane.fleet.cells["cell-1"].tenants.pop(tenant)
    await cell.suffers(tenant)
    await plane.services.watcher.once()
    assert await events(plane) == ["throttled", "move_refused"]
    assert (await route(plane)).plan == THROTTLED_PLAN


async def test_an_operators_veto_undoes_it_and_lasts(plane: Plane, cell: Cell) -> None:
    tenant = await signed_up(plane)
    await cell.suffers(tenant)
    await plane.services.watcher.once()
    answer = await plane.call("POST", "/v1/noisy/acme/veto", {"seconds": 600}, role="operator")
    assert answer.json()["lifted"] is True
    assert (await route(plane)).plan == "free"
    await cell.suffers(tenant, before=False)
    assert await plane.services.watcher.once() == 0
    await plane.rows("UPDATE noisy_vetoes SET until = now() - interval '1 second'")
    assert await plane.services.watcher.once() > 0, "the veto is over"


@pytest.mark.parametrize("change", ["veto", "policy"])
async def test_a_move_does_not_start_after_an_operator_said_no_to_it(
    plane: Plane, cell: Cell, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Between the throttle and its move the tenant's row is free for a while: the cell is asked how large it is."""
    tenant = await signed_up(plane)
    await policy(plane, mode="move")
    moves = plane.services.moves
    weigh = moves.estimate

    async def said_no(*asked: Any, **more: Any) -> Any:
        if change == "veto":
            answer = await plane.call("POST", "/v1/noisy/acme/veto", {"seconds": 600}, role="operator")
            assert answer.json()["lifted"] is True
        else:
            await policy(plane, mode="throttle")
        return await weigh(*asked, **more)

    monkeypatch.setattr(moves, "estimate", said_no)
    await cell.suffers(tenant)
    await plane.services.watcher.once()
    assert (await plane.call("GET", "/v1/moves")).json()["moves"] == []
    assert (await events(plane))[-1] == "move_refused"
    assert "meanwhile" in (await noisy(plane))["events"][0]["reason"]


async def test_a_lift_does_not_forbid_the_next_throttle(plane: Plane, cell: Cell) -> None:
    tenant = await signed_up(plane)
    await cell.suffers(tenant)
    await plane.services.watcher.once()
    assert (await plane.call("POST", f"/v1/noisy/{tenant}/lift", role="operator")).json()["lifted"] is True
    assert (await route(plane)).plan == "free"
    await plane.services.watcher.once()
    assert (await route(plane)).plan == THROTTLED_PLAN


async def test_observing_notes_what_it_would_have_done_and_changes_nothing(plane: Plane, cell: Cell) -> None:
    tenant = await signed_up(plane)
    await policy(plane, mode="observe")
    await cell.suffers(tenant)
    for _ in range(3):
        await plane.services.watcher.once()
    assert await events(plane) == ["observed"]
    assert (await route(plane)).plan == "free"


async def test_a_cell_cannot_have_another_cells_tenant_throttled(plane: Plane, cell: Cell) -> None:
    tenant = await signed_up(plane, cell="cell-2")
    await cell.suffers(tenant)
    assert await plane.services.watcher.once() == 0


async def test_a_cell_that_fell_silent_is_not_judged_by_what_it_said_before(plane: Plane, cell: Cell) -> None:
    tenant = await signed_up(plane)
    await cell.suffers(tenant)
    await plane.rows("UPDATE usage_windows SET at = at - interval '60 seconds'")
    assert await plane.services.watcher.once() == 0


async def test_suspending_a_throttled_tenant_keeps_both(plane: Plane, cell: Cell) -> None:
    tenant = await signed_up(plane)
    await cell.suffers(tenant)
    await plane.services.watcher.once()
    await plane.call("POST", "/v1/tenants/acme/suspend")
    await expire(plane)
    await cell.recovers(tenant)
    await plane.services.watcher.once()
    suspended = await route(plane)
    assert (suspended.state, suspended.plan) == ("suspended", "free")


@pytest.mark.parametrize(
    ("change", "field"),
    [({"mode": "loud"}, "mode"), ({"share": 7}, "share"), ({"thresholds": 1}, "thresholds")],
)
async def test_a_wrong_policy_names_the_field(plane: Plane, change: dict[str, Any], field: str) -> None:
    answer = await plane.call("PATCH", "/v1/noisy/policy", change)
    assert (answer.status_code, field in answer.json()["detail"]) == (400, True), answer.text


async def test_of_two_operators_one_would_undo_what_the_other_sets(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[Policy] = []

    async def both_at_once(conn: AsyncConnection, changed: Policy) -> None:
        arrived.append(changed)
        async with asyncio.timeout(60):
            while len(arrived) < 2 and not await plane.rows("SELECT 1 FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
        await set_policy(conn, changed)

    set_policy = noisy_store.set_policy
    monkeypatch.setattr(noisy_store, "set_policy", both_at_once)
    await asyncio.gather(policy(plane, share=0.4), policy(plane, burst=7))
    told = (await noisy(plane))["policy"]
    assert (told["share"], told["burst"]) == (0.4, 7)
