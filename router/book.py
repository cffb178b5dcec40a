"""The keeper's own copy of the route log: what the table and the file on disk are made from. No I/O.

A change set is taken whole or refused whole: `Book.propose` checks it against what is known without touching
anything, `Book.commit` cannot fail.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from contracts import routes
from contracts.routes import Cell, CellGone, Gone, Header, Plan, Record, Route
from router.table import CELL_LIMIT, PLAN_LIMIT, CellEntry, PlanEntry
from router.table_writer import Snapshot, cell_entry, plan_entry, unknown_cell

V = TypeVar("V")

NO_LOG: Final = ""  # the log_id of a book that has not met a control plane or a file


class RefusedTableError(ValueError):
    """A snapshot or change set that contradicts itself or what is known. Nothing of it was used.

    ``record`` is the place of the record that it was noticed at, counted from 0, where there is one.
    """

    def __init__(self, reason: str, record: int | None = None) -> None:
        super().__init__(reason)
        self.record = record


class OtherLogError(RefusedTableError):
    """A change set that does not continue this book: a whole snapshot is needed."""


@dataclass(slots=True)
class Change:
    """A checked change set. None stands for *gone*."""

    revision: int
    routes: dict[str, Route | None] = field(default_factory=dict)
    owners: dict[str, str | None] = field(default_factory=dict)
    cells: dict[str, Cell | None] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether it says nothing but a revision."""
        return not (self.routes or self.cells or self.plans)


class Book:
    """Routes, cells and plans at one revision of one log."""

    def __init__(self, log_id: str = NO_LOG, revision: int = 0, *, complete: bool = False) -> None:
        self.log_id = log_id
        self.revision = revision
        self.complete = complete  # made from a whole snapshot
        self.routes: dict[str, Route] = {}
        self.cells: dict[str, Cell] = {}
        self.plans: dict[str, Plan] = {}
        self._owners: dict[str, str] = {}  # host -> tenant

    @classmethod
    def from_snapshot(cls, header: Header, records: Iterable[Record]) -> "Book":
        """A book of a whole snapshot, or `RefusedTableError`."""
        if header.content != "snapshot":
            raise RefusedTableError("a change set where a snapshot is needed")
        book = cls(header.log_id, header.revision, complete=True)
        book.commit(book._check(header.revision, records))
        return book

    def propose(self, header: Header, records: Iterable[Record]) -> Change:
        """The change that a change set makes here, or `RefusedTableError`. Alters nothing."""
        if header.content != "changes" or header.after is None:
            raise OtherLogError("not a change set")
        if header.log_id != self.log_id or header.after != self.revision or header.revision < self.revision:
            raise OtherLogError(
                f"it continues revision {header.after} of {header.log_id}, this is {self.revision} of {self.log_id}"
            )
        return self._check(header.revision, records)

    def commit(self, change: Change) -> None:
        """Take a proposed change over."""
        _merge(self.routes, change.routes)
        _merge(self._owners, change.owners)
        _merge(self.cells, change.cells)
        self.plans.update(change.plans)
        self.revision = change.revision

    def records(self) -> Iterator[Record]:
        """Everything, as a snapshot for the file: plans and cells first, and never a hold."""
        yield from self.plans.values()
        yield from self.cells.values()
        for route in self.routes.values():
            yield msgspec.structs.replace(route, state="active") if route.state == "held" else route

    def header(self) -> Header:
        """The header of that snapshot."""
        return Header(self.log_id, self.revision)

    def directory(self, named_by: Iterable[Route]) -> tuple[Sequence[CellEntry], Sequence[PlanEntry]]:
        """Cells and plans for the table; what the routes name and no record describes is there, too."""
        cells = {name: cell_entry(record) for name, record in self.cells.items()}
        plans = {name: plan_entry(record) for name, record in self.plans.items()}
        for route in named_by:
            if route.cell not in cells:
                cells[route.cell] = unknown_cell(route.cell)
            if route.plan not in plans:
                plans[route.plan] = plan_entry(Plan(route.plan))
        return list(cells.values()), list(plans.values())

    def table(self) -> Snapshot:
        """What a new table is built from."""
        cells, plans = self.directory(self.routes.values())
        return Snapshot(self.log_id, self.revision, self.complete, cells, plans, self.routes.values())

    def undescribed(self) -> list[str]:
        """Cells and plans that routes name and no record describes: an operator should know."""
        missing = {f"cell {r.cell}" for r in self.routes.values() if r.cell not in self.cells}
        missing |= {f"plan {r.plan}" for r in self.routes.values() if r.plan not in self.plans}
        return sorted(missing)

    def _check(self, revision: int, records: Iterable[Record]) -> Change:
        change = Change(revision)
        for number, record in enumerate(records):
            if isinstance(record, Route):
                self._check_route(change, number, record)
            elif isinstance(record, Gone):
                self._let_go(change, record.tenant, ())
                change.routes[record.tenant] = None
            elif isinstance(record, Cell):
                change.cells[record.cell] = record
            elif isinstance(record, CellGone):
                change.cells[record.cell] = None
            else:
                change.plans[record.plan] = record
        if len(self.cells) + len(change.cells) > CELL_LIMIT or len(self.plans) + len(change.plans) > PLAN_LIMIT:
            raise RefusedTableError(f"more than {CELL_LIMIT} cells or {PLAN_LIMIT} plans")
        return change

    def _check_route(self, change: Change, number: int, route: Route) -> None:
        self._let_go(change, route.tenant, route.hosts)
        for host in route.hosts:
            owner = change.owners[host] if host in change.owners else self._owners.get(host)
            if owner is not None and owner != route.tenant:
                raise RefusedTableError(f"the host {host} belongs to {owner} and to {route.tenant}", number)
            change.owners[host] = route.tenant
        change.routes[route.tenant] = route

    def _let_go(self, change: Change, tenant: str, kept: Sequence[str]) -> None:
        """The tenant's hosts so far that are not kept have no owner any more."""
        old = change.routes[tenant] if tenant in change.routes else self.routes.get(tenant)
        if old is not None:
            for host in old.hosts:
                if host not in kept:
                    change.owners[host] = None


