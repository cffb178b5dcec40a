"""What a scheduled intent is on the wire: one rendered HTTP/1.1 request of one tenant. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta

import msgspec

from loadtest.schedule import Intent, Kind

PAGE = 20  # orders on the first page of a list
PAID_EACH = 5  # of a tenant that has a method: every fifth order, about
BIG_ORDER_LINES = 100  # the product takes no more
BIG_BODY_BYTES = 900_000  # the product takes one MiB
SUMMARY_DAYS = 365
REPORT_DAYS = 365  # the product takes no longer period
LONG_AGO = date(2000, 12, 31)


@dataclass(frozen=True)
class Account:
    """A tenant as its own client knows it, with products to order. ``tenant`` is its id (``t1042``).

    With a ``method`` some of its orders are paid by it, at the gateway.
    """

    tenant: str
    slug: str
    host: str
    api_key: str
    products: tuple[str, ...]
    method: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A request ready to be sent, again if need be: the bytes are the same, the Idempotency-Key too.

    ``shows`` is an order that the answer has to show, because its tenant was told that it is there.
    """

    kind: Kind
    payload: bytes
    key: str | None = None
    shows: str | None = None


def order_call(account: Account, key: str, draw: float) -> Call:
    """A create of one order. Its ``reference`` is the key, so that the books know a row from its request."""
    first = int(draw * len(account.products))
    lines = [{"product_id": account.products[first], "quantity": 1 + int(draw * 1000) % 3}]
    if int(draw * 100) % 2 and len(account.products) > 1:
        lines.append({"product_id": account.products[(first + 1) % len(account.products)], "quantity": 1})
    paid = account.method if int(draw * 10_000) % PAID_EACH == 0 else ""
    return _create(account, Kind.CREATE, key, lines, method=paid)


def call(
    account: Account,
    intent: Intent,
    orders: Sequence[str],
    run: str,
    newest: str | None = None,
    today: date = LONG_AGO,
) -> Call:
    """The request that ``intent`` stands for. ``orders`` are acknowledged orders of the tenant, at least one.

    An order that is read was acknowledged before, so a 404 for it is a failure and not bad luck. ``newest`` is an
    acknowledged order that the first page of the list has to show, ``today`` the last day of a report.
    """
    kind, shows = intent.kind, None
    match kind:
        case Kind.CREATE:
            return order_call(account, f"{run}-{intent.number}", intent.draw)
        case Kind.BIG_ORDER | Kind.BIG_BODY:
            return _big_order(account, kind, f"{run}-{intent.number}")
        case Kind.READ:
            shows = orders[int(intent.draw * len(orders))]
            target = f"/v1/orders/{shows}"
        case Kind.LIST:
            shows, target = newest, f"/v1/orders?limit={PAGE}"
        case Kind.BIG_LIST:
            target = "/v1/orders?limit=200"
        case Kind.PRODUCT:
            target = f"/v1/products/{account.products[int(intent.draw * len(account.products))]}"
        case Kind.SUMMARY:
            target = f"/v1/reports/summary?days={SUMMARY_DAYS}"
        case Kind.REPORT:
            since = today - timedelta(days=REPORT_DAYS)
            asked = {"kind": "sales-by-product", "from": since.isoformat(), "to": today.isoformat()}
            return Call(kind, request(account, "POST", "/v1/reports", msgspec.json.encode(asked)))
        case Kind.UNKNOWN_HOST:
            host = f"nobody-{intent.number}.{account.host.partition('.')[2]}"
            nobody = replace(account, host=host, api_key="")  # a key would name its tenant
            return Call(kind, request(nobody, "GET", "/v1/orders"))
        case Kind.BAD_KEY:
            return Call(kind, request(replace(account, api_key=f"{account.api_key[:-8]}wrongkey"), "GET", "/v1/orders"))
        case _:
            raise ValueError(f"{kind} is no request of its own: see loadtest.lab.hogs")
    return Call(kind, request(account, "GET", target), shows=shows)


def _big_order(account: Account, kind: Kind, key: str) -> Call:
    """As many lines as an order may have, or one line in a body as large as a body may be."""
    count = BIG_ORDER_LINES if kind is Kind.BIG_ORDER else 1
    products = account.products
    lines = [{"product_id": products[n % len(products)], "quantity": 1} for n in range(count)]
    return _create(account, kind, key, lines, padding=BIG_BODY_BYTES if kind is Kind.BIG_BODY else 0)


def _create(
    account: Account,
    kind: Kind,
    key: str,
    lines: Sequence[Mapping[str, object]],
    *,
    padding: int = 0,
    method: str = "",
) -> Call:
    payment = {"payment": {"method": method}} if method else {}
    body = msgspec.json.encode({"lines": lines, "reference": key} | payment)
    body = body[:-1] + b" " * max(0, padding - len(body)) + body[-1:]
    return Call(kind, request(account, "POST", "/v1/orders", body, ("Idempotency-Key", key)), key)


def request(account: Account, method: str, target: str, body: bytes | None = None, *fields: tuple[str, str]) -> bytes:
    """The bytes of a request to the tenant's host, with its key where it has one."""
    head = [f"{method} {target} HTTP/1.1", f"Host: {account.host}"]
    head += [f"Authorization: Bearer {account.api_key}"] if account.api_key else []
    head += [f"{name}: {value}" for name, value in fields]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode("ascii") + (body or b"")
