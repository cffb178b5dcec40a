"""How the old shop writes things down: text for everything."""

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime
from typing import Final

CURRENCIES: Final = {"E": "EUR", "D": "USD", "P": "GBP"}
_MONEY: Final = re.compile(r"(\d{1,9}),(\d\d)\Z")
_SALT_BYTES: Final = 6


def money(cents: int) -> str:
    """1250 -> '12,50'."""
    return f"{cents // 100},{cents % 100:02}"


def cents(text: str) -> int:
    """'12,50' -> 1250; `ValueError` for anything else."""
    match = _MONEY.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} ist kein Betrag")
    return int(match[1]) * 100 + int(match[2])


def stamp(at: datetime) -> str:
    """'DD.MM.YYYY HH:MM:SS', by the server's clock, which is UTC."""
    return at.astimezone(UTC).strftime("%d.%m.%Y %H:%M:%S")


def moment(text: str) -> datetime:
    """The time behind a stamp."""
    return datetime.strptime(text, "%d.%m.%Y %H:%M:%S").replace(tzinfo=UTC)


def hashed(password: str, salt: str | None = None) -> str:
    """'SALT$HEX'. In 2004 this was good practice."""
    salt = secrets.token_hex(_SALT_BYTES) if salt is None else salt
    return f"{salt}${hashlib.md5((salt + password).encode()).hexdigest()}"  # noqa: S324 - what its rows hold


def matches(stored: str, password: str) -> bool:
    """Whether the password is the one behind the stored text."""
    salt, dollar, _ = stored.partition("$")
    return bool(dollar) and hmac.compare_digest(stored.encode(), hashed(password, salt).encode())
