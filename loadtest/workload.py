"""What a scheduled intent is on the wire: one rendered HTTP/1.1 request of one tenant. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from loadtest.schedule import Intent, Kind


@dataclass(frozen=True)
class Account:
    """A tenant as its own client knows it, with products to order. ``tenant`` is its id (``t1042``)."""

    tenant: str
    slug: str
    host: str
    api_key: str
    products: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A request ready to be sent, again if need be: the bytes are the same, the Idempotency-Key too."""

    kind: Kind
    payload: bytes
    key: str | None = None


def order_call(account: Account, key: str, draw: float) -> Call:
    """A create of one order. Its ``reference`` is the key, so that the books know a row from its request."""
    first = int(draw * len(account.products))
    lines = [{"product_id": account.products[first], "quantity": 1 + int(draw * 1000) % 3}]
    if int(draw * 100) % 2 and len(account.products) > 1:
        lines.append({"product_id": account.products[(first + 1) % len(account.products)], "quantity": 1})
    body = msgspec.json.encode({"lines": lines, "reference": key})
    return Call(Kind.CREATE, request(account, "POST", "/v1/orders", body, ("Idempotency-Key", key)), key)


def call(account: Account, intent: Intent, orders: Sequence[str], run: str) -> Call:
    """The request that ``intent`` stands for. ``orders`` are acknowledged orders of the tenant, at least one.

    An order that is read was acknowledged before, so a 404 for it is a failure and not bad luck.
    """
    match intent.kind:
        case Kind.CREATE:
            return order_call(account, f"{run}-{intent.number}", intent.draw)
        case Kind.READ:
            target = f"/v1/orders/{orders[int(intent.draw * len(orders))]}"
        case Kind.LIST:
            target = "/v1/orders?limit=20"
        case Kind.PRODUCT:
            target = f"/v1/products/{account.products[int(intent.draw * len(account.products))]}"
    return Call(intent.kind, request(account, "GET", target))


def request(account: Account, method: str, target: str, body: bytes | None = None, *fields: tuple[str, str]) -> bytes:
    """The bytes of a request to the tenant's host."""
    head = [f"{method} {target} HTTP/1.1", f"Host: {account.host}", f"Authorization: Bearer {account.api_key}"]
    head += [f"{name}: {value}" for name, value in fields]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode("ascii") + (body or b"")
