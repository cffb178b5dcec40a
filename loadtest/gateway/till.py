"""What the sandbox gateway knows: charges, tombstones and refunds, in a file that outlives its process.

Every change is one transaction of SQLite, so a key has one charge or one tombstone whatever is killed, and a charge
and a cancelling that meet are in one order: the first wins.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS keys (
  key TEXT PRIMARY KEY, state TEXT NOT NULL, charge TEXT UNIQUE, method TEXT, amount_cents INTEGER, currency TEXT,
  reference TEXT, refunded INTEGER NOT NULL DEFAULT 0, cancelled INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS hooks (sink TEXT PRIMARY KEY, secret TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS delivered (
  sink TEXT NOT NULL, event TEXT NOT NULL, body TEXT NOT NULL, times INTEGER NOT NULL, PRIMARY KEY (sink, event)
);
"""
CHARGED: Final = "charged"
DECLINED: Final = "declined"
CANCELLED: Final = "cancelled"
DECLINES: Final = "declined"  # a method that begins so is declined


@dataclass(frozen=True, slots=True)
class Wish:
    """A charge as it is asked for."""

    key: str
    method: str
    amount_cents: int
    currency: str
    reference: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one key. ``charge`` is None where nothing was ever charged under it."""

    key: str
    state: str
    charge: str | None
    amount_cents: int
    currency: str
    reference: str
    refunded: bool
    cancelled: bool


@dataclass(frozen=True, slots=True)
class Delivered:
    """One event that came to a sink, how often, and what it said."""

    sink: str
    event: str
    body: str
    times: int


class OtherPayloadError(Exception):
    """The key was used for another charge."""


class Till:
    """The books of the gateway, in one file."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; {_SCHEMA}")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def charge(self, wish: Wish) -> Entry:
        """Charge once for the key, or what became of the key before. `OtherPayloadError` where it means another."""
        declined = wish.method.startswith(DECLINES)
        state, charge = (DECLINED, None) if declined else (CHARGED, f"ch_{wish.key}")
        self._db.execute(
            "INSERT INTO keys (key, state, charge, method, amount_cents, currency, reference)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (wish.key, state, charge, wish.method, wish.amount_cents, wish.currency, wish.reference),
        )
        (method,) = self._db.execute("SELECT method FROM keys WHERE key = ?", (wish.key,)).fetchone()
        found = self._entry(wish.key)
        same = (wish.method, wish.amount_cents, wish.currency, wish.reference)
        if method is not None and (method, found.amount_cents, found.currency, found.reference) != same:
            raise OtherPayloadError(wish.key)
        return found

    def cancel(self, key: str) -> Entry:
        """Leave a tombstone; what there was under the key before stays known."""
        self._db.execute(
            "INSERT INTO keys (key, state, cancelled) VALUES (?, ?, 1)"
            " ON CONFLICT (key) DO UPDATE SET cancelled = 1, state = ?",
            (key, CANCELLED, CANCELLED),
        )
        return self._entry(key)

    def refund(self, charge: str) -> Entry | None:
        """Give a charge back, once; None where there is none."""
        self._db.execute("UPDATE keys SET refunded = 1 WHERE charge = ?", (charge,))
        row = self._db.execute("SELECT key FROM keys WHERE charge = ?", (charge,)).fetchone()
        return None if row is None else self._entry(row[0])

    def entries(self, after: str, limit: int) -> list[Entry]:
        """A page of what became of the keys, in their order."""
        rows = self._db.execute("SELECT key FROM keys WHERE key > ? ORDER BY key LIMIT ?", (after, limit)).fetchall()
        return [self._entry(key) for (key,) in rows]

    def add_sink(self, sink: str, secret: str) -> None:
        """Take webhooks at a sink that are signed with this secret."""
        self._db.execute(
            "INSERT INTO hooks VALUES (?, ?) ON CONFLICT (sink) DO UPDATE SET secret = excluded.secret", (sink, secret)
        )

    def secret(self, sink: str) -> str | None:
        """What webhooks to a sink are signed with."""
        row = self._db.execute("SELECT secret FROM hooks WHERE sink = ?", (sink,)).fetchone()
        return None if row is None else str(row[0])

    def delivered(self, sink: str, event: str, body: str) -> None:
        """Note that an event came; a repeat only counts."""
        self._db.execute(
            "INSERT INTO delivered VALUES (?, ?, ?, 1) ON CONFLICT (sink, event) DO UPDATE SET times = times + 1",
            (sink, event, body),
        )

    def deliveries(self, after: str, limit: int) -> list[Delivered]:
        """A page of the events that came, in the order of ``SINK/EVENT``."""
        rows = self._db.execute(
            "SELECT sink, event, body, times FROM delivered WHERE sink || '/' || event > ?"
            " ORDER BY sink || '/' || event LIMIT ?",
            (after, limit),
        )
        return [Delivered(*row) for row in rows]

    def _entry(self, key: str) -> Entry:
        row = self._db.execute(
            "SELECT key, state, charge, coalesce(amount_cents, 0), coalesce(currency, ''), coalesce(reference, ''),"
            " refunded, cancelled FROM keys WHERE key = ?",
            (key,),
        ).fetchone()
        known, state, charge, amount_cents, currency, reference, refunded, cancelled = row
        return Entry(known, state, charge, amount_cents, currency, reference, bool(refunded), bool(cancelled))
