"""Every request is counted where it belongs, and no counter outlives its window."""

import pytest

from cell.fairness.cost import Cost
from cell.metering import BUCKETS, Line, Meter, bucket_of, merged, percentile_ms
from cell.shards.session import NO_TENANT


def test_requests_bytes_and_refusals_are_counted_exactly_for_every_tenant() -> None:
    meter = Meter("api")
    for tenant in range(1, 1001):
        for _ in range(tenant % 5 + 1):
            meter.finished(tenant, Cost(seat_s=0.5, queued_s=0.25, bytes_in=10, bytes_out=tenant), 0.01)
    meter.finished(7, Cost(rejected="overloaded"), 0.0)
    taken = meter.take()
    assert len(taken.tenants) == 1000
    line = taken.tenants[7]
    assert (line.requests, line.bytes_in, line.bytes_out) == (4, 30, 21)
    assert (line.seat_s, line.queued_s, line.refused) == (1.5, 0.75, {"overloaded": 1})
    assert sum(line.latencies.values()) == 3, "a refusal is no latency of a served request"


def test_a_window_begins_with_nothing_of_the_one_before() -> None:
    meter = Meter("api")
    meter.finished(1, Cost(), 0.01)
    meter.spent(1, "shard-1", 0.1)
    meter.platform("shard-1", 0.1)
    meter.take()
    second = meter.take()
    assert (second.tenants, second.platform_s) == ({}, {})


def test_what_is_under_no_tenant_has_no_tenants_line() -> None:
    meter = Meter("worker")
    meter.spent(NO_TENANT, "shard-1", 0.5)
    taken = meter.take()
    assert (taken.tenants, taken.platform_s) == ({}, {"shard-1": 0.5})


def test_two_tenants_never_share_a_counter() -> None:
    meter = Meter("api")
    meter.spent(1, "shard-1", 0.1)
    meter.finished(1, Cost(rejected="frozen"), 0.0)
    meter.finished(2, Cost(), 0.01)
    lines = meter.take().tenants
    assert (lines[2].database_s, lines[2].refused, lines[1].latencies) == ({}, {}, {})


def test_what_several_processes_measured_adds_up() -> None:
    api, worker = Meter("api"), Meter("worker")
    for meter in (api, worker):
        meter.spent(1, "shard-1", 0.5)
        meter.platform("shard-2", 0.25)
    api.finished(1, Cost(bytes_in=3, rejected="frozen"), 0.0)
    worker.spent(2, "shard-2", 1.0)
    lines, platform = merged([api.take(), worker.take()])
    assert lines[1] == Line(requests=1, bytes_in=3, refused={"frozen": 1}, database_s={"shard-1": 1.0})
    assert (lines[2].database_s, platform) == ({"shard-2": 1.0}, {"shard-2": 0.5})


@pytest.mark.parametrize("seconds", [0.0001, 0.0037, 0.05, 0.9, 12.0])
def test_a_percentile_is_within_five_percent_of_the_latency(seconds: float) -> None:
    assert percentile_ms({bucket_of(seconds): 10}, 0.99) == pytest.approx(seconds * 1000, rel=0.05)


def test_latencies_beyond_the_scale_stay_on_it() -> None:
    assert bucket_of(0.0) == 0
    assert bucket_of(1e9) == BUCKETS - 1


def test_the_neighbours_latency_leaves_the_tenant_itself_out() -> None:
    fast, slow = bucket_of(0.005), bucket_of(5.0)
    everybody, own = {fast: 100, slow: 50}, {slow: 50}
    assert percentile_ms(everybody, 0.99) > 4000
    assert percentile_ms(everybody, 0.99, own) == pytest.approx(5, rel=0.05)
    assert percentile_ms(own, 0.99, own) == 0.0
