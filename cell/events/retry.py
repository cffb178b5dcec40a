"""When a failed event is tried again, and when it is not. Pure."""

from datetime import timedelta
from typing import Final

ATTEMPTS_MAX: Final = 8  # about four minutes of trying
FIRST_DELAY_S: Final = 1.0
DELAY_MAX_S: Final = 120.0


def delay_after(attempts: int, chance: float) -> timedelta | None:
    """The wait after that many failed attempts, or None: it is dead.

    Doubles from `FIRST_DELAY_S`, capped; ``chance`` in [0, 1) takes up to half of it off, so that events which failed
    together do not come back together.
    """
    if attempts >= ATTEMPTS_MAX:
        return None
    full = min(DELAY_MAX_S, FIRST_DELAY_S * 2 ** (attempts - 1))
    return timedelta(seconds=full * (1 - chance / 2))
