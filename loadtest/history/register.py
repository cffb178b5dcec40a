"""What a register may answer: the sequential specification that histories are held against. Pure.

Clients never write a value twice, which keeps the search short where many operations have no known end: one whose value
somebody was told of can only have made the version that was told with it, and all others are alike.
"""

from collections.abc import Hashable, Iterable
from dataclasses import replace

from loadtest.history.operation import ANY, Kind, Operation, Outcome, State


def step(state: State, operation: Operation) -> State | None:
    """The state after ``operation`` at this point, or None where it cannot have happened here.

    From `ANY` everything follows that follows from some state, and more: what is refused from there cannot be.
    """
    if operation.outcome is Outcome.REFUSED:
        return _refused(state, operation)
    if operation.kind is Kind.READ:
        return operation.told if state in (ANY, operation.told) else None
    if operation.kind is Kind.SWAP and state != ANY and state.version != operation.expected:
        return None
    after = _after(state, operation)
    return after if operation.told in (None, after) else None


def sharpened(operations: Iterable[Operation]) -> list[Operation]:
    """The same operations, those without a known end with all that the others tell of them.

    ``told`` is what they made if they happened; without it nobody saw their value, and they have none.
    """
    given = list(operations)
    seen = {o.told.value: o.told for o in given if o.told is not None and o.outcome is Outcome.OK}
    return [
        replace(o, told=seen.get(o.value), value=o.value if o.value in seen else None)
        if o.outcome is Outcome.UNKNOWN
        else o
        for o in given
    ]


def alike(operation: Operation) -> Hashable | None:
    """The same for operations that nobody saw and that do the same."""
    unseen = operation.outcome is Outcome.UNKNOWN and operation.value is None
    return (operation.kind, operation.expected) if unseen else None


def behind(state: State, operation: Operation) -> bool:
    """Whether the register has gone past what ``operation`` was told: from here on it can never have happened."""
    if operation.told is None or state == ANY:
        return False
    changed = operation.outcome is Outcome.OK and operation.kind is not Kind.READ
    return state.version >= operation.told.version + (not changed)


def _refused(state: State, operation: Operation) -> State | None:
    """A refusal tells the version it found, which is another than the one that was expected."""
    if operation.told is None or operation.told.version == operation.expected:
        return None
    return state if state == ANY or state.version == operation.told.version else None


def _after(state: State, operation: Operation) -> State:
    """The state after a change."""
    if state != ANY:
        return State(operation.value, state.version + 1)
    if operation.kind is Kind.SWAP:
        return State(operation.value, (operation.expected or 0) + 1)
    if operation.told is not None and operation.told.value == operation.value:
        return operation.told
    return ANY
