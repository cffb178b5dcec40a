"""The books of what happened outside: charges at the gateway and webhooks that came, against the orders. Pure.

Rows alone cannot tell whether a customer was charged twice. The gateway can: it is no part of the fleet, and has books
of its own.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

CONFIRMED = "confirmed"
CANCELLED = "cancelled"
EXAMPLES = 5


class Amiss(StrEnum):
    """What can be wrong outside."""

    UNSETTLED = "unsettled"  # an order that is pending long after the traffic
    UNCHARGED = "uncharged"  # confirmed, and nobody paid
    OVERCHARGED = "overcharged"  # charged, and it should not have been, or not so much, or not again
    MISSING = "missing"  # its client was told that it is to be paid, and no cell has it
    UNTOLD = "untold"  # the merchant's server never heard how it ended
    TOLD_TWICE = "told twice"  # it heard of two ends, or of one under two ids
    MADE_UP = "made up"  # it heard of an order that no cell has, or that is another merchant's


@dataclass(frozen=True, slots=True)
class Paid:
    """An order that is to be paid, as the cell has it that serves its tenant."""

    tenant: str
    order: str
    status: str
    cents: int
    currency: str


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge that the gateway made; ``standing`` until it is given back. ``order`` is what it was made for."""

    key: str
    order: str
    cents: int
    currency: str
    standing: bool


@dataclass(frozen=True, slots=True)
class Told:
    """An event that came to the server of a tenant, ``times`` under the same id."""

    tenant: str
    event: str
    type: str
    order: str
    times: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, in words."""

    amiss: Amiss
    words: str


@dataclass(frozen=True)
class Effects:
    """The result. ``repeats`` are deliveries that came more than once under one id, as they may."""

    orders: int
    confirmed: int
    cancelled: int
    refunded: int
    told: int
    repeats: int
    findings: tuple[Finding, ...]

    @property
    def balanced(self) -> bool:
        """Nothing is wrong."""
        return not self.findings

    def charges(self) -> str:
        """The charges in one line."""
        wrong = self._wrong(Amiss.UNSETTLED, Amiss.UNCHARGED, Amiss.OVERCHARGED, Amiss.MISSING)
        once = f"{self.confirmed} of {self.orders} paid orders confirmed and charged once"
        return f"{once}, {self.cancelled} cancelled, {self.refunded} charges given back; {wrong}"

    def webhooks(self) -> str:
        """The webhooks in one line."""
        wrong = self._wrong(Amiss.UNTOLD, Amiss.TOLD_TWICE, Amiss.MADE_UP)
        return f"{self.told} events came ({self.repeats} again); {wrong}"

    def examples(self) -> Sequence[str]:
        """What is wrong, up to a few."""
        lines = [f"{finding.amiss}: {finding.words}" for finding in self.findings[:EXAMPLES]]
        if len(self.findings) > EXAMPLES:
            lines.append(f"and {len(self.findings) - EXAMPLES} more")
        return lines

    def _wrong(self, *kinds: Amiss) -> str:
        return ", ".join(f"{sum(f.amiss is kind for f in self.findings)} {kind}" for kind in kinds)


def audit(
    paid: Iterable[Paid],
    charges: Iterable[Charge],
    told: Iterable[Told],
    listening: Iterable[str],
    promised: Mapping[str, str] = MappingProxyType({}),
) -> Effects:
    """Compare. ``charges`` and ``told`` are of these tenants only; those of ``listening`` have a server to be told.

    ``promised`` are the orders, with their tenants, that clients were told to be there and on their way to be paid.
    """
    orders = list(paid)
    known = {order.order: order.tenant for order in orders}
    by_order: dict[str, list[Charge]] = defaultdict(list)
    for charge in charges:
        by_order[charge.order].append(charge)
    ends: dict[str, list[Told]] = defaultdict(list)
    for each in told:
        ends[each.order].append(each)
    findings = [finding for order in orders for finding in _of_charges(order, by_order.get(order.order, []))]
    listeners = frozenset(listening)
    findings += [f for order in orders if order.tenant in listeners for f in _of_ends(order, ends.get(order.order, []))]
    findings += _strays(by_order, known)
    findings += [
        Finding(Amiss.MISSING, f"order {order} of {tenant} was acknowledged as to be paid, and no cell has it so")
        for order, tenant in promised.items()
        if known.get(order) != tenant
    ]
    findings += [
        Finding(Amiss.MADE_UP, f"the server of {each.tenant} heard {each.type} of {order}, which is no order of its")
        for order, heard in ends.items()
        for each in heard
        if known.get(order) != each.tenant
    ]
    every = [charge for found in by_order.values() for charge in found]
    return Effects(
        orders=len(orders),
        confirmed=sum(order.status == CONFIRMED for order in orders),
        cancelled=sum(order.status == CANCELLED for order in orders),
        refunded=sum(not charge.standing for charge in every),
        told=sum(len(found) for found in ends.values()),
        repeats=sum(each.times - 1 for found in ends.values() for each in found),
        findings=tuple(findings),
    )


def _of_charges(order: Paid, charges: Sequence[Charge]) -> list[Finding]:
    who = f"order {order.order} of {order.tenant}, {order.status}, {order.cents} {order.currency}"
    standing = [charge for charge in charges if charge.standing]
    if order.status not in (CONFIRMED, CANCELLED):
        return [Finding(Amiss.UNSETTLED, f"{who}: {len(standing)} charges stand")]
    wanted = [(order.cents, order.currency)] if order.status == CONFIRMED and order.cents else []
    found = [(charge.cents, charge.currency) for charge in standing]
    if found == wanted:
        return []
    amiss = Amiss.UNCHARGED if not found else Amiss.OVERCHARGED
    return [Finding(amiss, f"{who}: the charges that stand are {found}")]


def _of_ends(order: Paid, told: Sequence[Told]) -> list[Finding]:
    if order.status not in (CONFIRMED, CANCELLED):
        return []
    found = [each.type for each in told if each.tenant == order.tenant]
    if found == [f"order.{order.status}"]:
        return []
    amiss = Amiss.TOLD_TWICE if len(found) > 1 else Amiss.UNTOLD
    return [Finding(amiss, f"order {order.order} of {order.tenant}, {order.status}: its server heard {found}")]


def _strays(by_order: Mapping[str, Sequence[Charge]], known: Collection[str]) -> list[Finding]:
    return [
        Finding(
            Amiss.OVERCHARGED, f"a charge of {charge.cents} {charge.currency} stands for {order}, which no cell has"
        )
        for order, charges in by_order.items()
        if order not in known
        for charge in charges
        if charge.standing
    ]
