"""Customers to try things with: the same ones for the same seed."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cell.zero.monolith import values

ARTICLES: Final = 8
_BEGAN: Final = datetime(2024, 1, 1, tzinfo=UTC)
_NAMES: Final = ("Meier", "Schulz", "Öztürk", "O'Neill", "Nowak", "Lindgren")
_TOWNS: Final = ("28195|Bremen", "20095|Hamburg", "10115|Berlin", "80331|München")


async def seed(db: Any, *, customers: int, orders: int, password: str, first: int = 1, number: int = 1) -> None:
    """So many customers with numbers from ``first`` on, each with three users, a few articles and so many orders."""
    rng = random.Random(number)  # noqa: S311 - made-up names
    pwd = values.hashed(password, f"{rng.getrandbits(48):012x}")
    async with db.transaction():
        for knr in range(first, first + customers):
            await _customer(db, rng, knr, orders, pwd)


async def _customer(db: Any, rng: random.Random, knr: int, orders: int, pwd: str) -> None:
    began = values.stamp(_BEGAN)
    town = rng.choice(_TOWNS)
    await db.execute(
        "INSERT INTO knd (knr, kz, adr, anl) VALUES ($1, $2, $3, $4)",
        knr, f"kunde-{knr}", f"{rng.choice(_NAMES)} GmbH|Hauptstr. {knr}|{town}|DE", began,
    )  # fmt: skip
    users = [
        (knr, f"{role}@Kunde-{knr}.test", pwd, f"{rng.choice(_NAMES)}|Kim|Weg {knr}|{town}", rl, began)
        for role, rl in (("Chef", 3), ("Mitarbeiter", 1), ("Leser", 0))
    ]
    bnr = [
        await db.fetchval(
            "INSERT INTO ben (knr, login, pwd, adr, rl, anl) VALUES ($1, $2, $3, $4, $5, $6) RETURNING bnr", *u
        )
        for u in users
    ]
    articles = []
    for i in range(1, ARTICLES + 1):
        price = rng.randrange(50, 20_000)
        row = (knr, f"A-{i:04}", f"Artikel {i}", values.money(price), began)
        add = "INSERT INTO art (knr, best, bez, pr, anl, aend) VALUES ($1, $2, $3, $4, $5, $5) RETURNING artnr"
        articles.append((await db.fetchval(add, *row), price))
    await _orders(db, rng, knr, orders, bnr, articles)


async def _orders(
    db: Any, rng: random.Random, knr: int, count: int, users: list[int], articles: list[tuple[int, int]]
) -> None:
    numbers = [r["n"] for r in await db.fetch("SELECT nextval('aufk_anr_seq') AS n FROM generate_series(1, $1)", count)]
    heads, lines = [], []
    for lfd, anr in enumerate(numbers, 1):
        chosen = [(*article, rng.randrange(1, 10)) for article in rng.sample(articles, rng.randrange(1, 4))]
        total = sum(price * mg for _, price, mg in chosen)
        dat = values.stamp(_BEGAN + timedelta(minutes=lfd))
        ref = f"Best. {lfd}" if lfd % 3 else None
        heads.append((anr, knr, lfd, ref, values.money(total), "E", rng.choice(users[:2]), dat))
        lines += [(anr, pos, artnr, mg, values.money(price)) for pos, (artnr, price, mg) in enumerate(chosen, 1)]
    columns = ("anr", "knr", "lfd", "ref", "sum", "whg", "bnr", "dat")
    await db.copy_records_to_table("aufk", records=heads, columns=columns)
    await db.copy_records_to_table("aufp", records=lines, columns=("anr", "pos", "artnr", "mg", "ep"))
