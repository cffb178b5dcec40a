"""PostgreSQL's logical replication messages (protocol version 1 of ``pgoutput``), read without any I/O.

The sender looks only at where transactions and markers end; the receiver reads rows. Values are text, as the server
printed them under pinned settings.

Format: PostgreSQL documentation, "Logical Replication Message Formats".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct, error
from typing import Any, Final, Literal

MARKER_PREFIX: Final = "cellwall"
_U32: Final = Struct("!I")
_U16: Final = Struct("!H")
_COMMIT: Final = Struct("!BQQQ")
_LOGICAL: Final = Struct("!BQ")


class Tag(IntEnum):
    """The first byte of a message."""

    BEGIN = ord("B")
    COMMIT = ord("C")
    ORIGIN = ord("O")
    MESSAGE = ord("M")
    RELATION = ord("R")
    TYPE = ord("Y")
    INSERT = ord("I")
    UPDATE = ord("U")
    DELETE = ord("D")
    TRUNCATE = ord("T")


CHANGES: Final = frozenset({Tag.INSERT, Tag.UPDATE, Tag.DELETE})


class BrokenMessageError(ValueError):
    """Bytes that are no message of the protocol, or one that a stream of ours never has."""


class _Unchanged:
    """The one value that says: a large value that the UPDATE did not touch, and the stream does not carry."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = _Unchanged()
Value = str | None | _Unchanged
Row = tuple[Value, ...]
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """A table as the stream describes it. ``key``: where its key's columns stand in ``columns``.

    One object stands for one description, so that it is a cheap key of dictionaries.
    """

    schema: str
    name: str
    columns: tuple[str, ...]
    key: tuple[int, ...]

    @property
    def label(self) -> str:
        """As tables are called in checksums."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Change:
    """One row. ``key`` after the change, or of the row that went; ``old`` before, where a delete or a new key says it.

    ``row`` is empty for a delete.
    """

    op: Literal["insert", "update", "delete"]
    relation: Relation
    key: Key
    row: Row = ()
    old: Key | None = None


def key_of(relation: Relation, row: Sequence[Value]) -> Key:
    """The key's values; every one is there, or the message is broken."""
    key = tuple([row[i] for i in relation.key])
    if not key or None in key or UNCHANGED in key:
        raise BrokenMessageError(f"{relation.label}: a row without its key")
    return key  # type: ignore[return-value]


def commit_end(message: bytes) -> int:
    """The position after a commit."""
    return int(_COMMIT.unpack_from(message, 1)[2])


def marker(message: bytes) -> str | None:
    """The text of a logical message of ours; None for one of somebody else."""
    prefix, end = _text(message, 1 + _LOGICAL.size)
    if prefix != MARKER_PREFIX:
        return None
    size = _U32.unpack_from(message, end)[0]
    return bytes(message[end + 4 : end + 4 + size]).decode()


def relation_id(message: bytes) -> int:
    """Which relation a RELATION, INSERT, UPDATE or DELETE message is about."""
    return int(_U32.unpack_from(message, 1)[0])


class Decoder:
    """Reads rows. Keeps the relations that it was told about."""

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}
        self._described: dict[int, bytes] = {}

    def change(self, message: bytes) -> Change | None:
        """The row change in a message, None where it has none; `BrokenMessageError` for what must not be there."""
        try:
            tag = Tag(message[0])
            if tag is Tag.RELATION:
                self._describe(relation_id(message), message)
            elif tag is Tag.TRUNCATE:
                raise BrokenMessageError("a TRUNCATE, which no tenant may do")
            elif tag in CHANGES:
                return self._change(tag, message)
        except (error, IndexError, KeyError, UnicodeDecodeError) as e:
            raise BrokenMessageError(f"{type(e).__name__}: {e}") from e
        except ValueError as e:
            raise BrokenMessageError(str(e)) from e
        return None

    def _describe(self, oid: int, message: bytes) -> None:
        if self._described.get(oid) != message:  # the server repeats itself
            self._relations[oid] = _relation(message)
            self._described[oid] = message

    def _change(self, tag: Tag, message: bytes) -> Change:
        relation = self._relations[relation_id(message)]
        part, at = message[5], 6
        old: Key | None = None
        if part in b"KO":
            before, at = _row(message, at)
            old = key_of(relation, _fitting(relation, before))
            if tag is Tag.DELETE:
                return Change("delete", relation, old, (), old)
            part, at = message[at], at + 1
        if part != ord("N") or tag is Tag.DELETE:
            raise BrokenMessageError(f"{relation.label}: an unknown kind of row")
        row = _fitting(relation, _row(message, at)[0])
        return Change("insert" if tag is Tag.INSERT else "update", relation, key_of(relation, row), row, old)


def _fitting(relation: Relation, row: Row) -> Row:
    if len(row) != len(relation.columns):
        raise BrokenMessageError(f"{relation.label}: {len(row)} values for {len(relation.columns)} columns")
    return row


def _text(message: bytes, at: int) -> tuple[str, int]:
    end = message.index(b"\0", at)
    return message[at:end].decode(), end + 1


def _relation(message: bytes) -> Relation:
    schema, at = _text(message, 5)
    name, at = _text(message, at)
    count, at = _U16.unpack_from(message, at + 1)[0], at + 3
    columns, key = [], []
    for index in range(count):
        if message[at] & 1:
            key.append(index)
        column, at = _text(message, at + 1)
        columns.append(column)
        at += 8
    return Relation(schema, name, tuple(columns), tuple(key))


def _row(message: bytes, at: int) -> tuple[Row, int]:
    count, at = _U16.unpack_from(message, at)[0], at + 2
    values: list[Any] = []
    for _ in range(count):
        kind = message[at]
        if kind == 0x74:  # 't'
            start = at + 5
            at = start + int.from_bytes(message[at + 1 : start], "big")
            values.append(message[start:at].decode())
        elif kind == 0x6E:  # 'n'
            at += 1
            values.append(None)
        elif kind == 0x75:  # 'u'
            at += 1
            values.append(UNCHANGED)
        else:
            raise BrokenMessageError("a value of unknown kind")
    if at > len(message):
        raise BrokenMessageError("a value that is cut")
    return tuple(values), at
