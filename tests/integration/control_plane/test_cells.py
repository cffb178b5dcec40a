"""Cells: what agents report, what operators decide, and what routers and placement learn of it."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from contracts import problems, routes
from control_plane import move_store
from control_plane.models import metadata
from tests.integration.control_plane.plane_world import Plane


async def _cell(plane: Plane, name: str) -> dict[str, object]:
    found: dict[str, object] = (await plane.call("GET", f"/v1/cells/{name}")).json()
    return found


async def test_a_cell_that_reports_again_is_not_published_again(plane: Plane) -> None:
    before, _ = await plane.log()
    assert (await plane.register("cell-1")).json() == {"state": "active", "next_s": 2.0}
    assert (await plane.log())[0] == before
    await plane.register("cell-1", address="elsewhere.test:9")
    after, records = await plane.log()
    assert after.revision == before.revision + 1
    assert routes.Cell("cell-1", "elsewhere.test:9", revision=after.revision) in records


async def test_a_cell_without_a_lease_or_not_ready_gets_no_tenant(plane: Plane) -> None:
    await plane.beat("cell-1", ready=False)
    await plane.rows("UPDATE cells SET last_seen = clock_timestamp() - interval '1 minute' WHERE name = 'cell-2'")
    answer = await plane.sign_up("acme")
    assert (answer.status_code, answer.json()["detail"]) == (
        409, "no cell fits: cell-1 is not healthy; cell-2 is not healthy",
    )  # fmt: skip
    await plane.beat("cell-2")
    assert (await _cell(plane, "cell-2"))["healthy"] is True
    assert (await plane.sign_up("acme", cell="cell-2")).status_code == 201


async def test_a_draining_cell_is_published_and_takes_no_tenant(plane: Plane) -> None:
    await plane.call("PATCH", "/v1/cells/cell-1", {"state": "draining"})
    _, records = await plane.log()
    assert [r.state for r in records if isinstance(r, routes.Cell) and r.cell == "cell-1"] == ["draining"]
    assert (await plane.beat("cell-1")).json()["state"] == "draining"
    assert (await plane.sign_up("acme")).json()["cell"] == "cell-2"


async def test_an_operators_capacity_outlives_the_cells_own(plane: Plane) -> None:
    await plane.register("cell-1", capacity=50)
    assert (await _cell(plane, "cell-1"))["capacity"] == 50
    await plane.call("PATCH", "/v1/cells/cell-1", {"capacity": 7})
    await plane.register("cell-1", capacity=60)
    assert (await _cell(plane, "cell-1"))["capacity"] == 7


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"region": "us"}, 409), ({"tier": "canary"}, 409), ({"address": "nowhere"}, 400), ({"tier": "huge"}, 400)],
)
async def test_a_registration_that_would_break_placement_is_refused(
    plane: Plane, changes: dict[str, str], status: int
) -> None:
    assert (await plane.register("cell-1", **changes)).status_code == status


async def test_a_heartbeat_of_an_unknown_cell_asks_it_to_register(plane: Plane) -> None:
    assert (await plane.beat("cell-9")).status_code == 404


async def test_a_cell_with_tenants_is_neither_closed_nor_removed(plane: Plane) -> None:
    await plane.sign_up("acme", cell="cell-1")
    for method, body in (("PATCH", {"state": "closed"}), ("DELETE", None)):
        answer = await plane.call(method, "/v1/cells/cell-1", body)
        assert (answer.status_code, answer.json()["type"]) == (409, problems.CONFLICT.type)
        assert "1 tenants" in answer.json()["detail"]


async def test_a_removed_cell_is_gone_for_routers_and_returns_when_it_is_started_again(plane: Plane) -> None:
    await plane.sign_up("acme", cell="cell-1")
    await plane.call("DELETE", "/v1/tenants/acme")
    assert "still reports" in (await plane.call("DELETE", "/v1/cells/cell-1")).json()["detail"]
    await plane.rows("UPDATE cells SET last_seen = clock_timestamp() - interval '1 minute'")
    assert (await plane.call("DELETE", "/v1/cells/cell-1")).status_code == 204
    _, records = await plane.log()
    assert {r.cell for r in records if isinstance(r, routes.Cell)} == {"cell-2"}
    assert (await plane.call("GET", "/v1/cells/cell-1")).status_code == 404
    assert (await plane.beat("cell-1")).status_code == 404
    await plane.register("cell-1")
    assert {r.cell for r in (await plane.log())[1] if isinstance(r, routes.Cell)} == {"cell-1", "cell-2"}
    assert (await _cell(plane, "cell-1"))["state"] == "active"


async def test_every_change_is_audited_in_its_own_transaction(plane: Plane) -> None:
    await plane.sign_up("acme", cell="cell-1")
    changes: list[tuple[str, str, object, str]] = [
        ("PATCH", "/v1/cells/cell-2", {"capacity": 9}, "cell_changed"),
        ("POST", "/v1/tenants/acme/suspend", None, "tenant_suspended"),
        ("POST", "/v1/tenants/acme/resume", None, "tenant_resumed"),
        ("POST", "/v1/keys", {"name": "ci", "role": "viewer"}, "key_created"),
        ("DELETE", "/v1/tenants/acme", None, "tenant_deleted"),
    ]
    for method, path, body, action in changes:
        assert (await plane.call(method, path, body)).is_success
        newest = (await plane.call("GET", "/v1/audit?limit=1")).json()
        assert newest["entries"][0]["action"] == action
        assert newest["entries"][0]["actor"].startswith("key:")
    assert newest["next"] is not None


async def test_a_change_that_cannot_be_audited_does_not_happen(plane: Plane) -> None:
    await plane.sign_up("acme", cell="cell-1")
    before = await plane.log()
    await plane.rows("ALTER TABLE audit ADD CONSTRAINT full_disk CHECK (action = 'nothing') NOT VALID")
    for method, path, body in (
        ("PATCH", "/v1/cells/cell-2", {"state": "draining"}),
        ("POST", "/v1/tenants/acme/suspend", None),
        ("DELETE", "/v1/tenants/acme", None),
        ("POST", "/v1/keys", {"name": "ci", "role": "admin"}),
    ):
        assert (await plane.call(method, path, body)).status_code == 500
    assert await plane.log() == before
    assert (await plane.rows("SELECT state FROM tenants"))[0].state == "active"
    assert len(await plane.rows("SELECT * FROM api_keys")) == len(plane.keys)


async def test_the_migrations_make_the_tables_that_the_code_expects(plane: Plane) -> None:
    assert move_store.moves.metadata is metadata

    def compare(conn: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(conn), metadata))

    async with plane.engine.connect() as conn:
        assert await conn.run_sync(compare) == []


async def test_metrics_show_the_fleet_and_name_no_tenant(plane: Plane) -> None:
    made = (await plane.sign_up("acme", cell="cell-1")).json()
    header, _ = await plane.log()
    text = (await plane.call("GET", "/metrics", role="viewer")).text
    assert f"cellwall_route_log_revision {float(header.revision)}" in text
    assert 'cellwall_control_cell_tenants{cell="cell-1"} 1.0' in text
    assert 'cellwall_control_cell_healthy{cell="cell-2"} 1.0' in text
    assert made["tenant"] not in text
    assert "acme" not in text
