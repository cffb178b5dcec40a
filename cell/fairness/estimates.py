"""What a request will probably cost, and how long it usually takes: learnt per tenant and operation.

Pure, in seconds. A tenant's first request of a kind is taken for what the operation costs everybody.
"""

from typing import Final

KNOWN_MAX: Final = 65_536  # pairs of tenant and operation; the older half is forgotten
COST_FIRST_S: Final = 0.005  # of an operation that nobody has asked for yet
_COST_WEIGHT: Final = 0.2
_USUAL_FALL: Final = 0.05
_USUAL_RISE: Final = 0.01


class Estimate:
    """``cost_s`` follows the measured cost; ``usual_s`` the time in the seat, faster downwards than upwards, so that it
    stays near what it takes when nothing is in the way."""

    __slots__ = ("cost_s", "usual_s")

    def __init__(self, cost_s: float) -> None:
        self.cost_s = cost_s
        self.usual_s = 0.0

    def learn(self, cost_s: float) -> None:
        """Take a measured cost in."""
        self.cost_s += _COST_WEIGHT * (cost_s - self.cost_s)

    def slowness(self, seat_s: float) -> float:
        """Take the time in a seat in; it is returned in units of what was usual before."""
        usual = self.usual_s
        if usual <= 0.0:
            self.usual_s = seat_s
            return 1.0
        self.usual_s = usual + (_USUAL_FALL if seat_s < usual else _USUAL_RISE) * (seat_s - usual)
        return seat_s / usual


class Estimates:
    """All estimates of a process."""

    def __init__(self, known_max: int = KNOWN_MAX) -> None:
        self._known_max = known_max
        self._known: dict[tuple[int, str], Estimate] = {}
        self._anyone: dict[str, Estimate] = {}

    def __len__(self) -> int:
        return len(self._known) + len(self._anyone)

    def of(self, tenant: int, operation: str) -> Estimate:
        """The tenant's own estimate of the operation; a new one begins with everybody's."""
        key = (tenant, operation)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= self._known_max:
                self._known = dict(list(self._known.items())[self._known_max // 2 :])
            found = self._known[key] = Estimate(self.of_anyone(operation).cost_s)
        return found

    def of_anyone(self, operation: str) -> Estimate:
        """What the operation costs, whoever asks."""
        found = self._anyone.get(operation)
        if found is None:
            if len(self._anyone) >= self._known_max:
                self._anyone.clear()
            found = self._anyone[operation] = Estimate(COST_FIRST_S)
        return found
