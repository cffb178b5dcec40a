"""Many floods at once ask for more than there is: who asks for little waits for what is at work, and no queue."""

from random import Random

from cell.fairness.levels import Level
from cell.fairness.station import Station
from cell.fairness.wall import Config
from tests.unit.cell.fairness.simulation import Arrival, simulate

SEATS = 2  # of a cell with four connections to a shard
HEAVY_S = 0.012
LIGHT_S = 0.004
SECONDS = 20.0


def arrivals(tenants: range, rate: float, work_s: float, chance: Random) -> list[Arrival]:
    found = []
    for tenant in tenants:
        at = chance.expovariate(rate)
        while at < SECONDS:
            found.append(Arrival(at, tenant, work_s))
            at += chance.expovariate(rate)
    return found


def waits_beside(floods: int) -> list[float]:
    """How long light tenants wait for a seat, in order; none of them may be refused."""
    size = Config.fit(4).sizes[Level.INTERACTIVE]
    assert (size.least, size.most) == (SEATS, SEATS)
    chance = Random(7)
    light, heavy = range(1, 21), range(100, 100 + floods)
    asked = [*arrivals(light, 2.0, LIGHT_S, chance), *arrivals(heavy, 20.0, HEAVY_S, chance)]
    outcome = simulate(Station(size, 7, 0.0), asked, patience_s=15.0)
    assert not any(outcome.refused[tenant] for tenant in light)
    assert bool(floods > 8) == any(outcome.refused[tenant] for tenant in heavy)
    return sorted(wait for tenant in light for wait in outcome.waits[tenant])


def test_sixteen_floods_would_have_light_tenants_wait_for_more_than_what_is_at_work() -> None:
    waits = waits_beside(16)
    assert waits[int(len(waits) * 0.99)] <= SEATS * HEAVY_S


def test_light_tenants_would_wait_longer_beside_more_floods() -> None:
    few, many = waits_beside(4), waits_beside(16)
    assert many[int(len(many) * 0.99)] <= few[int(len(few) * 0.99)] + HEAVY_S
