"""A Dockerfile as its builder reads it: stages, each with what it inherits."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

Instruction = tuple[str, str]  # FROM, and all that follows on its line


@dataclass(frozen=True)
class Stage:
    """One stage. ``inherited`` are the instructions of the stages that it is made from, oldest first."""

    name: str
    base: str
    own: tuple[Instruction, ...]
    inherited: tuple[Instruction, ...] = ()

    def every(self, word: str) -> list[str]:
        """The values of an instruction, in order."""
        return [value for found, value in (*self.inherited, *self.own) if found == word]

    def last(self, word: str) -> str:
        """What is in force: of these instructions a later one replaces an earlier one."""
        return self.every(word)[-1]

    def variables(self, word: str) -> dict[str, str]:
        """The pairs of ENV or LABEL."""
        pairs = [pair.partition("=") for value in self.every(word) for pair in value.split()]
        return {key: value.strip('"') for key, _, value in pairs}

    @property
    def command(self) -> list[str]:
        """CMD, which must be a list: a shell would not pass signals on."""
        return _words(self.last("CMD"))

    @property
    def health(self) -> list[str]:
        """The command of HEALTHCHECK."""
        return _words(self.last("HEALTHCHECK").partition("CMD ")[2])

    @property
    def packages(self) -> set[str]:
        """What it copies into /app."""
        return {
            value.split()[-1].removeprefix("/app/").rstrip("/") for value in self.every("COPY") if " /app/" in value
        }


def parse(text: str) -> dict[str, Stage]:
    """The stages by name."""
    stages: dict[str, Stage] = {}
    for word, value in _instructions(text):
        if word == "FROM":
            base, _, name = value.partition(" AS ")
            parent = stages.get(base)
            inherited = (*parent.inherited, *parent.own) if parent else ()
            stages[name] = Stage(name, parent.base if parent else base, (), inherited)
        else:
            stage = stages[name]
            stages[name] = Stage(name, stage.base, (*stage.own, (word, value)), stage.inherited)
    return stages


def _instructions(text: str) -> Iterator[Instruction]:
    pending = ""
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        word, _, value = pending.partition(" ")
        yield word, value.strip()
        pending = ""


def _words(value: str) -> list[str]:
    found: list[str] = json.loads(value)
    return found
