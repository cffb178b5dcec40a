"""What the ingress answers to which failure: an answer that invites a replay needs proof that nothing ran."""

import pytest

from cell.ingress import outcome_of
from cell.shards import errors
from contracts import problems
from contracts.names import Refusal

ALL = [
    errors.NotOursError("hint"),
    errors.FrozenError(),
    errors.CancelledByServerError(),
    errors.CommitUnknownError(),
    errors.TransactionAbortedError(),
    errors.ShardUnavailableError(),
]


@pytest.mark.invariant(1)
@pytest.mark.parametrize("error", ALL, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("frozen", [False, True])
def test_after_an_effect_no_failure_is_replayed(error: errors.ShardError, frozen: bool) -> None:
    outcome = outcome_of(error, committed=True, frozen=frozen)
    assert (outcome.problem, outcome.refusal) == (problems.INTERRUPTED, Refusal.INTERRUPTED)


def test_refusals_before_any_effect_may_be_replayed() -> None:
    moved = outcome_of(errors.NotOursError("hint"), committed=False, frozen=False)
    assert (moved.problem, moved.refusal, moved.hint) == (problems.MISDIRECTED, Refusal.MISDIRECTED, "hint")
    for error, frozen in ((errors.FrozenError(), False), (errors.CancelledByServerError(), True)):
        outcome = outcome_of(error, committed=False, frozen=frozen)
        assert (outcome.problem, outcome.refusal) == (problems.TENANT_FROZEN, Refusal.FROZEN)


def test_a_commit_of_unknown_end_is_never_replayed() -> None:
    assert outcome_of(errors.CommitUnknownError(), committed=False, frozen=True).refusal is Refusal.INTERRUPTED


def test_a_database_that_is_down_is_not_a_freeze() -> None:
    for error in (errors.ShardUnavailableError(), errors.CancelledByServerError()):
        outcome = outcome_of(error, committed=False, frozen=False)
        assert (outcome.problem, outcome.refusal) == (problems.SHARD_UNAVAILABLE, None)


def test_a_bug_is_a_bug() -> None:
    assert outcome_of(ValueError(), committed=False, frozen=True).problem is problems.INTERNAL
