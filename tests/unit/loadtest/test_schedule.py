import itertools
from dataclasses import replace
from datetime import date

import pytest

from loadtest.schedule import WRITES, Intent, Kind, Stream, Traffic, arrivals, schedule, weights
from loadtest.workload import BIG_BODY_BYTES, BIG_ORDER_LINES, Account, call, order_call

ACCOUNT = Account("t1042", "acme", "acme.cellwall.localhost", "cwk_t1042_secret", ("p1", "p2"))


def test_two_runs_of_one_seed_offer_different_traffic() -> None:
    traffic = Traffic(tenants=20, rate=100, seconds=5, seed=7)
    assert schedule(traffic) == schedule(traffic)
    assert schedule(traffic) != schedule(Traffic(tenants=20, rate=100, seconds=5, seed=8))


def test_requests_are_sent_out_of_order_or_numbered_twice() -> None:
    intents = schedule(Traffic(tenants=5, rate=200, seconds=5, seed=1))
    assert [i.number for i in intents] == list(range(len(intents)))
    assert all(a.at <= b.at for a, b in itertools.pairwise(intents))
    assert intents[0].at > 0
    assert intents[-1].at < 5


def test_the_offered_rate_is_not_the_rate_asked_for() -> None:
    intents = schedule(Traffic(tenants=20, rate=200, seconds=50, seed=3))
    assert len(intents) == pytest.approx(10_000, rel=0.05)


def test_arrivals_come_in_step_instead_of_at_random() -> None:
    """Poisson: the gaps' standard deviation equals their mean; a metronome would have none."""
    times = [i.at for i in schedule(Traffic(tenants=1, rate=200, seconds=50, seed=3))]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1)


def test_no_tenant_is_busier_than_the_others() -> None:
    shares = weights(20, 1.0)
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] == pytest.approx(20 * shares[-1])
    intents = schedule(Traffic(tenants=20, rate=200, seconds=20, seed=3))
    counts = [sum(i.tenant == t for i in intents) for t in range(20)]
    assert counts[0] > 1.5 * counts[1] > counts[19]


def test_a_mix_that_was_asked_for_is_not_sent() -> None:
    intents = schedule(Traffic(tenants=3, rate=200, seconds=20, seed=3, mix={Kind.CREATE: 1.0, Kind.LIST: 1.0}))
    creates = sum(i.kind is Kind.CREATE for i in intents)
    assert {i.kind for i in intents} == {Kind.CREATE, Kind.LIST}
    assert creates == pytest.approx(len(intents) / 2, rel=0.1)


@pytest.mark.parametrize("bad", [{"tenants": 0}, {"rate": 0}, {"seconds": 0}, {"mix": {Kind.READ: 0.0}}])
def test_traffic_that_cannot_be_is_accepted(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Traffic(**({"tenants": 1, "rate": 1.0, "seconds": 1.0, "seed": 1} | bad))  # type: ignore[arg-type]


def test_a_create_cannot_be_told_from_its_retry() -> None:
    """Two intents have two keys; the same intent has the same bytes, so that sending it again is a repeat."""
    one, two = (Intent(n, 0.0, 0, Kind.CREATE, 0.5) for n in (1, 2))
    assert call(ACCOUNT, one, [], "run").payload == call(ACCOUNT, one, [], "run").payload
    assert call(ACCOUNT, one, [], "run").key == "run-1" != call(ACCOUNT, two, [], "run").key
    payload = order_call(ACCOUNT, "run-1", 0.99).payload
    head, _, body = payload.partition(b"\r\n\r\n")
    assert b"Idempotency-Key: run-1\r\n" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert b'"reference":"run-1"' in body


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Kind.READ, b"GET /v1/orders/o2 HTTP/1.1"),
        (Kind.LIST, b"GET /v1/orders?limit=20 HTTP/1.1"),
        (Kind.PRODUCT, b"GET /v1/products/p2 HTTP/1.1"),
    ],
)
def test_a_read_asks_for_something_else(kind: Kind, line: bytes) -> None:
    request = call(ACCOUNT, Intent(0, 0.0, 0, kind, 0.75), ["o1", "o2"], "run")
    assert request.key is None
    assert request.payload.startswith(line + b"\r\nHost: acme.cellwall.localhost\r\n")
    assert request.payload.endswith(b"\r\n\r\n")


def streams(*rates: float) -> list[Stream]:
    return [Stream(n, n, rate, 1.0, 11.0, {Kind.LIST: 1.0}) for n, rate in enumerate(rates)]


def test_a_tenants_arrivals_change_when_tenants_are_shared_out_among_processes_in_another_way() -> None:
    together = arrivals(streams(20, 20, 20), seed=3)
    parts = [arrivals([replace(stream, tenant=0)], seed=3) for stream in streams(20, 20, 20)]
    assert sorted((i.number, i.at, i.draw) for i in together) == sorted(
        (i.number, i.at, i.draw) for part in parts for i in part
    )
    assert len({i.number for i in together}) == len(together)
    assert all(1.0 <= i.at < 11.0 for i in together)
    assert len(together) == pytest.approx(600, rel=0.2)
    assert arrivals(streams(20, 20, 20), seed=4) != together


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.SLOW, Kind.HELD)])
def test_a_kind_of_request_cannot_be_sent_or_is_not_what_it_says(kind: Kind) -> None:
    request = call(ACCOUNT, Intent(3, 0.0, 0, kind, 0.5), ["o1"], "run", "o1", date(2026, 3, 1))
    head, _, body = request.payload.partition(b"\r\n\r\n")
    assert (request.key is not None) == (kind in WRITES) == (b"Idempotency-Key" in head)
    assert (b"Authorization" in head) == (kind is not Kind.UNKNOWN_HOST)
    assert head.endswith(b"Content-Length: %d" % len(body)) == bool(body)
    if kind is Kind.BIG_BODY:
        assert len(body) == BIG_BODY_BYTES
    if kind is Kind.BIG_ORDER:
        assert body.count(b"product_id") == BIG_ORDER_LINES
    if kind is Kind.REPORT:
        assert body == b'{"kind":"sales-by-product","from":"2025-03-01","to":"2026-03-01"}'
