"""How `cellctl fleet` shows what happens: a live table on terminals, lines in pipes, JSON documents for programs."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

import click
import msgspec
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from infra.fleet.plan import StackPlan
from infra.fleet.words import FINE, Ended, Result, Said, Step

REFRESHES_S: Final = 4  # a second
_STYLES: Final[Mapping[Result, str]] = {
    "changed": "green", "planned": "green", "unchanged": "green", "absent": "dim", "failed": "red",
    "drifted": "yellow", "interrupted": "yellow", "pending": "dim",
    "skipped": "yellow",
}  # fmt: skip
_PENDING: Final = "not brought up yet"


class Show(Protocol):
    """Told of every step; a context, for those that own the terminal meanwhile."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def __call__(self, plan: StackPlan, said: Said) -> None: ...


@dataclass(slots=True)
class _Row:
    began: float | None = None
    step: Step | None = None
    ended: Ended | None = None


class LiveShow:
    """For a terminal: a row for each stack, redrawn."""

    def __init__(self, plans: Sequence[StackPlan], clock: Callable[[], float] = time.monotonic) -> None:
        self._rows = {plan.key: _Row() for plan in plans}
        self._clock = clock
        self._live = Live(get_renderable=self.table, refresh_per_second=REFRESHES_S)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def __call__(self, plan: StackPlan, said: Said) -> None:
        row = self._rows[plan.key]
        if isinstance(said, Ended):
            row.ended = said
            return
        row.began = self._clock() if row.began is None else row.began
        row.step = said

    def table(self) -> Table:
        """What is shown now."""
        table = Table("STACK", "STEP", "RESOURCES", "SECONDS", box=None, header_style="bold", pad_edge=False)
        for key, row in self._rows.items():
            table.add_row(key, *self._cells(row))
        return table

    def _cells(self, row: _Row) -> tuple[str, str, str]:
        counted = f"{row.step.done}/{row.step.known}" if row.step is not None and row.step.known else ""
        if row.ended is not None:
            return f"[{_STYLES[row.ended.result]}]{_result(row.ended)}", counted, f"{row.ended.seconds:.1f}"
        if row.step is None or row.began is None:
            return "[dim]waiting", "", ""
        return escape(row.step.words), counted, f"{self._clock() - row.began:.1f}"


class Lines:
    """For pipes and logs: a line for each resource that changes, and for each stack that ends."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, plan: StackPlan, said: Said) -> None:
        counted = f" ({said.done}/{said.known})" if isinstance(said, Step) and said.known else ""
        words = outcome(said) if isinstance(said, Ended) else f"{said.words}{counted}"
        click.echo(f"{self._clock() - self._began:6.1f} s  {plan.key}: {words}", err=True)


class Documents(Lines):
    """For programs."""

    def __call__(self, plan: StackPlan, said: Said) -> None:
        click.echo(msgspec.json.encode({"stack": plan.key, **_members(said)}))


def outcome(ended: Ended) -> str:
    """How a stack ended, in one line."""
    counted = ", ".join(f"{count} {op}" for op, count in sorted(ended.changes.items()))
    why = "; ".join(ended.errors)
    return f"{_result(ended)}{f' ({counted})' if counted else ''}{f': {why}' if why else ''}"


def calm(ends: Mapping[str, Ended]) -> str:
    """What to say where no stack has drifted."""
    waiting = [key for key, ended in ends.items() if ended.result == "pending"]
    if not waiting:
        return "Everything is as the stacks left it."
    rest = "" if len(waiting) == len(ends) else " Everything else is as the stacks left it."
    return f"{_PENDING.capitalize()}: {', '.join(waiting)}.{rest}"


def rows(plans: Iterable[StackPlan], ends: Mapping[str, Ended]) -> list[tuple[object, ...]]:
    """The summary."""
    return [
        (
            plan.key,
            _result(ends[plan.key]),
            " ".join(f"{op}={count}" for op, count in sorted(ends[plan.key].changes.items())),
            f"{ends[plan.key].seconds:.1f}",
            "" if ends[plan.key].result in FINE else "; ".join(ends[plan.key].errors),
        )
        for plan in plans
    ]


def _result(ended: Ended) -> str:
    return _PENDING if ended.result == "pending" else ended.result


def _members(said: Said) -> dict[str, Any]:
    members: dict[str, Any] = msgspec.to_builtins(said)
    return members
