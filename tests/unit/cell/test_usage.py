"""The cell's window: complete, in order, and late rather than lost."""

from typing import Any

from prometheus_client import CollectorRegistry
from redis.exceptions import ConnectionError as RedisConnectionError

from cell.apportion import Parts
from cell.fairness.cost import Cost
from cell.metering import Line, Measures, Meter, merged
from cell.usage import NEIGHBOURS, Publisher, window_of
from cell.usage_metrics import TOP, UsageMetrics
from contracts.usage import Window


class FakeExchange:
    """Takes what is published, unless it is away."""

    def __init__(self) -> None:
        self.away = False
        self.taken: list[Measures] = []

    async def publish(self, measures: Measures) -> None:
        if self.away:
            raise RedisConnectionError("away")
        self.taken.append(measures)


def parts(**tenants: float) -> dict[str, Parts]:
    spent = {int(name.removeprefix("t")): seconds for name, seconds in tenants.items()}
    return {"shard-1": Parts(sum(spent.values()) + 0.3, spent, 0.1, 0.2)}


def window(lines: dict[int, Line], spent: dict[str, Parts]) -> Window:
    return window_of("cell-1", lines, spent, processes=("api",), began=0.0, seconds=5.0)


async def test_what_redis_does_not_take_is_told_later_and_once() -> None:
    meter, exchange = Meter("api"), FakeExchange()
    away: Any = exchange
    publisher = Publisher(meter, away)
    exchange.away = True
    for _ in range(3):
        meter.finished(7, Cost(bytes_in=10), 0.01)
        meter.spent(7, "shard-1", 0.5)
        assert not await publisher.publish()
    exchange.away = False
    assert await publisher.publish()
    assert await publisher.publish()
    lines, _ = merged(exchange.taken)
    assert (lines[7].requests, lines[7].bytes_in, lines[7].database_s) == (3, 30, {"shard-1": 1.5})


def test_the_costliest_come_first_and_work_without_a_request_has_a_line_too() -> None:
    made = window({1: Line(requests=5), 2: Line(requests=1)}, parts(t2=0.5, t3=1.0))
    assert [line.tenant for line in made.tenants] == ["t3", "t2", "t1"]
    assert [line.database_ms for line in made.tenants] == [1000.0, 500.0, 0.0]
    assert (made.requests, made.shards[0].active_ms, made.shards[0].other_ms) == (6, 1800.0, 200.0)


def test_a_busy_tenant_is_watched_even_if_its_requests_cost_the_database_nothing() -> None:
    lines = {n: Line(requests=n, latencies={100: n}) for n in range(1, 100)}
    made = window(lines, parts(**{f"t{n}": 1.0 for n in range(1, 50)}))
    watched = {line.tenant for line in made.tenants if line.others_requests}
    assert "t99" in watched
    assert len(watched) <= 2 * NEIGHBOURS
    (line,) = (line for line in made.tenants if line.tenant == "t99")
    assert line.others_requests == sum(range(1, 99))


def samples(registry: CollectorRegistry, name: str) -> dict[str, float]:
    found = (s for metric in registry.collect() for s in metric.samples if s.name == name)
    return {s.labels.get("tenant") or s.labels.get("part") or s.labels["direction"]: s.value for s in found}


def test_a_tenant_that_leaves_the_top_loses_its_series_and_no_more_are_made() -> None:
    registry = CollectorRegistry()
    metrics = UsageMetrics("cell-1", registry)
    metrics.show(window({}, parts(**{f"t{n}": float(n) for n in range(1, 31)})))
    assert len(samples(registry, "cellwall_cell_top_tenant_database_seconds")) == TOP
    metrics.show(window({5: Line(bytes_in=3, bytes_out=4)}, parts(t1=5.0)))
    assert samples(registry, "cellwall_cell_top_tenant_database_seconds") == {"t1": 1.0, "t5": 0.0}
    assert samples(registry, "cellwall_cell_body_bytes_total") == {"in": 3.0, "out": 4.0}
    assert samples(registry, "cellwall_cell_database_seconds_total")["tenants"] == sum(range(1, 31)) + 5.0
