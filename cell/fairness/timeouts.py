"""Time limits, one inside the other: the application's ends first, then the database's, then the router's deadline.

Pure. So what a client hears of a slow request is the cell's own answer, and where this process cannot stop a statement
any more, the database does, before anybody has given up on it.
"""

from math import inf
from typing import Final, NamedTuple

MARGIN_MAX_S: Final = 0.2
MARGIN_PART: Final = 0.05  # of a small budget


class Budget(NamedTuple):
    """When the application is stopped, and when the database ends a statement; of the monotonic clock, in seconds."""

    application_by: float
    statement_by: float


def outer(now: float, envelope_s: float) -> Budget:
    """Without the wall: the application may use all of the envelope's time, and the database does not know of it."""
    return Budget(now + envelope_s, inf)


def nested(now: float, envelope_s: float, level_s: float) -> Budget:
    """With the wall. ``level_s`` is the most that a request of this level may take, whatever the envelope grants."""
    total = min(envelope_s, level_s)
    margin = min(MARGIN_MAX_S, total * MARGIN_PART)
    return Budget(now + total - 2 * margin, now + total - margin)
