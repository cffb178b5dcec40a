"""Our rows of one tenant as rows of the old shop, on top of the rows that it had when the tenant left."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

from cell.zero.translation import fields
from cell.zero.translation.fields import UntranslatableError
from cell.zero.translation.forward import born_here, digest_of
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
    User,
)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Backward:
    """What the old shop is to hold, or why it cannot: with any fault nothing of ``tenant`` may be written."""

    tenant: OldTenant
    faults: tuple[Fault, ...]


def missing(new: NewTenant, keys: KeyMap) -> dict[Kind, list[UUID]]:
    """The ids that the old shop has no integer for yet. Users who are gone again, but made orders, are among them."""
    known = keys.numbers
    wanted: dict[Kind, Iterable[UUID]] = {
        "user": [*(u.user_id for u in new.users), *(o.created_by for o in new.orders)],
        "product": [p.product_id for p in new.products],
        "order": [o.order_id for o in new.orders],
    }
    found = {kind: [i for i in dict.fromkeys(ids) if (kind, i) not in known] for kind, ids in wanted.items()}
    return {kind: ids for kind, ids in found.items() if ids}


@dataclass(slots=True)
class _Work:
    numbers: dict[tuple[Kind, UUID], int]
    faults: list[Fault] = field(default_factory=list)

    def each(
        self, table: str, rows: Iterable[R], name: Callable[[R], str], translate: Callable[[R], T]
    ) -> tuple[T, ...]:
        done = []
        for row in rows:
            try:
                done.append(translate(row))
            except UntranslatableError as e:
                self.faults.append(Fault(table, name(row), str(e)))
        return tuple(done)


def backward(number: int, new: NewTenant, old: OldTenant, keys: KeyMap) -> Backward:
    """Translate a whole tenant. ``keys`` must know every id that `missing` names, or `KeyError` is raised."""
    work = _Work(keys.numbers)
    tenant = OldTenant(
        ben=_ben(work, new, old),
        art=_art(work, new, old),
        aufk=_aufk(work, new, old),
        aufp=_aufp(work, new, old),
        sess=_sess(work, number, new, old),
    )
    return Backward(tenant, tuple(work.faults))


def _ben(work: _Work, new: NewTenant, old: OldTenant) -> tuple[Ben, ...]:
    before = {row.bnr: row for row in old.ben}

    def one(user: User) -> Ben:
        bnr = work.numbers["user", user.user_id]
        was = before.get(bnr)
        return Ben(
            bnr=bnr,
            login=fields.EMAIL.put(user.email, was.login if was else None),
            pwd=fields.limited(fields.PASSWORD.put(user.password_hash, was.pwd if was else None), 120),
            adr=fields.put_name(user.name, was.adr if was else None),
            rl=fields.write_role(user.role),
            anl=fields.TIME.put(user.created_at, was.anl if was else None),
        )

    return work.each("product.users", new.users, lambda user: user.email, one)


def _art(work: _Work, new: NewTenant, old: OldTenant) -> tuple[Art, ...]:
    before = {row.artnr: row for row in old.art}

    def one(product: Product) -> Art:
        artnr = work.numbers["product", product.product_id]
        was = before.get(artnr)
        return Art(
            artnr=artnr,
            best=fields.limited(product.sku, 64),
            bez=fields.limited(product.name, 200),
            pr=fields.MONEY.put(product.price_cents, was.pr if was else None),
            whg=fields.CURRENCY.put(product.currency, was.whg if was else None),
            vk=fields.fitting(product.units_sold),
            anl=fields.TIME.put(product.created_at, was.anl if was else None),
            aend=fields.TIME.put(product.updated_at, was.aend if was else None),
        )

    return work.each("product.products", new.products, lambda product: product.sku, one)


def _aufk(work: _Work, new: NewTenant, old: OldTenant) -> tuple[Aufk, ...]:
    before = {row.anr: row for row in old.aufk}

    def one(order: Order) -> Aufk:
        anr = work.numbers["order", order.order_id]
        was = before.get(anr)
        return Aufk(
            anr=anr,
            lfd=fields.fitting(order.number),
            ref=None if order.reference is None else fields.limited(order.reference, 120),
            st=fields.STATE.put(order.status, was.st if was else None),
            sum=fields.MONEY.put(order.total_cents, was.sum if was else None),
            whg=fields.CURRENCY.put(order.currency, was.whg if was else None),
            bnr=work.numbers["user", order.created_by],
            dat=fields.TIME.put(order.created_at, was.dat if was else None),
            mahn=was.mahn if was is not None else 0,
        )

    return work.each("product.orders", new.orders, lambda order: f"number {order.number}", one)


def _aufp(work: _Work, new: NewTenant, old: OldTenant) -> tuple[Aufp, ...]:
    before = {(row.anr, row.pos): row for row in old.aufp}

    def one(line: OrderLine) -> Aufp:
        anr = work.numbers["order", line.order_id]
        was = before.get((anr, line.line))
        return Aufp(
            pnr=was.pnr if was is not None else 0,
            anr=anr,
            pos=line.line,
            artnr=work.numbers["product", line.product_id],
            mg=line.quantity,
            ep=fields.MONEY.put(line.unit_price_cents, was.ep if was else None),
        )

    return work.each("product.order_lines", new.order_lines, lambda line: f"{line.order_id} line {line.line}", one)


def _sess(work: _Work, number: int, new: NewTenant, old: OldTenant) -> tuple[Sess, ...]:
    """The cookies of the old shop whose sessions still are. Sessions that a cell made have no cookie to be found by."""
    alive = {session.secret_digest: session for session in new.sessions if not born_here(number, session)}

    def one(row: Sess) -> Sess:
        session = alive[digest_of(row.sid)]
        return Sess(row.sid, work.numbers["user", session.user_id], fields.TIME.put(session.expires_at, row.bis))

    lasting = [row for row in old.sess if digest_of(row.sid) in alive]
    return work.each("sess", lasting, lambda row: f"bnr {row.bnr}", one)  # a cookie is a secret: no message names it
