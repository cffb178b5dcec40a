"""The pure rules of the fence row."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest

from cell.transfer import rules
from cell.transfer.rules import FenceRow
from contracts import problems
from contracts.problems import ProblemError
from contracts.transfer import Fence, TenantState

ROW = FenceRow(1, 5, "importing", 7, "move-1", 2, 10, "prepare", {}, "")


@pytest.mark.parametrize(
    ("fence", "command", "expected"),
    [
        (Fence(2, 11, "move-1"), "import", True),
        (Fence(3, 1, "move-2"), "import", True),
        (Fence(2, 10, "move-1"), "prepare", False),
        (Fence(2, 10, "move-1"), "import", None),
        (Fence(2, 10, "move-2"), "prepare", None),
        (Fence(2, 9, "move-1"), "import", None),
        (Fence(1, 99, "move-1"), "import", None),
    ],
)
def test_a_command_is_new_or_repeated_or_too_late(fence: Fence, command: rules.Command, expected: bool | None) -> None:
    if expected is not None:
        assert rules.is_newer(ROW, fence, command) is expected
        return
    with pytest.raises(ProblemError, match="came after prepare at term 2, seq 10") as error:
        rules.is_newer(ROW, fence, command)
    assert error.value.problem is problems.FENCED


@pytest.mark.parametrize(
    ("fence", "expected"),
    [
        (Fence(2, 1, "move-1"), True),  # the same leader: what it reads has no order
        (Fence(3, 1, "move-1"), True),
        (Fence(1, 99, "move-1"), False),  # a leader that was paused
        (Fence(2, 10, "move-2"), False),
        (Fence(2, 11, "move-2"), True),
        (Fence(3, 1, "move-2"), True),
    ],
)
def test_a_command_that_raises_no_fence_would_run_for_a_leader_that_was_overtaken(fence: Fence, expected: bool) -> None:
    assert rules.may_run_beside(ROW, fence) is expected


def test_every_command_has_its_states() -> None:
    assert set(rules.ALLOWED) == set(get_args(rules.Command))
    for states in rules.ALLOWED.values():
        assert states <= set(get_args(TenantState))
    for command in ("export", "import", "checksum", "purge", "prepare", "abort", "release"):
        assert "active" not in rules.ALLOWED[command], f"{command} of a tenant that is served"


@pytest.mark.parametrize("check", [rules.check_preparation, rules.check_activation])
@pytest.mark.parametrize(("epoch", "fits"), [(5, False), (6, False), (7, True), (8, True)])
def test_what_activation_refuses_is_refused_before_the_decision(
    check: Callable[[FenceRow, int], None], epoch: int, fits: bool
) -> None:
    if fits:
        check(ROW, epoch)
        return
    with pytest.raises(ProblemError, match="7 is the lowest"):
        check(ROW, epoch)


def test_a_tenant_does_not_come_back_at_an_epoch_that_it_had_here() -> None:
    moved = replace(ROW, state="moved", min_epoch=0)
    rules.check_preparation(moved, 6)
    with pytest.raises(ProblemError, match="epoch 5 is used up, 6 is the lowest"):
        rules.check_preparation(moved, 5)


def test_activation_is_idempotent_at_its_own_epoch_only() -> None:
    active = replace(ROW, state="active")
    rules.check_activation(active, 5)
    with pytest.raises(ProblemError, match="active at epoch 5, not 8"):
        rules.check_activation(active, 8)


def test_restoring_at_the_old_epoch_would_let_stale_routers_in() -> None:
    frozen = replace(ROW, state="frozen")
    rules.check_restore(frozen, 6)
    with pytest.raises(ProblemError, match="6 is the lowest"):
        rules.check_restore(frozen, 5)


def test_a_tenant_that_no_freeze_took_can_be_given_its_next_epoch_and_never_an_older_one() -> None:
    active = replace(ROW, state="active")
    rules.check_restore(active, 5)
    rules.check_restore(active, 8)
    with pytest.raises(ProblemError, match="6 is the lowest"):
        rules.check_restore(active, 4)


def test_a_tenant_is_provisioned_once() -> None:
    new = replace(ROW, state="gone", epoch=0)
    assert rules.check_provision(new, 1)
    assert not rules.check_provision(replace(ROW, state="active", epoch=1), 1)
    for row in (ROW, replace(ROW, state="gone"), replace(ROW, state="active", result=None)):
        with pytest.raises(ProblemError, match="exists here already"):
            rules.check_provision(row, 5)
