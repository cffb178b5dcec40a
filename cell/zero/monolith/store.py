"""The shop's SQL. Every function is one page's worth of work on one connection."""

import secrets
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cell.zero.monolith import values

SESSION: Final = timedelta(hours=12)
PAGE: Final = 50
_SCHEMA: Final = Path(__file__).parent / "schema.sql"


class Nonsense(Exception):  # noqa: N818
    """What the user typed cannot be done; the page shows the message."""


@dataclass(frozen=True, slots=True)
class User:
    """Who is logged in."""

    bnr: int
    knr: int
    adr: str
    rl: int


def now() -> str:
    """The present moment as the shop writes it."""
    return values.stamp(datetime.now(UTC))


async def install(db: Any) -> None:
    """Make the tables in an empty database; nothing where they are there."""
    if await db.fetchval("SELECT to_regclass('public.knd')") is None:
        await db.execute(_SCHEMA.read_text())


async def log_in(db: Any, knr: int, login: str, password: str) -> str | None:
    """A session's id, None where customer, login or password is wrong."""
    row = await db.fetchrow(
        "SELECT b.bnr, b.pwd FROM ben b JOIN knd k USING (knr)"
        " WHERE b.knr = $1 AND lower(b.login) = lower($2) AND k.gesp = 'N'",
        knr, login,
    )  # fmt: skip
    if row is None or not values.matches(row["pwd"], password):
        return None
    sid = secrets.token_hex(32)
    until = values.stamp(datetime.now(UTC) + SESSION)
    await db.execute("INSERT INTO sess (sid, bnr, bis) VALUES ($1, $2, $3)", sid, row["bnr"], until)
    return sid


async def log_out(db: Any, sid: str) -> None:
    """Forget a session."""
    await db.execute("DELETE FROM sess WHERE sid = $1", sid)


async def user_of(db: Any, sid: str) -> User | None:
    """Whose session it is, None where it is unknown or over."""
    row = await db.fetchrow(
        "SELECT b.bnr, b.knr, b.adr, b.rl, s.bis FROM sess s JOIN ben b USING (bnr) WHERE s.sid = $1", sid
    )
    if row is None or values.moment(row["bis"]) <= datetime.now(UTC):
        return None
    return User(row["bnr"], row["knr"], row["adr"], row["rl"])


async def customer(db: Any, knr: int) -> Any:
    """One customer."""
    return await db.fetchrow("SELECT * FROM knd WHERE knr = $1", knr)


async def articles(db: Any, knr: int) -> list[Any]:
    """All articles of a customer."""
    return list(await db.fetch("SELECT * FROM art WHERE knr = $1 ORDER BY artnr", knr))


async def article(db: Any, knr: int, artnr: int) -> Any:
    """One article of the customer."""
    return await db.fetchrow("SELECT * FROM art WHERE artnr = $1 AND knr = $2", artnr, knr)


async def add_article(db: Any, knr: int, best: str, bez: str, pr: str, whg: str) -> int:
    """A new article's number; an order code that is there already is overwritten, as it always was."""
    if not best or len(best) > 64 or not bez or len(bez) > 200 or whg not in values.CURRENCIES:
        raise Nonsense("Bitte alle Felder richtig ausfüllen")
    price = values.money(values.cents(pr))
    artnr: int = await db.fetchval(
        "INSERT INTO art (knr, best, bez, pr, whg, anl, aend) VALUES ($1, $2, $3, $4, $5, $6, $6)"
        " ON CONFLICT (knr, best) DO UPDATE SET bez = excluded.bez, pr = excluded.pr, whg = excluded.whg,"
        " aend = excluded.aend RETURNING artnr",
        knr, best, bez, price, whg, now(),
    )  # fmt: skip
    return artnr


async def orders(db: Any, knr: int, page: int) -> list[Any]:
    """A page of the customer's orders, the newest first."""
    return list(
        await db.fetch(
            "SELECT * FROM aufk WHERE knr = $1 ORDER BY lfd DESC LIMIT $2 OFFSET $3", knr, PAGE, (page - 1) * PAGE
        )
    )


async def order(db: Any, knr: int, *, anr: int | None, lfd: int | None) -> tuple[Any, list[Any]] | None:
    """One order of the customer with its positions, by its number or by its running number."""
    head = await db.fetchrow(
        "SELECT * FROM aufk WHERE knr = $1 AND (anr = $2 OR ($2::int IS NULL AND lfd = $3))", knr, anr, lfd
    )
    if head is None:
        return None
    lines = await db.fetch(
        "SELECT p.pos, a.best, p.mg, p.ep FROM aufp p JOIN art a USING (artnr) WHERE p.anr = $1 ORDER BY p.pos",
        head["anr"],
    )
    return head, list(lines)


async def add_order(db: Any, user: User, ref: str | None, wanted: Iterable[tuple[int, int]]) -> int:
    """A new order's number."""
    async with db.transaction():
        await db.fetchrow("SELECT knr FROM knd WHERE knr = $1 FOR UPDATE", user.knr)  # one running number at a time
        lines, total, currency = [], 0, None
        for pos, (artnr, mg) in enumerate(wanted, 1):
            row = await article(db, user.knr, artnr)
            if row is None or not 1 <= mg <= 99_999 or row["whg"] != (currency or row["whg"]):
                raise Nonsense(f"Position {pos} geht nicht")
            currency = row["whg"]
            total += values.cents(row["pr"]) * mg
            lines.append((pos, artnr, mg, row["pr"]))
        if currency is None:
            raise Nonsense("Keine Positionen")
        anr: int = await db.fetchval(
            "INSERT INTO aufk (knr, lfd, ref, sum, whg, bnr, dat) SELECT $1::int, coalesce(max(lfd), 0) + 1, $2, $3,"
            " $4, $5, $6 FROM aufk WHERE knr = $1 RETURNING anr",
            user.knr, ref, values.money(total), currency, user.bnr, now(),
        )  # fmt: skip
        await db.executemany(
            "INSERT INTO aufp (anr, pos, artnr, mg, ep) VALUES ($1, $2, $3, $4, $5)", [(anr, *line) for line in lines]
        )
    return anr


async def every_order(db: Any, knr: int) -> AsyncIterator[Any]:
    """All orders of a customer, a few at a time."""
    async with db.transaction(readonly=True):
        async for row in db.cursor("SELECT * FROM aufk WHERE knr = $1 ORDER BY lfd", knr, prefetch=500):
            yield row
