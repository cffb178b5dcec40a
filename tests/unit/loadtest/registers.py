"""Histories of a register that is right, or wrong in one known way, for the tests of the checker."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from random import Random

from loadtest.history.operation import History, Kind, Operation, Outcome, State

KEY = "t1/p1"
FIRST = State(1, 1)
TICK = 1e-6


class Wrong(StrEnum):
    """What a register can do wrong."""

    STALE_READ = "a read shows what was there before a change that had returned"
    LOST_WRITE = "a change is acknowledged and not made"
    DOUBLED = "a change is made once more, later"
    LIE = "a change is made, and its client is told that nothing was done"
    PHANTOM = "a read shows a value that nobody has written"


@dataclass
class Simulated:
    """Concurrent clients of one register. Each operation happens at one moment between its call and its return."""

    rng: Random
    clients: int
    unknown: float = 0.0  # share of changes whose end nobody knows
    failed: float = 0.0
    state: State = FIRST
    values: int = 1
    operations: list[Operation] = field(default_factory=list)

    def run(self, count: int, wrong: Wrong | None = None) -> History:
        """So many operations; one of them goes wrong, where it is to."""
        times = sorted(self._times(count))
        changing = [n for n, _ in enumerate(times) if wrong is not None and (n % 2 or n == len(times) - 1)]
        victim = self.rng.choice(changing) if changing else -1
        again: State | None = None
        for place, (_, invoked, returned, client) in enumerate(times):
            kind = self.rng.choice(list(Kind)) if place != victim else self.rng.choice([Kind.WRITE, Kind.SWAP])
            self._operate(client, kind, invoked, returned, wrong if place == victim else None)
            if again is not None:
                self.state, again = State(again.value, self.state.version + 1), None
            if wrong is Wrong.DOUBLED and place == victim:
                again = self.operations[-1].told
        if again is not None:
            self.state = State(again.value, self.state.version + 1)
        self._spoil(wrong, victim)
        end = max(o.returned if o.returned < inf else o.invoked for o in self.operations) + len(times)
        self.operations.append(Operation(KEY, -1, Kind.READ, end, end + 1, Outcome.OK, told=self.state))
        return History({KEY: FIRST}, self.operations)

    def _times(self, count: int) -> list[tuple[float, float, float, int]]:
        """Moment, call, return and client of each."""
        found, free = [], [0.0] * self.clients
        for _ in range(count):
            client = min(range(self.clients), key=lambda n: free[n])
            invoked = free[client] + self.rng.random()
            moment = invoked + self.rng.random()
            free[client] = moment + self.rng.random()
            found.append((moment, invoked, free[client], client))
        return found

    def _operate(self, client: int, kind: Kind, invoked: float, returned: float, wrong: Wrong | None) -> None:
        if kind is Kind.READ:
            self.operations.append(Operation(KEY, client, kind, invoked, returned, Outcome.OK, told=self.state))
            return
        self.values += 1
        fate, version = self.rng.random(), self.state.version
        expected = None
        if kind is Kind.SWAP:
            expected = version - 1 if wrong is None and self.rng.random() < 0.3 else version
        made = Operation(KEY, client, kind, invoked, returned, Outcome.OK, self.values, expected)
        if wrong is None and fate < self.failed:
            self.operations.append(replace(made, outcome=Outcome.FAILED))
        elif wrong is None and fate < self.failed + self.unknown:
            self.operations.append(replace(made, outcome=Outcome.UNKNOWN, returned=inf))
            if expected in (None, version) and self.rng.random() < 0.5:
                self.state = State(self.values, version + 1)
        elif expected not in (None, version):
            self.operations.append(replace(made, outcome=Outcome.REFUSED, told=State(None, version)))
        else:
            told = State(self.values, version + 1)
            lie = wrong is Wrong.LIE
            self.operations.append(replace(made, outcome=Outcome.FAILED) if lie else replace(made, told=told))
            if wrong is not Wrong.LOST_WRITE:
                self.state = told

    def _spoil(self, wrong: Wrong | None, victim: int) -> None:
        """A read right after the victim, which was a change, that shows what cannot be."""
        if wrong not in (Wrong.STALE_READ, Wrong.PHANTOM):
            return
        change = self.operations[victim]
        assert change.told is not None
        told = State(-1, change.told.version)
        if wrong is Wrong.STALE_READ:
            known = [o.told for o in self.operations if o.told is not None and o.told.value is not None]
            told = State(-1, change.told.version - 1)  # where nobody was told what it was
            told = next((state for state in [FIRST, *known] if state.version == told.version), told)
        at = change.returned + TICK
        self.operations.append(Operation(KEY, self.clients, Kind.READ, at, at + TICK, Outcome.OK, told=told))
