"""Bills and contents as Markdown: what the command prints is what docs/aws.md holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Final

from infra.aws.fleet import ZONES
from infra.prices import bill, inventory
from infra.prices.bill import Line
from infra.prices.inventory import Resource
from infra.prices.quotas import QUOTAS
from infra.prices.sheet import Sheet
from infra.spec import CellSpec

_CENT: Final = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell as its component makes it, and what is paid for."""

    spec: CellSpec
    resources: Sequence[Resource]  # of its stack
    lines: Sequence[Line]


def read(size: str, shards: int, region: str) -> Cell:
    """A cell of that size, with the way to it in the router's stack; `SpecError` where there is no such size."""
    spec = inventory.described(size, shards, region)
    resources = inventory.of_cell(spec)
    way_in = Line("the router's endpoint to it, in each zone", "endpoint-zone", Decimal(ZONES), Decimal(ZONES))
    return Cell(spec, resources, (*bill.lines(resources), way_in))


def account(cell: Cell, sheet: Sheet) -> str:
    """One bill, line by line. `sheet.PriceError` where the list lacks a price."""
    rows = []
    for line in cell.lines:
        price = sheet.price(line.item)
        said = f"{price.published or 'undated'}" + (", derived" if price.status == "derived" else "")
        costs = _span(line.least * price.monthly, line.most * price.monthly, _CENT)
        rows.append((line.what, _span(line.least, line.most), f"{price.amount} / {price.unit}", costs, said))
    least, most = totals(cell, sheet)
    rows.append(("**together**", "", "", f"**{_span(least, most, _CENT)}**", ""))
    head = (
        f"size {cell.spec.size}, {cell.spec.shards} shards",
        "how many",
        "price",
        f"{sheet.currency} a month",
        "published",
    )
    return _table(head, rows)


def totals(cell: Cell, sheet: Sheet) -> tuple[Decimal, Decimal]:
    """A month idle, and a month at every cap."""
    prices = [(line, sheet.price(line.item).monthly) for line in cell.lines]
    return sum((n.least * p for n, p in prices), Decimal(0)), sum((n.most * p for n, p in prices), Decimal(0))


def overview(cells: Sequence[Cell], sheet: Sheet) -> str:
    """What these cells contain, and what they cost, side by side."""

    def row(label: str, of: Callable[[Cell], str]) -> tuple[str, ...]:
        return (label, *(of(cell) for cell in cells))

    def line(cell: Cell, what: str) -> Line:
        return next(found for found in cell.lines if found.what == what)

    def amount(cell: Cell, what: str) -> str:
        return _span(line(cell, what).least, line(cell, what).most)

    rows = [
        row("tenants", lambda cell: f"{cell.spec.tenants_max:,}"),
        row("API tasks", lambda cell: _tasks(cell.spec.sized.api_tasks, cell, "api")),
        row("worker tasks", lambda cell: _tasks(cell.spec.sized.worker_tasks, cell, "worker")),
        row("shards, a writer and a reader each", lambda cell: str(cell.spec.shards)),
        row("ACU of all database instances", lambda cell: amount(cell, "database instances")),
        row("cache nodes", lambda cell: f"{amount(cell, 'cache nodes')} {line(cell, 'cache nodes').item}"),
        row("connections of a process to a shard", lambda cell: str(cell.spec.pool_size)),
        row(
            "interface endpoints, counted in each zone", lambda cell: amount(cell, "interface endpoints, in each zone")
        ),
        *(row(what, lambda cell, what=what: amount(cell, what)) for what in _SMALL),  # type: ignore[misc]
        row("resources in its stack", lambda cell: str(len(cell.resources))),
        row(f"{sheet.currency} a month, idle", lambda cell: _whole(totals(cell, sheet)[0])),
        row(f"{sheet.currency} a month, at every cap", lambda cell: _whole(totals(cell, sheet)[1])),
    ]
    return _table(("size", *(cell.spec.size for cell in cells)), rows)


def limits(cell: Cell) -> str:
    """How many cells like this one fit into an account and region as it is opened, tightest first."""
    rows = [
        (
            quota.name,
            f"{quota.default:,}",
            str(quota.taken(cell.resources)),
            str(quota.rest),
            f"{quota.fits(cell.resources):,}",
            quota.way,
        )
        for quota in sorted(QUOTAS, key=lambda quota: quota.fits(cell.resources))
    ]
    return _table(("quota of a region", "default", "a cell", "the rest", "cells that fit", "past it"), rows)


_SMALL: Final = ("network balancers", "keys", "secrets", "alarms")


def _tasks(tasks: tuple[int, int], cell: Cell, role: str) -> str:
    """Processors and memory of one task are the line's, divided by the tasks."""
    processors, memory = (
        next(line.least for line in cell.lines if line.what == f"{role} tasks, {part}") / tasks[0]
        for part in ("processors", "memory")
    )
    return f"{tasks[0]} to {tasks[1]} of {_plain(processors)} CPU, {_plain(memory)} GiB"


def _span(least: Decimal, most: Decimal, step: Decimal | None = None) -> str:
    ends = [f"{n.quantize(step, ROUND_HALF_UP):,f}" if step else _plain(n) for n in (least, most)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _plain(number: Decimal) -> str:
    return f"{number.normalize():,f}"


def _whole(number: Decimal) -> str:
    return f"{number.quantize(Decimal(1), ROUND_HALF_UP):,f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
