"""The old shop's rows of one customer as rows of ours."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from cell.zero.translation import fields
from cell.zero.translation.fields import UntranslatableError
from cell.zero.translation.ids import derived
from cell.zero.translation.rows import (
    Art,
    Aufk,
    Aufp,
    Ben,
    Fault,
    KeyMap,
    Kind,
    NewTenant,
    OldTenant,
    Order,
    OrderLine,
    Product,
    Sess,
    Session,
    User,
)

SESSION_LIFETIME: Final = timedelta(hours=12)  # the old shop notes when a session ends, not when it began
T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Forward:
    """What a customer's rows become, or why they cannot: with any fault nothing of ``tenant`` may be used."""

    tenant: NewTenant
    keys: KeyMap
    faults: tuple[Fault, ...]


@dataclass(slots=True)
class _Work:
    """One translation under way: the key map as it grows, and the faults as they are found."""

    number: int
    keys: dict[tuple[Kind, int], UUID]
    faults: list[Fault] = field(default_factory=list)

    def id_of(self, kind: Kind, key: int, at: datetime | None) -> UUID:
        found = self.keys.get((kind, key))
        if found is None:
            found = self.keys[kind, key] = derived(self.number, kind, str(key), at)
        return found

    def each(self, table: str, rows: Iterable[T], key: str, translate: Callable[[T], object]) -> list[object]:
        done = []
        for row in rows:
            try:
                done.append(translate(row))
            except UntranslatableError as e:
                self.faults.append(Fault(table, f"{key} {getattr(row, key)}", str(e)))
        return done


def forward(number: int, old: OldTenant, kept: NewTenant, keys: KeyMap, *, recount: bool = True) -> Forward:
    """Translate a whole customer; ``number`` is the tenant's. ``kept`` is what we last knew of it, empty at first.

    ``recount``: units sold are counted from the positions, as the old shop's cron job does when it comes round.
    Without, they are what its column says: what a translation back wrote must read the same before the cron job ran.
    """
    work = _Work(number, dict(keys.ids))
    users = _users(work, old, kept)
    products = _products(work, old, kept, recount)
    orders = _orders(work, old, kept)
    lines = _lines(work, old)
    sessions = _sessions(work, old, kept)
    last = max([kept.last_number, *(row.lfd for row in old.aufk)])
    tenant = NewTenant(users, products, orders, lines, sessions, last)
    return Forward(tenant, KeyMap(work.keys), tuple(work.faults))


def _users(work: _Work, old: OldTenant, kept: NewTenant) -> tuple[User, ...]:
    before = {user.user_id: user for user in kept.users}
    taken: Counter[str] = Counter()

    def one(row: Ben) -> User:
        at = fields.read_time(row.anl)
        user_id = work.id_of("user", row.bnr, at)
        known = before.get(user_id)
        email = fields.EMAIL.get(row.login, known.email if known else None)
        taken[email] += 1
        if taken[email] > 1:
            raise UntranslatableError(f"the login {email!r} is there twice")
        return _versioned(
            known,
            User(
                user_id=user_id,
                email=email,
                name=fields.get_name(row.adr, known.name if known else None),
                role=fields.read_role(row.rl),
                password_hash=fields.PASSWORD.get(row.pwd, known.password_hash if known else None),
                version=1,
                created_at=fields.TIME.get(row.anl, known.created_at if known else None),
            ),
        )

    return tuple(work.each("ben", old.ben, "bnr", one))  # type: ignore[arg-type]


def _products(work: _Work, old: OldTenant, kept: NewTenant, recount: bool) -> tuple[Product, ...]:
    before = {product.product_id: product for product in kept.products}
    sold: Counter[int] = Counter()
    for position in old.aufp:
        sold[position.artnr] += position.mg

    def one(row: Art) -> Product:
        at = fields.read_time(row.anl)
        product_id = work.id_of("product", row.artnr, at)
        known = before.get(product_id)
        return _versioned(
            known,
            Product(
                product_id=product_id,
                sku=row.best,
                name=row.bez,
                price_cents=fields.MONEY.get(row.pr, known.price_cents if known else None),
                currency=fields.CURRENCY.get(row.whg, known.currency if known else None),
                units_sold=sold[row.artnr] if recount else row.vk,
                version=1,
                created_at=fields.TIME.get(row.anl, known.created_at if known else None),
                updated_at=fields.TIME.get(row.aend, known.updated_at if known else None),
            ),
            uncounted="units_sold",
        )

    return tuple(work.each("art", old.art, "artnr", one))  # type: ignore[arg-type]


