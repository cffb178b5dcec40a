"""One coarse timer wheel for a worker: starting a timer costs a few hundred nanoseconds and no allocation.

Resolution is `TICK_S`; a timer never fires early and fires at most two ticks late.
"""

from collections.abc import Callable
from typing import Final

TICK_S: Final = 0.025
_SLOTS: Final = 2048


class Timer:
    """A timer that can be started again and again; at most one deadline at a time."""

    __slots__ = ("_due", "_fire", "_slot", "_wheel")

    def __init__(self, wheel: "Wheel", fire: Callable[[], None]) -> None:
        self._wheel = wheel
        self._fire = fire
        self._due = 0  # tick; 0 means stopped
        self._slot = 0  # tick at which the wheel looks at this timer, 0 when it does not

    def start(self, delay_s: float) -> None:
        """Fire once after ``delay_s``, at the next tick where that has passed; an earlier deadline is forgotten.

        A later deadline leaves the timer where it stands in the wheel: it is moved when its old turn comes.
        """
        due = self._wheel.now + 1 + int(max(delay_s, 0.0) / TICK_S)
        self._due = due
        if self._slot and self._slot <= due:
            return
        self._wheel.place(self, due)

    def stop(self) -> None:
        """Forget the deadline."""
        self._due = 0

    def close(self) -> None:
        """Forget the deadline, and be forgotten by the wheel at once."""
        self._due = 0
        if self._slot:
            self._wheel.remove(self, self._slot)
            self._slot = 0


class Wheel:
    """The wheel. Its owner calls `turn` once in every `TICK_S`."""

    def __init__(self) -> None:
        self.now = 0  # ticks so far
        self._slots: list[set[Timer]] = [set() for _ in range(_SLOTS)]

    def place(self, timer: Timer, due: int) -> None:
        """Look at ``timer`` at tick ``due``, or when the wheel has turned once if that is earlier."""
        if timer._slot:
            self._slots[timer._slot % _SLOTS].discard(timer)
        timer._slot = min(due, self.now + _SLOTS - 1)
        self._slots[timer._slot % _SLOTS].add(timer)

    def remove(self, timer: Timer, slot: int) -> None:
        """Forget ``timer``, which stands in ``slot``."""
        self._slots[slot % _SLOTS].discard(timer)

    def turn(self, ticks: int = 1) -> None:
        """Let time pass; fire what is due."""
        for _ in range(ticks):
            self.now += 1
            slot = self._slots[self.now % _SLOTS]
            if slot:
                self._slots[self.now % _SLOTS] = set()
                for timer in slot:
                    self._visit(timer)

    def _visit(self, timer: Timer) -> None:
        timer._slot = 0
        if timer._due > self.now:
            self.place(timer, timer._due)
        elif timer._due:
            timer._due = 0
            timer._fire()
