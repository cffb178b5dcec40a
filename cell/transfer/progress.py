"""The rows that say how far a stream was applied here, and which keys it touched since both sides were compared."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from contracts.transfer import REMAINDER_KEYS_MAX, Keys, Stream

_BEGIN: Final = """
INSERT INTO cellwall.stream_progress (stream, tenant_id, position, marker, verified) VALUES ($1, $2, $3, $4, $4)
ON CONFLICT (stream) DO UPDATE SET tenant_id = excluded.tenant_id, position = excluded.position,
  marker = excluded.marker, verified = excluded.verified, touched = 0, updated_at = now()
"""
_READ: Final = "SELECT tenant_id, position, marker, verified, touched FROM cellwall.stream_progress WHERE stream = $1"
_ADVANCE: Final = """
UPDATE cellwall.stream_progress SET position = $3, marker = $4, touched = $5, updated_at = now()
WHERE stream = $1 AND position = $2
"""
_VERIFIED: Final = """
UPDATE cellwall.stream_progress SET verified = $2, touched = 0, updated_at = now() WHERE stream = $1 AND marker = $2
"""
_TOUCH: Final = """
INSERT INTO cellwall.stream_touched (stream, table_name, key) SELECT $1, $2, k::text[] FROM unnest($3::text::text[]) k
ON CONFLICT DO NOTHING
"""
_TOUCHED: Final = "SELECT table_name, key FROM cellwall.stream_touched WHERE stream = $1 ORDER BY table_name, key"
_UNTOUCH: Final = "DELETE FROM cellwall.stream_touched WHERE stream = $1"


@dataclass(frozen=True, slots=True)
class Progress:
    """One row. ``touched`` may be more than `REMAINDER_KEYS_MAX`: then not all of the keys were remembered."""

    tenant_id: int
    position: int
    marker: str
    verified: str
    touched: int

    @property
    def complete(self) -> bool:
        """Whether every touched key is remembered."""
        return self.touched <= REMAINDER_KEYS_MAX


async def begin(connection: Any, tenant: int, start: Stream, verified: str = "") -> None:
    """The stream continues what is here from its start on. ``verified``: it is known to be the same on both sides."""
    await connection.execute(_BEGIN, start.stream, tenant, start.position, verified)
    await connection.execute(_UNTOUCH, start.stream)


async def read(connection: Any, stream: str, *, lock: bool = False) -> Progress | None:
    """The row; with ``lock`` nobody else advances it before this transaction ends."""
    row = await connection.fetchrow(f"{_READ} FOR UPDATE" if lock else _READ, stream)
    return None if row is None else Progress(**row)


async def advance(connection: Any, stream: str, before: int, position: int, marker: str, touched: int) -> bool:
    """Compare-and-set: false where it does not stand at ``before``."""
    status = await connection.execute(_ADVANCE, stream, before, position, marker, touched)
    return bool(status == "UPDATE 1")


async def verify(connection: Any, stream: str, marker: str) -> bool:
    """What is here at that marker is what the sender has: forget the keys. False where it stands elsewhere."""
    if await connection.execute(_VERIFIED, stream, marker) != "UPDATE 1":
        return False
    await connection.execute(_UNTOUCH, stream)
    return True


async def touch(connection: Any, stream: str, keys: Mapping[str, Iterable[tuple[str, ...]]]) -> int:
    """Remember keys by table; how many are new."""
    added = 0
    for table, found in keys.items():
        status = await connection.execute(_TOUCH, stream, table, array_literal([array_literal(key) for key in found]))
        added += int(status.rpartition(" ")[2])
    return added


async def touched(connection: Any, stream: str) -> Keys:
    """The remembered keys by table."""
    keys: Keys = {}
    for row in await connection.fetch(_TOUCHED, stream):
        keys.setdefault(row["table_name"], []).append(row["key"])
    return keys


async def forget(connection: Any, stream: str) -> None:
    """Drop the row and its keys."""
    await connection.execute(_UNTOUCH, stream)
    await connection.execute("DELETE FROM cellwall.stream_progress WHERE stream = $1", stream)


async def forget_tenant(connection: Any, tenant: int) -> None:
    """Drop the rows of every stream into the tenant."""
    await connection.execute(
        "DELETE FROM cellwall.stream_touched t USING cellwall.stream_progress p"
        " WHERE p.stream = t.stream AND p.tenant_id = $1",
        tenant,
    )
    await connection.execute("DELETE FROM cellwall.stream_progress WHERE tenant_id = $1", tenant)


def array_literal(values: Iterable[Any]) -> str:
    """An array of text as PostgreSQL reads it: much cheaper than the driver's own, which looks at each value thrice."""
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def _quoted(value: str) -> str:
    if '"' in value or "\\" in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'
