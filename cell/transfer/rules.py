"""Pure rules of the fence row: which command may act on which state, and which command is too late."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from contracts import problems
from contracts.problems import ProblemError
from contracts.transfer import Fence, TenantState

Command = Literal[
    "provision", "prepare", "freeze", "export", "import", "checksum", "activate", "restore", "release", "abort",
    "purge", "stream-open", "snapshot", "changes", "marker", "apply", "verified", "remainder", "standby", "blob",
]  # fmt: skip

# From which states a command may act. A state that it leads to is among them: a newer leader may say it again.
ALLOWED: Final[dict[Command, frozenset[TenantState]]] = {
    "provision": frozenset({"gone", "active"}),
    "prepare": frozenset({"gone", "aborted", "moved", "importing"}),
    "freeze": frozenset({"active", "frozen"}),
    "export": frozenset({"frozen"}),
    "import": frozenset({"importing"}),
    "checksum": frozenset({"frozen", "importing", "standby", "moved"}),
    "activate": frozenset({"importing", "active", "standby"}),
    "restore": frozenset({"frozen", "active"}),
    "release": frozenset({"frozen", "moved", "standby"}),
    "abort": frozenset({"gone", "aborted", "importing", "moved", "standby"}),
    "purge": frozenset({"moved", "aborted", "gone", "standby"}),
    "stream-open": frozenset({"active", "importing"}),
    "snapshot": frozenset({"active", "frozen"}),
    "changes": frozenset({"active", "importing", "frozen", "moved", "standby"}),
    "marker": frozenset({"active", "frozen"}),
    "apply": frozenset({"importing", "standby"}),
    "verified": frozenset({"importing", "standby"}),
    "remainder": frozenset({"active", "frozen", "importing", "standby"}),
    "standby": frozenset({"frozen", "standby"}),
    "blob": frozenset({"importing", "standby", "frozen", "active"}),
}
# Commands that may be the first that a cell hears of a tenant. They leave a row, so that what comes late is refused.
FIRST: Final[frozenset[Command]] = frozenset({"provision", "prepare", "abort", "purge"})


@dataclass(frozen=True, slots=True)
class FenceRow:
    """The row ``cellwall.tenants`` of one tenant."""

    tenant_id: int
    epoch: int
    state: TenantState
    min_epoch: int
    move: str
    term: int
    seq: int
    command: str
    result: Any
    hint: str

    @property
    def fence(self) -> Fence:
        """The highest fence seen."""
        return Fence(self.term, self.seq, self.move)


def is_newer(row: FenceRow, fence: Fence, command: Command) -> bool:
    """Whether the command is new to the row; false where it is the row's own command repeated. Else it is refused."""
    if (fence.term, fence.seq) > (row.term, row.seq):
        return True
    if fence == row.fence and command == row.command:
        return False
    seen = f"{row.command or 'nothing'} at term {row.term}, seq {row.seq}"
    raise ProblemError(problems.FENCED, f"{command} at term {fence.term}, seq {fence.seq} came after {seen}")


def may_run_beside(row: FenceRow, fence: Fence) -> bool:
    """Whether a command that raises no fence may run: of the row's own move at no older term, or of a newer one."""
    if fence.move == row.move:
        return fence.term >= row.term
    return (fence.term, fence.seq) > (row.term, row.seq)


def check_state(row: FenceRow, command: Command) -> None:
    """`ProblemError` where the command does not apply to the tenant's state."""
    if row.state not in ALLOWED[command]:
        expected = " or ".join(sorted(ALLOWED[command]))
        raise ProblemError(problems.WRONG_STATE, f"{command} needs {expected}, the tenant is {row.state}")


def check_preparation(row: FenceRow, min_epoch: int) -> None:
    """What activation would refuse is refused here, while the move can still go back."""
    _check_unused(row, min_epoch)


def check_activation(row: FenceRow, epoch: int) -> None:
    """importing -> active: above every epoch the tenant had here, and not below what prepare and abort asked for."""
    if row.state == "active":
        if row.epoch != epoch:
            raise ProblemError(problems.WRONG_STATE, f"the tenant is active at epoch {row.epoch}, not {epoch}")
        return
    _check_unused(row, epoch)


def _check_unused(row: FenceRow, epoch: int) -> None:
    least = max(row.min_epoch, row.epoch + 1)
    if epoch < least:
        raise ProblemError(problems.WRONG_STATE, f"epoch {epoch} is used up, {least} is the lowest")


def check_restore(row: FenceRow, epoch: int) -> None:
    """To active: an epoch is never used twice, so putting a tenant back raises it. At its own epoch it is a repeat."""
    if row.state == "active" and epoch == row.epoch:
        return
    if epoch <= row.epoch:
        raise ProblemError(problems.WRONG_STATE, f"epoch {epoch} is used up, {row.epoch + 1} is the lowest")


def check_provision(row: FenceRow, epoch: int) -> bool:
    """Whether the tenant is new; false where the same command is repeated. A tenant that was ever here is refused."""
    if row.state == "gone" and row.epoch == 0:
        return True
    if row.state == "active" and row.epoch == epoch and row.result is not None:
        return False
    raise ProblemError(problems.WRONG_STATE, f"the tenant exists here already, {row.state} at epoch {row.epoch}")
