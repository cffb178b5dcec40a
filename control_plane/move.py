"""A tenant's move as a pure state machine: a snapshot goes in, the next action and its reason come out. No I/O.

The order of these states is what the protocol's safety hangs on (docs/architecture.md, "The move of a small tenant"):

- `SWITCHING` is the decision. It is committed before any activation is sent, so whoever finds a move in an earlier
  state knows that the target was never told to serve.
- Before the decision every failure, blown budget and cancellation leads to `ABORTING`. The source gets its tenant
  back (`RESTORING`) after the target confirmed the abort, or stayed silent for a while, and with an epoch above every
  one that the target may ever be asked to activate.
- After it nothing leads back: the actions are repeated until they succeed, with backoff and an alarm.

Every change of state is written with compare-and-set on (state, term), so two executors cannot both take one.
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class State(StrEnum):
    """What was committed last. Of two names for a boundary this is the one that operators read."""

    PLANNED = "planned"
    PREPARING = "preparing"  # the target may know of the move; the tenant is served as ever
    HOLDING = "holding"  # routers were asked to hold; the source may be frozen
    FROZEN = "frozen"  # the source serves nothing; rows are copied and compared
    SWITCHING = "switching"  # DECIDED: the target may serve
    STANDBY = "standby"  # the new route is published; the source still has the rows
    PURGING = "purging"  # the target is confirmed active; the source's rows go
    DONE = "done"
    ABORTING = "aborting"  # given up before the decision; the target has yet to confirm
    RESTORING = "restoring"  # the target never serves; the source gets its tenant back
    CANCELLED = "cancelled"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"  # done, then undone by a later move of kind rollback


class Kind(StrEnum):
    """Why a tenant moves. A rollback is the same path backwards, as a move of its own."""

    MOVE = "move"
    ROLLBACK = "rollback"


class Do(StrEnum):
    """What the executor is told to do."""

    BEGIN = "begin"  # nothing but the commit
    PREPARE = "prepare"  # check schemas, make room at the target, warm the connections
    FREEZE = "freeze"  # wait (bounded) for the routers, freeze the source
    COPY = "copy"  # stream the rows, compare the checksums
    ACTIVATE = "activate"  # at the target
    RETIRE = "retire"  # give the source its hint, confirm that the target is active
    PURGE = "purge"  # the source's rows
    GIVE_UP = "give-up"  # nothing but the commit
    ABORT = "abort"  # at the target
    RESTORE = "restore"  # at the source
    FINISH = "finish"  # nothing but the commit
    NOTHING = "nothing"


LEGAL: Final = MappingProxyType(
    {
        State.PLANNED: frozenset({State.PREPARING, State.CANCELLED}),
        State.PREPARING: frozenset({State.HOLDING, State.ABORTING}),
        State.HOLDING: frozenset({State.FROZEN, State.ABORTING}),
        State.FROZEN: frozenset({State.SWITCHING, State.ABORTING}),
        State.SWITCHING: frozenset({State.STANDBY}),
        State.STANDBY: frozenset({State.PURGING}),
        State.PURGING: frozenset({State.DONE}),
        State.ABORTING: frozenset({State.RESTORING, State.CANCELLED, State.FAILED}),
        State.RESTORING: frozenset({State.CANCELLED, State.FAILED}),
        State.DONE: frozenset({State.ROLLED_BACK}),
        State.CANCELLED: frozenset[State](),
        State.FAILED: frozenset[State](),
        State.ROLLED_BACK: frozenset[State](),
    }
)
UNDECIDED: Final = frozenset({State.PLANNED, State.PREPARING, State.HOLDING, State.FROZEN})  # a cancel is taken
GOING_BACK: Final = frozenset({State.ABORTING, State.RESTORING})
DECIDED: Final = frozenset({State.SWITCHING, State.STANDBY, State.PURGING})
TERMINAL: Final = frozenset({State.DONE, State.CANCELLED, State.FAILED, State.ROLLED_BACK})
UNFINISHED: Final = frozenset(State) - TERMINAL


@dataclass(frozen=True, slots=True)
class Budgets:
    """Seconds that steps may take. A blown one before the decision puts everything back."""

    prepare_s: float = 10.0
    hold_s: float = 5.0  # from the publication of `held` to the decision
    command_s: float = 5.0  # one command after the decision, or on the way back
    tries: int = 3  # of one step before the decision
    backoff_s: float = 0.05  # doubles with each failure
    backoff_max_s: float = 5.0
    abort_s: float = 1.0  # one try to reach the target while the tenant stands still
    alarm_after: int = 3  # failures of one step that must not fail


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a decision depends on."""

    state: State
    cancel_requested: bool = False
    held: bool = False  # `held` was published, so the source may be frozen
    failures: int = 0  # of the present step, in a row
    silent: int = 0  # how many of the last ones were without any answer
    in_state_s: float = 0.0
    held_s: float = 0.0  # since `held` was published; 0 where it was not


