"""Any interleaving of crashes, elections, time-outs, cancellations and late or repeated commands leaves one owner.

The pure decisions of `control_plane.move` drive executors here against a model of two cells and of the control plane's
database; the network loses nothing but may deliver every command again at any later moment. Paused leaders keep what
they had decided and go on with it whenever they like.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from control_plane.move import (
    DECIDED,
    TERMINAL,
    UNDECIDED,
    Action,
    Budgets,
    Do,
    Failure,
    Snapshot,
    State,
    Tries,
    check,
    decide,
    settle,
)

BUDGETS = Budgets()
SOURCE_EPOCH, TARGET_EPOCH, RESTORE_EPOCH = 1, 2, 3
FENCED, WRONG_STATE = "fenced", "wrong-state"

COMMANDS: dict[Do, tuple[tuple[str, str], ...]] = {
    Do.PREPARE: (("target", "prepare"),),
    Do.FREEZE: (("source", "freeze"),),
    Do.COPY: (("source", "export"), ("target", "import")),
    Do.ACTIVATE: (("target", "activate"),),
    Do.RETIRE: (("source", "release"), ("target", "confirm")),
    Do.PURGE: (("source", "purge"),),
    Do.ABORT: (("target", "abort"),),
    Do.RESTORE: (("source", "restore"),),
}


@dataclass
class Cell:
    """The rules of contracts/transfer.py for one tenant."""

    state: str
    epoch: int
    rows: bool
    fenced: bool = True
    fence: tuple[int, int] = (0, 0)
    min_epoch: int = 0

    def apply(self, command: str, fence: tuple[int, int]) -> str | None:
        """None for success, else why not."""
        if command == "confirm":
            return None if self.state == "active" and self.epoch == TARGET_EPOCH else WRONG_STATE
        if self.fenced and fence < self.fence:
            return FENCED
        self.fence = max(self.fence, fence)
        allowed = {
            "prepare": ("gone", "aborted", "importing"), "freeze": ("active", "frozen"), "export": ("frozen",),
            "import": ("importing",), "activate": ("importing",), "restore": ("frozen", "active"),
            "release": ("frozen", "moved"), "purge": ("moved", "gone"), "abort": ("gone", "importing", "aborted"),
        }[command]  # fmt: skip
        again = {"activate": TARGET_EPOCH, "restore": RESTORE_EPOCH}.get(command)
        if self.state == "active" and self.epoch == again:
            return None
        if self.state not in allowed or (command == "activate" and self.min_epoch > TARGET_EPOCH):
            return WRONG_STATE
        getattr(self, f"_{command}", lambda: None)()
        return None

    def _prepare(self) -> None:
        self.state, self.rows = "importing", False

    def _freeze(self) -> None:
        self.state = "frozen"

    def _import(self) -> None:
        self.rows = True

    def _activate(self) -> None:
        self.state, self.epoch = "active", TARGET_EPOCH

    def _restore(self) -> None:
        self.state, self.epoch = "active", RESTORE_EPOCH

    def _release(self) -> None:
        self.state = "moved"

    def _purge(self) -> None:
        self.state, self.rows = "gone", False

    def _abort(self) -> None:
        self.state, self.rows, self.min_epoch = "aborted", False, RESTORE_EPOCH


@dataclass(frozen=True)
class Db:
    """The move's row, and what is committed with it."""

    state: State = State.PLANNED
    term: int = 0
    cancel_requested: bool = False
    held: bool = False
    home: str = "source"
    seq: int = 0


@dataclass
class Message:
    """A command on its way; the network keeps it for ever."""

    cell: str
    command: str
    fence: tuple[int, int]


@dataclass
class Leader:
    """A control-plane process: what it read, what it decided, and where it is in doing it."""

    term: int
    seen: Db | None = None
    tries: Tries = field(default_factory=Tries)
    action: Action | None = None
    todo: list[tuple[str, str]] = field(default_factory=list)
    waiting: Message | None = None
    failure: Failure | None = None
    held_s: float = 0.0

    @property
    def snapshot(self) -> Snapshot:
        assert self.seen is not None
        seen, tries = self.seen, self.tries
        return Snapshot(seen.state, seen.cancel_requested, seen.held, tries.failures, tries.silent, 0.0, self.held_s)


