"""What a restored control plane believes of a tenant: the cells, not the backup."""

from datetime import UTC, datetime
from typing import Any

import pytest

from control_plane.models import Tenant
from control_plane.restore import Seen, adopt


def tenant(**changes: Any) -> Tenant:
    row: dict[str, Any] = {
        "number": 7, "slug": "acme", "name": "Acme", "cell": "cell-1", "epoch": 3, "epoch_high": 3, "state": "active",
        "plan": "free", "region": "eu", "hosts": ("acme.example.test",), "move_id": None, "move_target": None,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    return Tenant(**(row | changes))


def test_a_tenant_that_moved_after_the_backup_is_not_sent_back() -> None:
    row = tenant()
    adopted = adopt(row, [Seen("cell-1", "moved", 3), Seen("cell-2", "active", 5)])
    assert (adopted.cell, adopted.epoch, adopted.epoch_high) == ("cell-2", 5, 6)
    assert adopted.reason == "cell-2 serves it at epoch 5; the backup had cell-1 at epoch 3"
    assert adopted.changes(row)


@pytest.mark.parametrize("state", ["importing", "standby", "moved", "aborted", "gone", "frozen", "active"])
def test_an_epoch_that_any_cell_has_seen_is_never_given_out_again(state: Any) -> None:
    assert adopt(tenant(), [Seen("cell-1", "active", 3), Seen("cell-2", state, 9)]).epoch_high == 10


def test_an_epoch_that_a_cell_refuses_to_activate_is_never_given_out_again() -> None:
    assert adopt(tenant(), [Seen("cell-1", "active", 3), Seen("cell-2", "aborted", 0, 9)]).epoch_high == 10


def test_a_move_of_the_backup_that_a_later_one_overtook_is_ended() -> None:
    row = tenant(move_id="m1", move_target="cell-2", epoch_high=4)
    served = adopt(row, [Seen("cell-1", "active", 3), Seen("cell-2", "importing", 0, 7)])
    assert (served.ends_move, served.thaw) == (True, False)
    frozen = adopt(row, [Seen("cell-1", "frozen", 3), Seen("cell-2", "importing", 0, 7)])
    assert (frozen.ends_move, frozen.thaw, frozen.epoch) == (True, True, 8)


def test_a_tenant_that_the_backup_has_right_keeps_its_route_and_its_move() -> None:
    row = tenant(move_id="m1", move_target="cell-2")
    adopted = adopt(row, [Seen("cell-1", "active", 3), Seen("cell-2", "importing", 0)])
    assert not adopted.changes(row)
    assert not adopted.ends_move


def test_a_move_that_ended_after_the_backup_is_not_driven_again() -> None:
    row = tenant(move_id="m1", move_target="cell-2")
    assert adopt(row, [Seen("cell-1", "moved", 3), Seen("cell-2", "active", 4)]).ends_move


def test_a_tenant_frozen_for_a_forgotten_move_does_not_stay_frozen() -> None:
    adopted = adopt(tenant(), [Seen("cell-1", "frozen", 3), Seen("cell-2", "importing", 4)])
    assert (adopted.thaw, adopted.cell, adopted.epoch, adopted.epoch_high) == (True, "cell-1", 5, 5)


def test_a_tenant_frozen_by_a_move_that_the_backup_knows_is_left_to_that_move() -> None:
    row = tenant(move_id="m1", move_target="cell-2", epoch_high=4)
    adopted = adopt(row, [Seen("cell-1", "frozen", 3), Seen("cell-2", "importing", 0)])
    assert not adopted.thaw
    assert not adopted.ends_move


def test_a_sign_up_that_succeeded_after_the_backup_is_not_swept_away() -> None:
    row = tenant(state="provisioning", epoch=1, epoch_high=1)
    assert adopt(row, [Seen("cell-1", "active", 1)]).state == "active"


@pytest.mark.parametrize("seen", [[], [Seen("cell-1", "gone", 3)]])
def test_a_tenant_that_no_known_cell_has_is_reported_not_deleted(seen: list[Seen]) -> None:
    adopted = adopt(tenant(), seen)
    assert (adopted.state, adopted.cell, adopted.reason) == ("active", "cell-1", "no cell serves it")
