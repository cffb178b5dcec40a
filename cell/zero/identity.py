"""Whose data a request of the old shop means. This is what an ambassador must know of its monolith, and all of it.

The envelope says which tenant's traffic it is; the monolith goes by its cookie and by the customer number that it is
told. If they could differ, a browser at one tenant's host could write to another tenant that is frozen or has moved.
"""

import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import parse_qs

from cell.shards.borrowing import borrowed
from cell.shards.errors import DATABASE_FAILED, ShardUnavailableError
from cell.shards.session import Pool
from contracts import problems
from contracts.problems import ProblemError

COOKIE: Final = "SITZUNG"
LOGIN: Final = "/anmelden.php"  # the one form that names a customer
CUSTOMER: Final = "knr"
FORM_BYTES_MAX: Final = 1 << 16  # of the login form
_TIMEOUT_S: Final = 2.0
_OWNERS: Final = "SELECT DISTINCT b.knr FROM sess s JOIN ben b USING (bnr) WHERE s.sid = ANY($1::varchar[])"
# However often and wherever it stands: what the monolith's own parser makes of two of them is not ours to know. Nor do
# we unquote: a session in quotes or with escapes is no session that the shop gave out.
_SESSION: Final = re.compile(rf"{COOKIE}\s*=\s*([^;\s]*)")
_PLAIN: Final = re.compile(r"[0-9A-Za-z_-]{0,128}\Z")


def sessions_in(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Every session that the request's cookies name."""
    texts = [value.decode("latin-1") for name, value in headers if name == b"cookie"]
    return [sid for text in texts for sid in _SESSION.findall(text)]


def customers_in(query: bytes, form: bytes) -> set[str]:
    """Every customer number that the query and the form name, as they are written."""
    texts = (query.decode("latin-1"), form.decode("utf-8", "replace"))
    return {value.strip() for text in texts for value in parse_qs(text).get(CUSTOMER, [])}


def check_named(named: Iterable[str], knr: int) -> None:
    """The problem where a customer number is not this tenant's."""
    if any(value != str(knr) for value in named):
        raise ProblemError(problems.FORBIDDEN, "The customer number is not this tenant's.")


class Sessions:
    """The monolith's sessions, read in its database."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def check(self, headers: Iterable[tuple[bytes, bytes]], knr: int) -> None:
        """The problem where a session belongs to another customer. One that nobody knows is nobody's."""
        sids = [sid for sid in sessions_in(headers) if sid]
        if not sids:
            return
        if not all(_PLAIN.match(sid) for sid in sids):
            raise ProblemError(problems.UNAUTHENTICATED, "The session is not one that was given out here.")
        try:
            async with borrowed(self._pool, _TIMEOUT_S) as connection:
                owners: list[Any] = await connection.fetch(_OWNERS, sids)
        except DATABASE_FAILED as e:
            raise ShardUnavailableError(f"the monolith's database: {type(e).__name__}") from e
        if any(row["knr"] != knr for row in owners):
            raise ProblemError(problems.UNAUTHENTICATED, "The session is not this tenant's.")
