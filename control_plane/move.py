"""A tenant's move as a pure state machine: a snapshot goes in, the next action and its reason come out. No I/O.

The order of these states is what the protocol's safety hangs on (docs/architecture.md, "The move of a small tenant"):

- `SWITCHING` is the decision. It is committed before any activation is sent, so whoever finds a move in an earlier
  state knows that the target was never told to serve.
- Before the decision every failure, blown budget and cancellation leads to `ABORTING`. The source gets its tenant
  back (`RESTORING`) after the target confirmed the abort, or stayed silent for a while, and with an epoch above every
  one that the target may ever be asked to activate.
- After it nothing leads back: the actions are repeated until they succeed, with backoff and an alarm.
- A large tenant is copied and followed (`COPYING`, `CATCHING_UP`) while it is served; the hold begins once both sides
  were equal at a marker, what changed since is little, the way back is open, and carrying everything over to a marker
  was just found to be quick (docs/moves.md). A hold that takes too long all the same ends by way of `THAWING` in
  `CATCHING_UP`, with the copy kept and new epochs: no activation was ever sent, so none of the old ones is needed.
  After its switch it stays in `STANDBY`, changes flowing backwards, until somebody finalizes it or rolls it back.
- That rollback is a move of its own on the path `BACK`; the undone one waits in `RETURNING`, which nobody drives.

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
    COPYING = "copying"  # large: one snapshot is carried over; the tenant is served as ever
    CATCHING_UP = "catching_up"  # large: changes since the snapshot flow, and are compared at a marker
    HOLDING = "holding"  # routers were asked to hold; the source may be frozen
    FROZEN = "frozen"  # the source serves nothing; rows are copied and compared
    THAWING = "thawing"  # large: the hold took too long; the source gets its tenant back, the copy is kept
    SWITCHING = "switching"  # DECIDED: the target may serve
    STANDBY = "standby"  # the new route is published; the source still has the rows, of a large tenant kept up to date
    RETURNING = "returning"  # a rollback is under way as a move of its own; this one waits for its outcome
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


class Path(StrEnum):
    """How the rows get there."""

    SMALL = "small"  # all of it inside the hold
    LARGE = "large"  # a snapshot, then a stream of changes; only the remainder inside the hold
    BACK = "back"  # to a standby that follows already: the rollback of a large move that is not finalized


class Do(StrEnum):
    """What the executor is told to do."""

    BEGIN = "begin"  # nothing but the commit
    PREPARE = "prepare"  # check schemas, make room at the target, warm the connections
    WAIT = "wait"  # a while, and change nothing
    SNAPSHOT = "snapshot"  # open the stream, carry its snapshot and the blobs over
    FOLLOW = "follow"  # carry changes over
    VERIFY = "verify"  # put a marker into the stream, stop there, compare everything
    OPEN_BACK = "open-back"  # the stream for the way back, before the hold: it waits for the oldest writer
    REHEARSE = "rehearse"  # carry everything over to a marker, and measure how long that takes
    THAW = "thaw"  # the source serves again, at the epoch that the move now begins from
    BEGIN_ANEW = "begin-anew"  # nothing but the commit: the stream was lost, so the copy is worth nothing
    DRAIN = "drain"  # to the marker that the freeze left, compare what changed since the last comparison
    STAND_BY = "stand-by"  # give the source its hint, let it follow the target
    FLOW_BACK = "flow-back"  # carry changes of the target to the source
    DEGRADE = "degrade"  # note that the stream backwards was lost
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
        State.PLANNED: frozenset({State.PREPARING, State.CATCHING_UP, State.CANCELLED}),
        State.PREPARING: frozenset({State.COPYING, State.HOLDING, State.ABORTING}),
        State.COPYING: frozenset({State.CATCHING_UP, State.ABORTING}),
        State.CATCHING_UP: frozenset({State.COPYING, State.HOLDING, State.ABORTING}),
        State.HOLDING: frozenset({State.FROZEN, State.THAWING, State.ABORTING}),
        State.FROZEN: frozenset({State.SWITCHING, State.THAWING, State.ABORTING}),
        State.THAWING: frozenset({State.CATCHING_UP, State.ABORTING}),
        State.SWITCHING: frozenset({State.STANDBY}),
        State.STANDBY: frozenset({State.PURGING, State.RETURNING}),
        State.RETURNING: frozenset({State.STANDBY, State.ROLLED_BACK}),
        State.PURGING: frozenset({State.DONE}),
        State.ABORTING: frozenset({State.RESTORING, State.CANCELLED, State.FAILED}),
        State.RESTORING: frozenset({State.CANCELLED, State.FAILED}),
        State.DONE: frozenset({State.ROLLED_BACK}),
        State.CANCELLED: frozenset[State](),
        State.FAILED: frozenset[State](),
        State.ROLLED_BACK: frozenset[State](),
    }
)
PAUSABLE: Final = frozenset({State.PLANNED, State.PREPARING, State.COPYING, State.CATCHING_UP})  # nobody is held
UNDECIDED: Final = PAUSABLE | {State.HOLDING, State.FROZEN, State.THAWING}  # a cancel is taken
GOING_BACK: Final = frozenset({State.ABORTING, State.RESTORING})
DECIDED: Final = frozenset({State.SWITCHING, State.STANDBY, State.PURGING})
TERMINAL: Final = frozenset({State.DONE, State.CANCELLED, State.FAILED, State.ROLLED_BACK})
WAITING: Final = frozenset({State.RETURNING})  # neither over nor driven: its rollback carries it on
UNFINISHED: Final = frozenset(State) - TERMINAL - WAITING
_PATIENT: Final = frozenset({State.COPYING, State.CATCHING_UP, State.THAWING})  # what was copied is worth waiting for


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
    copy_s: float = 6 * 3600.0  # a snapshot's way over
    copies: int = 3  # how often a copy is begun anew because its stream was lost
    catch_up_s: float = 3600.0  # a tenant that writes faster than it can be followed
    round_s: float = 300.0  # some batches of changes
    verify_s: float = 1800.0  # one comparison of everything
    stream_tries: int = 60  # of one step before the hold: what was copied is worth waiting for a cell that restarts
    lag_bytes: int = 4 << 20  # of the server's log, everybody's, that may be outstanding when the hold begins
    remainder_rows: int = 4_000  # that may have changed since the comparison when the hold begins; doubles with each
    remainder_max: int = 20_000  # comparison, up to this, or a busy tenant would be compared for ever
    drain_s: float = 0.5  # that a rehearsal may have taken for the hold to begin; doubled with every `drain_tries` of
    drain_tries: int = 10  # them, because a machine that is slow for good is better moved slowly than never,
    drain_max_s: float = 2.0  # up to this
    holds: int = 5  # that may be ended because they took too long; the move is given up at the next one
    rest_s: float = 5.0  # of following after such a hold; doubled with each
    pause_s: float = 1.0  # between two looks at a move that was told to wait


@dataclass(frozen=True, slots=True)
class Stream:
    """What is known of a large move's stream. ``None`` means: ask before relying on it."""

    lag_bytes: int | None = None  # not yet carried over
    verified: int = 0  # how often both sides were found equal at a marker of this copy
    touched: int = 0  # rows that changed at the target since that marker
    back_open: bool = False  # the stream for the way back exists
    standing: bool = False  # the source was told to follow
    lost: bool = False  # the stream backwards is gone: a rollback would lose writes
    copies: int = 0  # begun so far
    drain_s: float | None = None  # what it took just now to carry everything over to a marker
    rehearsals: int = 0  # since the last hold
    holds: int = 0  # that were ended because they took too long


