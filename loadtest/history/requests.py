"""A register as the product's API has it: the price of a product, read and changed by HTTP. Pure.

Changes are PATCH requests: a router sends these once only, so that one call is one operation. (A PUT may be sent to the
cell twice where its connection is lost, as RFC 9110, 9.2.2 allows: that is no single operation of anything.)
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from contracts import problems
from loadtest.history.operation import ABSENT, Kind, Outcome, State
from loadtest.wire import Answer
from loadtest.workload import Account, request

OK: Final = 200
CREATED: Final = 201
# Answers that promise that nothing was done. They are taken by their word: a history finds out where it was not so.
_NOTHING_DONE: Final = {400, 401, 403, 404, 409, 421, 429}
_NOTHING_RAN: Final = {problems.TENANT_FROZEN.type, problems.OVERLOADED.type}


@dataclass(frozen=True, slots=True)
class Register:
    """One product of a tenant."""

    account: Account
    product: str

    @property
    def key(self) -> str:
        """Its name in histories."""
        return f"{self.account.tenant}/{self.product}"


class _Product(msgspec.Struct):
    id: str
    price_cents: int
    version: int


class _Problem(msgspec.Struct):
    type: str = ""
    version: int = 0


def creation(account: Account, sku: str, value: int) -> bytes:
    """A new product that nobody orders."""
    body = {"sku": sku, "name": f"Register {sku}", "price_cents": value, "currency": "EUR"}
    return request(account, "POST", "/v1/products", msgspec.json.encode(body))


def created(account: Account, answer: Answer) -> tuple[Register, State]:
    """The register, and what it holds; `msgspec.DecodeError` where the answer is another than 201."""
    made = msgspec.json.decode(answer.body, type=_Product)
    return Register(account, made.id), State(made.price_cents, made.version)


def payload(register: Register, kind: Kind, value: int | None = None, expected: int | None = None) -> bytes:
    """The bytes of one operation."""
    target = f"/v1/products/{register.product}"
    if kind is Kind.READ:
        return request(register.account, "GET", target)
    body = {"price_cents": value} | ({} if kind is Kind.WRITE else {"version": expected})
    return request(register.account, "PATCH", target, msgspec.json.encode(body))


def told(kind: Kind, answer: Answer) -> tuple[Outcome, State | None]:
    """What the answer says of the operation. What cannot be read says nothing."""
    try:
        if answer.status == OK:
            found = msgspec.json.decode(answer.body, type=_Product)
            return Outcome.OK, State(found.price_cents, found.version)
        problem = msgspec.json.decode(answer.body, type=_Problem)
    except msgspec.DecodeError:
        return Outcome.UNKNOWN, None
    if answer.status == problems.NOT_FOUND.status and problem.type == problems.NOT_FOUND.type:
        return Outcome.OK if kind is Kind.READ else Outcome.REFUSED, ABSENT
    if answer.status == problems.CONFLICT.status and kind is Kind.SWAP and problem.version:
        return Outcome.REFUSED, State(None, problem.version)
    if answer.status in _NOTHING_DONE or problem.type in _NOTHING_RAN:
        return Outcome.FAILED, None
    return Outcome.UNKNOWN, None
