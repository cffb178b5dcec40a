"""What every product endpoint does the same way: strict bodies, pages and their cursors.

A cursor is the base64url text of the last row's sort key and nothing else: no cell, no epoch, no key of ours. It is
read inside the tenant's session, so one that was made up reaches the caller's own rows only, and one that was handed
out before a move works after it.
"""

import base64
import re
import struct
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar
from uuid import UUID

import msgspec

from contracts import problems

T = TypeVar("T")

PAGE_ITEMS: Final = 50
PAGE_ITEMS_MAX: Final = 200
BODY_BYTES_MAX: Final = 1 << 20

_AT: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*?)`)?$", re.DOTALL)
_MEMBER: Final = re.compile(r"^Object (?:missing required|contains unknown) field `(?P<name>.*)`$")


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A page of a list. ``next`` continues it, and is null on the last page."""

    items: list[T]
    next: str | None


class Reader(Generic[T]):
    """Decodes one kind of body, strictly: no unknown field where the type forbids it, no text for a number."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(kind)

    def __call__(self, body: bytes) -> T:
        """The body, or a `ProblemError` whose ``errors`` member names the field (RFC 9457, section 3.1.3)."""
        if len(body) > BODY_BYTES_MAX:
            raise problems.ProblemError(problems.BODY_TOO_LARGE, f"A body may have {BODY_BYTES_MAX} bytes.")
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as e:
            raise invalid(*_located(str(e))) from e
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise invalid("", f"The body is not JSON: {e}.") from e


def _located(text: str) -> tuple[str, str]:
    """The field and the sentence in a message of msgspec, which names a missing member in the sentence only."""
    match = _AT.match(text)
    what, path = (match["what"], match["path"] or "") if match else (text, "")
    member = _MEMBER.match(what)
    if member:
        path = f"{path}.{member['name']}" if path else member["name"]
    return path, what


def invalid(field: str, message: str) -> problems.ProblemError:
    """The problem of one field that is not valid; ``field`` is a path such as ``lines[0].quantity``."""
    detail = f"{field}: {message}" if field else message
    return problems.ProblemError(problems.INVALID, detail, errors=[{"field": field, "message": message}])


def page_size(limit: int) -> int:
    """``limit`` as the caller gave it, or the problem that names it."""
    if not 1 <= limit <= PAGE_ITEMS_MAX:
        raise invalid("limit", f"Expected 1 to {PAGE_ITEMS_MAX}")
    return limit


def page(rows: Sequence[T], limit: int, cursor_of: Callable[[T], str]) -> Page[T]:
    """The page that starts ``rows``, which were read with a limit of ``limit + 1`` to see whether more follow."""
    items = list(rows[:limit])
    return Page(items, cursor_of(items[-1]) if len(rows) > limit else None)


def cursor_of_id(value: UUID) -> str:
    """The cursor behind the row of this id."""
    return _text(value.bytes)


def id_of_cursor(cursor: str | None) -> UUID | None:
    """The id that a cursor holds, None at the start of the list."""
    return None if cursor is None else UUID(bytes=_bytes(cursor, 16))


def cursor_of_number(value: int) -> str:
    """The cursor behind the row of this number."""
    return _text(struct.pack(">q", value))


def number_of_cursor(cursor: str | None) -> int | None:
    """The number that a cursor holds, None at the start of the list."""
    return None if cursor is None else int(struct.unpack(">q", _bytes(cursor, 8))[0])


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(cursor: str, size: int) -> bytes:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    if len(raw) != size:
        raise invalid("cursor", "Expected the `next` of an earlier page of this list")
    return raw
