"""Tenants: one winner per slug, nothing left of a failure, tombstones, and no cell past its capacity."""

import asyncio

import pytest

from contracts import problems, routes
from tests.integration.control_plane.fake_cell import Killed
from tests.integration.control_plane.mover_world import killed_at
from tests.integration.control_plane.plane_world import Plane, sign_up


async def _nothing_left(plane: Plane, slug: str) -> None:
    """No row, no route, no reserved slug, no tenant that a cell would serve."""
    assert await plane.rows("SELECT * FROM tenants") == []
    assert await plane.routed() == {}
    assert not any(row.state == "active" for cell in plane.fleet.cells.values() for row in cell.tenants.values())
    assert (await plane.sign_up(slug)).status_code == 201


async def test_a_new_tenant_is_routed_provisioned_and_audited(plane: Plane) -> None:
    answer = await plane.sign_up("acme", plan="business")
    made = answer.json()
    assert (answer.status_code, made["host"], made["api_key"], made["user_id"]) == (
        201, "acme.example.test", "cwk_key", "user-1",
    )  # fmt: skip
    route = (await plane.routed())["acme.example.test"]
    assert (route.tenant, route.cell, route.epoch, route.plan, route.state) == (
        made["tenant"], made["cell"], 1, "business", "active",
    )  # fmt: skip
    assert plane.fleet.owners(made["tenant"]) == [(made["cell"], 1)]
    shown = (await plane.call("GET", "/v1/tenants/acme")).json()
    assert (shown["id"], shown["state"], shown["region"], shown["move"]) == (made["tenant"], "active", "eu", None)
    [entry] = [e for e in (await plane.call("GET", "/v1/audit")).json()["entries"] if e["action"] == "tenant_created"]
    assert entry["subject"] == f"tenant:{made['tenant']}"
    assert entry["detail"]["reason"] == made["reason"]


async def test_of_concurrent_sign_ups_of_one_slug_exactly_one_wins(plane: Plane) -> None:
    answers = await asyncio.gather(*(plane.sign_up("acme") for _ in range(10)))
    assert sorted(a.status_code for a in answers) == [201] + [409] * 9
    lost = {a.json()["type"] for a in answers if a.status_code == 409}
    assert lost == {problems.SLUG_TAKEN.type}
    assert len(await plane.rows("SELECT * FROM tenants")) == 1
    assert sum(len(cell.tenants) for cell in plane.fleet.cells.values()) == 1


async def test_a_sign_up_that_the_cell_refuses_leaves_nothing(plane: Plane) -> None:
    for cell in plane.fleet.cells.values():
        cell.refuse_once["provision"] = problems.INVALID
    answer = await plane.sign_up("acme")
    assert (answer.status_code, answer.json()["type"]) == (400, problems.INVALID.type)
    for cell in plane.fleet.cells.values():
        cell.refuse_once.clear()
    await _nothing_left(plane, "acme")


async def test_a_sign_up_whose_answer_was_lost_leaves_nothing(plane: Plane) -> None:
    for cell in plane.fleet.cells.values():
        cell.lose_answer_of.add("provision")
    answer = await plane.sign_up("acme")
    assert (answer.status_code, answer.json()["type"]) == (503, problems.CELL_UNAVAILABLE.type)
    assert answer.headers["retry-after"]
    for cell in plane.fleet.cells.values():
        cell.lose_answer_of.clear()
    provision = next(s for s in plane.fleet.sent if s.command == "provision")
    assert plane.fleet.deliver_again(provision) == problems.FENCED.slug
    await _nothing_left(plane, "acme")


async def test_a_sign_up_that_was_cancelled_half_way_leaves_nothing(plane: Plane) -> None:
    plane.fleet.stall_after = "provision"
    signing_up = asyncio.create_task(plane.sign_up("acme"))
    await plane.fleet.arrived.wait()
    plane.fleet.stall_after = None
    signing_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await signing_up
    await plane.services.tenancy.drain()
    await _nothing_left(plane, "acme")


async def test_a_cell_that_dies_during_a_sign_up_keeps_the_slug_free_and_is_cleaned_when_it_returns(
    plane: Plane,
) -> None:
    for cell in plane.fleet.cells.values():
        cell.down = True
    assert (await plane.sign_up("acme")).status_code == 503
    assert [r.state for r in await plane.rows("SELECT state FROM tenants")] == ["deleting"]
    assert await plane.services.tenancy.sweep(older_than_s=0) == 0
    for cell in plane.fleet.cells.values():
        cell.down = False
    assert await plane.services.tenancy.sweep(older_than_s=0) == 1
    await _nothing_left(plane, "acme")