@dataclass(frozen=True, slots=True)
class Action:
    """``do`` within ``budget_s``; on success commit ``then``. ``reason`` is for people.

    As an answer of `settle`: wait ``wait_s``, then commit ``then``, or try again where that is the present state.
    """

    do: Do
    then: State
    reason: str
    budget_s: float = 0.0
    wait_s: float = 0.0
    alarm: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """An action that did not succeed. ``retry``: the outcome is unknown or passing, so trying again may help."""

    reason: str
    retry: bool
    silent: bool = False  # nobody answered, as opposed to a refusal


@dataclass(frozen=True, slots=True)
class Tries:
    """What the executor counts for `Snapshot`: failures of one step in a row, and the silent ones at their end."""

    failures: int = 0
    silent: int = 0

    def after(self, failure: Failure) -> "Tries":
        """One more."""
        return Tries(self.failures + 1, self.silent + 1 if failure.silent else 0)


def decide(s: Snapshot, budgets: Budgets) -> Action:
    """The next action of a move. Total: every state has an answer."""
    if s.state in UNDECIDED:
        return _forward(s, budgets)
    if s.state in DECIDED:
        return _onward(s, budgets)
    if s.state in GOING_BACK:
        return _back(s, budgets)
    return Action(Do.NOTHING, s.state, f"the move is {s.state}: there is nothing left to do")


def settle(s: Snapshot, action: Action, failure: Failure, budgets: Budgets) -> Action:
    """What a failed action leads to: a commit of `ABORTING`, or (``then`` is the present state) another try."""
    failures = s.failures + 1
    if s.state in UNDECIDED and not failure.retry:
        return Action(Do.GIVE_UP, State.ABORTING, failure.reason)
    if s.state in UNDECIDED and failures >= budgets.tries:
        return Action(Do.GIVE_UP, State.ABORTING, f"{failure.reason} ({failures} tries)")
    wait_s = min(budgets.backoff_s * 2.0 ** min(failures - 1, 30), budgets.backoff_max_s)
    alarm = s.state not in UNDECIDED and failures >= budgets.alarm_after
    return Action(action.do, s.state, failure.reason, wait_s=wait_s, alarm=alarm)


def check(old: State, new: State) -> None:
    """`ValueError` where the table does not allow the change."""
    if new not in LEGAL[old]:
        raise ValueError(f"a move cannot go from {old} to {new}")


def _forward(s: Snapshot, b: Budgets) -> Action:
    if s.cancel_requested:
        if s.state is State.PLANNED:
            return Action(Do.FINISH, State.CANCELLED, "cancelled before anything was done")
        return Action(Do.GIVE_UP, State.ABORTING, "a cancellation was asked for before the decision")
    if s.state is State.PLANNED:
        return Action(Do.BEGIN, State.PREPARING, "the target is asked to make room")
    if s.state is State.PREPARING:
        left = b.prepare_s - s.in_state_s
        if left <= 0:
            return Action(Do.GIVE_UP, State.ABORTING, f"the target was not prepared within {b.prepare_s:g} s")
        return Action(Do.PREPARE, State.HOLDING, "the target made room; routers are asked to hold", left)
    left = b.hold_s - s.held_s
    if left <= 0:
        return Action(Do.GIVE_UP, State.ABORTING, f"the tenant was held for more than {b.hold_s:g} s")
    if s.state is State.HOLDING:
        return Action(Do.FREEZE, State.FROZEN, "the source is frozen", left)
    return Action(Do.COPY, State.SWITCHING, "decided: the rows are copied, and both sides hold the same", left)


def _onward(s: Snapshot, b: Budgets) -> Action:
    do, then, reason = {
        State.SWITCHING: (Do.ACTIVATE, State.STANDBY, "the target serves; the new route is published"),
        State.STANDBY: (Do.RETIRE, State.PURGING, "the source points to the target, which confirmed that it serves"),
        State.PURGING: (Do.PURGE, State.DONE, "the source's copy is gone"),
    }[s.state]
    return Action(do, then, reason, b.command_s)


def _back(s: Snapshot, b: Budgets) -> Action:
    end = State.CANCELLED if s.cancel_requested else State.FAILED
    if s.state is State.RESTORING:
        return Action(Do.RESTORE, end, "the source has its tenant back", b.command_s)
    then = State.RESTORING if s.held else end
    if s.silent >= b.alarm_after:
        # Nobody ever told the target to serve: that would have needed the decision, and `ABORTING` was committed in its
        # place. What the target may hold of the import is dropped by the reconciler when it is back (ADR 0010).
        return Action(Do.GIVE_UP, then, "the target does not answer; it was never told to serve, so the source serves")
    return Action(Do.ABORT, then, "the target confirmed that it never serves", b.abort_s if s.held else b.command_s)
