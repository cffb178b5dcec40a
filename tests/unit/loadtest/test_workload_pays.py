"""Which orders of the driver are paid: of a tenant with a method every fifth, of others none."""

import msgspec

from loadtest.outside import METHOD
from loadtest.workload import Account, order_call

DRAWS = [n / 1009 for n in range(1009)]


def share_paid(method: str) -> float:
    account = Account("t1", "acme", "acme.example.test", "key", ("p1", "p2"), method)
    bodies = [msgspec.json.decode(order_call(account, f"k{n}", draw).payload.partition(b"\r\n\r\n")[2])
              for n, draw in enumerate(DRAWS)]  # fmt: skip
    assert all(body.get("payment", {"method": METHOD}) == {"method": METHOD} for body in bodies)
    return sum("payment" in body for body in bodies) / len(bodies)


def test_a_tenant_without_a_method_pays() -> None:
    assert share_paid("") == 0


def test_nobody_pays_or_everybody() -> None:
    assert 0.15 < share_paid(METHOD) < 0.25
