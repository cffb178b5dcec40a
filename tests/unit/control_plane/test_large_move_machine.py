"""Any interleaving of crashes, lost answers, late commands, writes, pauses, cancellations and rollbacks of a large move
leaves one owner that has every acknowledged write.

The pure decisions of `control_plane.move` drive executors against a model of two cells with logs, slots and receivers,
and of the control plane's rows. The network may deliver every fenced command again at any later moment. A user writes
whenever somebody serves the tenant. The rollback of a standby is a second move, as in `move_service`.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from control_plane.move import (
    DECIDED,
    NO_STREAM,
    PAUSABLE,
    TERMINAL,
    UNDECIDED,
    UNFINISHED,
    Action,
    Budgets,
    Do,
    Failure,
    Path,
    Snapshot,
    State,
    Stream,
    Tries,
    check,
    decide,
    settle,
)

BUDGETS = Budgets(stream_tries=3)
A, B = "a", "b"  # the old home and the new one
WRONG, FENCED, LOST = "wrong-state", "fenced", "stream-lost"


@dataclass
class Cell:
    """One tenant in one cell. ``log`` is what its own users wrote; a receiver's position counts the sender's log."""

    state: str = "gone"
    epoch: int = 0
    rows: frozenset[int] = frozenset()
    log: tuple[int, ...] = ()
    fence: tuple[int, int] = (0, 0)
    min_epoch: int = 0
    slots: frozenset[str] = frozenset()
    received: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Move:
    """A row of the control plane."""

    path: Path
    source: str
    target: str
    epoch: int  # that the target gets
    source_epoch: int
    restore: int = 0
    state: State = State.PLANNED
    cancel: bool = False
    paused: bool = False
    finalize: bool = False
    held: bool = False
    late: bool = False  # its hold took too long
    stream: Stream = NO_STREAM


@dataclass
class Message:
    """A fenced command; the network keeps it for ever."""

    cell: str
    command: str
    fence: tuple[int, int]
    epoch: int = 0


@dataclass
class Leader:
    """A control-plane process: what it read, what it decided, and what is left of doing it."""

    term: int
    which: int = 0
    seen: Move | None = None
    tries: Tries = field(default_factory=Tries)
    action: Action | None = None
    todo: list[str] = field(default_factory=list)
    failure: Failure | None = None
    facts: Stream | None = None
    waiting: Message | None = None


STEPS: dict[Do, list[str]] = {
    Do.PREPARE: ["target prepare"],
    Do.SNAPSHOT: ["target prepare", "copy"],
    Do.FOLLOW: ["carry"],
    Do.VERIFY: ["carry", "compare"],
    Do.REHEARSE: ["carry", "rehearse"],
    Do.OPEN_BACK: ["open-back"],
    Do.FREEZE: ["source freeze"],
    Do.DRAIN: ["carry", "compare"],
    Do.ACTIVATE: ["target activate"],
    Do.RETIRE: ["source release", "confirm"],
    Do.STAND_BY: ["source standby", "confirm", "close-out"],
    Do.FLOW_BACK: ["carry-back"],
    Do.PURGE: ["close", "source purge"],
    Do.ABORT: ["target abort"],
    Do.RESTORE: ["source restore"],
    Do.THAW: ["source thaw"],
}
ALLOWED = {
    "prepare": ("gone", "aborted", "importing"), "freeze": ("active", "frozen"), "activate": ("importing", "standby"),
    "release": ("frozen", "moved", "standby"), "standby": ("frozen", "standby"), "restore": ("frozen", "active"),
    "purge": ("moved", "gone", "standby", "aborted"), "abort": ("gone", "importing", "aborted", "standby"),
}  # fmt: skip


class LargeWorld(RuleBasedStateMachine):
    """The mutations that the tests below switch on are here, in the model: the product has no such switch."""

    fences: ClassVar[bool] = True
    drains: ClassVar[bool] = True
    keeps_standby: ClassVar[bool] = True
    compares_terms: ClassVar[bool] = True
    compares_cancel: ClassVar[bool] = True
    keeps_min_epochs: ClassVar[bool] = True
    gives_new_epochs: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.cells = {A: Cell("active", 1, frozenset({0}), (0,)), B: Cell()}
        self.moves = [Move(Path.LARGE, A, B, 2, 1)]
        self.home, self.epochs, self.seq, self.term = A, 2, 0, 0
        self.served = [1]  # the epochs under which somebody began to serve
        self.acknowledged = {0}
        self.sent: list[Message] = []
        self.leaders: list[Leader] = []

    # -- people ---------------------------------------------------------------------------------------------------

    @rule()
    def write(self) -> None:
        for cell in self.cells.values():
            if cell.state == "active":
                number = len(self.acknowledged)
                cell.rows, cell.log = cell.rows | {number}, (*cell.log, number)
                self.acknowledged.add(number)

    @rule()
    def cancel(self) -> None:
        if self.moves[-1].state in UNDECIDED:
            self.moves[-1] = replace(self.moves[-1], cancel=True)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        if self.moves[-1].state in PAUSABLE and not self.moves[-1].cancel:
            self.moves[-1] = replace(self.moves[-1], paused=paused)

    @rule()
    def finalize(self) -> None:
        if self.moves[0].state is State.STANDBY:
            self.moves[0] = replace(self.moves[0], finalize=True)

    @rule()
    def roll_back(self) -> None:
        first = self.moves[0]
        if first.state is State.STANDBY and not first.finalize and not first.stream.lost:
            self.epochs += 1
            self.moves[0] = replace(first, state=State.RETURNING)
            self.moves.append(Move(Path.BACK, B, A, self.epochs, first.epoch))

    @rule()
    def hold_for_too_long(self) -> None:
        if self.moves[-1].state in (State.HOLDING, State.FROZEN):
            self.moves[-1] = replace(self.moves[-1], late=True)

    @rule()
    def lose_a_slot(self) -> None:
        """The log that a slot needs was too much for its server."""
        for cell in self.cells.values():
            cell.slots = frozenset()

    # -- the control plane ----------------------------------------------------------------------------------------

    @rule()
    def elect(self) -> None:
        self.term += 1
        self.leaders.append(Leader(self.term))

    @precondition(lambda self: self.leaders)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.leaders.remove(data.draw(st.sampled_from(self.leaders)))

    @precondition(lambda self: self.leaders)
    @rule(data=st.data(), moments=st.integers(1, 60))
    def work(self, data: st.DataObject, moments: int) -> None:
        self._work(data.draw(st.sampled_from(self.leaders)), moments)

    @precondition(lambda self: self.leaders)
    @rule(state=st.sampled_from([State.CATCHING_UP, State.HOLDING, State.FROZEN, State.SWITCHING, State.STANDBY]))
    def work_until(self, state: State) -> None:
        """The newest leader gets on undisturbed until the newest move is there."""
        for _ in range(100):
            if self.moves[-1].state is state or not self.leaders:
                return
            self._step(self.leaders[-1])

    @precondition(lambda self: self.leaders)
    @rule(data=st.data())
    def lose_an_answer(self, data: st.DataObject) -> None:
        """The next command takes effect, and its leader never hears of it."""
        leader = data.draw(st.sampled_from(self.leaders))
        self._step(leader)
        if leader.action is not None and leader.failure is None and leader.action.do in STEPS:
            leader.todo, leader.failure = [], Failure("no answer", retry=True, silent=True)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        self._apply(data.draw(st.sampled_from(self.sent)))

    # -- how ------------------------------------------------------------------------------------------------------

    def _work(self, leader: Leader, moments: int) -> None:
        for _ in range(moments):
            if leader not in self.leaders:
                return
            self._step(leader)

    def _step(self, leader: Leader) -> None:
        """One thing that a process does between two moments at which it may be paused."""
        if leader.action is None:
            self._read(leader)
        elif leader.todo and leader.failure is None:
            problem = self._do(leader, leader.todo.pop(0))
            if problem == FENCED:
                self.leaders.remove(leader)
            elif problem is not None:
                retry = problem == "confirm" or (
                    problem == LOST and leader.seen is not None and leader.seen.state is State.COPYING
                )
                leader.failure = Failure(problem, retry=retry, lost=problem == LOST)
        else:
            self._finish(leader)

    def _read(self, leader: Leader) -> None:
        which = len(self.moves) - 1
        if self.moves[which].state in TERMINAL:
            which = 0
        move = self.moves[which]
        if leader.seen is None or (leader.which, leader.seen.state) != (which, move.state):
            leader.tries = Tries()
        leader.which, leader.seen, leader.facts = which, move, move.stream
        leader.action = decide(self._snapshot(leader), BUDGETS)
        leader.todo = list(STEPS.get(leader.action.do, []))
        if leader.action.do is Do.DRAIN and not self.drains:
            leader.todo = []

    def _snapshot(self, leader: Leader) -> Snapshot:
        m = leader.seen
        assert m is not None
        # It has rested after every hold; in any other state so long a time would be one that is given up.
        rested_s = BUDGETS.rest_s * 2**BUDGETS.holds if m.state is State.CATCHING_UP else 0.0
        return Snapshot(
            m.state, m.cancel, m.held, leader.tries.failures, leader.tries.silent, rested_s,
            BUDGETS.hold_s if m.late else 0.0, m.path, m.stream, m.paused, m.finalize,
        )  # fmt: skip

    def _do(self, leader: Leader, step: str) -> str | None:
        m, stream = leader.seen, leader.facts
        assert m is not None
        assert stream is not None
        side, _, command = step.partition(" ")
        source, target = self.cells[m.source], self.cells[m.target]
        if command:
            self.seq += 1
            epoch = {"restore": m.restore, "abort": m.restore or m.epoch, "thaw": m.source_epoch}.get(command, m.epoch)
            command = "restore" if command == "thaw" else command
            message = Message(m.source if side == "source" else m.target, command, (leader.term, self.seq), epoch)
            self.sent.append(message)
            return self._apply(message)
        if any(cell.fence[0] > leader.term for cell in self.cells.values()):
            return FENCED
        if receiver := {"copy": target, "carry": target, "compare": target, "carry-back": source}.get(step):
            self.seq += 1
            receiver.fence = (leader.term, self.seq)
        match step:
            case "copy":
                if source.state != "active" or target.state != "importing":
                    return WRONG
                source.slots |= {"out"}
                target.rows, target.received = source.rows, {"out": len(source.log)}
                leader.facts = Stream(copies=stream.copies + 1)
            case "carry":
                problem = self._carry(m.source, m.target, "out" if m.path is Path.LARGE else "back")
                leader.facts = replace(stream, lag_bytes=0)
                return problem
            case "compare":
                if self.drains and source.rows != target.rows and m.state is State.FROZEN:
                    return "differs"
                leader.facts = replace(stream, verified=stream.verified + 1, touched=0, lag_bytes=None)
            case "rehearse":
                leader.facts = replace(stream, lag_bytes=0, drain_s=0.0)
            case "open-back":
                if target.state != "importing":
                    return WRONG
                target.slots |= {"back"}
                leader.facts = replace(stream, back_open=True, lag_bytes=None)
            case "carry-back":
                return self._carry(m.target, m.source, "back")
            case "confirm":
                return None if target.state == "active" and target.epoch >= m.epoch else "confirm"
            case "close-out":
                source.slots -= {"out"}
                target.received.pop("out", None)
                leader.facts = replace(stream, standing=True)
            case "close":
                for cell in (source, target):
                    cell.slots, cell.received = frozenset(), {}
        return None

    def _carry(self, sender: str, receiver: str, stream: str) -> str | None:
        """Everything that the sender's log has, and the acknowledgement of it."""
        out, into = self.cells[sender], self.cells[receiver]
        if stream not in out.slots or stream not in into.received:
            return LOST
        if into.state not in ("importing", "standby"):
            return WRONG
        into.rows |= frozenset(out.log[into.received[stream] :])
        into.received[stream] = len(out.log)
        return None

    def _apply(self, message: Message) -> str | None:
        cell, command, epoch = self.cells[message.cell], message.command, message.epoch
        if self.fences and message.fence < cell.fence:
            return FENCED
        cell.fence = max(cell.fence, message.fence)
        if command in ("activate", "restore") and (cell.state, cell.epoch) == ("active", epoch):
            return None
        if cell.state not in ALLOWED[command]:
            return WRONG
        if command == "activate" and epoch < max(cell.min_epoch if self.keeps_min_epochs else 0, cell.epoch + 1):
            return WRONG
        match command:
            case "prepare":
                cell.state, cell.rows, cell.received = "importing", frozenset(), {}
            case "freeze":
                cell.state = "frozen"
            case "activate" | "restore":
                if cell.state != "active":
                    self.served.append(max(epoch, cell.epoch))
                cell.state, cell.epoch = "active", max(epoch, cell.epoch)
            case "release":
                cell.state = "moved"
            case "standby":
                cell.state = "standby"
                cell.received.setdefault("back", 0)
            case "purge":
                cell.state, cell.rows = "gone", frozenset()
            case "abort" if cell.state == "standby" and self.keeps_standby:
                cell.min_epoch = max(cell.min_epoch, epoch)
            case "abort":
                cell.state, cell.rows, cell.min_epoch = "aborted", frozenset(), max(cell.min_epoch, epoch)
        return None

    def _finish(self, leader: Leader) -> None:
        assert leader.action is not None
        assert leader.seen is not None
        verdict, failed, facts = leader.action, leader.failure, leader.facts
        if failed is not None:
            verdict, facts = settle(self._snapshot(leader), leader.action, failed, BUDGETS), leader.seen.stream
        if verdict.do is Do.DEGRADE:
            facts = replace(leader.seen.stream, lost=True)
        leader.action, leader.failure = None, None
        leader.tries = leader.tries.after(failed) if failed is not None else Tries()
        self._commit(leader, verdict.then, facts or leader.seen.stream)

    def _commit(self, leader: Leader, then: State, stream: Stream) -> None:
        seen, now = leader.seen, self.moves[leader.which]
        assert seen is not None
        if now.state is not seen.state or (self.compares_terms and leader.term != self.term):
            return
        if self.compares_cancel and now.cancel != seen.cancel:
            return
        if then is now.state:
            self.moves[leader.which] = replace(now, stream=stream)
            return
        check(now.state, then)
        restore, epoch, source_epoch = now.restore, now.epoch, now.source_epoch
        if then is State.ABORTING:
            self.epochs += 1
            restore = self.epochs
        if then is State.THAWING:
            stream = replace(stream, holds=stream.holds + 1, lag_bytes=None, drain_s=None)
            if self.gives_new_epochs:
                source_epoch, epoch = self.epochs + 1, self.epochs + 2
                self.epochs = epoch
        if then is State.STANDBY:
            self.home = now.target
        thawed = (now.state, then) == (State.THAWING, State.CATCHING_UP)
        self.moves[leader.which] = replace(
            now, state=then, stream=stream, restore=restore, epoch=epoch, source_epoch=source_epoch,
            held=(now.held or then is State.HOLDING) and not thawed, late=now.late and not thawed,
        )  # fmt: skip
        if leader.which and then in TERMINAL:
            undone = State.ROLLED_BACK if then is State.DONE else State.STANDBY
            self.moves[0] = replace(self.moves[0], state=undone)

    # -- what must always hold --------------------------------------------------------------------------------------

    def owners(self) -> list[str]:
        return [name for name, cell in self.cells.items() if cell.state == "active"]

    @invariant()
    def never_two_owners(self) -> None:
        assert len(self.owners()) <= 1

    @invariant()
    def who_serves_has_every_acknowledged_write(self) -> None:
        for name in self.owners():
            assert self.cells[name].rows == frozenset(self.acknowledged)

    @invariant()
    def nobody_is_held_while_a_copy_is_made(self) -> None:
        for move in self.moves:
            if move.state in PAUSABLE:
                assert not move.held

    @invariant()
    def who_begins_to_serve_does_so_under_an_epoch_that_nobody_had(self) -> None:
        assert self.served == sorted(set(self.served))

    @invariant()
    def a_move_whose_cancellation_was_accepted_is_not_decided(self) -> None:
        assert not any(move.cancel and move.state in DECIDED | {State.DONE} for move in self.moves)

    @invariant()
    def a_move_that_is_over_has_one_owner(self) -> None:
        states = {move.state for move in self.moves}
        if states <= TERMINAL:
            assert self.owners() == [self.home]

    def teardown(self) -> None:
        """Whatever happened: a new leader brings every move to its end, and late commands stay late."""
        self.elect()
        leader = self.leaders[-1]
        for _ in range(4):
            self._work(leader, 150)
            self.pause(False)
            self.finalize()
        assert {move.state for move in self.moves} <= TERMINAL
        assert not UNFINISHED & {move.state for move in self.moves}
        for message in list(self.sent):
            self._apply(message)
            self.never_two_owners()
            self.who_serves_has_every_acknowledged_write()
            self.a_move_that_is_over_has_one_owner()


class WithoutFences(LargeWorld):
    fences = False


class WithoutDraining(LargeWorld):
    drains = False


class WithoutKeepingTheStandby(LargeWorld):
    keeps_standby = False


SIZE = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True, print_blob=False, database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.invariant(6)
def test_any_interleaving_of_a_large_move_leaves_one_owner_with_every_write() -> None:
    run_state_machine_as_test(LargeWorld, settings=SIZE)


@pytest.mark.mutation(6)
@pytest.mark.parametrize("broken", [WithoutFences, WithoutDraining, WithoutKeepingTheStandby])
def test_the_model_of_a_large_move_notices_when_a_guard_is_missing(broken: type[LargeWorld]) -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(broken, settings=settings(SIZE, max_examples=5000, phases=(Phase.generate,)))
