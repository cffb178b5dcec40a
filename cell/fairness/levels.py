"""Levels: which requests are people waiting for, which are heavy by nature, and which are the platform's own work.

Pure. A level has seats and queues of its own (as in Kubernetes' API Priority and Fairness, KEP-1040), so the slow work
of one level never holds what another one needs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SEGMENTS_MAX: Final = 6  # of a path that tell operations apart; what follows counts as the same operation
LEVELS_MAX: Final = 4096  # remembered: methods are the client's to invent
_VARIABLE: Final = "*"


class Level(StrEnum):
    """How urgent a request is."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    INTERNAL = "internal"


class Enforcement(StrEnum):
    """What a wall does: refuse, or let everything through and count what it would have refused, or nothing."""

    ON = "on"
    OFF = "off"
    OBSERVE = "observe"


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests of this method to this path, or to anything below it, have this level. Paths begin with a slash."""

    method: str
    path: str
    level: Level


class Operations:
    """Names the operation of a request: its method and its path with whatever varies replaced.

    The names are few, whatever clients ask for: only segments of the application's own routes are kept, so a client
    that makes paths up makes no operations up.
    """

    def __init__(self, templates: Iterable[str], rules: Iterable[Rule]) -> None:
        """``templates`` are the application's paths, with ``{...}`` where they vary. The first fitting rule decides."""
        segments = {s for template in templates for s in template.split("/") if s and not s.startswith("{")}
        self._literal = dict.fromkeys(segments, True)
        self._rules = tuple(rules)
        self._levels: dict[str, Level] = {}

    def name(self, method: str, path: str) -> str:
        """Such as ``GET /v1/orders/*``."""
        literal = self._literal
        segments = path.split("/", SEGMENTS_MAX + 1)[1 : SEGMENTS_MAX + 1]
        return f"{method} /{'/'.join([s if s in literal else _VARIABLE for s in segments])}"

    def level(self, operation: str) -> Level:
        """The level of an operation as `name` gave it."""
        found = self._levels.get(operation)
        if found is None:
            if len(self._levels) >= LEVELS_MAX:
                self._levels.clear()
            found = self._levels[operation] = self._decide(operation)
        return found

    def _decide(self, operation: str) -> Level:
        method, _, path = operation.partition(" ")
        for rule in self._rules:
            if method == rule.method and (path == rule.path or path.startswith(f"{rule.path}/")):
                return rule.level
        return Level.INTERACTIVE