NO_STREAM: Final = Stream()


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
    path: Path = Path.SMALL
    stream: Stream = NO_STREAM
    paused: bool = False  # go no further than to the hold
    finalize: bool = False  # asked for, or due


@dataclass(frozen=True, slots=True)
class Action:
    """``do`` within ``budget_s``; on success commit ``then``, which may be the present state. ``reason`` is for people.

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
    lost: bool = False  # the stream is gone, and with it everything that was built on it


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
    if failure.lost and s.state is State.STANDBY:
        return Action(Do.DEGRADE, s.state, f"a rollback would lose writes from here on: {failure.reason}", alarm=True)
    if failure.lost and _may_begin_anew(s, budgets):
        return Action(Do.BEGIN_ANEW, State.COPYING, f"the copy begins anew: {failure.reason}")
    if s.state in UNDECIDED and not failure.retry:
        return Action(Do.GIVE_UP, State.ABORTING, failure.reason)
    tries = budgets.stream_tries if s.state in _PATIENT else budgets.tries
    if s.state in UNDECIDED and failures >= tries:
        return Action(Do.GIVE_UP, State.ABORTING, f"{failure.reason} ({failures} tries)")
    wait_s = min(budgets.backoff_s * 2.0 ** min(failures - 1, 30), budgets.backoff_max_s)
    alarm = (s.state not in UNDECIDED or s.state is State.THAWING) and failures >= budgets.alarm_after
    return Action(action.do, s.state, failure.reason, wait_s=wait_s, alarm=alarm)


def check(old: State, new: State) -> None:
    """`ValueError` where the table does not allow the change."""
    if new not in LEGAL[old]:
        raise ValueError(f"a move cannot go from {old} to {new}")


def _may_begin_anew(s: Snapshot, b: Budgets) -> bool:
    return s.state is State.CATCHING_UP and s.path is Path.LARGE and s.stream.copies < b.copies


def _forward(s: Snapshot, b: Budgets) -> Action:
    if s.cancel_requested:
        if s.state is State.PLANNED:
            return Action(Do.FINISH, State.CANCELLED, "cancelled before anything was done")
        return Action(Do.GIVE_UP, State.ABORTING, "a cancellation was asked for before the decision")
    if s.state in (State.PLANNED, State.PREPARING):
        return _begin(s, b)
    if s.state is State.COPYING:
        left = b.copy_s - s.in_state_s
        if left <= 0:
            return Action(Do.GIVE_UP, State.ABORTING, f"the copy took more than {b.copy_s:g} s")
        return Action(Do.SNAPSHOT, State.CATCHING_UP, "the snapshot is copied; changes since are carried over", left)
    if s.state is State.CATCHING_UP:
        return _catch_up(s, b)
    if s.state is State.THAWING:
        return Action(Do.THAW, State.CATCHING_UP, "the source has its tenant back; changes are carried on", b.command_s)
    return _cut_over(s, b)


def _begin(s: Snapshot, b: Budgets) -> Action:
    if s.paused:
        return Action(Do.WAIT, s.state, "paused", wait_s=b.pause_s)
    if s.state is State.PLANNED and s.path is Path.BACK:
        return Action(Do.BEGIN, State.CATCHING_UP, "the standby follows already")
    if s.state is State.PLANNED:
        return Action(Do.BEGIN, State.PREPARING, "the target is asked to make room")
    left = b.prepare_s - s.in_state_s
    if left <= 0:
        return Action(Do.GIVE_UP, State.ABORTING, f"the target was not prepared within {b.prepare_s:g} s")
    if s.path is Path.LARGE:
        return Action(Do.PREPARE, State.COPYING, "the target made room; the tenant is copied while it is served", left)
    return Action(Do.PREPARE, State.HOLDING, "the target made room; routers are asked to hold", left)


def _catch_up(s: Snapshot, b: Budgets) -> Action:
    """Follow, compare, open the way back, follow again; the hold begins only from a lag that was just measured."""
    stream = s.stream
    if s.in_state_s > b.catch_up_s and not s.paused:
        return Action(Do.GIVE_UP, State.ABORTING, f"the target did not catch up within {b.catch_up_s:g} s")
    if stream.lag_bytes is None or stream.lag_bytes > b.lag_bytes:
        return Action(Do.FOLLOW, s.state, "changes are carried over", b.round_s)
    if not stream.verified or stream.touched > min(b.remainder_rows << (stream.verified - 1), b.remainder_max):
        return Action(Do.VERIFY, s.state, "both sides are compared at a marker", b.verify_s)
    if s.path is Path.LARGE and not stream.back_open:
        return Action(Do.OPEN_BACK, s.state, "the way back is opened", b.verify_s)
    if s.paused:
        return Action(Do.FOLLOW, s.state, "paused: changes are carried over, nobody is held", b.round_s)
    if stream.holds and s.in_state_s < b.rest_s * 2.0 ** (stream.holds - 1):
        return Action(Do.FOLLOW, s.state, f"changes are carried over after {stream.holds} holds too long", b.round_s)
    if stream.drain_s is None or stream.drain_s > _patience(stream, b):
        return Action(Do.REHEARSE, s.state, "what a hold would wait for is measured", b.verify_s)
    return Action(
        Do.BEGIN, State.HOLDING,
        f"{stream.lag_bytes} bytes behind, {stream.touched} rows to compare, carried over within"
        f" {stream.drain_s * 1000:.0f} ms; routers hold",
    )  # fmt: skip


def _patience(stream: Stream, b: Budgets) -> float:
    """Seconds that the last rehearsal may have taken."""
    return min(b.drain_s * 2.0 ** (stream.rehearsals // b.drain_tries), b.drain_max_s)


def _cut_over(s: Snapshot, b: Budgets) -> Action:
    left = b.hold_s - s.held_s
    if left <= 0:
        said = f"the tenant was held for more than {b.hold_s:g} s"
        if s.path is not Path.SMALL and s.stream.holds < b.holds:
            return Action(Do.GIVE_UP, State.THAWING, said)
        return Action(Do.GIVE_UP, State.ABORTING, said)
    if s.state is State.HOLDING:
        return Action(Do.FREEZE, State.FROZEN, "the source is frozen", left)
    if s.path is Path.SMALL:
        return Action(Do.COPY, State.SWITCHING, "decided: the rows are copied, and both sides hold the same", left)
    return Action(Do.DRAIN, State.SWITCHING, "decided: every change arrived, and what changed last is the same", left)


def _onward(s: Snapshot, b: Budgets) -> Action:
    if s.state is State.STANDBY and s.path is Path.LARGE:
        return _stand_by(s, b)
    do, then, reason = {
        State.SWITCHING: (Do.ACTIVATE, State.STANDBY, "the target serves; the new route is published"),
        State.STANDBY: (Do.RETIRE, State.PURGING, "the source points to the target, which confirmed that it serves"),
        State.PURGING: (Do.PURGE, State.DONE, "the source's copy is gone"),
    }[s.state]
    return Action(do, then, reason, b.command_s)


def _stand_by(s: Snapshot, b: Budgets) -> Action:
    if not s.stream.standing:
        return Action(Do.STAND_BY, s.state, "the source points to the target and follows it", b.command_s)
    if s.finalize:
        return Action(Do.FINISH, State.PURGING, "finalized: the source is not needed any more")
    if s.stream.lost:
        return Action(Do.WAIT, s.state, "the way back is lost: waits to be finalized", wait_s=b.pause_s)
    return Action(Do.FLOW_BACK, s.state, "changes flow back until it is finalized", b.round_s)


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
