"""The pure parts of streams: messages of the replication protocol, batches, and the net effect of changes."""

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell.transfer import batches, compaction, wal
from cell.transfer.batches import BrokenBatchError
from cell.transfer.compaction import Run
from cell.transfer.wal import UNCHANGED, BrokenMessageError, Change, Decoder, Relation
from contracts.transfer import Batch

TABLE = Relation("product", "things", ("tenant_id", "id", "name", "big"), (0, 1))


def relation_message(oid: int = 7, relation: Relation = TABLE) -> bytes:
    body = struct.pack("!I", oid) + relation.schema.encode() + b"\0" + relation.name.encode() + b"\0d"
    body += struct.pack("!H", len(relation.columns))
    for index, column in enumerate(relation.columns):
        body += bytes([index in relation.key]) + column.encode() + b"\0" + struct.pack("!Ii", 25, -1)
    return b"R" + body


def values(row: Sequence[Any]) -> bytes:
    body = struct.pack("!H", len(row))
    for value in row:
        if value is None:
            body += b"n"
        elif value is UNCHANGED:
            body += b"u"
        else:
            body += b"t" + struct.pack("!I", len(value.encode())) + value.encode()
    return body


def message(kind: str, row: Sequence[Any], old: Sequence[Any] | None = None, oid: int = 7) -> bytes:
    body = kind.encode() + struct.pack("!I", oid)
    if old is not None:
        body += b"K" + values(old)
    return body + (b"N" + values(row) if kind != "D" else b"")


def read(*messages: bytes) -> list[Change]:
    decoder = Decoder()
    found = [decoder.change(m) for m in (relation_message(), *messages)]
    return [change for change in found if change is not None]


def test_a_row_would_be_read_wrong() -> None:
    inserted, updated, rekeyed, deleted = read(
        message("I", ("1", "5", "ä€😀\n", None)),
        message("U", ("1", "5", "", UNCHANGED)),
        message("U", ("1", "6", "x", UNCHANGED), ("1", "5", None, None)),
        message("D", (), ("1", "6", None, None)),
    )
    assert (inserted.op, inserted.key, inserted.row) == ("insert", ("1", "5"), ("1", "5", "ä€😀\n", None))
    assert updated.row[3] is UNCHANGED
    assert (rekeyed.old, rekeyed.key) == (("1", "5"), ("1", "6"))
    assert (deleted.op, deleted.key, deleted.row) == ("delete", ("1", "6"), ())


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (b"T" + struct.pack("!IBI", 1, 0, 7), "TRUNCATE"),
        (message("I", ("1", "5", "x", None), oid=8), "KeyError"),
        (message("I", ("1", "5")), "2 values for 4 columns"),
        (message("I", ("1", None, "x", None)), "without its key"),
        (message("I", ("1", "5", "x", "y"))[:-1], "cut"),
        (message("I", ("1", "5", "x", None))[:9], "IndexError|cut"),
        (b"?", "not a valid Tag"),
        (b"", "IndexError"),
    ],
)
def test_a_message_that_is_no_row_would_be_taken_for_one(broken: bytes, why: str) -> None:
    with pytest.raises(BrokenMessageError, match=why):
        read(broken)


def test_the_marker_of_somebody_else_would_end_a_stream() -> None:
    def logical(prefix: bytes, content: bytes) -> bytes:
        return b"M" + struct.pack("!BQ", 1, 9) + prefix + b"\0" + struct.pack("!I", len(content)) + content

    assert wal.marker(logical(b"cellwall", b"stream:m1")) == "stream:m1"
    assert wal.marker(logical(b"other", b"stream:m1")) is None
    assert wal.commit_end(b"C" + struct.pack("!BQQQ", 0, 10, 20, 30)) == 20


def head(messages: list[bytes]) -> Batch:
    return Batch("cellwall_t1_m1_out", 1, 2, 1, len(messages), batches.size(messages), 0)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.data())
def test_a_batch_that_is_cut_anywhere_would_be_applied(messages: list[bytes], data: st.DataObject) -> None:
    encoded = batches.encode(head(messages), messages)
    found, read_back = batches.decode(encoded)
    assert found == head(messages)
    assert list(read_back) == messages
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(BrokenBatchError):
        list(batches.decode(encoded[:cut])[1])


