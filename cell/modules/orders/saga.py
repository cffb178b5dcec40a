"""The order saga: what comes after what. Pure; `cell.modules.orders.conductor` does it.

::

    reserve --> charge --> confirmed
       |          |
       |          v
       |        cancel            the key first, then a refund of what had been charged under it
       |          |
       +----------+------> cancelled

An order that is to be paid is *pending* until its saga ends. There is no way from *cancel* to *confirmed*: whoever has
asked for the cancelling of a key can no longer know that the order's own charge stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from cell.events.retry import delay_after
from cell.modules.payments.public import Answer, Charged, Declined

CHARGE_TRIES: Final = 8  # about four minutes: far less than a gateway remembers a key
CANCEL_DELAY_MAX_S: Final = 60.0
STUCK_AFTER: Final = timedelta(minutes=10)
OUT_OF_STOCK: Final = "Out of stock: {}."
GAVE_UP: Final = "The payment could not be settled: {}."
KEY_CANCELLED: Final = "The payment was cancelled."


class Step(StrEnum):
    """What is to be done next; the last two are ends."""

    RESERVE = "reserve"
    CHARGE = "charge"
    CANCEL = "cancel"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


ENDS: Final = frozenset({Step.CONFIRMED, Step.CANCELLED})
LEGAL: Final = frozenset(
    {
        (Step.RESERVE, Step.CHARGE),
        (Step.RESERVE, Step.CONFIRMED),  # nothing to pay
        (Step.RESERVE, Step.CANCELLED),
        (Step.RESERVE, Step.CANCEL),  # asked for by the merchant
        (Step.CHARGE, Step.CHARGE),
        (Step.CHARGE, Step.CONFIRMED),
        (Step.CHARGE, Step.CANCELLED),
        (Step.CHARGE, Step.CANCEL),
        (Step.CANCEL, Step.CANCEL),
        (Step.CANCEL, Step.CANCELLED),
    }
)


@dataclass(frozen=True, slots=True)
class Unsure:
    """The gateway did not say how it ended; why, in words."""

    words: str


@dataclass(frozen=True, slots=True)
class Next:
    """The next step, after ``delay``. ``note`` is for the merchant, and None leaves what was noted before."""

    step: Step
    note: str | None = None
    delay: timedelta = timedelta()


def after_reserving(short: Sequence[object], total_cents: int) -> Next:
    """All units are promised, or those of ``short`` are not there and nothing is."""
    if short:
        return Next(Step.CANCELLED, OUT_OF_STOCK.format(", ".join(map(str, short))))
    return Next(Step.CHARGE if total_cents else Step.CONFIRMED)


def after_charging(answer: Answer | Unsure, failures: int, chance: float) -> Next:
    """``failures`` are the tries before this one that settled nothing; ``chance`` in [0, 1) spreads the next."""
    if isinstance(answer, Charged):
        return Next(Step.CONFIRMED)
    if isinstance(answer, Declined):
        return Next(Step.CANCELLED, answer.reason)
    if not isinstance(answer, Unsure):
        return Next(Step.CANCEL, KEY_CANCELLED)
    delay = delay_after(failures + 1, chance, attempts_max=CHARGE_TRIES)
    if delay is None:
        return Next(Step.CANCEL, GAVE_UP.format(answer.words))
    return Next(Step.CHARGE, None, delay)


def after_cancelling(unsure: Unsure | None, failures: int, chance: float) -> Next:
    """Compensation is never given up: it is tried until the gateway has answered."""
    if unsure is None:
        return Next(Step.CANCELLED)
    delay = delay_after(failures + 1, chance, attempts_max=failures + 2, max_s=CANCEL_DELAY_MAX_S)
    assert delay is not None, "there is always one more try"
    return Next(Step.CANCEL, None, delay)