async def test_a_control_plane_killed_during_a_sign_up_leaves_nothing_once_it_is_swept(plane: Plane) -> None:
    made = (await plane.sign_up("acme")).json()
    # As if the process had died between the cell's answer and the publication.
    await plane.rows("UPDATE tenants SET state = 'provisioning'")
    await plane.rows("DELETE FROM route_log WHERE subject = :subject", subject=f"tenant:{made['tenant']}")
    assert await plane.services.tenancy.sweep() == 0  # it may still be at work
    assert await plane.services.tenancy.sweep(older_than_s=0) == 1
    assert plane.fleet.owners(made["tenant"]) == []
    await _nothing_left(plane, "acme")


async def test_concurrent_sign_ups_do_not_overfill_the_fleet(plane: Plane) -> None:
    for name, capacity in (("cell-1", 3), ("cell-2", 2)):
        await plane.call("PATCH", f"/v1/cells/{name}", {"capacity": capacity})
    answers = await asyncio.gather(*(plane.sign_up(f"tenant-{n}") for n in range(9)))
    assert sorted(a.status_code for a in answers) == [201] * 5 + [409] * 4
    assert {a.json()["type"] for a in answers if a.status_code == 409} <= {
        problems.NO_ROOM.type, problems.CELL_FULL.type,
    }  # fmt: skip
    held = {c["name"]: c["tenants"] for c in (await plane.call("GET", "/v1/cells")).json()["cells"]}
    assert held == {"cell-1": 3, "cell-2": 2}