def insert(key: str, name: str = "n", big: Any = "b") -> Change:
    return Change("insert", TABLE, ("1", key), ("1", key, name, big))


def update(key: str, name: str = "u", big: Any = UNCHANGED, old: str | None = None) -> Change:
    return Change("update", TABLE, ("1", key), ("1", key, name, big), None if old is None else ("1", old))


def delete(key: str) -> Change:
    return Change("delete", TABLE, ("1", key), (), ("1", key))


class Rows:
    """A table as the database would keep it: every statement finds each of its keys, or fails."""

    def __init__(self, rows: dict[tuple[str, ...], list[Any]]) -> None:
        self.rows = rows

    def run(self, run: Run) -> None:
        if run.kind == "insert":
            for row in run.rows:
                key = (str(row[0]), str(row[1]))
                assert key not in self.rows, "inserted twice"
                assert UNCHANGED not in row
                self.rows[key] = list(row)
            return
        for at, key in enumerate(run.keys):
            found = self.rows.pop(key)  # KeyError: not found
            if run.kind != "delete":
                for column, value in zip(run.columns, run.rows[at], strict=True):
                    found[column] = value
                self.rows[found[0], found[1]] = found


KEYS = st.sampled_from("abcd")
STEPS = st.lists(
    st.tuples(st.sampled_from(["insert", "update", "toast", "delete", "rekey"]), KEYS, KEYS, st.text(max_size=3)),
    max_size=25,
)


def history(steps: Any) -> tuple[dict[tuple[str, ...], list[Any]], list[Change], dict[tuple[str, ...], list[Any]]]:
    """What a sender could have done: rows before, its changes, rows after."""
    before: dict[tuple[str, ...], list[Any]] = {("1", k): ["1", k, "old", "big"] for k in "ab"}
    rows = {k: list(v) for k, v in before.items()}
    changes = []
    for op, key, other, text in steps:
        at = ("1", key)
        if op == "insert" and at not in rows:
            rows[at] = ["1", key, text, text]
            changes.append(insert(key, text, text))
        elif op == "update" and at in rows:
            rows[at][2:] = [text, text]
            changes.append(update(key, text, text))
        elif op == "toast" and at in rows:
            rows[at][2] = text
            changes.append(update(key, text))
        elif op == "delete" and at in rows:
            del rows[at]
            changes.append(delete(key))
        elif op == "rekey" and at in rows and ("1", other) not in rows:
            rows["1", other] = ["1", other, text, rows.pop(at)[3]]
            changes.append(update(other, text, old=key))
    return before, changes, rows


@given(STEPS)
def test_the_net_effect_would_differ_from_the_changes_one_by_one(steps: Any) -> None:
    before, changes, after = history(steps)
    for plan in (compaction.compact, compaction.one_by_one):
        table = Rows({k: list(v) for k, v in before.items()})
        for run in plan(changes):
            table.run(run)
        assert table.rows == after
    touched = compaction.touched(changes).get(TABLE, set())
    assert {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)} <= touched


def test_an_update_would_become_an_insert_of_a_row_that_is_not_whole() -> None:
    """Rule 8: a row that the copy does not have is a fault, not a row to make up."""
    (run,) = compaction.compact([update("a")])
    assert (run.kind, run.columns) == ("update", (0, 1, 2))
    with pytest.raises(KeyError):
        Rows({}).run(run)
    with pytest.raises(BrokenMessageError, match="not whole"):
        compaction.compact([insert("a", big=UNCHANGED)])


@pytest.mark.parametrize(
    "changes", [[insert("a"), insert("a")], [update("a"), insert("a")], [delete("a"), update("a")], [delete("a")] * 2]
)
def test_changes_that_cannot_follow_each_other_would_be_merged(changes: list[Change]) -> None:
    with pytest.raises(BrokenMessageError):
        compaction.compact(changes)


def test_many_changes_would_become_as_many_statements() -> None:
    changes = [insert(str(i)) for i in range(100)] + [update(str(i)) for i in range(100, 200)]
    changes += [delete(str(i)) for i in range(200, 300)] + [update("0", "last")]
    runs = compaction.compact(changes)
    assert [(run.kind, len(run.keys)) for run in runs] == [("delete", 100), ("update", 100), ("insert", 100)]
    assert runs[2].rows[0] == ("1", "0", "last", "b")
