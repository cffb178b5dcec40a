"""What people see while the lab works: one line a step, and a line that lives during the traffic. Plain off a TTY."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

PLAIN_EVERY_S = 5.0
PLAIN_WIDTH = 120


def console() -> Console:
    """The terminal, or plain text of a fixed width where there is none."""
    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH)


class Teller:
    """Says what happens, with the seconds since the start. On a terminal the present step has a spinner."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._start = clock()
        self._status: Status | None = None
        self._lived = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rest()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._clock() - self._start

    def say(self, text: str, style: str = "") -> None:
        """One line that stays."""
        line = f"{self.seconds:6.1f} s  {text}"
        self._console.print(line, style=style or None, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A step that takes a while: said when it begins."""
        self.say(text)
        if self._console.is_terminal:
            self._status = self._console.status(escape(text))
            self._status.start()
        try:
            yield
        finally:
            self._rest()

    def detail(self, text: str) -> None:
        """What is going on inside a step: beside the spinner, or a line of its own now and then."""
        if self._status is not None:
            self._status.update(escape(text))
        elif self._clock() - self._lived >= PLAIN_EVERY_S:
            self._lived = self._clock()
            self.say(f"  {text}")

    def verdict(self, good: bool, text: str) -> None:
        """A line that says whether something holds."""
        self.say(("ok: " if good else "WRONG: ") + text, "green" if good else "bold red")

    def table(self, title: str, rows: Sequence["Line"]) -> None:
        """The one table at the end."""
        table = Table(title=title, title_justify="left", show_header=False, pad_edge=False)
        table.add_column("what", no_wrap=True)
        table.add_column("value", overflow="fold")
        for row in rows:
            table.add_row(escape(row.what), escape(row.value), style="bold red" if row.bad else None)
        self._console.print()
        self._console.print(table)

    def show(self, table: Table) -> None:
        """A table of somebody else's."""
        self._console.print()
        self._console.print(table)

    def lines(self, heading: str, lines: Sequence[str]) -> None:
        """Text to copy from: never wrapped, never decorated."""
        self._console.print()
        self._console.print(heading, style="bold", markup=False, highlight=False, soft_wrap=True)
        for line in lines:
            self._console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)

    def _rest(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table; ``bad`` marks what made the run fail, or missed its goal."""

    what: str
    value: str
    bad: bool = False
