"""Ids for rows of the old shop: the same row gets the same id whenever it is translated, also before it is noted."""

import hashlib
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

_TICKS: Final = 1 << 74
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def derived(tenant: int, kind: str, key: str, at: datetime | None) -> UUID:
    """A UUID in the layout of version 7 (RFC 9562), so that lists by id keep the order of creation. In the place of
    random bits it has those of a hash of tenant, kind and key; without ``at`` its time is the Unix epoch."""
    ms = max(0, int((at - _EPOCH).total_seconds() * 1000)) if at is not None else 0
    digest = hashlib.blake2b(f"{tenant}/{kind}/{key}".encode(), digest_size=10).digest()
    bits = int.from_bytes(digest, "big") % _TICKS
    high, low = bits >> 62, bits & (1 << 62) - 1
    return UUID(int=(ms & (1 << 48) - 1) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)