class World(RuleBasedStateMachine):
    """The mutations that the tests below switch on are here, in the model: the product has no such switch."""

    fences: ClassVar[bool] = True
    compare_and_set: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.db = Db()
        self.cells = {"source": Cell("active", SOURCE_EPOCH, True), "target": Cell("gone", 0, False)}
        for cell in self.cells.values():
            cell.fenced = self.fences
        self.sent: list[Message] = []
        self.leaders: list[Leader] = []
        self.elected = 0

    # -- the control plane ----------------------------------------------------------------------------------------

    @rule()
    def elect(self) -> None:
        self.elected += 1
        self.leaders.append(Leader(self.elected))
        if self.db.state not in TERMINAL:
            self.db = replace(self.db, term=self.elected)

    @precondition(lambda self: self.leaders)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.leaders.remove(data.draw(st.sampled_from(self.leaders)))

    @rule()
    def cancel(self) -> None:
        if self.db.state in UNDECIDED:
            self.db = replace(self.db, cancel_requested=True)

    @precondition(lambda self: self.leaders)
    @rule(data=st.data(), late=st.booleans())
    def step(self, data: st.DataObject, late: bool) -> None:
        self._step(data.draw(st.sampled_from(self.leaders)), BUDGETS.hold_s if late else 0.0)

    @precondition(lambda self: self.leaders)
    @rule(data=st.data(), moments=st.integers(1, 40))
    def work(self, data: st.DataObject, moments: int) -> None:
        """A leader gets on undisturbed for a while."""
        self._work(data.draw(st.sampled_from(self.leaders)), moments)

    @precondition(lambda self: any(leader.waiting for leader in self.leaders))
    @rule(data=st.data())
    def time_out(self, data: st.DataObject) -> None:
        leader = data.draw(st.sampled_from([leader for leader in self.leaders if leader.waiting]))
        leader.waiting, leader.todo, leader.failure = None, [], Failure("no answer", retry=True, silent=True)

    # -- the network ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        self._deliver(data.draw(st.sampled_from(self.sent)))

    # -- how --------------------------------------------------------------------------------------------------------

    def _step(self, leader: Leader, held_s: float) -> None:
        """One thing that a process does between two moments at which it may be paused."""
        if leader.waiting:
            return
        if leader.action is None:
            self._read(leader, held_s)
        elif leader.todo and leader.failure is None:
            cell, command = leader.todo.pop(0)
            self.db = replace(self.db, seq=self.db.seq + 1)
            leader.waiting = Message(cell, command, (leader.term, self.db.seq))
            self.sent.append(leader.waiting)
        else:
            self._finish(leader)

    def _work(self, leader: Leader, moments: int) -> None:
        for _ in range(moments):
            if leader not in self.leaders:
                return
            self._step(leader, 0.0)
            if leader.waiting:
                self._deliver(leader.waiting)

    def _read(self, leader: Leader, held_s: float) -> None:
        if leader.seen is not None and leader.seen.state is not self.db.state:
            leader.tries = Tries()
        leader.seen, leader.held_s = self.db, held_s if self.db.held else 0.0
        leader.action = decide(leader.snapshot, BUDGETS)
        leader.todo = list(COMMANDS.get(leader.action.do, ()))

    def _deliver(self, message: Message) -> None:
        refused = self.cells[message.cell].apply(message.command, message.fence)
        for leader in self.leaders:
            if leader.waiting is message:
                leader.waiting = None
                self._answered(leader, message, refused)

    def _answered(self, leader: Leader, message: Message, refused: str | None) -> None:
        if refused is None:
            return
        if refused == FENCED and self.fences:
            self.leaders.remove(leader)
        else:
            leader.todo, leader.failure = [], Failure(refused, retry=message.command == "confirm")

    def _finish(self, leader: Leader) -> None:
        assert leader.action is not None
        verdict, failed = leader.action, leader.failure
        if failed is not None:
            verdict = settle(leader.snapshot, leader.action, failed, BUDGETS)
        leader.action, leader.failure = None, None
        leader.tries = leader.tries.after(failed) if failed is not None else Tries()
        if leader.seen is not None and verdict.then is not leader.seen.state:
            self._commit(leader, leader.seen, verdict.then)

    def _commit(self, leader: Leader, seen: Db, then: State) -> None:
        stale = self.db.state is not seen.state or self.db.term != leader.term
        if self.compare_and_set:
            if stale or (then in UNDECIDED | DECIDED and self.db.cancel_requested):
                return
            check(seen.state, then)
        home = "target" if then is State.STANDBY else self.db.home
        self.db = replace(self.db, state=then, held=self.db.held or then is State.HOLDING, home=home)

    # -- what must always hold --------------------------------------------------------------------------------------

    def owners(self) -> list[str]:
        return [name for name, cell in self.cells.items() if cell.state == "active"]

    @invariant()
    def never_two_owners(self) -> None:
        assert len(self.owners()) <= 1

    @invariant()
    def the_rows_exist(self) -> None:
        assert any(cell.rows for cell in self.cells.values())

    @invariant()
    def the_source_is_put_back_only_where_nobody_was_ever_told_to_activate(self) -> None:
        if self.cells["source"].epoch == RESTORE_EPOCH:
            assert not any(message.command == "activate" for message in self.sent)

    @invariant()
    def the_target_serves_only_after_the_decision(self) -> None:
        if self.cells["target"].state == "active":
            assert self.db.state in DECIDED | {State.DONE}

    @invariant()
    def a_finished_move_has_one_owner_where_the_control_plane_says(self) -> None:
        if self.db.state in TERMINAL:
            assert self.owners() == [self.db.home]
            assert self.db.home == ("target" if self.db.state is State.DONE else "source")
            assert self.cells[self.db.home].rows

    def teardown(self) -> None:
        """Whatever happened: a new leader whose commands arrive brings the move to its end, and late ones stay late."""
        self.elect()
        leader = self.leaders[-1]
        self._work(leader, 100)
        assert self.db.state in TERMINAL
        for message in list(self.sent):
            self._deliver(message)
            self.never_two_owners()
            self.the_rows_exist()
            self.a_finished_move_has_one_owner_where_the_control_plane_says()


class WorldWithoutFences(World):
    fences = False


class WorldWithoutCompareAndSet(World):
    compare_and_set = False


SIZE = settings(
    max_examples=400, stateful_step_count=40, deadline=None, derandomize=True, print_blob=False, database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.invariant(6)
def test_any_interleaving_leaves_one_owner() -> None:
    run_state_machine_as_test(World, settings=SIZE)


@pytest.mark.mutation(6)
@pytest.mark.parametrize("broken", [WorldWithoutFences, WorldWithoutCompareAndSet])
def test_the_model_notices_when_a_guard_is_missing(broken: type[World]) -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(broken, settings=settings(SIZE, max_examples=5000, phases=(Phase.generate,)))
