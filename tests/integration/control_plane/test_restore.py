"""A control plane restored from an old backup: the cells are believed, and no revision or epoch is used twice."""

import time

import pytest

from contracts import routes
from contracts.transfer import Fence
from control_plane.cell_client import CellClient
from control_plane.restore import RestoreError, new_log
from control_plane.routes import Cursor
from tests.integration.control_plane.fake_cell import Row
from tests.integration.control_plane.plane_world import FLEET_ROOT, Plane


async def _new_log(plane: Plane) -> list[str]:
    return await new_log(plane.engine, CellClient(plane.http, FLEET_ROOT), int(time.time()))


async def test_routers_take_a_snapshot_of_the_new_log(plane: Plane) -> None:
    await plane.sign_up("acme")
    old, records = await plane.log()
    await plane.services.route_log.renew("router-1", Cursor(old.log_id, old.revision), 60)
    lines = await _new_log(plane)
    batch = await plane.services.route_log.poll(Cursor(old.log_id, old.revision), 30)
    assert batch.cursor.log_id != old.log_id
    assert batch.after is None
    subjects = {type(r).__name__ for r in batch.records}
    assert subjects == {"Plan", "Cell", "Route"}
    assert len(batch.records) == len(records)
    assert [r.revision for r in batch.records] == list(range(1, len(records) + 1))
    assert lines == [f"log {batch.cursor.log_id} begins, at revision {len(records)}, with 1 tenants known"]
    assert await plane.services.route_log.wait_applied(1, 0.01) == []
    assert (await plane.rows("SELECT action FROM audit ORDER BY id DESC"))[0].action == "route_log_renewed"


async def test_a_tenant_that_moved_after_the_backup_stays_where_it_is_and_gets_a_fresh_epoch_next(
    plane: Plane,
) -> None:
    made = (await plane.sign_up("acme", cell="cell-1")).json()
    plane.fleet.cells["cell-1"].tenants[made["tenant"]].state = "moved"
    plane.fleet.cells["cell-2"].tenants[made["tenant"]] = Row("active", 6)
    lines = await _new_log(plane)
    assert lines[0] == (f"{made['tenant']} (acme): cell-2 serves it at epoch 6; the backup had cell-1 at epoch 1")
    route = (await plane.routed())["acme.example.test"]
    assert (route.cell, route.epoch) == ("cell-2", 6)
    [row] = await plane.rows("SELECT epoch_high FROM tenants")
    assert row.epoch_high == 7
    move = (await plane.call("POST", "/v1/moves", {"tenant": "acme", "to": "cell-1"})).json()
    assert move["epoch"] > 6


async def test_a_tenant_frozen_by_a_move_that_the_backup_does_not_know_is_put_back(plane: Plane) -> None:
    made = (await plane.sign_up("acme", cell="cell-1")).json()
    source, target = plane.fleet.cells["cell-1"], plane.fleet.cells["cell-2"]
    source.tenants[made["tenant"]].state = "frozen"
    target.tenants[made["tenant"]] = Row("importing", 0, min_epoch=2)
    await _new_log(plane)
    epoch = (await plane.routed())["acme.example.test"].epoch
    assert epoch > 1
    assert plane.fleet.owners(made["tenant"]) == [("cell-1", epoch)]
    assert target.tenants[made["tenant"]].state == "gone"


async def _aborted_since_the_backup(plane: Plane, tenant: str) -> None:
    """A move that the backup has not, given up: the target refuses every epoch below 7."""
    plane.fleet.cells["cell-2"].tenants[tenant] = Row("aborted", 0, min_epoch=7)


async def _drive(plane: Plane, move_id: str) -> str:
    [leads] = await plane.rows("SELECT term FROM leader")
    return await plane.drive(move_id, leads.term + 1)


async def test_an_epoch_that_a_target_gave_up_since_the_backup_would_freeze_the_next_move_for_good(
    plane: Plane,
) -> None:
    made = (await plane.sign_up("acme", cell="cell-1")).json()
    await _aborted_since_the_backup(plane, made["tenant"])
    await _new_log(plane)
    move = (await plane.call("POST", "/v1/moves", {"tenant": "acme", "to": "cell-2"})).json()
    assert move["epoch"] > 7
    assert await _drive(plane, move["id"]) == "done"
    assert plane.fleet.owners(made["tenant"]) == [("cell-2", move["epoch"])]


async def test_a_move_of_the_backup_whose_epoch_was_given_up_since_ends_before_its_decision(plane: Plane) -> None:
    made = (await plane.sign_up("acme", cell="cell-1")).json()
    move = (await plane.call("POST", "/v1/moves", {"tenant": "acme", "to": "cell-2"})).json()
    await _aborted_since_the_backup(plane, made["tenant"])  # and nobody ran new-log
    assert await plane.drive(move["id"], 1) == "failed"
    assert "epoch 2 is used up" in (await plane.call("GET", f"/v1/moves/{move['id']}")).json()["steps"][-2]["detail"]
    assert [name for name, _ in plane.fleet.owners(made["tenant"])] == ["cell-1"]


async def test_a_frozen_move_of_the_backup_that_a_later_one_overtook_is_not_decided(plane: Plane) -> None:
    made = (await plane.sign_up("acme", cell="cell-1")).json()
    move = (await plane.call("POST", "/v1/moves", {"tenant": "acme", "to": "cell-2"})).json()
    await plane.rows("UPDATE moves SET state = 'frozen', held_at = clock_timestamp()")
    plane.fleet.cells["cell-1"].tenants[made["tenant"]].state = "frozen"
    plane.fleet.cells["cell-2"].tenants[made["tenant"]] = Row("importing", 0, min_epoch=7)
    await _new_log(plane)
    ended = (await plane.call("GET", f"/v1/moves/{move['id']}")).json()
    assert ended["state"] == "failed"
    [(home, epoch)] = plane.fleet.owners(made["tenant"])
    assert (home, epoch > 7) == ("cell-1", True)


async def test_a_tenant_that_moved_since_the_backup_could_never_be_deleted(plane: Plane) -> None:
    made = (await plane.sign_up("acme", cell="cell-1")).json()
    plane.fleet.cells["cell-1"].tenants[made["tenant"]] = Row("moved", 1, fence=Fence(1_795_372_100, 3000, "m1"))
    plane.fleet.cells["cell-2"].tenants[made["tenant"]] = Row("active", 2, fence=Fence(2**40, 7, "m1"))
    await _new_log(plane)
    [leads] = await plane.rows("SELECT term FROM leader")
    assert leads.term == 2**40  # or the fences of every later move would be refused here
    assert (await plane.call("DELETE", "/v1/tenants/acme")).json()["state"] == "deleted"
    assert plane.fleet.cells["cell-2"].tenants[made["tenant"]].state == "gone"


async def test_a_tenant_unknown_to_the_backup_is_reported(plane: Plane) -> None:
    plane.fleet.cells["cell-2"].tenants["t4711"] = Row("active", 3)
    lines = await _new_log(plane)
    assert lines[0] == "t4711: not in the backup, yet in cell-2 (active, epoch 3); it has no route"


async def test_a_cell_that_does_not_answer_stops_the_restore_before_anything_is_published(plane: Plane) -> None:
    await plane.sign_up("acme")
    before = await plane.log()
    plane.fleet.cells["cell-2"].down = True
    with pytest.raises(RestoreError, match="every cell must answer"):
        await _new_log(plane)
    assert await plane.log() == before
    assert isinstance(before[0], routes.Header)