async def test_an_operators_choice_of_cell_is_kept_or_refused_with_a_reason(plane: Plane) -> None:
    assert (await plane.sign_up("acme", cell="cell-2")).json()["cell"] == "cell-2"
    unknown = await plane.sign_up("other", cell="cell-9")
    assert (unknown.status_code, unknown.json()["detail"]) == (
        404, "There is no cell 'cell-9'; there are: cell-1, cell-2.",
    )  # fmt: skip
    await plane.call("PATCH", "/v1/cells/cell-2", {"capacity": 1})
    full = await plane.sign_up("other", cell="cell-2")
    assert (full.status_code, full.json()["type"]) == (409, problems.CELL_FULL.type)
    await plane.call("PATCH", "/v1/cells/cell-1", {"state": "draining"})
    draining = await plane.sign_up("other", cell="cell-1")
    assert (draining.status_code, draining.json()["detail"]) == (409, "cell-1 is draining.")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"plan": "gold"}, "there are: free, standard, business"),
        ({"region": "mars"}, "there are: eu"),
        ({"slug": "No Slug"}, "is not a slug"),
        ({"slug": "www"}, "is reserved"),
        ({"email": "nobody"}, "not an e-mail address"),
        ({"password": "short"}, "password"),
        ({"name": " "}, "name"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_bad_input_is_named_and_reserves_nothing(plane: Plane, fault: dict[str, str], words: str) -> None:
    answer = await plane.sign_up(**({"slug": "acme"} | fault))
    assert (answer.status_code, answer.json()["type"]) == (400, problems.INVALID.type)
    assert words in answer.json()["detail"]
    assert "short" not in answer.text
    assert await plane.rows("SELECT * FROM tenants") == []


async def test_a_deleted_tenant_leaves_a_tombstone_a_free_slug_and_no_rows(plane: Plane) -> None:
    made = (await plane.sign_up("acme")).json()
    deleted = (await plane.call("DELETE", "/v1/tenants/acme")).json()
    assert (deleted["id"], deleted["state"]) == (made["tenant"], "deleted")
    assert plane.fleet.cells[made["cell"]].tenants[made["tenant"]].state == "gone"
    _, records = await plane.log()
    assert not [r for r in records if isinstance(r, routes.Route)]
    explained = (await plane.call("GET", f"/v1/routes/{made['tenant']}")).json()
    assert (explained["state"], explained["reason"]) == ("gone", "the tenant was deleted: routers answer 404")
    assert (await plane.call("GET", "/v1/tenants")).json()["tenants"] == []
    assert [t["id"] for t in (await plane.call("GET", "/v1/tenants?state=deleted")).json()["tenants"]] == [
        made["tenant"]
    ]
    again = (await plane.sign_up("acme")).json()
    assert again["tenant"] != made["tenant"]
    assert (await plane.call("DELETE", f"/v1/tenants/{made['tenant']}")).status_code == 409


async def test_a_tenant_deleted_while_its_cell_is_down_has_no_route_and_is_purged_later(plane: Plane) -> None:
    made = (await plane.sign_up("acme")).json()
    cell = plane.fleet.cells[made["cell"]]
    cell.down = True
    assert (await plane.call("DELETE", "/v1/tenants/acme")).json()["state"] == "deleting"
    assert await plane.routed() == {}
    cell.down = False
    assert await plane.services.tenancy.sweep(older_than_s=0) == 1
    assert cell.tenants[made["tenant"]].state == "gone"
    assert (await plane.call("GET", f"/v1/tenants/{made['tenant']}")).json()["state"] == "deleted"


async def test_suspending_and_resuming_reaches_routers_and_is_not_published_twice(plane: Plane) -> None:
    await plane.sign_up("acme")
    for verb, state in (("suspend", "suspended"), ("resume", "active")):
        assert (await plane.call("POST", f"/v1/tenants/acme/{verb}")).json()["state"] == state
        before, _ = await plane.log()
        assert (await plane.routed())["acme.example.test"].state == state
        assert (await plane.call("POST", f"/v1/tenants/acme/{verb}")).json()["state"] == state
        assert (await plane.log())[0] == before


async def test_a_moving_tenant_is_neither_suspended_nor_deleted(plane: Plane) -> None:
    made = (await plane.sign_up("acme", cell="cell-1")).json()
    assert (await plane.call("POST", "/v1/moves", {"tenant": "acme", "to": "cell-2"})).status_code == 201
    for method, path in (("POST", "/v1/tenants/acme/suspend"), ("DELETE", "/v1/tenants/acme")):
        answer = await plane.call(method, path)
        assert (answer.status_code, answer.json()["type"]) == (409, problems.MOVE_RUNNING.type)
    held = {c["name"]: c["tenants"] for c in (await plane.call("GET", "/v1/cells")).json()["cells"]}
    assert held == {"cell-1": 1, "cell-2": 1}
    assert made["tenant"] in (await plane.call("GET", "/v1/routes/acme.example.test")).json()["tenant"]


async def test_pages_of_tenants_neither_skip_nor_repeat(plane: Plane) -> None:
    for n in range(5):
        assert (await plane.sign_up(f"tenant-{n}")).status_code == 201
    seen: list[str] = []
    path = "/v1/tenants?limit=2"
    while True:
        page = (await plane.call("GET", path)).json()
        seen += [t["slug"] for t in page["tenants"]]
        if page["next"] is None:
            break
        path = f"/v1/tenants?limit=2&cursor={page['next']}"
    assert sorted(seen) == [f"tenant-{n}" for n in range(5)]
    for bad in ("limit=0", "limit=501", "cursor=x", "state=odd"):
        assert (await plane.call("GET", f"/v1/tenants?{bad}")).status_code == 400
    assert (await plane.call("GET", "/v1/tenants?cell=cell-9")).status_code == 404
    assert (await plane.call("GET", "/v1/tenants/nobody")).status_code == 404


async def test_a_password_is_neither_stored_nor_logged(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    for cell in plane.fleet.cells.values():
        cell.refuse_once["provision"] = problems.WRONG_STATE
    await plane.call("POST", "/v1/tenants", sign_up("acme", password="a very secret word"))
    for table in ("tenants", "audit", "route_log"):
        assert "very secret" not in str(await plane.rows(f"SELECT * FROM {table}"))
    printed = capsys.readouterr()
    assert "very secret" not in printed.out + printed.err


async def _stopped_at(plane: Plane, state: str) -> str:
    """A move of acme from cell-1 to cell-2 that went no further; its id."""
    await plane.sign_up("acme", cell="cell-1")
    move_id: str = (await plane.call("POST", "/v1/moves", {"tenant": "acme", "to": "cell-2"})).json()["id"]
    with pytest.raises(Killed):
        await plane.drive(move_id, 1, killed_at(state))
    return move_id


@pytest.mark.parametrize("state", ["standby", "purging"])
async def test_a_purge_that_waits_for_its_cell_would_keep_a_tenant_from_being_suspended(
    plane: Plane, state: str
) -> None:
    move_id = await _stopped_at(plane, state)
    for action, routed in (("suspend", "suspended"), ("resume", "active"), ("suspend", "suspended")):
        assert (await plane.call("POST", f"/v1/tenants/acme/{action}")).status_code == 200
        route = (await plane.routed())["acme.example.test"]
        assert (route.cell, route.epoch, route.state) == ("cell-2", 2, routed)
    assert (await plane.call("DELETE", "/v1/tenants/acme")).json()["status"] == 409
    assert await plane.drive(move_id, 2) == "done"
    shown = (await plane.call("GET", "/v1/tenants/acme")).json()
    assert (shown["cell"], shown["epoch"], shown["state"], shown["move"]) == ("cell-2", 2, "suspended", None)
    assert (await plane.routed())["acme.example.test"].state == "suspended"


@pytest.mark.parametrize("state", ["holding", "frozen", "switching"])
async def test_a_tenant_is_not_suspended_under_a_move_that_has_yet_to_publish_its_route(
    plane: Plane, state: str
) -> None:
    move_id = await _stopped_at(plane, state)
    refused = await plane.call("POST", "/v1/tenants/acme/suspend")
    assert refused.json()["type"] == problems.MOVE_RUNNING.type
    assert move_id in refused.json()["detail"]
