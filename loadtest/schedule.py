"""The open-loop schedule: every request's time, tenant and kind, fixed before the first one is sent. Pure.

Arrivals are Poisson per tenant; tenants weigh like Zipf's law, so the first is the busiest by far. The schedule is a
function of its arguments: the same seed gives the same schedule, byte for byte. Nothing in it depends on how the
system under test answers; that is what keeps a slow system from slowing the measurement down with it.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Kind(StrEnum):
    """What a request does. `CREATE` is the only write, and carries an Idempotency-Key."""

    CREATE = "order create"
    READ = "order read"
    LIST = "order list"
    PRODUCT = "product read"


DEFAULT_MIX: Mapping[Kind, float] = {Kind.CREATE: 0.35, Kind.READ: 0.35, Kind.LIST: 0.10, Kind.PRODUCT: 0.20}


@dataclass(frozen=True, slots=True)
class Intent:
    """One request to be sent ``at`` seconds after the start, whatever happened to those before it.

    ``draw`` in [0, 1) settles what the schedule cannot know yet, such as which of the tenant's orders is read.
    """

    number: int
    at: float
    tenant: int
    kind: Kind
    draw: float


@dataclass(frozen=True)
class Traffic:
    """What to offer: ``rate`` is requests a second over all tenants, ``skew`` is Zipf's exponent (0 is even)."""

    tenants: int
    rate: float
    seconds: float
    seed: int
    skew: float = 1.0
    mix: Mapping[Kind, float] = field(default_factory=lambda: DEFAULT_MIX)

    def __post_init__(self) -> None:
        if self.tenants < 1 or self.rate <= 0 or self.seconds <= 0:
            raise ValueError("traffic needs at least one tenant, a rate and a duration above zero")
        if min(self.mix.values()) < 0 or sum(self.mix.values()) <= 0:
            raise ValueError("the mix needs weights of zero or more, and one above zero")


def weights(count: int, skew: float) -> list[float]:
    """The share of each of ``count`` tenants, busiest first; they sum to one."""
    raw = [1.0 / (rank**skew) for rank in range(1, count + 1)]
    total = sum(raw)
    return [w / total for w in raw]


def schedule(traffic: Traffic) -> tuple[Intent, ...]:
    """Every request of the run in the order of its time.

    Each tenant has a generator of its own: a tenant's arrivals do not change when another tenant is added behind it
    with the rates held equal.
    """
    kinds, shares = list(traffic.mix), list(traffic.mix.values())
    arrivals: list[tuple[float, int, Kind, float]] = []
    for tenant, weight in enumerate(weights(traffic.tenants, traffic.skew)):
        rng = random.Random(f"{traffic.seed}/{tenant}")  # text seeds are hashed the same in every process
        at = rng.expovariate(traffic.rate * weight)
        while at < traffic.seconds:
            arrivals.append((at, tenant, rng.choices(kinds, shares)[0], rng.random()))
            at += rng.expovariate(traffic.rate * weight)
    arrivals.sort(key=lambda a: a[:2])
    return tuple(Intent(number, *arrival) for number, arrival in enumerate(arrivals))


def beside(intents: Sequence[Intent], *, number: int, at: float, tenant: int) -> tuple[Intent, ...]:
    """The same requests for tenants that come while others run: numbered, timed and named from these on."""
    return tuple(
        replace(each, number=each.number + number, at=each.at + at, tenant=each.tenant + tenant) for each in intents
    )
