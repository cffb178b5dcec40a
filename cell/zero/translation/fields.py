"""Single values: how the old shop writes them, and how we do. `Untranslatable` carries the reason in words."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_TIME: Final = re.compile(r"(\d\d)\.(\d\d)\.(\d{4}) (\d\d):(\d\d):(\d\d)")
_MONEY: Final = re.compile(r"(\d{1,15})(?:,(\d{1,2}))?")
_SMALL_MAX: Final = 2**15 - 1
_INT_MAX: Final = 2**31 - 1
MONEY_CHARS: Final = 20
OLD_PASSWORD: Final = "old$"  # noqa: S105 - the mark of a hash that the old shop made, before its own SALT$HEX
NO_PASSWORD: Final = "$!"  # noqa: S105 - an empty salt and a hash that no password has

_CURRENCIES: Final = {"E": "EUR", "D": "USD", "P": "GBP"}
_CURRENCY_LETTERS: Final = {code: letter for letter, code in _CURRENCIES.items()}
_ROLES: Final = ("viewer", "member", "admin", "owner")
_STATES: Final = {"N": "created"}


class UntranslatableError(ValueError):
    """A value that the other side has no way to say."""


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """One column. ``decode`` reads the old shop's text, ``encode`` writes it; both raise `UntranslatableError`."""

    decode: Callable[[str], T]
    encode: Callable[[T], str]

    def get(self, text: str, kept: T | None) -> T:
        """Our value: the one we had, while the old shop still says it; else what it says now."""
        if kept is not None:
            try:
                if self.encode(kept) == text:
                    return kept
            except UntranslatableError:
                pass  # then it is not what the text says
        return self.decode(text)

    def put(self, value: T, old: str | None) -> str:
        """The old shop's text: the one it had, while it says the same; else the value in its usual spelling."""
        if old is not None:
            try:
                if self.decode(old) == value:
                    return old
            except UntranslatableError:
                pass  # somebody wrote nonsense there since
        return self.encode(value)


def read_time(text: str) -> datetime:
    """'DD.MM.YYYY HH:MM:SS', UTC."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise UntranslatableError(f"{text!r} is no time (DD.MM.YYYY HH:MM:SS)")
    day, month, year, hour, minute, second = map(int, match.groups())
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as e:
        raise UntranslatableError(f"{text!r} is no time: {e}") from None


def write_time(value: datetime) -> str:
    """The inverse of `read_time`; what is below a second is not said."""
    v = value.astimezone(UTC)
    return f"{v.day:02}.{v.month:02}.{v.year:04} {v.hour:02}:{v.minute:02}:{v.second:02}"


def read_money(text: str) -> int:
    """'12', '12,5' or '12,50' as cents."""
    match = _MONEY.fullmatch(text.strip(" "))
    if match is None:
        raise UntranslatableError(f"{text!r} is no amount (12,50)")
    return int(match[1]) * 100 + int((match[2] or "").ljust(2, "0"))


def write_money(cents: int) -> str:
    """The inverse of `read_money`."""
    if cents < 0 or cents >= 10**17:
        raise UntranslatableError(f"{cents} cents do not fit into {MONEY_CHARS} characters")
    return f"{cents // 100},{cents % 100:02}"


def read_currency(letter: str) -> str:
    """'E' as 'EUR'."""
    try:
        return _CURRENCIES[letter]
    except KeyError:
        raise UntranslatableError(f"the currency {letter!r} is none of {', '.join(_CURRENCIES)}") from None


def write_currency(code: str) -> str:
    """The inverse of `read_currency`."""
    try:
        return _CURRENCY_LETTERS[code]
    except KeyError:
        known = ", ".join(_CURRENCY_LETTERS)
        raise UntranslatableError(f"the old shop has no letter for the currency {code}, only for {known}") from None


def read_role(level: int) -> str:
    """0 looks, 1 works, 2 manages, 3 owns."""
    if not 0 <= level < len(_ROLES):
        raise UntranslatableError(f"the level {level} is none of 0 to {len(_ROLES) - 1}")
    return _ROLES[level]


def write_role(role: str) -> int:
    """The inverse of `read_role`."""
    try:
        return _ROLES.index(role)
    except ValueError:
        raise UntranslatableError(f"the old shop has no level for the role {role!r}") from None


def read_state(letter: str) -> str:
    """'N' as 'created'."""
    try:
        return _STATES[letter]
    except KeyError:
        raise UntranslatableError(f"the state {letter!r} is none of {', '.join(_STATES)}") from None


def write_state(status: str) -> str:
    """The inverse of `read_state`. An order that is not simply there is none that the old shop could show as new."""
    for letter, known in _STATES.items():
        if known == status:
            return letter
    raise UntranslatableError(f"the old shop has no state for an order that is {status!r}")


def read_name(adr: str) -> str:
    """The name in 'surname|first name|street|postcode|town'."""
    parts = adr.split("|")
    surname, first = parts[0], parts[1] if len(parts) > 1 else ""
    name = f"{first} {surname}" if first and surname else first or surname
    if not name:
        raise UntranslatableError(f"{adr!r} names nobody (surname|first name|...)")
    return name


def write_name(name: str) -> str:
    """'surname|first name'; a pipe cannot be said, and shows as a slash."""
    first, _, surname = name.replace("|", "/").rpartition(" ")
    if not first or not surname:
        first, surname = "", name.replace("|", "/")
    return f"{surname}|{first}"


def put_name(name: str, old: str | None) -> str:
    """The whole column: the address behind the name stays what it was."""
    if old is None:
        return limited(write_name(name) + "|||", 400)
    try:
        if read_name(old) == name:
            return old
    except UntranslatableError:
        pass  # somebody emptied it since
    rest = old.split("|")[2:] or ["", "", ""]
    return limited("|".join([write_name(name), *rest]), 400)


def get_name(adr: str, kept: str | None) -> str:
    """The name: the one we had, while the old shop still says it."""
    if kept is not None and "|".join((adr + "|").split("|")[:2]) == write_name(kept):
        return kept
    return read_name(adr)


def read_password(pwd: str) -> str:
    """A hash of the old shop as one of ours: marked, so that `Passwords` knows how to verify it."""
    return OLD_PASSWORD + pwd


def write_password(stored: str) -> str:
    """Its own hash, or one that no password has: the old shop cannot verify ours, so the user has to set a new one."""
    return stored[len(OLD_PASSWORD) :] if stored.startswith(OLD_PASSWORD) else NO_PASSWORD


def limited(text: str, chars: int) -> str:
    """The text, where the column has room for it."""
    if len(text) > chars:
        raise UntranslatableError(f"{len(text)} characters do not fit into {chars}")
    return text


def fitting(value: int, *, small: bool = False) -> int:
    """The number, where the column (integer, or smallint) has room for it."""
    if not 0 <= value <= (_SMALL_MAX if small else _INT_MAX):
        raise UntranslatableError(f"{value} does not fit into the column")
    return value


TIME: Final = Codec(read_time, write_time)
MONEY: Final = Codec(read_money, write_money)
CURRENCY: Final = Codec(read_currency, write_currency)
PASSWORD: Final = Codec(read_password, write_password)
STATE: Final = Codec(read_state, write_state)
EMAIL: Final = Codec(lambda login: login.lower(), lambda email: limited(email, 254))
