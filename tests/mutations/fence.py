"""The fence with one of its guards taken away: cut out of the real function, so that no copy of it grows old."""

import re
from pathlib import Path
from typing import Final

REAL: Final = Path(__file__).parents[2] / "cell" / "schema" / "functions" / "enter_tenant.sql"
_A_REFUSAL = r"  IF {}.*?END IF;\n"

# name -> (what is replaced, by what)
GUARDS: Final = {
    # The snapshot may be older than the lock.
    "any_isolation": (_A_REFUSAL.format(r"current_setting\('transaction_isolation'\)"), ""),
    # A router that missed a move, and a move back, is served.
    "no_epoch": (r" OR \(at_epoch <> 0 AND at_epoch <> fence\.epoch\)", ""),
    # A freeze no longer waits for the transactions that are at work.
    "no_lock": (_A_REFUSAL.format(r"NOT pg_try_advisory_xact_lock_shared"), ""),
    # A tenant that is frozen, or lives elsewhere, is served.
    "no_state": (_A_REFUSAL.format(r"fence\.state = 'frozen'") + _A_REFUSAL.format(r"fence\.state IS DISTINCT"), ""),
    # It reads with the snapshot of the statement that calls it.
    "stable": (r"VOLATILE", "STABLE"),
}


def without(guard: str) -> str:
    """The function's SQL without that guard; fails where the real one has it no more, or twice."""
    pattern, instead = GUARDS[guard]
    mutated, found = re.subn(pattern, instead, REAL.read_text(), flags=re.DOTALL)
    assert found == 1, f"{guard}: the fence has the guard {found} times"
    return mutated
