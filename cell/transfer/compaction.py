"""The net effect of a batch: for each key of each table what is left to do, as few statements on many rows each.

Pure. Tables do not depend on each other here: rows are written without triggers, as replication does it, and foreign
keys are true again at the end of the batch, as they were at the sender. A key that changes its value ends a segment, so
that what came before it is done before it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cell.transfer.wal import UNCHANGED, BrokenMessageError, Change, Key, Relation, Row, Value

Kind = Literal["delete", "update", "insert", "rekey"]


@dataclass(frozen=True, slots=True)
class Run:
    """One statement: rows of one table. ``keys`` of the rows before the change; ``columns`` says which values are set.

    Every key must be found exactly once (or, for an insert, not at all).
    """

    kind: Kind
    relation: Relation
    keys: tuple[Key, ...]
    columns: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()


@dataclass(slots=True)
class _Entry:
    deleted: bool  # a row was there before, and goes
    row: Row | None  # what is written; with `inserted` it is whole
    inserted: bool


def compact(changes: Iterable[Change]) -> list[Run]:
    """The net effect, deletes before updates before inserts. Raises `BrokenMessageError` for what cannot follow."""
    runs: list[Run] = []
    tables: dict[Relation, dict[Key, _Entry]] = {}
    for change in changes:
        if change.op == "update" and change.old is not None and change.old != change.key:
            runs += _flush(tables)
            tables = {}
            runs.append(_rekey(change))
        else:
            _merge(tables.setdefault(change.relation, {}), change)
    return runs + _flush(tables)


def one_by_one(changes: Iterable[Change]) -> list[Run]:
    """The same changes in their own order: for values that pass from row to row under a unique index."""
    runs: list[Run] = []
    for change in changes:
        if change.op == "delete":
            runs.append(Run("delete", change.relation, (change.key,)))
        elif change.op == "insert":
            runs.append(_inserts(change.relation, [change.row]))
        elif change.old is not None and change.old != change.key:
            runs.append(_rekey(change))
        else:
            runs += _updates(change.relation, [(change.key, change.row)])
    return runs


def touched(changes: Iterable[Change]) -> dict[Relation, set[Key]]:
    """Every key that a change names, before or after it."""
    found: dict[Relation, set[Key]] = {}
    for change in changes:
        keys = found.setdefault(change.relation, set())
        keys.add(change.key)
        if change.old is not None:
            keys.add(change.old)
    return found


def _merge(entries: dict[Key, _Entry], change: Change) -> None:
    key = change.key
    entry = entries.get(key)
    if change.op == "insert":
        if entry is not None and not (entry.deleted and entry.row is None):
            raise BrokenMessageError(f"{change.relation.label}: a row was inserted twice")
        entries[key] = _Entry(entry is not None, change.row, True)
    elif entry is None:
        entries[key] = _Entry(change.op == "delete", change.row or None, False)
    elif entry.row is None:
        raise BrokenMessageError(f"{change.relation.label}: a row that was deleted was changed")
    elif change.op == "update":
        entry.row = tuple(old if new is UNCHANGED else new for old, new in zip(entry.row, change.row, strict=True))
    elif entry.inserted and not entry.deleted:
        del entries[key]  # it came and went within the batch
    else:
        entries[key] = _Entry(True, None, False)


def _flush(tables: dict[Relation, dict[Key, _Entry]]) -> list[Run]:
    runs: list[Run] = []
    for relation, entries in tables.items():
        gone = tuple(key for key, e in entries.items() if e.deleted)
        if gone:
            runs.append(Run("delete", relation, gone))
        runs += _updates(relation, [(k, e.row) for k, e in entries.items() if e.row is not None and not e.inserted])
        new = [e.row for e in entries.values() if e.row is not None and e.inserted]
        if new:
            runs.append(_inserts(relation, new))
    return runs


def _inserts(relation: Relation, rows: Sequence[Row]) -> Run:
    if any(value is UNCHANGED for row in rows for value in row):
        raise BrokenMessageError(f"{relation.label}: a new row that is not whole")
    keys = tuple(tuple(str(row[i]) for i in relation.key) for row in rows)
    return Run("insert", relation, keys, tuple(range(len(relation.columns))), tuple(rows))


def _updates(relation: Relation, rows: Sequence[tuple[Key, Row]]) -> list[Run]:
    """A statement for each set of columns that the stream carries."""
    by_columns: dict[tuple[int, ...], list[tuple[Key, Row]]] = {}
    for key, row in rows:
        by_columns.setdefault(_carried(row), []).append((key, row))
    return [
        Run("update", relation, tuple(k for k, _ in found), columns, tuple(_only(r, columns) for _, r in found))
        for columns, found in by_columns.items()
    ]


def _rekey(change: Change) -> Run:
    assert change.old is not None
    columns = _carried(change.row)
    return Run("rekey", change.relation, (change.old,), columns, (_only(change.row, columns),))


def _carried(row: Row) -> tuple[int, ...]:
    if UNCHANGED not in row:
        return tuple(range(len(row)))
    return tuple(i for i, value in enumerate(row) if value is not UNCHANGED)


def _only(row: Row, columns: Sequence[int]) -> Row:
    if len(columns) == len(row):
        return row
    values: tuple[Value, ...] = tuple(row[i] for i in columns)
    return values
