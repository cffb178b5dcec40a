"""The open-loop schedule: every request's time, tenant and kind, fixed before the first one is sent. Pure.

Arrivals are Poisson per tenant; tenants weigh like Zipf's law, so the first is the busiest by far. The schedule is a
function of its arguments: the same seed gives the same schedule, byte for byte. Nothing in it depends on how the
system under test answers; that is what keeps a slow system from slowing the measurement down with it.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Kind(StrEnum):
    """What a request does. Those of `WRITES` create one order each, under an Idempotency-Key."""

    CREATE = "order create"
    READ = "order read"
    LIST = "order list"
    PRODUCT = "product read"
    # What aggressors do besides.
    BIG_LIST = "order list of 200"
    BIG_ORDER = "order of 100 lines"
    BIG_BODY = "order in a big body"
    SUMMARY = "report summary"
    REPORT = "report"
    UNKNOWN_HOST = "unknown host"
    BAD_KEY = "wrong API key"
    SLOW = "slow request"  # a body that trickles in: see `loadtest.lab.hogs`
    HELD = "held connection"


WRITES = frozenset({Kind.CREATE, Kind.BIG_ORDER, Kind.BIG_BODY})


_COUNT_BITS = 32

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


@dataclass(frozen=True, slots=True)
class Stream:
    """One tenant's arrivals from ``begin`` to ``end``: Poisson with ``rate`` a second.

    ``number`` is the tenant's in the whole run, and seeds the stream: it stays the same however tenants are shared out
    among processes. ``tenant`` is its place among the accounts of the process that sends it.
    A tenant has one stream in a schedule.
    """

    number: int
    tenant: int
    rate: float
    begin: float
    end: float
    mix: Mapping[Kind, float]


def arrivals(streams: Iterable[Stream], seed: int) -> tuple[Intent, ...]:
    """Every request of the streams in the order of its time; their numbers are unique over all streams of the run."""
    found: list[tuple[float, int, int, Kind, float]] = []
    for stream in streams:
        kinds, shares = list(stream.mix), list(stream.mix.values())
        rng = random.Random(f"{seed}/{stream.number}")  # text seeds are hashed the same everywhere
        at = stream.begin + rng.expovariate(stream.rate)
        count = 0
        while at < stream.end:
            unique = (stream.number << _COUNT_BITS) + count
            found.append((at, unique, stream.tenant, rng.choices(kinds, shares)[0], rng.random()))
            at += rng.expovariate(stream.rate)
            count += 1
    found.sort(key=lambda each: each[:2])
    return tuple(Intent(unique, at, tenant, kind, draw) for at, unique, tenant, kind, draw in found)


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
