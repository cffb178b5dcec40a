"""What a client asked of one register, when, and what it was told. Pure.

A register is a value with a version that counts its changes: the price of a product, which no order names.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf


class Kind(StrEnum):
    """What was asked."""

    READ = "read"
    WRITE = "write"  # whatever is there
    SWAP = "swap"  # only if the version is still the one that the client has seen


class Outcome(StrEnum):
    """How it ended."""

    OK = "ok"
    REFUSED = "refused"  # for what is there: nothing was changed, and the answer says what it found
    FAILED = "failed"  # with a promise that nothing was done
    UNKNOWN = "unknown"  # without an answer that can be relied on: it was done, or will be, or never


@dataclass(frozen=True, slots=True)
class State:
    """What a register holds. ``version`` rises by one with each change."""

    value: int | None
    version: int


ABSENT = State(None, 0)  # nothing is there, and nothing was
ANY = State(None, -1)  # not known: used to look at a part of a history alone


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. Times are seconds by one clock for all clients; ``returned`` is infinite where the end is not known.

    ``value`` is what was to be written and ``expected`` the version it depends on; ``told`` is what the answer said
    (of a refusal only the version). ``via`` says which way it went, for people.
    """

    key: str
    client: int
    kind: Kind
    invoked: float
    returned: float
    outcome: Outcome
    value: int | None = None
    expected: int | None = None
    told: State | None = None
    via: str = ""

    @property
    def counts(self) -> bool:
        """Whether it says anything of the register: a read without an answer does not, nor what did nothing."""
        return self.outcome is not Outcome.FAILED and (
            self.kind is not Kind.READ or self.outcome is not Outcome.UNKNOWN
        )

    @property
    def changes(self) -> bool:
        """Whether it changed the register, or may have."""
        return self.kind is not Kind.READ and self.outcome in (Outcome.OK, Outcome.UNKNOWN)

    def words(self) -> str:
        """What was asked and what was told, without the times."""
        asked = self.kind.value
        if self.kind is not Kind.READ:
            asked += f" {self.value}" + ("" if self.expected is None else f" over version {self.expected}")
        who = f"client {self.client}" if self.client >= 0 else "the last read"
        return f"{who}{f', {self.via}' if self.via else ''}: {asked} -> {self._answer()}"

    def _answer(self) -> str:
        if self.told is None:
            return self.outcome.value
        if self.told == ABSENT:
            return "nothing there"
        if self.outcome is Outcome.REFUSED:
            return f"refused, it has version {self.told.version}"
        return f"{self.told.value}, version {self.told.version}"


@dataclass
class History:
    """Everything that clients did to some registers. ``initial`` is what each held before the first of it."""

    initial: dict[str, State] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)


def relaxed(operation: Operation) -> Operation:
    """The same change without a promise: done at any time after it was asked for, or never."""
    return replace(operation, returned=inf, outcome=Outcome.UNKNOWN, told=None)