def _merge(base: dict[str, V], changes: Mapping[str, V | None]) -> None:
    for key, value in changes.items():
        if value is None:
            base.pop(key, None)
        else:
            base[key] = value


def check_static(header: Header, records: Sequence[Record]) -> None:
    """What a file made by hand must keep beyond its format, or `RefusedTableError`.

    A control plane's table may name a cell before it describes it; a person's mistake should be loud.
    """
    if header.content != "snapshot":
        raise RefusedTableError("a routes file must be a snapshot")
    cells, plans = _named_once(records)
    for number, record in enumerate(records):
        if not isinstance(record, Route):
            continue
        who = f"the route of {record.tenant}"
        if record.cell not in cells:
            raise RefusedTableError(f"{who} names the cell {record.cell}, which has no record", number)
        if record.plan not in plans:
            raise RefusedTableError(f"{who} names the plan {record.plan}, which has no record", number)


def _named_once(records: Sequence[Record]) -> tuple[set[str], set[str]]:
    """The names of cells and plans. A second line about any subject is refused: which one counts would be a guess."""
    cells: set[str] = set()
    plans: set[str] = set()
    tenants: set[str] = set()
    for number, record in enumerate(records):
        if isinstance(record, Cell):
            kind, name, known = "record of the cell", record.cell, cells
        elif isinstance(record, Plan):
            kind, name, known = "record of the plan", record.plan, plans
        elif isinstance(record, Route):
            kind, name, known = "route of", record.tenant, tenants
        else:
            continue
        if name in known:
            raise RefusedTableError(f"a second {kind} {name}", number)
        known.add(name)
    return cells, plans


def read_static(lines: Sequence[bytes]) -> Book:
    """The book of a static routes file; `contracts.routes.RoutesFormatError` names the line that is wrong."""
    header, records = routes.decode(lines)
    try:
        check_static(header, records)
        return Book.from_snapshot(header, records)
    except RefusedTableError as e:
        numbers = [n for n, raw in enumerate(lines, 1) if raw.strip() and not raw.strip().startswith(b"#")]
        line = numbers[0] if e.record is None else numbers[e.record + 1]
        raise routes.RoutesFormatError(line, str(e)) from e
