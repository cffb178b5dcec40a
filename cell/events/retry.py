"""When a failed event is tried again, and when it is not. Pure."""

from datetime import timedelta
from typing import Final

ATTEMPTS_MAX: Final = 8  # about four minutes of trying
FIRST_DELAY_S: Final = 1.0
DELAY_MAX_S: Final = 120.0


def delay_after(
    attempts: int,
    chance: float,
    *,
    attempts_max: int = ATTEMPTS_MAX,
    first_s: float = FIRST_DELAY_S,
    max_s: float = DELAY_MAX_S,
) -> timedelta | None:
    """The wait after that many failed attempts, or None: it is dead.

    Doubles from ``first_s``, capped at ``max_s``; ``chance`` in [0, 1) takes up to half of it off, so that what failed
    together does not come back together.
    """
    if attempts >= attempts_max:
        return None
    full = min(max_s, first_s * 2.0 ** min(attempts - 1, 60))
    return timedelta(seconds=full * (1 - chance / 2))
