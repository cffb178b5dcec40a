"""Processor time of running programs: Linux gives every process a clock of its own (clock_gettime(2))."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

from loadtest.bench.local_cells import children, descended

_SCHEDULED: Final = 2  # CPUCLOCK_SCHED, user and system time together: include/linux/posix-timers_types.h


def cpu_s(pid: int) -> float:
    """What a process has used since it began, all of its threads together; 0 where it has ended."""
    try:
        return time.clock_gettime(~pid << 3 | _SCHEDULED)
    except OSError:
        return 0.0


def trees(roots: Mapping[str, int], without: Iterable[int] = ()) -> dict[str, dict[int, float]]:
    """What each of the named processes and those that descend from it have used, by process; ``without`` counts not.

    Who began and ended between two readings is missed, as are the last moments of who has ended: a server's
    connections stay, and of its passing helpers there are few.
    """
    family, skipped = children(), set(without)
    return {name: {pid: cpu_s(pid) for pid in descended([root], family) - skipped} for name, root in roots.items()}


def used(before: Mapping[str, Mapping[int, float]], after: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Seconds between two readings, by name."""
    return {
        name: sum(max(0.0, seconds - before[name].get(pid, 0.0)) for pid, seconds in of_name.items())
        for name, of_name in after.items()
    }