def _orders(work: _Work, old: OldTenant, kept: NewTenant) -> tuple[Order, ...]:
    before = {order.order_id: order for order in kept.orders}
    made = {row.bnr: row.anl for row in old.ben}

    def maker(bnr: int) -> UUID:
        try:
            return work.id_of("user", bnr, fields.read_time(made[bnr]) if bnr in made else None)
        except UntranslatableError:
            return work.id_of("user", bnr, None)  # its own row is a fault already

    def one(row: Aufk) -> Order:
        at = fields.read_time(row.dat)
        order_id = work.id_of("order", row.anr, at)
        known = before.get(order_id)
        return _versioned(
            known,
            Order(
                order_id=order_id,
                number=row.lfd,
                reference=row.ref,
                status=fields.STATE.get(row.st, known.status if known else None),
                total_cents=fields.MONEY.get(row.sum, known.total_cents if known else None),
                currency=fields.CURRENCY.get(row.whg, known.currency if known else None),
                created_by=maker(row.bnr),
                created_at=fields.TIME.get(row.dat, known.created_at if known else None),
                version=1,
            ),
        )

    return tuple(work.each("aufk", old.aufk, "anr", one))  # type: ignore[arg-type]


def _lines(work: _Work, old: OldTenant) -> tuple[OrderLine, ...]:
    articles = {row.artnr for row in old.art}

    def one(row: Aufp) -> OrderLine:
        if row.artnr not in articles:
            raise UntranslatableError(f"order {row.anr}, position {row.pos}: article {row.artnr} is another customer's")
        if row.mg <= 0:
            raise UntranslatableError(f"order {row.anr}, position {row.pos}: the quantity {row.mg} is not above zero")
        product = work.keys.get(("product", row.artnr))
        order = work.keys.get(("order", row.anr))
        price = fields.read_money(row.ep)
        if product is None or order is None:
            raise UntranslatableError(f"its article {row.artnr} or order {row.anr} does not translate")
        return OrderLine(order, row.pos, product, row.mg, price)

    return tuple(work.each("aufp", old.aufp, "pnr", one))  # type: ignore[arg-type]


def _sessions(work: _Work, old: OldTenant, kept: NewTenant) -> tuple[Session, ...]:
    before = {session.secret_digest: session for session in kept.sessions}
    users = {row.bnr for row in old.ben}

    def one(row: Sess) -> Session:
        digest = digest_of(row.sid)
        known = before.get(digest)
        user = work.keys.get(("user", row.bnr))
        if row.bnr not in users or user is None:
            raise UntranslatableError(f"its user {row.bnr} does not translate")
        expires = fields.TIME.get(row.bis, known.expires_at if known else None)
        if known is not None and known.user_id == user:
            return msgspec.structs.replace(known, expires_at=expires)
        return Session(session_id_of(work.number, digest), user, digest, expires - SESSION_LIFETIME, expires)

    translated: list[Session] = work.each("sess", old.sess, "bnr", one)  # type: ignore[assignment]
    ids = {user for (kind, bnr), user in work.keys.items() if kind == "user" and bnr in users}
    ours = [session for session in kept.sessions if born_here(work.number, session) and session.user_id in ids]
    return (*translated, *ours)


def digest_of(sid: str) -> bytes:
    """What our table stores of a cookie of the old shop; see `cell.access.digest`."""
    return hashlib.sha256(sid.encode()).digest()


def session_id_of(number: int, digest: bytes) -> UUID:
    """The id of the session of a cookie of the old shop."""
    return derived(number, "session", digest.hex(), None)


def born_here(number: int, session: Session) -> bool:
    """Whether the session was made by a cell: then the old shop has no cookie for it, and cannot end it either."""
    return session.session_id != session_id_of(number, session.secret_digest)


V = TypeVar("V", User, Product, Order)


def _versioned(known: V | None, row: V, *, uncounted: str = "") -> V:
    """``row`` with the version it had, or the next where the old shop changed it; ``uncounted`` is no change."""
    if known is None:
        return row
    same = msgspec.structs.replace(row, version=known.version)
    ignored = {uncounted: getattr(known, uncounted)} if uncounted else {}
    if msgspec.structs.replace(same, **ignored) == known:
        return same
    return msgspec.structs.replace(row, version=known.version + 1)
