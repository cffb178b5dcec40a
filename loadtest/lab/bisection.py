"""The search for the highest rate at which a service is still good. Pure: the caller tries a rate and tells."""

from dataclasses import dataclass


@dataclass
class Bisection:
    """Tries ``low``, then ``high``, then the middle of what is left, until it is known to ``precision`` (a share).

    ``good`` is the highest rate known to be good (0: none), ``bad`` the lowest known to be bad (None: none was). What
    is good at one rate is taken to be good at all lower ones; a service for which that is not so has no knee.
    """

    low: float
    high: float
    precision: float
    good: float = 0.0
    bad: float | None = None

    def next(self) -> float | None:
        """The rate to try now; None where the answer is known."""
        if self.good == 0.0 and self.bad is None:
            return self.low
        if self.bad is None:
            return None if self.good >= self.high else self.high
        if self.good == 0.0:  # not even the lowest
            return None
        return None if (self.bad - self.good) <= self.precision * self.bad else (self.good + self.bad) / 2

    def tell(self, rate: float, good: bool) -> None:
        """How it was at ``rate``."""
        if good:
            self.good = max(self.good, rate)
        else:
            self.bad = rate if self.bad is None else min(self.bad, rate)
