"""Customers of the old shop and tenants of ours, as they may be; for the laws of the translation."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from cell.zero.translation import fields, rows
from cell.zero.translation.forward import digest_of, session_id_of
from cell.zero.translation.ids import derived
from cell.zero.translation.rows import KeyMap, NewTenant, OldTenant

NUMBER = 1042
_printable = st.characters(min_codepoint=32, exclude_categories=["Cs"])
text = st.text(_printable, max_size=12)
piece = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"], exclude_characters="|"), max_size=8)
_FIRST = datetime(1990, 1, 1, tzinfo=UTC)
instants = st.timedeltas(timedelta(), timedelta(days=40_000)).map(lambda passed: _FIRST + passed)
seconds = instants.map(lambda t: t.replace(microsecond=0))
old_times = seconds.map(fields.write_time)
cents = st.integers(0, 10**12)
# As people wrote them: '12', '12,5', '12,50', ' 12,50'.
old_money = st.one_of(
    cents.map(fields.write_money),
    st.integers(0, 10**6).map(str),
    st.integers(0, 10**6).map(lambda n: f"{n},5"),
    cents.map(lambda n: " " + fields.write_money(n)),
)
letters = st.sampled_from("EDP")
hashes = st.one_of(text.map(lambda t: f"{t}$0123"), st.just("$!"), st.just(""))


@st.composite
def old_tenants(draw: st.DrawFn) -> OldTenant:
    """A customer whose every row translates."""
    adr = st.tuples(piece.filter(bool), piece, piece, piece).map("|".join) | piece.filter(bool)
    logins = draw(st.lists(text.filter(bool), max_size=4, unique_by=str.lower))
    ben = tuple(
        rows.Ben(n, login, draw(hashes), draw(adr), draw(st.integers(0, 3)), draw(old_times))
        for n, login in enumerate(logins, 11)
    )
    codes = draw(st.lists(text.filter(bool), max_size=4, unique=True))
    art = tuple(
        rows.Art(n, best, draw(text), draw(old_money), draw(letters), draw(st.integers(0, 9)), draw(old_times),
                 draw(old_times))
        for n, best in enumerate(codes, 21)
    )  # fmt: skip
    makers = st.sampled_from([*(b.bnr for b in ben), 99])  # 99 is gone
    aufk = tuple(
        rows.Aufk(30 + lfd, lfd, draw(st.none() | text), "N", draw(old_money), draw(letters), draw(makers),
                  draw(old_times), draw(st.integers(0, 3)))
        for lfd in range(1, draw(st.integers(0, 4)) + 1)
    )  # fmt: skip
    aufp = tuple(
        rows.Aufp(100 * head.anr + pos, head.anr, pos, draw(st.sampled_from(art)).artnr, draw(st.integers(1, 99)),
                  draw(old_money))
        for head in (aufk if art else ())
        for pos in range(1, draw(st.integers(0, 3)) + 1)
    )  # fmt: skip
    sids = draw(st.lists(text.filter(bool), max_size=3, unique=True)) if ben else []
    sess = tuple(rows.Sess(sid, draw(st.sampled_from(ben)).bnr, draw(old_times)) for sid in sids)
    return OldTenant(ben, art, aufk, aufp, sess)


@st.composite
def changed(draw: st.DrawFn, tenant: NewTenant, keys: KeyMap, sids: tuple[str, ...]) -> NewTenant:
    """What may have become of a tenant in a cell: rows changed, added and removed, in everything that ours can say."""

    def some(items: tuple[Any, ...]) -> list[Any]:
        return [item for item in items if draw(st.booleans())]

    users = [draw(_user(user)) for user in some(tenant.users)]
    users += [draw(_user(None, n)) for n in range(draw(st.integers(0, 2)))]
    users = _unique(users, "email")
    products = [draw(_product(product)) for product in some(tenant.products)]
    products += [draw(_product(None, n)) for n in range(draw(st.integers(0, 2)))]
    products = _unique(products, "sku")
    orders, lines = [], []
    for number in range(1, draw(st.integers(0, 4)) + 1) if users and products else ():
        known = {order.number: order for order in tenant.orders}.get(number)
        order_id = known.order_id if known else derived(NUMBER, "fresh order", str(number), None)
        orders.append(
            rows.Order(order_id, number, draw(st.none() | text), "created", draw(cents),
                       draw(st.sampled_from(["EUR", "USD", "GBP"])), draw(st.sampled_from(users)).user_id,
                       draw(instants), draw(st.integers(1, 9)))
        )  # fmt: skip
        for line in range(1, draw(st.integers(0, 3)) + 1):
            product = draw(st.sampled_from(products)).product_id
            lines.append(rows.OrderLine(order_id, line, product, draw(st.integers(1, 99)), draw(cents)))
    digests = [digest_of(sid) for sid in sids if draw(st.booleans())] + [draw(st.binary(min_size=32, max_size=32))]
    sessions = [
        rows.Session(
            session_id_of(NUMBER, d) if d in map(digest_of, sids) else derived(NUMBER, "fresh session", d.hex(), None),
            draw(st.sampled_from(users)).user_id, d, draw(instants), draw(instants),
        )
        for d in (digests if users else ())
    ]  # fmt: skip
    last = draw(st.integers(len(orders), 9))
    return NewTenant(tuple(users), tuple(products), tuple(orders), tuple(lines), tuple(sessions), last)


@st.composite
def _user(draw: st.DrawFn, was: rows.User | None, n: int = 0) -> rows.User:
    return rows.User(
        user_id=was.user_id if was else derived(NUMBER, "fresh user", str(n), None),
        email=draw(st.just(was.email) | text.map(str.lower) if was else text.map(str.lower)),
        name=draw(st.just(was.name) | text.filter(bool) if was else text.filter(bool)),
        role=draw(st.sampled_from(["viewer", "member", "admin", "owner"])),
        password_hash=draw(st.just(was.password_hash) | st.just("$argon2id$x") if was else st.just("$argon2id$y")),
        version=draw(st.integers(1, 9)),
        created_at=draw(instants),
    )


@st.composite
def _product(draw: st.DrawFn, was: rows.Product | None, n: int = 0) -> rows.Product:
    return rows.Product(
        product_id=was.product_id if was else derived(NUMBER, "fresh product", str(n), None),
        sku=draw(text),
        name=draw(text),
        price_cents=draw(st.just(was.price_cents) | cents if was else cents),
        currency=draw(st.sampled_from(["EUR", "USD", "GBP"])),
        units_sold=draw(st.integers(0, 10**6)),
        version=draw(st.integers(1, 9)),
        created_at=draw(instants),
        updated_at=draw(instants),
    )


def _unique(items: list[Any], name: str) -> list[Any]:
    return list({getattr(item, name): item for item in items}.values())
