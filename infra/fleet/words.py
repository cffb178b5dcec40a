"""What `cellctl fleet` and its work processes say to each other: one JSON document a line."""

from typing import Any, Final, Literal

import msgspec

Action = Literal["up", "preview", "drift", "destroy"]
# `pending` is what `drift` finds of a stack that holds nothing yet; `absent` what `destroy` finds where there is none.
Result = Literal["changed", "planned", "drifted", "unchanged", "pending", "absent", "failed", "interrupted", "skipped"]

FINE: Final[frozenset[Result]] = frozenset({"changed", "planned", "drifted", "unchanged", "pending", "absent"})


class Job(msgspec.Struct, frozen=True):
    """One action on one stack. ``config`` is set first; no value of it may be secret. ``log`` is appended to."""

    action: Action
    folder: str  # of the program
    stack: str
    config: dict[str, Any]
    log: str
    refresh: bool = False  # `up` alone: look first at what there is, and repair it


class Step(msgspec.Struct, frozen=True, tag="step"):
    """Where a stack is. ``done`` of ``known`` resources: the engine hears of more while the program runs."""

    words: str
    done: int = 0
    known: int = 0


class Difference(msgspec.Struct, frozen=True):
    """Something that is not as the stack left it."""

    resource: str
    what: str


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """How it ended. ``changes`` counts resources by Pulumi's names of operations; ``errors`` are one line each."""

    result: Result
    changes: dict[str, int] = {}
    errors: list[str] = []
    drift: list[Difference] = []
    seconds: float = 0.0


Said = Step | Ended
