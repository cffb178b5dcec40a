"""Faults on demand: what the sandbox gateway does wrong, how often, and to whom. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import msgspec


class Operation(StrEnum):
    """What a fault can hit."""

    CHARGE = "charge"
    CANCEL = "cancel"
    REFUND = "refund"
    SINK = "sink"


class Kind(StrEnum):
    """What goes wrong."""

    SLOW = "slow"  # done, and answered, after so many seconds
    ERROR = "error"  # 500, and nothing done
    LOST = "lost"  # done, and the connection is cut before the answer is whole
    LATE = "late"  # 504 at once; done after so many seconds
    HANG = "hang"  # nothing done, and no answer for so many seconds


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``count`` times, to keys (or sinks) that begin with ``prefix``."""

    operation: Operation
    kind: Kind
    count: int = 1
    seconds: float = 0.0
    prefix: str = ""


@dataclass(slots=True)
class _Left:
    fault: Fault
    count: int


class Faults:
    """The faults that are still to come, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._left: list[_Left] = []

    def set(self, faults: Iterable[Fault]) -> None:
        """These from now on, instead of all others."""
        self._left = [_Left(fault, fault.count) for fault in faults]

    def next(self, operation: Operation, name: str) -> Fault | None:
        """The fault that this call suffers, used up by it; None where it suffers none."""
        for left in self._left:
            fault = left.fault
            if left.count > 0 and fault.operation is operation and name.startswith(fault.prefix):
                left.count -= 1
                return fault
        return None

    def left(self) -> int:
        """How many are still to come."""
        return sum(left.count for left in self._left)
