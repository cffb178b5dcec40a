"""Statements: SQLAlchemy Core compiled once, at import, to the text and the argument order that asyncpg takes.

The engine and its sessions cost about 700 us a read; the compiled text costs nothing (docs/adr, the cell's read).
"""

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.sql.functions import func

_DIALECT: Final = dialect.dialect()  # type: ignore[no-untyped-call]
TENANT: Final = "tenant_id"
_ENDS: Final[dict[type[Any], tuple[Any, Any]]] = {  # beyond every key of ours
    sa.BigInteger: (-(1 << 63), (1 << 63) - 1),
    sa.Uuid: (UUID(int=0), UUID(int=(1 << 128) - 1)),
}


class NotPreparableError(TypeError):
    """A statement whose text depends on its values (``IN`` of a list): use ``= ANY(:array)`` instead."""


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL text with ``$1``-style parameters, and the names of the parameters in that order."""

    text: str
    names: tuple[str, ...]
    literals: dict[str, Any]

    def arguments(self, tenant: int, values: dict[str, Any]) -> list[Any]:
        """The arguments in order. ``tenant_id`` is always the session's; a name too few or too many is an error."""
        try:
            arguments = [tenant if n == TENANT else values[n] if n in values else self.literals[n] for n in self.names]
        except KeyError as e:
            raise TypeError(f"the statement needs a value for {e.args[0]!r}") from None
        for name in values:
            if name not in self.names:
                raise TypeError(f"the statement has no parameter {name!r}")
        if TENANT in values:
            raise TypeError("tenant_id is bound by the session, never by the caller")
        return arguments


def prepare(statement: sa.Executable) -> Statement:
    """Compile a Core statement whose variable parts are ``bindparam(name)``; literals in it keep their values.

    Values go to asyncpg as they are: int, str, datetime, UUID, Decimal, bytes, lists for arrays, and anything that
    JSON can express for json and jsonb.
    """
    compiled = statement.compile(dialect=_DIALECT)  # type: ignore[attr-defined]
    if compiled.post_compile_params or compiled.literal_execute_params:
        raise NotPreparableError("its text depends on its values; use any_(bindparam(name, type_=ARRAY(...)))")
    names = tuple(compiled.positiontup or ())
    required = {b.key for b in compiled.binds.values() if b.required}
    literals = {n: v for n, v in compiled.params.items() if n not in required}
    return Statement(str(compiled), names, literals)


def above(column: sa.ColumnElement[Any], bound: sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
    """Whether the column is behind the parameter in ascending order; of all rows where that is None.

    One comparison and no OR, so that one plan, made once, finds the first page and all others by the index.
    """
    return column > func.coalesce(bound, sa.literal(_ENDS[type(column.type)][0], column.type))


def below(column: sa.ColumnElement[Any], bound: sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
    """The same in descending order."""
    return column < func.coalesce(bound, sa.literal(_ENDS[type(column.type)][1], column.type))
