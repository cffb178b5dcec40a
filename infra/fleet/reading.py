"""What the engine's events mean to whoever watches. Pure."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from pulumi.automation import EngineEvent, OpType
from pulumi.automation.events import StepEventMetadata

from infra.fleet.words import Difference, Ended, Result, Step

VALUE_MAX: Final = 60
SAME: Final = frozenset({"same", "read", "refresh"})
_BUSY: Final = frozenset({"changed", "planned", "drifted"})
_DOING: Final[Mapping[str, str]] = {
    "create": "creating", "update": "updating", "delete": "deleting", "replace": "replacing", "refresh": "looking at",
    "create-replacement": "creating anew", "delete-replaced": "deleting the old", "same": "keeping", "read": "reading",
}  # fmt: skip
_PLANNING: Final[Mapping[str, str]] = {
    "create": "would create", "update": "would update", "delete": "would delete", "replace": "would replace",
    "create-replacement": "would create anew", "delete-replaced": "would delete the old", "same": "would keep",
    "read": "would read",
}  # fmt: skip
# What is nothing that a fleet has: stacks, providers, references to other stacks, and what names who made a local cell.
_OWN: Final = ("pulumi:", "pulumi-python:dynamic/local:Claim")
_ADDED: Final = re.compile(r"\A(?:error: |Preview failed: |rpc error: code = \w+ desc = |[\w.]*Error: )+")
_NOTHING_NEW: Final = frozenset({"update failed", "preview failed", "refresh failed", "destroy failed"})
_FRAME: Final = "Traceback (most recent call last)"


class Reader:
    """Listens to one action of one stack; ``planning`` where it is a preview, which does nothing."""

    def __init__(self, *, planning: bool = False) -> None:
        self._planning = planning
        self._begun: set[str] = set()
        self._done: set[str] = set()
        self.errors: list[str] = []
        self.drift: list[Difference] = []
        self.changes: dict[str, int] = {}
        self.holds_something = False  # of a provider, by the stack's state: not only the stack itself and components

    def read(self, event: EngineEvent) -> Step | None:
        """A step for whoever watches, None where there is nothing new to say."""
        if (diagnostic := event.diagnostic_event) is not None and diagnostic.severity == "error":
            self._fault(diagnostic.message)
        if (summary := event.summary_event) is not None:
            self.changes = {str(getattr(op, "value", op)): count for op, count in summary.resource_changes.items()}
        if (pre := event.resource_pre_event) is not None:
            self._begun.add(pre.metadata.urn)
            self.holds_something |= _is_held(pre.metadata)
            return self._step(pre.metadata, "looking at" if self._planning else _words(_DOING, pre.metadata))
        if (outputs := event.res_outputs_event) is not None:
            self._done.add(outputs.metadata.urn)
            self.drift += differences(outputs.metadata)
            return self._step(outputs.metadata, _words(_PLANNING, outputs.metadata) if self._planning else "done with")
        return None

    def ended(self, result: Result, seconds: float) -> Ended:
        """What came of it. Where it went well and there was nothing to do, ``result`` is put right."""
        quiet = result in _BUSY and set(self.changes) <= SAME
        return Ended("unchanged" if quiet else result, self.changes, self.errors, self.drift, seconds)

    def _step(self, metadata: StepEventMetadata, words: str) -> Step:
        return Step(f"{words} {named(metadata.urn)}", len(self._done), len(self._begun | self._done))

    def _fault(self, message: str) -> None:
        if (words := one_line(message)) and words not in _NOTHING_NEW and words not in self.errors:
            self.errors.append(words)


def named(urn: str) -> str:
    """The last part of a resource's type, and its name: ``Cluster shard-1``."""
    kind, _, name = urn.rpartition("::")
    return f"{re.split('[:/$]', kind)[-1]} {name}"


def one_line(message: str) -> str:
    """What a message of the engine says, without the traceback and the names that SDKs put around it."""
    if _FRAME in message:
        message = message.strip().rpartition("\n")[2]
    return _ADDED.sub("", " ".join(message.split()))


def differences(metadata: StepEventMetadata) -> list[Difference]:
    """What a refresh found of one resource."""
    op, name = _op(metadata), named(metadata.urn)
    if op == "delete":
        return [Difference(name, "is gone")]
    if op != "update" or metadata.old is None or metadata.new is None:
        return []
    old, new = metadata.old.outputs or {}, metadata.new.outputs or {}
    told = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return [Difference(name, f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}") for key in told]


def _is_held(metadata: StepEventMetadata) -> bool:
    return metadata.old is not None and bool(metadata.old.id) and not metadata.old.type.startswith(_OWN)


def _words(known: Mapping[str, str], metadata: StepEventMetadata) -> str:
    return known.get(_op(metadata), _op(metadata))


def _op(metadata: StepEventMetadata) -> str:
    return metadata.op.value if isinstance(metadata.op, OpType) else str(metadata.op)


def _short(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= VALUE_MAX else f"{text[: VALUE_MAX - 1]}…"
