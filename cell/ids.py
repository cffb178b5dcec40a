"""UUIDv7 (RFC 9562, section 5.7): keys that need no sequence, sort by time, and stay the same when a tenant moves."""

from collections.abc import Callable
from secrets import randbits
from time import time_ns
from uuid import UUID


def uuid7(clock_ns: Callable[[], int] = time_ns, random: Callable[[int], int] = randbits) -> UUID:
    """A new id: 48 bits of Unix milliseconds, 12 bits of the fraction below (method 3), 62 random bits."""
    ms, rest = divmod(clock_ns(), 1_000_000)
    value = (ms & (1 << 48) - 1) << 80 | 0x7 << 76 | (rest << 12) // 1_000_000 << 64 | 0b10 << 62 | random(62)
    return UUID(int=value)
